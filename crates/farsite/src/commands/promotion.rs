//! `farsite promotion list|show|confirm|skip|cancel|report`: promotions, as their journals in the store tell.

use farsite_model::{GroupName, PromotionId, SiteName};
use farsite_promote::list::{self, Summary};
use farsite_promote::report::Report;
use farsite_promote::{Standby, accept};
use farsite_runbook::journal::StepStatus;

use crate::commands::report::{self, Format};
use crate::commands::{Ended, rollback};
use crate::context::{Context, who};
use crate::failure::{DONE, Failure};
use crate::output::Tone;
use crate::promotions::{self, Which};

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// All promotions, newest first.
    List(At),
    /// One promotion, step by step.
    Show(Named),
    /// Answer the gate of a step: what a named person confirms.
    Confirm {
        #[command(flatten)]
        named: Named,
        /// The step that waits.
        #[arg(long)]
        step: String,
        /// The answer is no.
        #[arg(long)]
        no: bool,
        /// In this group only.
        #[arg(long)]
        group: Option<GroupName>,
    },
    /// Go on without a step.
    Skip {
        #[command(flatten)]
        named: Named,
        #[arg(long)]
        step: String,
        /// Why; stands in the record.
        #[arg(long)]
        reason: String,
        #[arg(long)]
        group: Option<GroupName>,
    },
    /// Ask whoever drives it to stop, then undo what was done.
    Cancel {
        #[command(flatten)]
        named: Named,
        /// Why; stands in the record.
        #[arg(long)]
        reason: String,
        /// Give the primary back even though a step cannot be undone; the record says so.
        #[arg(long)]
        despite_failed_undo: bool,
        /// No other driver of this promotion lives: do not wait for the end of its step's time. Your word counts.
        #[arg(long)]
        others_are_dead: bool,
    },
    /// The report, made anew from the record in the store.
    Report {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
pub struct At {
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    pub store: Option<SiteName>,
}

#[derive(Debug, clap::Args)]
pub struct Named {
    /// The start of its id; the open or newest one where none is given.
    pub id: Option<String>,
    #[command(flatten)]
    pub at: At,
}

pub async fn run(action: Action, context: &Context) -> Ended {
    let config = context.config()?;
    let at = match &action {
        Action::List(at) => at,
        Action::Show(named)
        | Action::Confirm { named, .. }
        | Action::Skip { named, .. }
        | Action::Cancel { named, .. }
        | Action::Report { named, .. } => &named.at,
    };
    let standby = promotions::standby(&config, at.store.as_ref()).await?;
    let out = context.out;
    match action {
        Action::List(_) => {
            let found = promotions::all(&standby, Which::Promotions).await?;
            show_list(&found, context);
            Ok(DONE)
        }
        Action::Show(named) => {
            let id = promotions::one(&standby, Which::Promotions, named.id.as_deref()).await?;
            show(&standby, id, context).await?;
            Ok(DONE)
        }
        Action::Confirm { named, step, no, group } => {
            let id = promotions::one(&standby, Which::Promotions, named.id.as_deref()).await?;
            let signer = promotions::operator(&config)?;
            accept::confirm(&standby, &signer, id, group.as_ref(), &step, !no, &who()).await?;
            if out.json {
                out.json(&serde_json::json!({ "promotion": id, "step": step, "answer": !no }));
            } else {
                let answer = if no { "no" } else { "yes" };
                out.line(format!("{} {step}: {answer} is in the record", out.paint(Tone::Good, "✓")));
                out.line("  `farsite failover --resume` goes on where nobody is waiting for it.");
            }
            Ok(DONE)
        }
        Action::Skip { named, step, reason, group } => {
            let id = promotions::one(&standby, Which::Promotions, named.id.as_deref()).await?;
            let signer = promotions::operator(&config)?;
            context.confirm(&format!("Go on without step {step} of promotion {}?", id.short()))?;
            accept::skip(&standby, &signer, id, group.as_ref(), &step, &who(), &reason).await?;
            if out.json {
                out.json(&serde_json::json!({ "promotion": id, "step": step, "skipped": true }));
            } else {
                out.line(format!("{} {step} is skipped; the record says why", out.paint(Tone::Good, "✓")));
            }
            Ok(DONE)
        }
        Action::Cancel { named, reason, despite_failed_undo, others_are_dead } => {
            let id = promotions::one(&standby, Which::Promotions, named.id.as_deref()).await?;
            let signer = promotions::operator(&config)?;
            context.confirm(&format!("Cancel promotion {} and undo what it did?", id.short()))?;
            let how = rollback::how(&reason, despite_failed_undo, others_are_dead, context);
            accept::cancel(&standby, &signer, id, &how).await?;
            if out.json {
                out.json(&serde_json::json!({ "promotion": id, "cancelled": true }));
            } else {
                out.line(format!("{} promotion {id} is cancelled", out.paint(Tone::Good, "✓")));
            }
            Ok(DONE)
        }
        Action::Report { named, format } => {
            let id = promotions::one(&standby, Which::Promotions, named.id.as_deref()).await?;
            report::give(&standby, id, &format, context).await
        }
    }
}

/// One line each; drills are listed the same way.
pub fn show_list(found: &[Summary], context: &Context) {
    let out = context.out;
    if out.json {
        return out.json(&found);
    }
    if found.is_empty() {
        return out.line("None yet.");
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|one| {
            let groups: Vec<String> = one.groups.iter().map(|group| group.group.to_string()).collect();
            vec![
                one.promotion.short(),
                format!("{:.0}", one.begun.0),
                one.mode.to_string(),
                one.level.to_string(),
                one.runbook.clone(),
                groups.join(", "),
                one.result.clone(),
                one.who.clone(),
            ]
        })
        .collect();
    out.table(&["id", "begun", "mode", "level", "runbook", "groups", "result", "who"], &rows);
}

/// All steps, in the order of the runbook.
pub async fn show(standby: &Standby, id: PromotionId, context: &Context) -> Result<(), Failure> {
    let out = context.out;
    let mut summary = list::show(standby, id).await?;
    let report = Report::of(standby, id).await?;
    for group in &mut summary.groups {
        let planned = report.groups.iter().find(|planned| planned.group == group.group);
        let place =
            |id: &str| planned.and_then(|planned| planned.steps.iter().position(|step| step.id == id));
        group.steps.sort_by_key(|step| place(&step.id).unwrap_or(usize::MAX));
    }
    if out.json {
        out.json(&summary);
        return Ok(());
    }
    out.line(format!(
        "{} {} at level {} (runbook {}), begun {:.0} by {}: {}",
        out.paint(Tone::Strong, &summary.promotion.to_string()),
        summary.mode,
        summary.level,
        summary.runbook,
        summary.begun.0,
        summary.who,
        summary.result
    ));
    for group in &summary.groups {
        out.line(format!("group {}: {}", group.group, group.progression));
        for step in &group.steps {
            let (tone, mark) = match step.status {
                StepStatus::Completed => (Tone::Good, "✓"),
                StepStatus::Failed | StepStatus::TimedOut => (Tone::Bad, "✗"),
                StepStatus::Executing => (Tone::Dim, "▸"),
                StepStatus::Waiting => (Tone::Warn, "?"),
                StepStatus::NotStarted => (Tone::Dim, "·"),
                StepStatus::Skipped | StepStatus::Undone => (Tone::Dim, "-"),
            };
            let again =
                if step.attempts > 1 { format!(" ({} attempts)", step.attempts) } else { String::new() };
            let detail = step.detail.replace('\n', "\n      ");
            out.line(format!("  {} {:<24} {}{again}  {detail}", out.paint(tone, mark), step.id, step.status));
        }
    }
    Ok(())
}
