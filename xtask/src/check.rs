//! The checks that a change passes, in the order in which they fail fastest.

use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::moto::ensure_moto;
use crate::programs::{ensure_cargo_tool, ensure_test_programs};
use crate::step::{minutes, run};

/// Whether known vulnerabilities of dependencies are looked up; their database comes over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advisories {
    Fetched,
    LeftOut,
}

/// All tests, then the examples in the documentation, which nextest does not run.
pub fn test(root: &Path, nextest_args: &[&str]) -> Result<(), Failure> {
    let path = ensure_test_programs(&root.join("xtask"))?;
    ensure_cargo_tool("cargo-nextest")?;
    ensure_moto(root)?;

    let mut tests = cargo(root, &["nextest", "run", "--workspace"]);
    tests.args(nextest_args).env("PATH", &path);
    // Compilation from nothing included; the run alone is bounded in .config/nextest.toml.
    run(tests, minutes(90), "`cargo xtask test -- NAME` runs the tests whose names contain NAME")?;

    let mut examples = cargo(root, &["test", "--doc", "--workspace"]);
    examples.env("PATH", &path);
    run(examples, minutes(30), "`cargo test --doc -p CRATE` runs the examples of one crate")
}

/// Everything that `.ci/run` checks, and the dependencies.
pub fn ci(root: &Path, advisories: Advisories) -> Result<(), Failure> {
    run(cargo(root, &["fmt", "--all", "--check"]), minutes(5), "`cargo fmt --all` formats everything")?;
    run(
        cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
        minutes(60),
        "a Cargo.lock that is not current is brought up to date by any `cargo check`",
    )?;

    deny(root, advisories)?;
    test(root, &[])
}

/// Licences, sources and duplicates of dependencies, and what is known against them.
pub fn deny(root: &Path, advisories: Advisories) -> Result<(), Failure> {
    let program = crate::deny::ensure(root)?;
    let deny = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).current_dir(root);
        command
    };
    match advisories {
        Advisories::Fetched => run(
            deny(&["check"]),
            minutes(10),
            "if only the advisory database could not be fetched: `cargo xtask ci --offline` leaves it out",
        )?,
        Advisories::LeftOut => {
            run(
                deny(&["check", "bans", "licenses", "sources"]),
                minutes(10),
                "deny.toml says what may come in and why",
            )?;
            eprintln!("NOT checked: known vulnerabilities of dependencies (--offline)");
        }
    }
    Ok(())
}

fn cargo(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(root);
    command
}
