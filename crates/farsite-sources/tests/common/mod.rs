//! A real MariaDB server for tests: a folder comes in, a running server goes out, and ends with its value.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farsite_model::clock::SystemClock;
use farsite_model::policy::Item;
use farsite_sources::{CaptureContext, LogStream};
use serde_json::json;

const PATIENCE: Duration = Duration::from_mins(1);
pub const PASSWORD: &str = "it's a \"secret\"";

/// How root proves who it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Root {
    Password,
    /// As Debian sets it up: the process must be root's own.
    UnixSocket,
}

pub struct Server {
    pub folder: PathBuf,
    root: Root,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// A new server with these arguments besides the usual ones.
    pub fn start(folder: &Path, root: Root, arguments: &[&str]) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let method = if root == Root::Password { "normal" } else { "socket" };
        let installed = program("mariadb-install-db")
            .arg("--no-defaults")
            .arg(format!("--auth-root-authentication-method={method}"))
            .arg(format!("--datadir={}", folder.join("data").display()))
            .args(["--skip-test-db", "--user=root"])
            .output()
            .unwrap();
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { folder: folder.to_owned(), root, arguments, process: None };
        server.run();
        if root == Root::Password {
            let quoted = PASSWORD.replace('\'', "''");
            let out = client(&server.socket(), None)
                .args(["-e", &format!("ALTER USER root@localhost IDENTIFIED BY '{quoted}'")])
                .output()
                .unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        std::fs::write(server.password_file(), PASSWORD).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(server.password_file(), mode).unwrap();
        server
    }

    /// Starts the process and waits until it answers.
    pub fn run(&mut self) {
        let mut command = program("mariadbd");
        command
            .args(["--no-defaults", "--user=root", "--skip-networking", "--innodb-flush-log-at-trx-commit=2"])
            .arg(format!("--datadir={}", self.folder.join("data").display()))
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!("--log-error={}", self.folder.join("error.log").display()))
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(begin.elapsed() < PATIENCE, "{}", self.error_log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn error_log(&self) -> String {
        std::fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn password_file(&self) -> PathBuf {
        self.folder.join("password")
    }

    fn password(&self) -> Option<&'static str> {
        (self.root == Root::Password).then_some(PASSWORD)
    }

    /// Runs statements and returns what they print.
    pub fn sql(&self, sql: &str) -> String {
        let out = client(&self.socket(), self.password()).args(["-N", "-B", "-e", sql]).output().unwrap();
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// The server as an entry of a policy.
    pub fn item(&self, log: &str) -> Item {
        let mut entry = json!({"socket": self.socket(), "user": "root", "log": log});
        if self.root == Root::Password {
            entry["password"] = json!(format!("file:{}", self.password_file().display()));
        }
        serde_json::from_value(json!({"mariadb": entry})).unwrap()
    }

    /// As a power cut would end it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Stops a standby's server whatever the test came to.
pub struct Stopped(pub farsite_sources::mariadb::instance::Instance);

impl Drop for Stopped {
    fn drop(&mut self) {
        let instance = self.0.clone();
        // A drop cannot wait for the test's own runtime.
        let stop = move || tokio::runtime::Runtime::new().unwrap().block_on(instance.stop());
        if let Err(error) = std::thread::spawn(stop).join().unwrap() {
            eprintln!("{error}");
        }
    }
}

fn program(name: &str) -> Command {
    Command::new(farsite_sources::commands::find(&[name]).unwrap())
}

fn client(socket: &Path, password: Option<&str>) -> Command {
    let mut command = program("mariadb");
    command.args(["--no-defaults", "--user=root"]).arg(format!("--socket={}", socket.display()));
    if let Some(password) = password {
        command.env("MYSQL_PWD", password);
    }
    command
}

pub fn context(folder: &Path) -> CaptureContext {
    std::fs::create_dir_all(folder.join("scratch")).unwrap();
    CaptureContext {
        clock: Arc::new(SystemClock),
        scratch: folder.join("scratch"),
        timeout: Duration::from_mins(2),
        frozen: false,
        kept: folder.join("kept"),
        owner: "test".to_owned(),
    }
}

/// Copies what a base lists into a fresh folder, as a restore does.
pub fn restore(root: &Path, paths: &[PathBuf], into: &Path) {
    std::fs::create_dir(into).unwrap();
    for path in paths {
        let from = root.join(path);
        if from.is_dir() {
            std::fs::create_dir(into.join(path)).unwrap();
        } else {
            std::fs::copy(&from, into.join(path)).unwrap();
        }
    }
}

/// Waits until the spool holds this much of a log file.
pub async fn shipped(stream: &mut LogStream, file: &str, offset: u64) {
    let begin = Instant::now();
    let path = stream.spool.join(file);
    while std::fs::metadata(&path).map_or(0, |found| found.len()) < offset {
        assert!(begin.elapsed() < PATIENCE, "{} never had {offset} bytes: {}", path.display(), stream.said());
        assert!(stream.child.try_wait().unwrap().is_none(), "the client ended: {}", stream.said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The log files of a spool, in no order.
pub fn log_files(spool: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|number| number.len() == 6)).collect()
}
