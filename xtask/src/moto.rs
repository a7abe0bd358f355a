//! moto's server, the second S3 server that the store's tests run on: found below target/, or installed there into a
//! Python environment of its own. Nothing of the system's Python is changed.

use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::programs::{self, Program};
use crate::step::{minutes, run};

/// Pinned: what these tests say of moto is said of this version. Of moto's extras only S3's, and what its server needs.
const PACKAGES: [&str; 3] = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// Makes `target/moto` unless it holds these packages already.
pub fn ensure_moto(root: &Path) -> Result<(), Failure> {
    let home = root.join("target/moto");
    let installed = home.join("farsite-packages");
    let wanted = PACKAGES.join("\n");
    let server = home.join("bin/moto_server");
    if server.exists() && std::fs::read_to_string(&installed).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    if !programs::succeeds("python3", &["-c", "import ensurepip, venv"]) {
        let python = Program { name: "python3", package: "python3-venv" };
        programs::install_debian(&root.join("xtask"), &[&python])?;
    }
    eprintln!("moto's S3 server is missing: installing it below {}", home.display());
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&home);
    run(venv, minutes(5), "Python 3.9 or newer with its venv module is needed (on Debian: python3-venv)")?;
    let mut pip = Command::new(home.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
    run(
        pip,
        minutes(15),
        "see what pip said above; it needs a package index, or one that PIP_INDEX_URL names",
    )?;
    std::fs::write(&installed, wanted).map_err(|error| {
        Failure::new(format!("{} cannot be written: {error}", installed.display()), "check the disk")
    })
}
