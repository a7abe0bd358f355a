//! What a contributor types: `cargo xtask test`, `cargo xtask ci`, `cargo xtask loc`. Arguments come in, commands of
//! the toolchain go out. It has no dependencies, so that it builds in a second before anything else is there, and
//! it installs what the tests need, saying so.

mod bench;
mod check;
mod demos;
mod deny;
mod failure;
mod fuzz;
mod lab;
mod loc;
mod moto;
mod programs;
mod scenario;
mod step;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use failure::Failure;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [-- NEXTEST ARGS]  installs the programs the tests need, then runs all tests and the examples in the docs
  ci [--offline]          formatting, clippy, licences and advisories of dependencies, then `test`;
                          --offline leaves out the advisories, whose database is fetched each time
  deny [--offline]        licences, sources and advisories of dependencies alone
  demos [RUNS]            the demo with seeds 1 to RUNS (20) on both databases: RPO reported, true loss, RTO
  bench cloud [...]       a site with many images and volumes: runs without a change, rest, a failover by step
  bench data-plane [...]  Farsite beside restic, borg and others on the same volume; `bench` alone lists the options
  fuzz [--minutes N]      every parser of stored bytes and the round trip of any writes, many cases, for N (5) minutes
  lab COMMAND             two sites of real OpenStack on this machine; `lab` alone lists the commands
  scenario disaster [...] a site of the lab is lost at a random moment; its standby must answer for what it had acknowledged
  scenario all            every scenario one after the other: the nightly run
  soak disaster [...]     that scenario with many seeds, each one's result kept
  loc                     lines of code per crate, code and tests apart
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(args: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let root = workspace_root();
    match words.as_slice() {
        ["test"] => check::test(&root, &[]),
        ["test", "--", nextest_args @ ..] => check::test(&root, nextest_args),
        ["test", first, ..] => {
            Err(Failure::usage(format!("`{first}`: arguments for nextest come after a `--`"), USAGE))
        }
        ["deny"] => check::deny(&root, check::Advisories::Fetched),
        ["deny", "--offline"] => check::deny(&root, check::Advisories::LeftOut),
        ["ci"] => check::ci(&root, check::Advisories::Fetched),
        ["ci", "--offline"] => check::ci(&root, check::Advisories::LeftOut),
        ["demos"] => demos::demos(&root, 20),
        ["demos", runs] => match runs.parse() {
            Ok(runs) if runs > 0 => demos::demos(&root, runs),
            _ => Err(Failure::usage(format!("`{runs}` is not a number of runs"), USAGE)),
        },
        ["bench", "data-plane", options @ ..] => bench::bench(&root, options),
        ["bench", "cloud", options @ ..] => bench::cloud::bench(&root, options),
        ["bench", ..] => {
            eprintln!("{}", bench::cloud::USAGE);
            Err(Failure::usage(
                "which benchmark? there are `data-plane` and `cloud`".to_owned(),
                bench::USAGE,
            ))
        }
        ["fuzz"] => fuzz::fuzz(&root, 5),
        ["fuzz", "--minutes", n] => match n.parse() {
            Ok(n) if n > 0 => fuzz::fuzz(&root, n),
            _ => Err(Failure::usage(format!("`{n}` is not a number of minutes"), USAGE)),
        },
        ["lab", words @ ..] => lab::lab(&root, words),
        ["soak", rest @ ..] => scenario::soak(&root, rest),
        ["scenario", rest @ ..] => scenario::scenario(&root, rest),
        ["loc"] => {
            print!("{}", loc::table(&root)?);
            Ok(())
        }
        ["help" | "-h" | "--help"] => {
            print!("{USAGE}");
            Ok(())
        }
        [] => Err(Failure::usage("no command given".to_owned(), USAGE)),
        _ => Err(Failure::usage(format!("not understood: `{}`", words.join(" ")), USAGE)),
    }
}

/// The folder that holds the workspace's Cargo.toml: the parent of this crate's.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
