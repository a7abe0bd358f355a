//! `farsite coverage`: what exists at a site that no policy protects.

use std::sync::Arc;

use farsite_model::SiteName;
use farsite_model::quantity::ByteSize;
use farsite_openstack::SiteCloud;
use farsite_replicate::coverage::{Coverage, Tally, coverage};

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure, TARGET_MISSED};
use crate::output::Tone;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The site whose cloud is asked; this host's where it is not given.
    #[arg(long, value_name = "SITE")]
    pub site: Option<SiteName>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let site = args.site.unwrap_or_else(|| config.site.clone());
    config.site(&site).map_err(Failure::usage)?;
    let policies: Vec<_> = config.load_policies()?.into_iter().map(|(_, policy)| policy).collect();
    let cloud = Arc::new(SiteCloud::of(&config, &site));
    let found = coverage(&config, &policies, &site, &cloud).await?;
    if context.out.json {
        context.out.json(&found);
    } else {
        show(&found, context);
    }
    Ok(if found.unprotected.is_empty() { DONE } else { TARGET_MISSED })
}

fn show(found: &Coverage, context: &Context) {
    let out = context.out;
    out.line(out.paint(Tone::Strong, &format!("{}, cloud {}", found.site, found.cloud)));
    tally("images", found.images, context);
    tally("volumes", found.volumes, context);
    if !found.unprotected.is_empty() {
        out.line("");
        let rows: Vec<Vec<String>> = found
            .unprotected
            .iter()
            .map(|one| {
                vec![
                    one.kind.to_owned(),
                    one.name.clone().unwrap_or_default(),
                    one.id.clone(),
                    one.project.clone().unwrap_or_default(),
                    ByteSize(one.size_bytes).to_string(),
                    one.why.lines().next().unwrap_or_default().to_owned(),
                ]
            })
            .collect();
        out.table(&["unprotected", "name", "id", "project", "size", "why"], &rows);
    }
    if !(found.in_vain.is_empty() && found.notes.is_empty()) {
        out.line("");
    }
    let mark = out.paint(Tone::Warn, "!");
    for vain in &found.in_vain {
        out.line(format!("{mark} in vain: group {}, {}: {}", vain.group, vain.entry, vain.what));
    }
    for note in &found.notes {
        out.line(format!("{mark} {}", note.replace('\n', "\n  ")));
    }
}

fn tally(kind: &str, tally: Tally, context: &Context) {
    let out = context.out;
    let Tally { protected, unprotected, without_data, unprotected_bytes } = tally;
    let mut says = format!("{kind}: {protected} protected");
    if unprotected > 0 {
        says = format!("{says}, {unprotected} not ({})", ByteSize(unprotected_bytes));
    }
    if without_data > 0 {
        says = format!("{says}, {without_data} without data");
    }
    let (tone, mark) = if unprotected == 0 { (Tone::Good, "✓") } else { (Tone::Bad, "✗") };
    out.line(format!("  {} {says}", out.paint(tone, mark)));
}
