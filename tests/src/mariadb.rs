//! A real MariaDB server for a story: its data lies in a folder of the story, its log is switched on, and it ends with its value.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::process::comes_true;
use crate::said;

pub struct Server {
    folder: PathBuf,
    process: Child,
}

impl Server {
    pub fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder can be made");
        let data = folder.join("data");
        let installed = program("mariadb-install-db")
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--user=root",
            ])
            .arg(format!("--datadir={}", data.display()))
            .output()
            .expect("mariadb-install-db starts");
        assert!(installed.status.success(), "{}", said(&installed));
        let process = program("mariadbd")
            .args(["--no-defaults", "--user=root", "--skip-networking", "--server-id=1", "--log-bin=log"])
            .args(["--binlog-format=ROW", "--sync-binlog=1"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", folder.join("s").display()))
            .arg(format!("--log-error={}", folder.join("error.log").display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mariadbd starts");
        let server = Self { folder: folder.to_owned(), process };
        let answers = || std::os::unix::net::UnixStream::connect(server.socket()).is_ok();
        let log = || std::fs::read_to_string(folder.join("error.log")).unwrap_or_default();
        assert!(comes_true(Duration::from_mins(1), answers), "{}", log());
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// Its command-line client, as root.
    pub fn client(&self) -> Command {
        let mut command = program("mariadb");
        command.args(["--no-defaults", "--user=root", "-N", "-B"]);
        command.arg(format!("--socket={}", self.socket().display()));
        command
    }

    pub fn sql(&self, sql: &str) -> String {
        let out = self.client().args(["-e", sql]).output().expect("the client starts");
        assert!(out.status.success(), "{sql}: {}", said(&out));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Servers' programs are not in everybody's PATH.
fn program(name: &str) -> Command {
    let system = Path::new("/usr/sbin").join(name);
    Command::new(if system.exists() { system } else { name.into() })
}
