//! The words of the command line. Each command's own words stand in its file under `commands/`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    wrong usage or configuration
  3    done, but a target (RPO, RTO, coverage) was missed
  4    refused because unsafe
  5    waiting for a person
  130  interrupted; can be resumed

The configuration is --config, $FARSITE_CONFIG, ./farsite.yaml or /etc/farsite/farsite.yaml, the first that is there.
FARSITE_LOG says how much is logged (error, warn, info, debug), NO_COLOR turns colours off.
`farsite demo` shows all of it on this machine, with nothing to set up.";

/// Disaster recovery for OpenStack clouds: replicates a site, measures the RPO really achieved, promotes the standby
/// when the site is lost, and proves beforehand that it can.
#[derive(Debug, Parser)]
#[command(name = "farsite", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// This host's configuration.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Answer the question that a dangerous command asks with yes.
    #[arg(short, long, global = true)]
    pub yes: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Two sites on this machine, real data, a disaster, a failover, a report.
    #[cfg(feature = "demo")]
    Demo(crate::demo::Args),
    /// Create a replica store and the keys of all machines.
    Init(commands::init::Args),
    /// Say what would fail, before it does.
    Check(commands::check::Args),
    /// The service: schedules, replicates, ships logs, serves dashboard and metrics.
    Agent(commands::agent::Args),
    /// One run now.
    Replicate(commands::replicate::Args),
    /// Bring the hydrated copies of this site to the newest whole point, now.
    Hydrate(commands::hydrate::Args),
    /// Phase, newest point, exposure and achieved RPO of each group.
    Status(commands::status::Args),
    /// Read what is local to this host for the agent that coordinates its group; started by that agent, see `hosts:`.
    ServeSources(commands::serve_sources::Args),
    /// What exists at a site that no policy protects.
    Coverage(commands::coverage::Args),
    /// Recovery points: list, show, verify, hold, release.
    #[command(subcommand)]
    Points(commands::points::Action),
    /// Read one item of a point over NBD, without a restore.
    Mount(commands::mount::Args),
    /// Write one item of a point to a place.
    Restore(commands::restore::Args),
    /// Promote the standby of a site that is lost.
    Failover(commands::failover::Args),
    /// Keep what a promotion did: the window to change one's mind closes.
    Accept(commands::accept::Args),
    /// Undo a promotion: the old site is primary again.
    Rollback(commands::rollback::Args),
    /// Promotions: list, show, confirm, skip, cancel, report.
    #[command(subcommand)]
    Promotion(commands::promotion::Action),
    /// Drills: prove that the standby can be promoted, touching nothing.
    #[command(subcommand)]
    Drill(commands::drill::Action),
    /// Runbooks: check, graph, schema.
    #[command(subcommand)]
    Runbook(commands::runbook::Action),
    /// Policies: check, schema.
    #[command(subcommand)]
    Policy(commands::policy::Action),
    /// The replica store itself.
    #[command(subcommand)]
    Store(commands::store::Action),
    /// Print a shell's completions.
    Completions(commands::completions::Args),
    /// Print the manual page, or write those of all commands into a folder.
    Man(commands::man::Args),
    /// Write the reference pages and JSON Schemas of docs/.
    #[command(hide = true)]
    Docs(commands::docs::Args),
    /// What lives at the northern site of the demo.
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoNorth(crate::demo::writer::Args),
    /// The service that the demo promotes at the southern site.
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoApi(crate::demo::api::Args),
    /// The replica store of a demo that is kept.
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoStore(crate::demo::store::Args),
}
