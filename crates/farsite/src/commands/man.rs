//! `farsite man`: the manual page on stdout, or one page for each command in a folder.

use std::path::PathBuf;

use clap::CommandFactory;

use crate::cli::Cli;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the pages of all commands into this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

pub fn run(args: Args, context: &Context) -> Ended {
    let command = Cli::command();
    let Some(folder) = args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).map_err(Failure::io("rendering the manual page"))?;
        context.out.line(String::from_utf8_lossy(&page).trim_end());
        return Ok(DONE);
    };
    std::fs::create_dir_all(&folder).map_err(Failure::io(format!("creating {}", folder.display())))?;
    clap_mangen::generate_to(command, &folder)
        .map_err(Failure::io(format!("writing manual pages into {}", folder.display())))?;
    context.out.say(format!("The manual pages are in {}; read one with `man -l FILE`.", folder.display()));
    Ok(DONE)
}
