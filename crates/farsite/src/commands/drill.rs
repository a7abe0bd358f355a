//! `farsite drill run|list|show|report|cleanup`: the standby is promoted into an isolated place, checked, measured and
//! removed again, while replication goes on.

use std::path::PathBuf;
use std::sync::Arc;

use farsite_model::Level;
use farsite_promote::choose::PointChoice;
use farsite_promote::drill::{self, DrillEnded, DrillOptions};
use farsite_promote::drive::Driving;
use farsite_promote::driver::this_driver;
use farsite_promote::people::Nobody;
use farsite_promote::{Standby, new_promotion_id};
use farsite_replicate::connect;
use farsite_runbook::engine::{Always, Decision};
use farsite_store::keys::Signer;
use jiff::Timestamp;

use crate::commands::Ended;
use crate::commands::failover::level;
use crate::commands::promotion::{At, Named, show, show_list};
use crate::commands::report::{self, Format};
use crate::context::{Context, who};
use crate::failure::{DONE, FAILED, Failure, TARGET_MISSED};
use crate::output::{Tone, seconds};
use crate::promotions::{self, Which};
use crate::stores;
use crate::watch::Steps;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Prove that the standby can be promoted.
    Run {
        /// The group; the only one of the store where none is given.
        group: Option<String>,
        /// What the group's policy promises where it is not given.
        #[arg(long, value_name = "LEVEL", value_parser = level)]
        level: Option<Level>,
        /// `latest`, `latest-log`, `latest-proven`, a time, or the start of a point's id.
        #[arg(long, default_value = "latest")]
        point: String,
        /// A runbook's file or name; the level's own where none is given.
        #[arg(long, value_name = "FILE")]
        runbook: Option<PathBuf>,
        /// Drill although replication lags far behind.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        at: At,
    },
    /// All drills, newest first.
    List(At),
    /// One drill, step by step.
    Show(Named),
    /// The report, made anew from the record in the store.
    Report {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        format: Format,
    },
    /// Remove what a drill that was cut off has left.
    Cleanup {
        #[command(flatten)]
        named: Named,
        /// Remove its folder although a step cannot be undone.
        #[arg(long)]
        force: bool,
    },
}

pub async fn run(action: Action, context: &Context) -> Ended {
    let config = context.config()?;
    let at = match &action {
        Action::Run { at, .. } | Action::List(at) => at,
        Action::Show(named) | Action::Report { named, .. } | Action::Cleanup { named, .. } => &named.at,
    };
    let standby = promotions::standby(&config, at.store.as_ref()).await?;
    match action {
        Action::Run { group, level, point, runbook, force, .. } => {
            let group = stores::group(&standby.store, group.as_deref()).await?;
            let options = DrillOptions {
                promotion: new_promotion_id(),
                point: PointChoice::parse(&point, Timestamp::now()).map_err(Failure::usage)?,
                runbook,
                forced: force,
                who: who(),
                driving: driving(context),
            };
            let signer = signer(&standby)?;
            context.out.say(format!("Drill {} of group {group} at {}.", options.promotion, standby.site));
            let ended = drill::drill(&standby, &signer, &group, level, &options).await?;
            said(&standby, &ended, context).await
        }
        Action::List(_) => {
            show_list(&promotions::all(&standby, Which::Drills).await?, context);
            Ok(DONE)
        }
        Action::Show(named) => {
            let id = promotions::one(&standby, Which::Drills, named.id.as_deref()).await?;
            show(&standby, id, context).await?;
            Ok(DONE)
        }
        Action::Report { named, format } => {
            let id = promotions::one(&standby, Which::Drills, named.id.as_deref()).await?;
            report::give(&standby, id, &format, context).await
        }
        Action::Cleanup { named, force } => {
            let id = promotions::one(&standby, Which::Drills, named.id.as_deref()).await?;
            let signer = signer(&standby)?;
            let left = drill::cleanup(&standby, &signer, id, force, &driving(context)).await?;
            if context.out.json {
                context.out.json(&serde_json::json!({ "drill": id, "left": left }));
            } else if left.is_empty() {
                context
                    .out
                    .line(format!("{} nothing of drill {id} is left", context.out.paint(Tone::Good, "✓")));
            } else {
                for what in &left {
                    context.out.line(format!("{} {what}", context.out.paint(Tone::Bad, "✗")));
                }
            }
            Ok(if left.is_empty() { DONE } else { FAILED })
        }
    }
}

/// The operator's key where this host has it, else the standby agent's: both may say that a point is proven.
fn signer(standby: &Standby) -> Result<Arc<Signer>, Failure> {
    let config = &standby.config;
    let signer = if config.keys.operator.is_some() {
        connect::operator(config)
    } else {
        connect::standby_agent(config)
    };
    Ok(Arc::new(signer?))
}

fn driving(context: &Context) -> Driving {
    Driving {
        driver: this_driver(),
        others_are_dead: false,
        decider: Arc::new(Always(Decision::Stop)),
        people: Arc::new(Nobody),
        watch: Arc::new(Steps::new(context.out)),
        cancel: context.cancel.clone(),
    }
}

async fn said(standby: &Standby, ended: &DrillEnded, context: &Context) -> Ended {
    let made = report::write(standby, ended.promotion).await?;
    let out = context.out;
    if out.json {
        let mut json = made.as_json()?;
        json["passed"] = ended.passed.into();
        json["reasons"] = serde_json::json!(ended.reasons);
        out.json(&json);
    } else {
        let rto = ended.rto_s.map_or_else(|| "not measured".to_owned(), seconds);
        let rpo = ended.rpo_s.map_or_else(|| "not known".to_owned(), seconds);
        if ended.passed {
            out.line(format!("{} drill {} passed", out.paint(Tone::Good, "✓"), ended.promotion));
        } else {
            out.line(format!("{} drill {} FAILED", out.paint(Tone::Bad, "✗"), ended.promotion));
            for reason in &ended.reasons {
                out.line(format!("    {}", reason.replace('\n', "\n    ")));
            }
        }
        out.line(format!("  RTO {rto}; a failover at its beginning would have lost up to {rpo}"));
        report::summary(&made.report, context);
        out.line(format!("Report: {}", made.html.display()));
    }
    Ok(code(ended))
}

/// A drill that only was too slow is done, and missed its target.
fn code(ended: &DrillEnded) -> u8 {
    if ended.passed {
        DONE
    } else if ended.reasons.iter().all(|reason| reason.contains("misses its target")) {
        TARGET_MISSED
    } else {
        FAILED
    }
}
