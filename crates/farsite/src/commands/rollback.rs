//! `farsite rollback [PROMOTION]`: every step is undone, last first, and the old site is primary again.

use std::sync::Arc;

use farsite_promote::accept::{self, Rollback};
use farsite_promote::drive::Driving;
use farsite_promote::driver::this_driver;
use farsite_promote::people::Nobody;
use farsite_runbook::engine::{Always, Decision};

use crate::commands::Ended;
use crate::context::{Context, who};
use crate::failure::DONE;
use crate::output::Tone;
use crate::promotions::{self, Which};
use crate::watch::Steps;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The start of its id; the open or newest one where none is given.
    pub promotion: Option<String>,
    /// Why; stands in the record.
    #[arg(long, default_value = "rolled back by hand")]
    pub reason: String,
    /// Give the primary back even though a step cannot be undone; the record says so.
    #[arg(long)]
    pub despite_failed_undo: bool,
    /// No other driver of this promotion lives: do not wait for its deadline.
    #[arg(long)]
    pub others_are_dead: bool,
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    pub store: Option<farsite_model::SiteName>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let standby = promotions::standby(&config, args.store.as_ref()).await?;
    let id = promotions::one(&standby, Which::Promotions, args.promotion.as_deref()).await?;
    let signer = promotions::operator(&config)?;
    let promotion = accept::find(&standby, id).await?;
    context.confirm(&format!(
        "Undo promotion {}? What was written at {} since is moved aside, and {} is primary again.",
        id.short(),
        promotion.to,
        promotion.from
    ))?;
    accept::rollback(
        &standby,
        &signer,
        id,
        &how(&args.reason, args.despite_failed_undo, args.others_are_dead, context),
    )
    .await?;
    if context.out.json {
        context
            .out
            .json(&serde_json::json!({ "promotion": id, "rolled_back": true, "primary": promotion.from }));
    } else {
        context.out.line(format!(
            "{} promotion {id} is rolled back; {} is primary again, and its agents may replicate",
            context.out.paint(Tone::Good, "✓"),
            promotion.from
        ));
    }
    Ok(DONE)
}

/// A rollback asks nobody: what cannot be undone stops it, or is said to be left.
pub fn how(reason: &str, despite_failed_undo: bool, others_are_dead: bool, context: &Context) -> Rollback {
    Rollback {
        driving: Driving {
            driver: this_driver(),
            others_are_dead,
            decider: Arc::new(Always(Decision::Stop)),
            people: Arc::new(Nobody),
            watch: Arc::new(Steps::new(context.out)),
            cancel: context.cancel.clone(),
        },
        who: who(),
        reason: reason.to_owned(),
        despite_failed_undo,
    }
}
