//! The script that installs Debian packages, run against an apt-get, a dpkg and a systemctl that only write down
//! what they were asked.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const OLD_POLICY: &str = "#!/bin/sh\nexit 0\n";

/// A folder with a place for policy-rc.d and the stand-ins; removed at the end.
struct Host {
    folder: PathBuf,
}

impl Host {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let host = Self { folder };
        std::fs::create_dir_all(host.folder.join("sbin")).unwrap();
        std::fs::create_dir_all(host.folder.join("bin")).unwrap();
        // What invoke-rc.d would ask, asked at the moment of the installation.
        host.stand_in(
            "apt-get",
            "echo \"apt-get $*\" >>\"$LOG\"\ncase \"$*\" in *install*)\n  \
             \"$FARSITE_POLICY_RC_D\" mariadb start; echo \"policy $?\" >>\"$LOG\"; touch \"$LOG.installed\";;\nesac\n\
             [ -z \"${APT_FAILS:-}\" ]",
        );
        host.stand_in("dpkg-query", "[ -e \"$LOG.installed\" ] && echo 'install ok installed'");
        host.stand_in("systemctl", "echo \"systemctl $*\" >>\"$LOG\"");
        host
    }

    fn stand_in(&self, name: &str, script: &str) {
        write_executable(&self.folder.join("bin").join(name), &format!("#!/bin/sh\n{script}\n"));
    }

    fn policy(&self) -> PathBuf {
        self.folder.join("sbin/policy-rc.d")
    }

    fn install(&self, env: &[(&str, &str)]) -> Output {
        let path = std::env::var("PATH").unwrap();
        Command::new("sh")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/install-debian.sh"))
            .args(["mariadb-backup", "mariadb-server"])
            .env("PATH", format!("{}:{path}", self.folder.join("bin").display()))
            .env("FARSITE_POLICY_RC_D", self.policy())
            .env("LOG", self.folder.join("log"))
            .envs(env.iter().copied())
            .output()
            .unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn files_beside_the_policy(&self) -> usize {
        std::fs::read_dir(self.folder.join("sbin")).unwrap().count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn write_executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn no_service_may_start_while_packages_are_installed() {
    let host = Host::new("no-service");
    let output = host.install(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = host.log();
    let (update, install) = (log.find(" update\n").unwrap(), log.find("install mariadb-backup").unwrap());
    assert!(update < install, "{log}");
    assert!(log.contains("--no-remove install mariadb-backup mariadb-server\npolicy 101\n"), "{log}");
    assert_eq!(host.files_beside_the_policy(), 0, "nothing was there before, nothing is left");
}

#[test]
fn a_server_that_was_not_there_before_does_not_start_at_the_next_boot() {
    let host = Host::new("next-boot");
    host.install(&[]);
    assert!(host.log().contains("systemctl --quiet disable mariadb.service"), "{}", host.log());
}

#[test]
fn a_server_that_was_there_before_keeps_its_place_at_boot() {
    let host = Host::new("keeps-boot");
    std::fs::write(host.folder.join("log.installed"), "").unwrap();
    host.install(&[]);
    assert!(!host.log().contains("systemctl"), "{}", host.log());
}

#[test]
fn the_policy_that_was_there_is_put_back() {
    let host = Host::new("put-back");
    write_executable(&host.policy(), OLD_POLICY);
    assert!(host.install(&[]).status.success());
    assert!(host.log().contains("policy 101"));
    assert_eq!(std::fs::read_to_string(host.policy()).unwrap(), OLD_POLICY);
    assert_eq!(host.files_beside_the_policy(), 1);
}

#[test]
fn the_policy_that_was_there_is_put_back_when_the_installation_fails() {
    let host = Host::new("put-back-failed");
    write_executable(&host.policy(), OLD_POLICY);
    assert!(!host.install(&[("APT_FAILS", "1")]).status.success());
    assert_eq!(std::fs::read_to_string(host.policy()).unwrap(), OLD_POLICY);
    assert_eq!(host.files_beside_the_policy(), 1);
}

#[test]
fn what_a_killed_run_left_behind_is_put_right_by_the_next() {
    let host = Host::new("killed");
    write_executable(&host.folder.join("sbin/policy-rc.d.before-farsite"), OLD_POLICY);
    write_executable(&host.policy(), "#!/bin/sh\nexit 101\n");
    assert!(host.install(&[]).status.success());
    assert_eq!(std::fs::read_to_string(host.policy()).unwrap(), OLD_POLICY);
    assert_eq!(host.files_beside_the_policy(), 1);
}

#[test]
fn a_policy_of_our_own_left_by_a_killed_run_does_not_stay() {
    let host = Host::new("own-left");
    // As a run killed in the middle leaves it: the script's own policy, and none that was there before it.
    host.stand_in("apt-get", "kill -9 \"$PPID\"; sleep 1");
    assert!(!host.install(&[]).status.success());
    assert_eq!(host.files_beside_the_policy(), 1, "the killed run left its policy");
    host.stand_in("apt-get", "exit 0");
    assert!(host.install(&[]).status.success());
    assert_eq!(host.files_beside_the_policy(), 0);
}
