//! What the lab runs: Debian packages, and a Python environment with OpenStack in it. Silent when all is there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::services::Tools;
use super::{lock, site};
use crate::failure::Failure;
use crate::programs::{self, Program};
use crate::step::{minutes, run};

const PROGRAMS: [Program; 11] = [
    Program { name: "mariadbd", package: "mariadb-server" },
    Program { name: "mariadb-install-db", package: "mariadb-server" },
    Program { name: "mariadb", package: "mariadb-client" },
    Program { name: "rabbitmq-server", package: "rabbitmq-server" },
    Program { name: "epmd", package: "erlang-base" },
    Program { name: "memcached", package: "memcached" },
    Program { name: "haproxy", package: "haproxy" },
    Program { name: "mkfs.btrfs", package: "btrfs-progs" },
    Program { name: "qemu-img", package: "qemu-utils" },
    // uWSGI comes as source.
    Program { name: "gcc", package: "gcc" },
    Program { name: "setsid", package: "util-linux" },
];
/// For sites with a Ceph cluster.
const CEPH_PROGRAMS: [Program; 4] = [
    Program { name: "ceph-mon", package: "ceph-mon" },
    Program { name: "ceph-mgr", package: "ceph-mgr" },
    Program { name: "ceph-osd", package: "ceph-osd" },
    Program { name: "rbd", package: "ceph-common" },
];
/// Ceph's modules for the system's Python, which OpenStack's drivers use.
const CEPH_MODULES: [&str; 2] = ["rados", "rbd"];
const SYSTEM_MODULES: &str = "/usr/lib/python3/dist-packages";
/// The whole environment, pinned.
const REQUIREMENTS: &str = include_str!("../../lab/requirements.txt");
/// Another place for the environment.
const VENV_VARIABLE: &str = "FARSITE_LAB_VENV";
/// Another command may be installing.
const PATIENCE: Duration = Duration::from_mins(30);

/// Installs what is missing.
pub fn ensure(root: &Path, with_ceph: bool) -> Result<Tools, Failure> {
    let tools = tools(root);
    site::check_characters(&tools.venv, "name another folder in the variable FARSITE_LAB_VENV")?;
    let xtask = root.join("xtask");
    let _lock = lock::take(&root.join("target"), "lab-install", PATIENCE)?;
    programs::ensure(&xtask, &PROGRAMS)?;
    ensure_environment(&xtask, &tools.venv)?;
    if with_ceph {
        programs::ensure(&xtask, &CEPH_PROGRAMS)?;
        link_modules(&tools.venv)?;
    }
    Ok(tools)
}

/// Where the programs are, whether or not they are installed.
pub fn tools(root: &Path) -> Tools {
    let venv =
        std::env::var_os(VENV_VARIABLE).map_or_else(|| root.join("target/lab-venv"), |path| root.join(path));
    Tools::new(&root.join("xtask"), &venv)
}

/// Ceph's modules are made for one version of Python only, and come from no package index.
fn link_modules(venv: &Path) -> Result<(), Failure> {
    let python = venv.join("bin/python").display().to_string();
    let is_there = || programs::succeeds(&python, &["-c", "import rados, rbd"]);
    if is_there() {
        return Ok(());
    }
    let where_to = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let folder = Command::new(&python).args(["-c", where_to]).output();
    let folder = folder.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    for entry in fs::read_dir(SYSTEM_MODULES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_module = CEPH_MODULES.iter().any(|module| name.starts_with(&format!("{module}.cpython-")));
        if let (true, Ok(folder)) = (is_module, &folder) {
            let _ = std::os::unix::fs::symlink(entry.path(), Path::new(folder).join(name));
        }
    }
    if is_there() {
        return Ok(());
    }
    Err(Failure::new(
        format!("{} cannot import Ceph's modules rados and rbd", venv.display()),
        "it needs the version of Python that the system's python3-rados and python3-rbd are made for: on Debian 12 one of 3.11",
    ))
}

/// Makes the environment unless it holds these packages already.
fn ensure_environment(xtask: &Path, venv: &Path) -> Result<(), Failure> {
    let record = venv.join("farsite-packages");
    if fs::read_to_string(&record).is_ok_and(|there| there == REQUIREMENTS) {
        return Ok(());
    }
    if !programs::succeeds("python3", &["-c", "import ensurepip, venv"]) {
        let python = Program { name: "python3", package: "python3-venv" };
        programs::install_debian(xtask, &[&python])?;
    }
    let headers = "import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))";
    if !programs::succeeds("python3", &["-c", headers]) {
        let python = Program { name: "python3", package: "python3-dev" };
        programs::install_debian(xtask, &[&python])?;
    }
    eprintln!(
        "installing OpenStack for the lab into {}: some 160 Python packages, two to three minutes, once",
        venv.display()
    );
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(venv);
    run(make, minutes(5), "Python 3.11 or newer with its venv module is needed (on Debian: python3-venv)")?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
    pip.arg(xtask.join("lab/requirements.txt"));
    run(
        pip,
        minutes(25),
        "see what pip said above; it needs a package index, or one that PIP_INDEX_URL names; run this again to go on",
    )?;
    fs::write(&record, REQUIREMENTS).map_err(|error| {
        Failure::new(format!("{} cannot be written: {error}", record.display()), "check the disk")
    })
}
