//! The northern site: its folder is laid out, its database started, its users and its agent let loose; and the
//! disaster, in which all of it goes at once.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::database::{Connection, Kind};
use super::processes::{Process, below, sweep};
use super::seeded::Seeded;
use super::{freeze, writer};

/// How long a fresh MariaDB may take until it answers.
const DATABASE_LIMIT: Duration = Duration::from_mins(1);

pub struct North {
    pub site: PathBuf,
    kind: Kind,
    logs: PathBuf,
    processes: Vec<Process>,
}

/// Finds programs also where only root's PATH looks.
pub fn program(name: &str) -> Option<PathBuf> {
    farsite_sources::commands::find(&[name])
}

/// MariaDB needs its server and its own backup tool.
pub fn mariadb_is_installed() -> bool {
    program("mariadbd").is_some()
        && program("mariadb-install-db").is_some()
        && program("mariadb-backup").is_some()
}

fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl North {
    /// Folders, scripts and database.
    pub async fn build(root: &Path, kind: Kind) -> Result<Self, String> {
        let site = root.join("north");
        let logs = root.join("logs");
        for folder in [
            "glance/images",
            "cinder/volumes",
            "keystone/fernet-keys",
            "keystone/credential-keys",
            "tmp",
            "policies",
        ] {
            let path = site.join(folder);
            std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        std::fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
        freeze::install(&site).map_err(|error| format!("the freeze scripts: {error}"))?;
        let mut north = Self { site, kind, logs, processes: Vec::new() };
        if kind == Kind::Mariadb {
            north.start_mariadb().await?;
        }
        Ok(north)
    }

    async fn start_mariadb(&mut self) -> Result<(), String> {
        let datadir = self.site.join("mysql");
        let missing = |name: &str| format!("{name} is not installed");
        let mut install =
            Command::new(program("mariadb-install-db").ok_or_else(|| missing("mariadb-install-db"))?);
        install
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--tmpdir={}", self.site.join("tmp").display()))
            .arg(format!("--datadir={}", datadir.display()));
        if as_root() {
            install.arg("--user=root");
        }
        let log = self.logs.join("north-mariadb.log");
        let mut installing = Process::start("mariadb-install-db", install, &log)?;
        let give_up = Instant::now() + DATABASE_LIMIT;
        while installing.lives().is_ok() {
            if Instant::now() > give_up {
                return Err(format!("mariadb-install-db does not end:\n{}", installing.said()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if !datadir.join("mysql").is_dir() {
            return Err(format!("mariadb-install-db made no database:\n{}", installing.said()));
        }
        drop(installing);

        let mut server = Command::new(program("mariadbd").ok_or_else(|| missing("mariadbd"))?);
        server
            .args(["--no-defaults", "--skip-networking", "--server-id=1", "--log-bin=mariadb-bin"])
            .args(["--binlog-format=ROW", "--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1"])
            .args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--performance-schema=OFF"])
            .arg(format!("--datadir={}", datadir.display()))
            // Another server's temporary tables are not this one's to remove.
            .arg(format!("--tmpdir={}", self.site.join("tmp").display()))
            .arg(format!("--socket={}", self.kind.place(&self.site).display()))
            .arg(format!("--pid-file={}", self.site.join("mysql.pid").display()));
        if as_root() {
            server.arg("--user=root");
        }
        let mut server = Process::start("north's MariaDB", server, &log)?;
        loop {
            server.lives()?;
            match Connection::open(self.kind, &self.kind.place(&self.site)).await {
                Ok(_) => break,
                Err(why) if Instant::now() > give_up => {
                    return Err(format!("north's MariaDB does not answer ({why}):\n{}", server.said()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        self.processes.push(server);
        Ok(())
    }

    /// Data that is there before anything is replicated.
    pub async fn furnish(&self, promises: &Path, seed: u64) -> Result<(), String> {
        writer::furnish(&self.site, self.kind, promises, &mut Seeded::new(seed)).await.map(|_| ())
    }

    pub fn let_users_in(&mut self, this: &Path, promises: &Path, seed: u64) -> Result<(), String> {
        let mut users = Command::new(this);
        users.arg("demo-north").arg("--site").arg(&self.site).arg("--promises").arg(promises);
        users.args(["--seed", &seed.to_string(), "--parent", &std::process::id().to_string()]);
        if self.kind == Kind::Sqlite {
            users.arg("--sqlite");
        }
        let users = Process::start("north's users", users, &self.logs.join("north-users.log"))?;
        self.processes.push(users);
        Ok(())
    }

    pub fn start_agent(&mut self, this: &Path) -> Result<(), String> {
        let mut agent = Command::new(this);
        agent.arg("agent").arg("--config").arg(self.site.join("farsite.yaml"));
        agent.env("FARSITE_DEMO_NORTH", &self.site).env_remove("FARSITE_CONFIG");
        let agent = Process::start("north's agent", agent, &self.logs.join("north-agent.log"))?;
        self.processes.push(agent);
        Ok(())
    }

    /// A process that ended by itself ends the demo.
    pub fn lives(&mut self) -> Result<(), String> {
        self.processes.iter_mut().try_for_each(Process::lives)
    }

    /// The end of the agent's log, for messages.
    pub fn agent_said(&self) -> String {
        self.processes
            .iter()
            .find(|process| process.name == "north's agent")
            .map(Process::said)
            .unwrap_or_default()
    }

    /// SIGKILL to everything at once, and the folder is gone. Returns how many processes died.
    pub fn destroy(mut self) -> Result<usize, String> {
        let count = below(&self.site).len();
        for process in &mut self.processes {
            process.kill();
        }
        sweep(&self.site, Signal::KILL);
        for process in &mut self.processes {
            process.reap();
        }
        let give_up = Instant::now() + Duration::from_secs(5);
        while !below(&self.site).is_empty() {
            if Instant::now() > give_up {
                return Err("some of north's processes do not die".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let gone = self.site.with_file_name("north.destroyed");
        std::fs::rename(&self.site, &gone).map_err(|error| format!("moving north away: {error}"))?;
        // Nobody may help themselves to what is left.
        let _ = std::fs::set_permissions(&gone, std::fs::Permissions::from_mode(0o000));
        Ok(count)
    }
}
