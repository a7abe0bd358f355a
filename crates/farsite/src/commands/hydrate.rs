//! `farsite hydrate [GROUP]`: brings the copies that the standby agent keeps beside the places to the newest whole point,
//! now. What the agent does all the time, once and in sight: before a planned failover, or where no agent runs.

use std::sync::Arc;

use farsite_model::config::Config;
use farsite_model::nearest::did_you_mean;
use farsite_model::{GroupName, PointId, PromotionId};
use farsite_promote::place::Targets;
use farsite_replicate::connect;
use farsite_replicate::hydrate::{self, How, Hydrated, Place};
use farsite_replicate::restore::Guard;
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED, Failure};
use crate::output::Tone;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// This group only; all that have places at this site where none is given.
    pub group: Option<GroupName>,
}

/// One group as `--json` shows it.
#[derive(Debug, Serialize)]
struct Done {
    group: GroupName,
    /// The point that all copies are of now.
    #[serde(skip_serializing_if = "Option::is_none")]
    point: Option<PointId>,
    items: Vec<Copied>,
}

#[derive(Debug, Serialize)]
struct Copied {
    item: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<&'static str>,
    written_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let known: Vec<&GroupName> = config.places.keys().collect();
    let groups: Vec<GroupName> = match &args.group {
        None => known.into_iter().cloned().collect(),
        Some(name) if known.contains(&name) => vec![name.clone()],
        Some(name) => {
            let near = did_you_mean(name.as_str(), known.iter().map(|group| group.as_str()));
            return Err(Failure::usage(format!("no group {name} has places at this site{near}"))
                .hint("fill in `places:` in this host's configuration"));
        }
    };
    if groups.is_empty() {
        return Err(Failure::usage("no group has places at this site")
            .hint("fill in `places:` in this host's configuration"));
    }
    let store = connect::store(&config, &config.site).await?;
    let reader = connect::reader(&config, &config.site, &store).await?;
    let cancel = context.cancel.clone();
    let guard: Guard = Arc::new(move || {
        if cancel.is_cancelled() {
            return Err(std::io::Error::new(std::io::ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    });
    let (mut all, mut worst) = (Vec::new(), DONE);
    for group in groups {
        let hydrated = hydrate::hydrate_group(&config, &store, &reader, &group, &place(), None, &guard).await;
        if context.cancel.is_cancelled() {
            return Err(Failure::interrupted(
                "interrupted; a copy that was being changed is known to be half-way, and the next run puts it right",
            ));
        }
        let hydrated = hydrated?;
        if !hydrated.failed.is_empty() {
            worst = FAILED;
        }
        let done = done(group, hydrated);
        show(&done, context);
        all.push(done);
    }
    if context.out.json {
        context.out.json(&all);
    }
    Ok(worst)
}

/// Where a promotion would put an item.
pub fn place() -> Place {
    Arc::new(|config: &Config, group, manifest, item| {
        // No promotion yet: the places of the configuration do not depend on which one it will be.
        let targets = Targets::real(config, group, PromotionId::from_random(0)).map_err(|e| e.to_string())?;
        targets.item(manifest, item)
    })
}

fn done(group: GroupName, hydrated: Hydrated) -> Done {
    let applied = hydrated.items.into_iter().map(|(item, applied)| Copied {
        item: item.to_string(),
        how: Some(match applied.how {
            How::Already => "already",
            How::Anew => "anew",
            How::ByMaps => "difference",
            How::ByContents => "compared",
        }),
        written_bytes: applied.written_bytes,
        error: None,
    });
    let failed = hydrated.failed.into_iter().map(|(item, why)| Copied {
        item: item.to_string(),
        how: None,
        written_bytes: 0,
        error: Some(why),
    });
    Done { group, point: hydrated.point, items: applied.chain(failed).collect() }
}

fn show(done: &Done, context: &Context) {
    let out = &context.out;
    for item in &done.items {
        match (&item.error, item.how) {
            (Some(why), _) => out.error(&format!("{} of {}: not hydrated: {why}", item.item, done.group)),
            (None, how) => out.say(format!(
                "  {} of {}: {}, {} written",
                item.item,
                done.group,
                how.unwrap_or_default(),
                farsite_model::quantity::ByteSize(item.written_bytes)
            )),
        }
    }
    match done.point {
        Some(point) => {
            out.say(format!("{} {} is hydrated with point {point}", out.paint(Tone::Good, "✓"), done.group));
        }
        None if done.items.is_empty() => {
            out.say(format!("{}: there is nothing to hydrate here", done.group));
        }
        None => {}
    }
}
