//! The sink: a MariaDB server of one's own at the standby. A data directory with a restored base comes in; a running
//! server goes out, to which log is replayed and statements are put. What must hold: every call can be repeated after
//! a crash of the caller; a server that runs on another directory is never used, stopped or signalled; the server
//! outlives the command that started it.
//!
//! The restored accounts are the source's, so the server makes one more at each start (`local_account`), through
//! which everything here connects. [`Instance::drop_local_account`] removes it for good when the promotion is accepted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection};
use tokio::process::Child;

use super::launch::detached;
use super::server::{self, Password, Server};
use super::{base, check, local_account, process, replay, replayed};
use crate::{LogPosition, SourceError, commands};

pub use super::replay::ReplayEnd;

/// Applying a base's own redo log; long for a base that was taken under heavy writes.
const PREPARE_LIMIT: Duration = Duration::from_hours(4);
/// Crash recovery included.
const START_LIMIT: Duration = Duration::from_mins(15);
/// A clean stop writes all changed pages.
const SHUTDOWN_LIMIT: Duration = Duration::from_mins(5);
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// One statement of a check or a rewrite.
const STATEMENT_LIMIT: Duration = Duration::from_mins(10);
const POLL: Duration = Duration::from_millis(100);
/// unix(7): a socket's path has 108 bytes, the last one zero.
const SOCKET_PATH_BYTES: usize = 107;
/// What mariadb-backup writes about itself; the second names are those of MariaDB 11.1 and later.
const CHECKPOINT_FILES: [&str; 2] = ["xtrabackup_checkpoints", "mariadb_backup_checkpoints"];
const INFO_FILES: [&str; 2] = ["xtrabackup_info", "mariadb_backup_info"];

/// A server of one's own: where its files and its socket are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub datadir: PathBuf,
    pub socket: PathBuf,
    /// Listens on this port of 127.0.0.1 too; without it on the socket alone.
    pub port: Option<u16>,
    /// More arguments for `mariadbd`. Never a password: arguments can be seen by everybody on the host.
    pub server_args: Vec<String>,
}

/// Refuses a server's version that a base of it could not be prepared with here: mariadb-backup knows its own series alone.
pub async fn refuse_series(version: &str) -> Result<(), SourceError> {
    let what = format!("preparing a base of MariaDB {version}");
    let program = commands::require(&base::BACKUP_PROGRAMS, "mariadb-backup")?;
    commands::require(&["mariadbd", "mysqld"], "mariadb-server")?;
    let ours = check::program_version(&program).await?;
    if check::series(&ours) == check::series(version) {
        return Ok(());
    }
    Err(SourceError::new(what, format!("mariadb-backup here is of another series: {ours}"))
        .hint("install mariadb-backup of the base's series at the standby"))
}

impl Instance {
    /// Makes a restored base ready for a server: applies the redo log that was written while it was taken, and gives all
    /// files to the directory's owner. A base that is ready already is left as it is.
    pub async fn prepare(&self) -> Result<(), SourceError> {
        let what = format!("preparing the base in {}", self.datadir.display());
        if let Some(running) = process::find(&self.datadir) {
            return Err(SourceError::new(what, format!("a server (pid {}) runs on it", running.pid))
                .hint("stop that server first"));
        }
        let checkpoints = self.note(&CHECKPOINT_FILES).ok_or_else(|| {
            SourceError::new(&what, format!("there is no {} in it", CHECKPOINT_FILES[0]))
                .hint("restore a base backup into the folder first")
        })?;
        let kind =
            checkpoints.lines().find_map(|line| line.strip_prefix("backup_type = ")).unwrap_or_default();
        if !matches!(kind.trim(), "full-prepared" | "log-applied") {
            let program = commands::require(&base::BACKUP_PROGRAMS, "mariadb-backup")?;
            self.refuse_other_versions(&program, &what).await?;
            // It speaks of the data that this base replaces.
            replayed::forget(&self.datadir)?;
            let mut command = commands::tied(&program);
            command.args(["--no-defaults", "--prepare"]);
            command.arg(format!("--target-dir={}", self.datadir.display()));
            commands::run(&what, command, PREPARE_LIMIT).await?.success(&what).map_err(|error| {
                error.hint("restore the base again into an empty folder; the recovery point is unharmed")
            })?;
        }
        self.own()
            .map_err(|error| SourceError::new(what, error).hint("the folder's owner must own what is in it"))
    }

    /// Starts the server and waits until it answers; `log` is its error log, `extra` more arguments for this start. One
    /// that already runs on this very directory is taken as it is.
    pub async fn start(&self, log: &Path, extra: &[&str]) -> Result<(), SourceError> {
        let what = format!("starting MariaDB on {}", self.datadir.display());
        let fail = |error: &dyn std::fmt::Display| SourceError::new(&what, error);
        if let Some(running) = process::find(&self.datadir) {
            if !running.is_told(&format!("--socket={}", self.socket.display())) {
                let why = format!("a server (pid {}) runs on it already, with another socket", running.pid);
                return Err(SourceError::new(what, why).hint("stop that server first"));
            }
            if self.port.is_some_and(|port| !running.is_told(&format!("--port={port}"))) {
                let why = format!("a server (pid {}) runs on it already, without the port", running.pid);
                return Err(SourceError::new(what, why).hint("stop that server first"));
            }
            return self.wait_until_ready(&what, None, log).await;
        }
        if self.socket.as_os_str().len() > SOCKET_PATH_BYTES {
            let why = format!(
                "the path of its socket is longer than {SOCKET_PATH_BYTES} bytes: {}",
                self.socket.display()
            );
            return Err(SourceError::new(what, why).hint("name a shorter one"));
        }
        if std::os::unix::net::UnixStream::connect(&self.socket).is_ok() {
            let why = format!("another server answers at {}", self.socket.display());
            return Err(SourceError::new(what, why).hint("name another socket, or stop that server"));
        }
        if !self.datadir.join("mysql").is_dir() {
            return Err(SourceError::new(what, "the folder holds no MariaDB data")
                .hint("restore and prepare a base first"));
        }
        let program = commands::require(&["mariadbd", "mysqld"], "mariadb-server")?;
        self.make_places(log).map_err(|error| fail(&error))?;
        let init = local_account::prepare(&self.datadir).map_err(|error| fail(&error))?;
        let mut command = detached(&program);
        command.args(self.arguments(log, &init, extra)?);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| fail(&error))?;
        self.wait_until_ready(&what, Some(child), log).await
    }

    /// Stops the server that runs on this directory: cleanly, or by signals when it does not answer. That none runs is
    /// success.
    pub async fn stop(&self) -> Result<(), SourceError> {
        let Some(running) = process::find(&self.datadir) else { return Ok(()) };
        let what = format!("stopping MariaDB on {} (pid {})", self.datadir.display(), running.pid);
        if self.answers_for_this_directory().await.unwrap_or(false) {
            let _ = self.server()?.query("SHUTDOWN").await;
        } else {
            running.signal(Signal::TERM).map_err(|error| SourceError::new(&what, error))?;
        }
        if running.ends_within(SHUTDOWN_LIMIT).await {
            return Ok(());
        }
        // SIGTERM is a clean stop too; SIGKILL leaves work for crash recovery, and no loss.
        for signal in [Signal::TERM, Signal::KILL] {
            running.signal(signal).map_err(|error| SourceError::new(&what, error))?;
            if running.ends_within(KILL_LIMIT).await {
                return Ok(());
            }
        }
        Err(SourceError::new(what, "it did not end, not even by SIGKILL")
            .hint("it hangs in the kernel, most likely on its disk: see `dmesg`"))
    }

    /// Whether a server runs on this directory. One that does not answer (yet) counts: its files are in use.
    pub async fn is_running(&self) -> Result<bool, SourceError> {
        Ok(process::find(&self.datadir).is_some())
    }

    /// Replays log files, in their order, from a base's position on. Nothing is written into the server's own log. Done
    /// once it is done: the same call again does nothing. One that was cut off is refused from then on, because
    /// changes would be made twice: restore the base again.
    pub async fn replay(
        &self,
        files: &[PathBuf],
        from: &LogPosition,
        up_to: &ReplayEnd,
    ) -> Result<(), SourceError> {
        self.require_running().await?;
        let plan = replay::plan(files, from, up_to)?;
        let mark = replayed::Mark::new(from, &plan.end);
        if mark.is_done(&self.datadir)? {
            return Ok(());
        }
        let server = self.server()?;
        mark.begin(&self.datadir)?;
        replay::run(&server, &plan).await?;
        mark.done(&self.datadir)
    }

    /// Rows of one statement, as text.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, SourceError> {
        self.require_running().await?;
        let mut connection = self.server()?.connect().await?;
        let found = server::query(&mut connection, sql, STATEMENT_LIMIT).await?;
        let _ = connection.close().await;
        Ok(found.rows)
    }

    /// Statements in one transaction: all of them, or none. (A statement that MariaDB commits by itself, such as `ALTER
    /// TABLE`, ends that promise.)
    pub async fn execute<S: AsRef<str>>(&self, sql: &[S]) -> Result<(), SourceError> {
        self.require_running().await?;
        let mut connection = self.server()?.connect().await?;
        let statements =
            ["START TRANSACTION"].into_iter().chain(sql.iter().map(AsRef::as_ref)).chain(["COMMIT"]);
        for statement in statements {
            let what = || format!("at {}: {}", self.socket.display(), server::shortened(statement));
            let run = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection);
            // A connection that is dropped before its COMMIT is rolled back by the server.
            match tokio::time::timeout(STATEMENT_LIMIT, run).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return Err(SourceError::new(what(), error).hint("nothing of this transaction was kept"));
                }
                Err(_) => return Err(commands::timed_out(&what(), STATEMENT_LIMIT)),
            }
        }
        let _ = connection.close().await;
        Ok(())
    }

    /// Removes the account that Farsite uses, and its password. Nothing here can connect any more until the next
    /// [`Instance::start`].
    pub async fn drop_local_account(&self) -> Result<(), SourceError> {
        let forget = || {
            local_account::forget(&self.datadir).map_err(|error| {
                SourceError::new(
                    format!("removing Farsite's own account from {}", self.datadir.display()),
                    error,
                )
            })
        };
        if local_account::password(&self.datadir).is_err() {
            return forget();
        }
        self.require_running().await?;
        let mut connection = self.server()?.connect().await?;
        for statement in local_account::DROP {
            server::query(&mut connection, statement, STATEMENT_LIMIT).await?;
        }
        forget()
    }

    /// What must be said when the server here is not of the version of the base.
    pub async fn version_note(&self) -> Result<Option<String>, SourceError> {
        let program = commands::require(&["mariadbd", "mysqld"], "mariadb-server")?;
        let here = check::program_version(&program).await?;
        let Some(base) = self.base_version() else { return Ok(None) };
        if check::series(&here) == check::series(&base) {
            return Ok(None);
        }
        Ok(Some(format!(
            "the base is of MariaDB {base} and the server here is {here}: run `mariadb-upgrade` once it is in service"
        )))
    }

    fn base_version(&self) -> Option<String> {
        let info = self.note(&INFO_FILES)?;
        info.lines()
            .find_map(|line| line.strip_prefix("server_version = "))
            .map(|version| version.trim().to_owned())
    }

    /// The text of a file that has one of these names.
    fn note(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| fs::read_to_string(self.datadir.join(name)).ok())
    }

    /// mariadb-backup prepares only what its own series has written; a server reads what is older, never what is newer.
    async fn refuse_other_versions(&self, backup_program: &Path, what: &str) -> Result<(), SourceError> {
        let Some(base) = self.base_version() else { return Ok(()) };
        let ours = check::program_version(backup_program).await?;
        if check::series(&ours) != check::series(&base) {
            return Err(SourceError::new(
                what,
                format!("it is of MariaDB {base}, and mariadb-backup here is {ours}"),
            )
            .hint("install mariadb-backup of the base's series at the standby"));
        }
        if let Some(note) = self.version_note().await? {
            tracing::warn!("{note}");
        }
        Ok(())
    }

    fn server(&self) -> Result<Server, SourceError> {
        let password = local_account::password(&self.datadir).map_err(|error| {
            SourceError::new(format!("Farsite's own account on the server in {}", self.datadir.display()), error)
                .hint("the server was not started by Farsite, or its account was dropped: stop it and start it again")
        })?;
        Ok(Server {
            socket: Some(self.socket.clone()),
            host: None,
            port: None,
            user: local_account::USER.to_owned(),
            password: Password::Known(password),
        })
    }

    async fn answers_for_this_directory(&self) -> Result<bool, SourceError> {
        let found = self.server()?.query("SELECT @@datadir AS datadir").await?;
        let theirs = found.first("datadir").and_then(|path| fs::canonicalize(path).ok());
        Ok(theirs.is_some() && theirs == fs::canonicalize(&self.datadir).ok())
    }

    async fn require_running(&self) -> Result<(), SourceError> {
        let what = || format!("the MariaDB server on {}", self.datadir.display());
        if process::find(&self.datadir).is_none() {
            return Err(SourceError::new(what(), "it does not run").hint("start it, then run this again"));
        }
        if self.answers_for_this_directory().await? {
            return Ok(());
        }
        Err(SourceError::new(what(), format!("another server answers at {}", self.socket.display()))
            .hint("name the socket of the server that runs on this folder"))
    }

    async fn wait_until_ready(
        &self,
        what: &str,
        mut child: Option<Child>,
        log: &Path,
    ) -> Result<(), SourceError> {
        let said = || {
            let text = fs::read(log).unwrap_or_default();
            commands::shown(&String::from_utf8_lossy(&text[text.len().saturating_sub(8192)..]))
        };
        let mut last = None;
        let answered = async {
            loop {
                if let Some(child) = &mut child
                    && let Ok(Some(status)) = child.try_wait()
                {
                    let why = format!("the server ended with {status}{}", said());
                    return Err(SourceError::new(what, why).hint(format!("see {}", log.display())));
                }
                match self.answers_for_this_directory().await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {
                        let why = format!("a server of another folder answers at {}", self.socket.display());
                        return Err(SourceError::new(what, why).hint("name another socket"));
                    }
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(POLL).await;
            }
        };
        if let Ok(result) = tokio::time::timeout(START_LIMIT, answered).await {
            return result;
        }
        let last = last.map(|error: SourceError| format!(" ({})", error.why)).unwrap_or_default();
        let why = format!("it does not answer within {} s{last}{}", START_LIMIT.as_secs(), said());
        Err(SourceError::new(what, why)
            .hint("it was left running: it may still recover; run this again to go on waiting"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(datadir: &Path) -> Instance {
        Instance {
            datadir: datadir.to_owned(),
            socket: datadir.join("s"),
            port: None,
            server_args: Vec::new(),
        }
    }

    #[tokio::test]
    async fn an_empty_folder_is_neither_prepared_nor_started() {
        let dir = tempfile::tempdir().unwrap();
        let instance = instance(dir.path());
        assert!(instance.prepare().await.unwrap_err().to_string().contains("hint:"));
        assert!(instance.start(&dir.path().join("e"), &[]).await.unwrap_err().to_string().contains("hint:"));
        assert!(!instance.is_running().await.unwrap());
        instance.stop().await.unwrap();
        assert!(instance.query("SELECT 1").await.is_err());
    }

    #[tokio::test]
    async fn a_socket_path_that_the_kernel_would_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut instance = instance(dir.path());
        instance.socket = dir.path().join("s".repeat(120));
        assert!(instance.start(&dir.path().join("e"), &[]).await.unwrap_err().to_string().contains("107"));
    }
}
