//! Freezing the demo's volumes: the two scripts that the policy's hooks call, and the writer's side of the handshake.
//!
//! `freeze-volumes` leaves a request with a token and ends when the writer has answered with that token: from then on
//! the volumes do not change. `thaw-volumes` takes the request away. When nobody thaws within [`PATIENCE`], the writer
//! goes on by itself, as a hypervisor does with a guest whose backup died; it says so in `expired`, and
//! `thaw-volumes` then fails, because what was captured may not be of one instant.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the writer stays quiet without being thawed.
pub const PATIENCE: Duration = Duration::from_secs(5);

const FREEZE: &str = r#"#!/bin/sh
# Stops the writer of the volumes; ends with 0 once it is quiet.
cd "$(dirname "$0")/freeze" || exit 1
token="$$.$(date +%s%N)"
rm -f expired
echo "$token" > "request.$$" && mv "request.$$" request || exit 1
tries=0
while [ "$(cat quiet 2>/dev/null)" != "$token" ]; do
  tries=$((tries + 1))
  if [ "$tries" -gt 250 ]; then
    rm -f request
    echo "the writer of the volumes does not become quiet" >&2
    exit 1
  fi
  sleep 0.02
done
"#;

const THAW: &str = r#"#!/bin/sh
# Lets the writer of the volumes go on; without a freeze there is nothing to do.
cd "$(dirname "$0")/freeze" || exit 1
if [ -e expired ]; then
  rm -f expired request
  echo "the writer went on by itself after 5 s: what was captured may not be of one instant" >&2
  exit 1
fi
rm -f request
"#;

/// Lays out the scripts and the folder of the handshake.
pub fn install(site: &Path) -> std::io::Result<()> {
    fs::create_dir_all(site.join("freeze"))?;
    for (name, text) in [("freeze-volumes", FREEZE), ("thaw-volumes", THAW)] {
        let path = site.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The writer's side.
pub struct Freeze {
    folder: PathBuf,
    since: Option<(String, Instant)>,
}

impl Freeze {
    pub fn new(site: &Path) -> Self {
        Self { folder: site.join("freeze"), since: None }
    }

    /// Asked between two writes: whether the volumes must be left alone now.
    pub fn is_frozen(&mut self, now: Instant) -> std::io::Result<bool> {
        let (request, quiet) = (self.folder.join("request"), self.folder.join("quiet"));
        let Ok(token) = fs::read_to_string(&request) else {
            if self.since.take().is_some() {
                let _ = fs::remove_file(&quiet);
            }
            return Ok(false);
        };
        match &self.since {
            Some((held, since)) if *held == token => {
                if now.duration_since(*since) < PATIENCE {
                    return Ok(true);
                }
                fs::write(self.folder.join("expired"), &token)?;
                let _ = fs::remove_file(&request);
                let _ = fs::remove_file(&quiet);
                self.since = None;
                Ok(false)
            }
            _ => {
                let fresh = self.folder.join("quiet.new");
                fs::write(&fresh, &token)?;
                fs::rename(&fresh, &quiet)?;
                self.since = Some((token, now));
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn script(site: &Path, name: &str) -> std::process::Output {
        Command::new(site.join(name)).output().unwrap()
    }

    #[test]
    fn freeze_ends_when_the_writer_is_quiet_and_thaw_lets_it_go_on() {
        let site = tempfile::tempdir().unwrap();
        install(site.path()).unwrap();
        let mut writer = Freeze::new(site.path());
        assert!(!writer.is_frozen(Instant::now()).unwrap());
        let child = Command::new(site.path().join("freeze-volumes")).spawn().unwrap();
        while !writer.is_frozen(Instant::now()).unwrap() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(child.wait_with_output().unwrap().status.success());
        assert!(script(site.path(), "thaw-volumes").status.success());
        assert!(!writer.is_frozen(Instant::now()).unwrap());
    }

    #[test]
    fn a_thaw_without_a_freeze_is_fine() {
        let site = tempfile::tempdir().unwrap();
        install(site.path()).unwrap();
        assert!(script(site.path(), "thaw-volumes").status.success());
    }

    #[test]
    fn a_writer_that_went_on_by_itself_is_noticed_at_the_thaw() {
        let site = tempfile::tempdir().unwrap();
        install(site.path()).unwrap();
        let mut writer = Freeze::new(site.path());
        let begun = Instant::now();
        fs::write(site.path().join("freeze/request"), "token\n").unwrap();
        assert!(writer.is_frozen(begun).unwrap());
        assert!(!writer.is_frozen(begun + PATIENCE).unwrap());
        let thaw = script(site.path(), "thaw-volumes");
        assert!(!thaw.status.success());
        assert!(String::from_utf8_lossy(&thaw.stderr).contains("one instant"));
        assert!(script(site.path(), "thaw-volumes").status.success(), "it is said once");
    }
}
