//! The programs that the tests need: found, or installed. Real database servers are started by the tests
//! themselves, in folders of their own; a service of the system is never started.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::step::{minutes, run};

/// A program and the Debian package that holds it.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub package: &'static str,
}

/// What the tests run for real.
pub const TEST_PROGRAMS: &[Program] = &[
    Program { name: "mariadbd", package: "mariadb-server" },
    Program { name: "mariadb-install-db", package: "mariadb-server" },
    Program { name: "mariabackup", package: "mariadb-backup" },
    Program { name: "mariadb", package: "mariadb-client" },
    Program { name: "mariadb-binlog", package: "mariadb-client" },
    // A file system with reflinks, in an image file.
    Program { name: "mkfs.xfs", package: "xfsprogs" },
    // One whose folders can be snapshotted as a whole.
    Program { name: "mkfs.btrfs", package: "btrfs-progs" },
    Program { name: "btrfs", package: "btrfs-progs" },
    // Clients of the read-only NBD export.
    Program { name: "qemu-img", package: "qemu-utils" },
    Program { name: "qemu-io", package: "qemu-utils" },
    // Virtual disks of closed images, and a process that has one open.
    Program { name: "qemu-nbd", package: "qemu-utils" },
    Program { name: "qemu-storage-daemon", package: "qemu-utils" },
    // A Ceph cluster of one monitor and one OSD, with `rbd` and its Python module (some 60 MB, under a minute).
    Program { name: "ceph-mon", package: "ceph-mon" },
    Program { name: "ceph-osd", package: "ceph-osd" },
    Program { name: "rbd", package: "ceph-common" },
    // Both ends of ssh, over a pipe; nothing of it listens.
    Program { name: "ssh", package: "openssh-client" },
    Program { name: "ssh-keygen", package: "openssh-client" },
    Program { name: "sshd", package: "openssh-server" },
    Program { name: "nbdinfo", package: "libnbd-bin" },
    Program { name: "nbdcopy", package: "libnbd-bin" },
];

/// Installs the packages of those programs that are missing.
pub fn ensure(xtask_folder: &Path, programs: &[Program]) -> Result<(), Failure> {
    let folders = search_path();
    let missing = missing_from(&folders, programs);
    if missing.is_empty() { Ok(()) } else { install_debian(xtask_folder, &missing) }
}

/// Installs the packages of those test programs that are missing. Returns the PATH for the tests: this process's
/// own and the folders for servers, which an ordinary user's PATH leaves out on Debian.
pub fn ensure_test_programs(xtask_folder: &Path) -> Result<OsString, Failure> {
    let folders = search_path();
    let missing = missing_from(&folders, TEST_PROGRAMS);
    if !missing.is_empty() {
        install_debian(xtask_folder, &missing)?;
        let still = missing_from(&folders, TEST_PROGRAMS);
        if !still.is_empty() {
            return Err(Failure::new(
                format!("still missing after the installation: {}", names(&still)),
                "see what apt-get said above; `apt-cache policy mariadb-server` shows which version it offers",
            ));
        }
    }
    std::env::join_paths(folders)
        .map_err(|e| Failure::new(format!("PATH cannot be extended: {e}"), "check PATH for odd characters"))
}

/// Builds a cargo subcommand from source when it is not there.
pub fn ensure_cargo_tool(name: &str) -> Result<(), Failure> {
    ensure_cargo_program(name, name)
}

/// Whether a program, or a subcommand of cargo, is there.
pub fn is_installed(name: &str) -> bool {
    let mut folders = search_path();
    folders.extend(cargo_bin());
    is_in(&folders, name)
}

/// Builds a program from source when it is not there.
pub fn ensure_cargo_program(name: &str, package: &str) -> Result<(), Failure> {
    if is_installed(name) {
        return Ok(());
    }
    eprintln!("{name} is missing: building it with `cargo install`, which takes some minutes once");
    let mut install = Command::new("cargo");
    install.args(["install", "--locked", package]);
    run(install, minutes(40), &format!("install {name} by hand, then run this again"))
}

pub fn install_debian(xtask_folder: &Path, missing: &[&Program]) -> Result<(), Failure> {
    let mut packages: Vec<&str> = missing.iter().map(|p| p.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let names = names(missing);
    if !is_in(&search_path(), "apt-get") {
        return Err(Failure::new(
            format!("these programs are needed and missing: {names}"),
            format!(
                "install them, MariaDB as 10.11 or newer (on Debian: {}), then run this again",
                packages.join(" ")
            ),
        ));
    }
    let script = xtask_folder.join("install-debian.sh");
    let by_hand = format!("sudo sh '{}' {}", script.display(), packages.join(" "));
    let mut install = if succeeds("sh", &["-c", "test \"$(id -u)\" = 0"]) {
        Command::new("sh")
    } else if succeeds("sudo", &["-n", "true"]) {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "sh"]);
        sudo
    } else {
        return Err(Failure::new(
            format!("these programs are needed and missing: {names}"),
            format!("type `{by_hand}`, then run this again"),
        ));
    };
    eprintln!(
        "missing: {names}\ninstalling these Debian packages, without starting any service: {packages:?}"
    );
    install.arg(script).args(&packages);
    run(install, minutes(20), &format!("see what apt-get said above; by hand: `{by_hand}`"))
}

/// Whether a quick question to the system (who am I, may I use sudo) is answered with yes.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    // `timeout` because sudo may ask a directory server that is away.
    Command::new("timeout")
        .arg("15")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for server_folder in ["/usr/sbin", "/sbin"] {
        if !folders.iter().any(|folder| folder == Path::new(server_folder)) {
            folders.push(server_folder.into());
        }
    }
    folders
}

/// Where `cargo install` puts programs, and where cargo itself looks for its subcommands besides PATH.
fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).map(|home| home.join("bin"))
}

fn missing_from<'a>(folders: &[PathBuf], programs: &'a [Program]) -> Vec<&'a Program> {
    programs.iter().filter(|program| !is_in(folders, program.name)).collect()
}

fn is_in(folders: &[PathBuf], name: &str) -> bool {
    folders.iter().any(|folder| {
        folder.join(name).metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

fn names(programs: &[&Program]) -> String {
    programs.iter().map(|program| program.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_counts_as_there_only_when_it_can_be_executed() {
        let folder = std::env::temp_dir().join(format!("farsite-xtask-programs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("mariadbd");
        let programs = [Program { name: "mariadbd", package: "mariadb-server" }];
        let folders = [folder.clone()];

        assert_eq!(missing_from(&folders, &programs), [&programs[0]]);
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(missing_from(&folders, &programs), [&programs[0]]);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(missing_from(&folders, &programs).is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn servers_are_found_though_an_ordinary_path_leaves_their_folder_out() {
        assert!(search_path().contains(&PathBuf::from("/usr/sbin")));
    }
}
