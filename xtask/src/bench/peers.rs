//! The peers: programs that people use for such work today. Names come in; those that are installed, or can be, go out as
//! tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Tool;
use crate::failure::Failure;
use crate::programs::{self, Program};

const PASSWORD: &str = "not-a-secret";

pub fn installed(
    root: &Path,
    names: &[String],
    folder: &Path,
    volume: &Path,
) -> Result<Vec<Box<dyn Tool>>, Failure> {
    let mut tools: Vec<Box<dyn Tool>> = Vec::new();
    for name in names {
        let kind = match name.as_str() {
            "restic" => Kind::Restic,
            "borg" => Kind::Borg,
            "casync" => Kind::Casync,
            "rustic" => Kind::Rustic,
            "bupstash" => Kind::Bupstash,
            other => {
                return Err(Failure::usage(format!("`{other}` is no peer that this knows"), super::USAGE));
            }
        };
        match kind {
            Kind::Restic => {
                programs::ensure(&root.join("xtask"), &[Program { name: "restic", package: "restic" }])?;
            }
            Kind::Borg => {
                programs::ensure(&root.join("xtask"), &[Program { name: "borg", package: "borgbackup" }])?;
            }
            Kind::Casync => {
                programs::ensure(&root.join("xtask"), &[Program { name: "casync", package: "casync" }])?;
            }
            Kind::Rustic => programs::ensure_cargo_program("rustic", "rustic-rs")?,
            Kind::Bupstash => programs::ensure_cargo_program("bupstash", "bupstash")?,
        }
        let (store, cache) = (folder.join(format!("store-{name}")), folder.join(format!("cache-{name}")));
        tools.push(Box::new(Peer {
            name: name.clone(),
            kind,
            store,
            cache,
            source: volume.parent().unwrap_or(volume).to_path_buf(),
        }));
    }
    Ok(tools)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Restic,
    Borg,
    Casync,
    Rustic,
    Bupstash,
}

struct Peer {
    name: String,
    kind: Kind,
    store: PathBuf,
    cache: PathBuf,
    /// The folder with the volume in it.
    source: PathBuf,
}

impl Peer {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("RESTIC_REPOSITORY", &self.store)
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_CACHE_DIR", &self.cache)
            .env("RUSTIC_REPOSITORY", &self.store)
            .env("RUSTIC_PASSWORD", PASSWORD)
            .env("RUSTIC_CACHE_DIR", &self.cache)
            .env("BORG_REPO", &self.store)
            .env("BORG_PASSPHRASE", PASSWORD)
            .env("BORG_BASE_DIR", &self.cache)
            .env("BUPSTASH_REPOSITORY", &self.store)
            .env("BUPSTASH_KEY", self.cache.join("key"))
            .env("BUPSTASH_SEND_LOG", self.cache.join("send-log"))
            .env("BUPSTASH_QUERY_CACHE", self.cache.join("query"))
            .current_dir(&self.source);
        command
    }
    /// Of the newest backup, where a program needs to be told.
    fn id(&self) -> PathBuf {
        self.cache.join("id")
    }
    /// A shell line, for programs whose restore writes to the standard output.
    fn shell(&self, line: &str, to: &Path) -> Command {
        let mut command = self.command("sh", &["-c", line]);
        command.arg("sh").arg(to);
        command
    }
}

/// Whether a program's restore has an option.
fn offers(program: &str, option: &str) -> bool {
    let help = Command::new(program).args(["restore", "--help"]).output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains(option))
}

impl Tool for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn init(&mut self) -> Result<(), Failure> {
        for folder in [&self.store, &self.cache] {
            let _ = std::fs::remove_dir_all(folder);
        }
        std::fs::create_dir_all(&self.cache).map_err(|e| super::at(&self.cache, &e))?;
        let commands = match self.kind {
            Kind::Restic => vec![self.command("restic", &["init", "-q"])],
            Kind::Borg => vec![self.command("borg", &["init", "-e", "repokey-blake2"])],
            Kind::Casync => Vec::new(),
            // Of its chunkers the one that is the fastest on volumes.
            Kind::Rustic => vec![
                self.command("rustic", &["init", "--set-chunker", "fixed_size", "--set-chunk-size", "64KiB"]),
            ],
            Kind::Bupstash => {
                let key = self.cache.join("key");
                let mut new_key = self.command("bupstash", &["new-key", "-o"]);
                new_key.arg(key);
                vec![new_key, self.command("bupstash", &["init"])]
            }
        };
        for command in commands {
            crate::step::run(command, crate::step::minutes(5), "see above")?;
        }
        std::fs::create_dir_all(&self.store).map_err(|e| super::at(&self.store, &e))
    }

    fn backup(&self) -> Command {
        match self.kind {
            // --force / --files-cache=disabled: nothing is skipped for its time stamp, as a device has none.
            Kind::Restic => self.command("restic", &["backup", "-q", "--force", "volume"]),
            Kind::Borg => self.command(
                "borg",
                &["create", "--compression", "zstd,3", "--files-cache=disabled", "::{now:%s%f}", "volume"],
            ),
            Kind::Casync => {
                let line = "casync make --store=\"$1\"/chunks \"$1\"/$(date +%s%N).caibx volume";
                let store = self.store.clone();
                self.shell(line, &store)
            }
            Kind::Rustic => self.command("rustic", &["backup", "--force", "--no-progress", "volume"]),
            Kind::Bupstash => {
                // It prints the id by which an item is fetched: there is no word for the newest one. The send log is what
                // makes it quick; only that a file is skipped for its time stamp is left out.
                self.shell("bupstash put -q --no-stat-caching volume > \"$1\"", &self.id())
            }
        }
    }

    fn restore(&self, to: &Path) -> Command {
        match self.kind {
            Kind::Restic => {
                let line = "rm -rf \"$1\".d && restic restore -q latest $(restic restore --help | grep -o -m1 -e --sparse) --target \"$1\".d && mv \"$1\".d/volume \"$1\" && sync \"$1\"";
                self.shell(line, to)
            }
            Kind::Borg => {
                let line = "rm -rf \"$1\".d && mkdir \"$1\".d && cd \"$1\".d && borg extract --sparse ::$(borg list --last 1 --short) && mv volume \"$1\" && sync \"$1\"";
                self.shell(line, to)
            }
            Kind::Casync => {
                let line = format!(
                    "casync extract --store='{0}'/chunks $(ls -t '{0}'/*.caibx | head -1) \"$1\" && sync \"$1\"",
                    self.store.display()
                );
                self.shell(&line, to)
            }
            Kind::Rustic => {
                let line = "rm -rf \"$1\".d && rustic restore --no-progress --sparse by-content latest \"$1\".d && mv $(find \"$1\".d -name volume) \"$1\" && sync \"$1\"";
                self.shell(line, to)
            }
            Kind::Bupstash => {
                let line =
                    format!("bupstash get -q id=$(cat '{}') > \"$1\" && sync \"$1\"", self.id().display());
                self.shell(&line, to)
            }
        }
    }

    fn restore_into(&self, to: &Path) -> Option<Command> {
        let line = match self.kind {
            // Older ones only skip what is there.
            Kind::Restic if !offers("restic", "--overwrite") => return None,
            Kind::Restic => {
                "rm -rf \"$1\".d && mkdir \"$1\".d && mv \"$1\" \"$1\".d/volume && restic restore -q latest --overwrite always --target \"$1\".d && mv \"$1\".d/volume \"$1\" && sync \"$1\""
            }
            Kind::Rustic => {
                "rm -rf \"$1\".d && mkdir \"$1\".d && mv \"$1\" \"$1\".d/volume && rustic restore --no-progress latest:volume \"$1\".d/volume && mv \"$1\".d/volume \"$1\" && sync \"$1\""
            }
            _ => return None,
        };
        Some(self.shell(line, to))
    }

    fn check(&self) -> Command {
        match self.kind {
            Kind::Restic => self.command("restic", &["check", "-q", "--read-data"]),
            Kind::Borg => self.command("borg", &["check", "--verify-data"]),
            Kind::Casync => {
                let line = format!(
                    "casync digest --store='{0}'/chunks $(ls -t '{0}'/*.caibx | head -1)",
                    self.store.display()
                );
                self.command("sh", &["-c", &line])
            }
            Kind::Rustic => self.command("rustic", &["check", "--read-data"]),
            Kind::Bupstash => self.shell("bupstash get -q id=$(cat \"$1\") > /dev/null", &self.id()),
        }
    }

    fn store(&self) -> &Path {
        &self.store
    }
}
