//! The command line: words come in, one command runs, an exit code goes out. Nothing is decided here.

mod ask;
mod cli;
mod commands;
mod context;
#[cfg(feature = "demo")]
mod demo;
mod failure;
mod founding;
mod output;
mod progress;
mod promotions;
mod stores;
mod watch;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    output::start_logging(&cli);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::from(failure::FAILED);
        }
    };
    let code = runtime.block_on(commands::dispatch(cli));
    // Work that was cut off by an interruption must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ExitCode::from(code)
}
