//! `farsite completions SHELL`: a shell's completions on stdout.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::context::Context;
use crate::failure::DONE;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// For which shell.
    pub shell: Shell,
}

pub fn run(args: Args, context: &Context) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "farsite", &mut script);
    context.out.line(String::from_utf8_lossy(&script).trim_end());
    DONE
}
