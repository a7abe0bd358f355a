//! One file per command; here is only which one runs.

pub mod accept;
pub mod agent;
pub mod check;
pub mod completions;
pub mod coverage;
pub mod docs;
pub mod drill;
pub mod failover;
pub mod hydrate;
pub mod init;
pub mod man;
pub mod mount;
pub mod points;
pub mod policy;
pub mod promotion;
pub mod replicate;
pub mod report;
pub mod restore;
mod restore_image;
mod restore_log;
pub mod rollback;
pub mod runbook;
pub mod serve_sources;
pub mod status;
pub mod store;

use crate::cli::{Cli, Command};
use crate::context::{Context, Pins, watch_signals};
use crate::failure::Failure;
use crate::output::Output;

/// What a command that ended returns: its exit code.
pub type Ended = Result<u8, Failure>;

/// Runs the command; prints its failure.
pub async fn dispatch(cli: Cli) -> u8 {
    let out = Output::new(cli.json);
    let context = Context {
        config_path: cli.config,
        yes: cli.yes,
        out,
        cancel: watch_signals(),
        pins: Pins::default(),
    };
    let ended = run(cli.command, &context).await;
    context.pins.end().await;
    match ended {
        Ok(code) => code,
        Err(failure) => {
            out.error(&failure.text);
            failure.code
        }
    }
}

async fn run(command: Command, context: &Context) -> Ended {
    match command {
        // These end by themselves when they are asked to.
        #[cfg(feature = "demo")]
        Command::Demo(args) => crate::demo::run(args, context).await,
        #[cfg(feature = "demo")]
        Command::DemoNorth(args) => crate::demo::writer::run(args, context).await,
        #[cfg(feature = "demo")]
        Command::DemoApi(args) => crate::demo::api::run(args, context).await,
        #[cfg(feature = "demo")]
        Command::DemoStore(args) => crate::demo::store::run(args, context).await,
        Command::Agent(args) => agent::run(args, context).await,
        Command::Mount(args) => mount::run(args, context).await,
        Command::ServeSources(args) => serve_sources::run(args, context).await,
        Command::Replicate(args) => replicate::run(args, context).await,
        Command::Hydrate(args) => hydrate::run(args, context).await,
        Command::Failover(args) => failover::run(args, context).await,
        Command::Rollback(args) => rollback::run(args, context).await,
        Command::Drill(action) => drill::run(action, context).await,
        Command::Promotion(action @ promotion::Action::Cancel { .. }) => {
            promotion::run(action, context).await
        }
        // The others are simply cut off.
        other => tokio::select! {
            ended = quick(other, context) => ended,
            () = context.cancel.cancelled() => Err(Failure::interrupted("interrupted")),
        },
    }
}

async fn quick(command: Command, context: &Context) -> Ended {
    match command {
        Command::Init(args) => init::run(args, context).await,
        Command::Check(args) => check::run(args, context).await,
        Command::Coverage(args) => coverage::run(args, context).await,
        Command::Status(args) => status::run(args, context).await,
        Command::Points(action) => points::run(action, context).await,
        Command::Restore(args) => restore::run(args, context).await,
        Command::Accept(args) => accept::run(args, context).await,
        Command::Promotion(action) => promotion::run(action, context).await,
        Command::Runbook(action) => runbook::run(action, context),
        Command::Policy(action) => Ok(policy::run(action, context)),
        Command::Store(action) => store::run(action, context).await,
        Command::Completions(args) => Ok(completions::run(args, context)),
        Command::Man(args) => man::run(args, context),
        Command::Docs(args) => docs::run(args, context),
        _ => Err(Failure::failed("this command is not run here")),
    }
}
