//! `farsite failover --site DEAD`: the standby of a lost site is promoted. The points are shown, the loss is said, one
//! question is asked; then the order goes into the store and the runbook runs, step by step, resumable anywhere.

mod preview;

use std::path::PathBuf;
use std::sync::Arc;

use farsite_model::config::Config;
use farsite_model::time::parse_moment;
use farsite_model::{GroupName, Level, SiteName};
use farsite_promote::choose::PointChoice;
use farsite_promote::drive::{self, Driving};
use farsite_promote::driver::this_driver;
use farsite_promote::failover::{self as promote, Promotion};
use farsite_promote::order::Order;
use farsite_promote::people::Nobody;
use farsite_promote::{Standby, dry_run, new_promotion_id};
use farsite_runbook::action::People;
use farsite_runbook::engine::{Always, Decider, Decision};
use jiff::Timestamp;

use crate::ask::{AtTerminal, DecideAtTerminal, somebody_is_there};
use crate::commands::{Ended, report};
use crate::context::{Context, who};
use crate::failure::{DONE, FAILED, Failure, TARGET_MISSED};
use crate::output::Tone;
use crate::promotions;
use crate::watch::Steps;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The site that is lost.
    #[arg(long, value_name = "DEAD")]
    pub site: SiteName,
    /// The site that takes over; this host's own where it has a store.
    #[arg(long, value_name = "SITE")]
    pub to: Option<SiteName>,
    /// These groups only; all of the site where none is given.
    #[arg(long = "group", value_name = "G")]
    pub groups: Vec<GroupName>,
    /// How much is promoted; what the groups' policies promise where it is not given.
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    pub level: Option<Level>,
    /// `latest`, `latest-log`, `latest-proven`, a time, or the start of a point's id.
    #[arg(long, default_value = "latest")]
    pub point: String,
    /// When disaster struck (ISO 8601, `20m ago`): narrows the range of the RPO achieved.
    #[arg(long, value_name = "TIME")]
    pub disaster_at: Option<String>,
    /// Nothing is lost, and the site still runs. Not in this version.
    #[arg(long)]
    pub planned: bool,
    /// Print the ordered plan with every precondition, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on with the open promotion of the site, from whichever machine.
    #[arg(long)]
    pub resume: bool,
    /// With --resume: no other driver of it lives; do not wait for its deadline.
    #[arg(long, requires = "resume")]
    pub others_are_dead: bool,
    /// Nothing of the site serves any more, on the operator's word.
    #[arg(long, requires = "reason")]
    pub assume_site_lost: bool,
    /// Why; stands in the record.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// How the site was kept from serving by hand, in words.
    #[arg(long, value_name = "TEXT")]
    pub fenced_by: Option<String>,
    /// A runbook's file or name; the level's own where none is given.
    #[arg(long, value_name = "FILE")]
    pub runbook: Option<PathBuf>,
    /// What a failed step means where its runbook asks.
    #[arg(long, value_enum, default_value = "ask")]
    pub on_failure: OnFailure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnFailure {
    /// Ask at the terminal; without one, stop.
    Ask,
    Stop,
    /// Go on without the step.
    Continue,
}

/// For clap: the three levels by name.
pub fn level(text: &str) -> Result<Level, String> {
    match text {
        "data" => Ok(Level::Data),
        "application" => Ok(Level::Application),
        "business" => Ok(Level::Business),
        other => {
            let near = farsite_model::nearest::did_you_mean(other, ["data", "application", "business"]);
            Err(format!("no level is called {other:?}{near}"))
        }
    }
}

pub async fn run(args: Args, context: &Context) -> Ended {
    if args.planned {
        return Err(Failure::usage("a planned failover is not in this version; nothing was changed")
            .hint("stop writing at the site, `farsite replicate` there, then fail over without --planned"));
    }
    let config = context.config()?;
    config.site(&args.site).map_err(Failure::usage)?;
    let standby = promotions::standby(&config, args.to.as_ref()).await?;
    if args.resume {
        let promotion = promote::open(&standby, &args.site).await?;
        return drive_on(&standby, &promotion, &args, context).await;
    }
    let order = order(&args, &config)?;
    if args.dry_run {
        let plan = dry_run::dry_run(&standby, &order).await?;
        preview::show_plan(&plan, context);
        return Ok(if plan.is_clear() { DONE } else { FAILED });
    }
    // Said before anything is asked: without it the answer could not be carried out.
    order.fencing()?;
    let signer = promotions::operator(&config)?;
    let preview = preview::Preview::of(&standby, &order).await?;
    preview.show(context);
    context.confirm(&preview.question(&standby.site, order.level))?;
    let order = Order { take_flawed: preview.is_flawed(), ..order };
    let promotion = promote::begin(&standby, &signer, &order).await?;
    drive_on(&standby, &promotion, &args, context).await
}

fn order(args: &Args, config: &Config) -> Result<Order, Failure> {
    let now = Timestamp::now();
    let disaster_at = match &args.disaster_at {
        None => None,
        Some(text) => Some(parse_moment(text, now).map_err(|error| Failure::usage(error.to_string()))?),
    };
    Ok(Order {
        promotion: new_promotion_id(),
        from: args.site.clone(),
        groups: args.groups.clone(),
        level: match args.level {
            Some(level) => level,
            None => promised_level(config, args)?,
        },
        point: PointChoice::parse(&args.point, now).map_err(Failure::usage)?,
        take_flawed: false,
        disaster_at,
        runbook: args.runbook.clone(),
        assume_site_lost: args.assume_site_lost,
        fenced_by: args.fenced_by.clone(),
        reason: args.reason.clone().unwrap_or_default(),
        who: who(),
    })
}

/// The highest level that a policy of the site promises.
fn promised_level(config: &Config, args: &Args) -> Result<Level, Failure> {
    let policies = config.load_policies()?;
    let of_site = policies.iter().map(|(_, policy)| policy).filter(|policy| {
        policy.site == args.site && (args.groups.is_empty() || args.groups.contains(&policy.group))
    });
    Ok(of_site.map(|policy| policy.level).max().unwrap_or(Level::Application))
}

/// Runs what is left of the promotion, then says what came of it.
async fn drive_on(standby: &Standby, promotion: &Promotion, args: &Args, context: &Context) -> Ended {
    let signer = promotions::operator(&standby.config)?;
    let asks = somebody_is_there() && !context.yes;
    let people: Arc<dyn People> = if asks { Arc::new(AtTerminal) } else { Arc::new(Nobody) };
    let decider: Arc<dyn Decider> = match args.on_failure {
        OnFailure::Ask if asks => Arc::new(DecideAtTerminal),
        OnFailure::Ask | OnFailure::Stop => Arc::new(Always(Decision::Stop)),
        OnFailure::Continue => Arc::new(Always(Decision::Skip {
            who: who(),
            reason: "--on-failure continue was said beforehand".to_owned(),
        })),
    };
    let driving = Driving {
        driver: this_driver(),
        others_are_dead: args.others_are_dead,
        decider,
        people,
        watch: Arc::new(Steps::new(context.out)),
        cancel: context.cancel.clone(),
    };
    context.out.say(format!(
        "Promotion {} of {} to {}, level {}, begun {:.0}.",
        promotion.id, promotion.from, promotion.to, promotion.level, promotion.begun.0
    ));
    let ended = drive::drive(standby, &signer, promotion, &driving).await?;
    let made = report::write(standby, promotion.id).await?;
    if !ended.is_completed() {
        let failed: Vec<String> = ended
            .groups
            .iter()
            .flat_map(|group| {
                group.failed.iter().map(|(step, why)| format!("group {}, step {step}: {why}", group.group))
            })
            .collect();
        return Err(Failure::failed(format!(
            "promotion {} is not completed; what is done stays, and the record is in the store\n{}\n  report: {}",
            promotion.id,
            failed.join("\n"),
            made.html.display()
        ))
        .hint(ended.hint()));
    }
    if context.out.json {
        context.out.json(&made.as_json()?);
    } else {
        let out = context.out;
        out.line(format!("{} {} is primary now.", out.paint(Tone::Good, "✓"), promotion.to));
        report::summary(&made.report, context);
        out.line(format!("Report: {}", made.html.display()));
        out.line(format!("Next: {}", ended.hint()));
    }
    Ok(if made.report.missed_a_target() { TARGET_MISSED } else { DONE })
}
