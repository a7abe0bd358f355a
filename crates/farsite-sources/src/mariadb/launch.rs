//! How a server of one's own is started: an [`Instance`] comes in; arguments, places and owners go out. What must hold:
//! nothing of this host's other servers or of the source's configuration seeps in, but for what the layout of the
//! files depends on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::process::Command;

use super::base;
use super::instance::Instance;
use crate::{SourceError, commands};

/// Settings in `backup-my.cnf` without which a server cannot read the files.
const FILE_SETTINGS: [&str; 4] =
    ["innodb_page_size", "innodb_data_file_path", "innodb_undo_tablespaces", "innodb_checksum_algorithm"];
/// Where a server keeps temporary tables, below its data.
const TEMPORARY: &str = ".farsite-tmp";
/// Arguments that say what is to be done about the binary log.
const LOG_ARGUMENTS: [&str; 4] = ["--log-bin", "--log_bin", "--skip-log-bin", "--disable-log-bin"];

impl Instance {
    pub(super) fn arguments(
        &self,
        log: &Path,
        init: &Path,
        extra: &[&str],
    ) -> Result<Vec<String>, SourceError> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| {
                SourceError::new(format!("starting MariaDB with {}", path.display()), "its name is not UTF-8")
            })
        };
        let mut all = vec![
            // First, or it is no option at all: nothing of this host's own servers may seep in.
            "--no-defaults".to_owned(),
            format!("--datadir={}", text(&self.datadir)?),
            format!("--socket={}", text(&self.socket)?),
            format!("--pid-file={}", text(&self.datadir.join("farsite.pid"))?),
            format!("--log-error={}", text(log)?),
            format!("--init-file={}", text(init)?),
            // At its start a server removes every temporary table in its folder for them: another server's too.
            format!("--tmpdir={}", text(&self.datadir.join(TEMPORARY))?),
            format!("--ignore-db-dirs={TEMPORARY}"),
            // Replication that the source had set up must not start here.
            "--skip-slave-start".to_owned(),
            // Replayed rows may be larger than a client's default lets pass.
            "--max-allowed-packet=1G".to_owned(),
        ];
        match self.port {
            Some(port) => all.extend(["--bind-address=127.0.0.1".to_owned(), format!("--port={port}")]),
            None => all.push("--skip-networking".to_owned()),
        }
        if rustix::process::geteuid().is_root() {
            all.push(format!("--user={}", self.owner()?));
        }
        let mut given = self.server_args.iter().map(String::as_str).chain(extra.iter().copied());
        if !given.any(|argument| LOG_ARGUMENTS.iter().any(|log| argument.starts_with(log))) {
            let hash = blake3::hash(self.datadir.as_os_str().as_encoded_bytes());
            let id = u32::from_le_bytes(*hash.as_bytes().first_chunk().unwrap_or(&[1; 4])) | 1;
            all.extend(["--log-bin=standby-bin", "--binlog-format=ROW"].map(str::to_owned));
            all.push(format!("--server-id={id}"));
        }
        all.extend(self.file_settings());
        all.extend(self.server_args.iter().cloned());
        all.extend(extra.iter().map(|argument| (*argument).to_owned()));
        Ok(all)
    }

    /// The settings of the source on which the layout of its files depends.
    fn file_settings(&self) -> Vec<String> {
        let text = fs::read_to_string(self.datadir.join("backup-my.cnf")).unwrap_or_default();
        let known =
            |line: &&str| line.split_once('=').is_some_and(|(key, _)| FILE_SETTINGS.contains(&key.trim()));
        text.lines().filter(known).map(|line| format!("--{}", line.trim())).collect()
    }

    /// The user that the server runs as when it is started by root: the owner of its data.
    fn owner(&self) -> Result<String, SourceError> {
        let metadata = fs::metadata(&self.datadir)
            .map_err(|error| SourceError::new(format!("reading {}", self.datadir.display()), error))?;
        Ok(if metadata.uid() == 0 { "root".to_owned() } else { metadata.uid().to_string() })
    }

    /// Makes the folder of the socket and the error log, so that the server's user can write there.
    pub(super) fn make_places(&self, log: &Path) -> std::io::Result<()> {
        let owner = fs::metadata(&self.datadir)?;
        let give = |path: &Path| {
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
            }
            Ok::<(), std::io::Error>(())
        };
        if let Some(folder) = self.socket.parent()
            && !folder.exists()
        {
            fs::create_dir_all(folder)?;
            give(folder)?;
        }
        let temporary = self.datadir.join(TEMPORARY);
        fs::create_dir_all(&temporary)?;
        give(&temporary)?;
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::File::options().append(true).create(true).open(log)?;
        give(log)
    }

    /// Everything in the directory belongs to its owner: the restored files have the source's numbers.
    pub(super) fn own(&self) -> std::io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.datadir)?;
        for path in base::walk(&self.datadir)? {
            std::os::unix::fs::lchown(self.datadir.join(path), Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    }
}

/// A command that goes on when this process and its terminal have gone.
pub(super) fn detached(program: &Path) -> Command {
    let mut command = if let Some(setsid) = commands::find(&["setsid"]) {
        let mut command = Command::new(setsid);
        command.arg(program);
        command
    } else {
        let mut command = Command::new(program);
        command.process_group(0);
        command
    };
    // It must not speak to the service manager in this process's name.
    command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("MYSQL_PWD");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(datadir: &Path, server_args: &[&str]) -> Instance {
        Instance {
            datadir: datadir.to_owned(),
            socket: datadir.join("s"),
            port: None,
            server_args: server_args.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    #[test]
    fn layout_settings_of_the_source_are_taken_over_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[mysqld]\ninnodb_page_size=8192\ninnodb_undo_directory=./\nplugin_load=evil.so\n";
        fs::write(dir.path().join("backup-my.cnf"), text).unwrap();
        let arguments = instance(dir.path(), &[]).arguments(Path::new("/e"), Path::new("/i"), &[]).unwrap();
        assert!(arguments.contains(&"--innodb_page_size=8192".to_owned()));
        assert!(arguments.iter().all(|a| !a.contains("evil")));
        assert!(arguments.contains(&"--log-bin=standby-bin".to_owned()));
        assert!(arguments.contains(&"--skip-networking".to_owned()));
    }

    #[test]
    fn a_given_word_about_the_log_is_not_overruled() {
        let dir = tempfile::tempdir().unwrap();
        let arguments = |args: &[&str], extra: &[&str]| {
            instance(dir.path(), args).arguments(Path::new("/e"), Path::new("/i"), extra).unwrap()
        };
        for all in [arguments(&["--log-bin=own"], &[]), arguments(&[], &["--skip-log-bin"])] {
            assert!(all.iter().all(|a| !a.contains("standby-bin")), "{all:?}");
        }
    }
}
