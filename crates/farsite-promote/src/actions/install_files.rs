//! `install-files`: restored files and folders go where this site's services look for them (`rewrite.files`), with the owner that
//! what stood there had, or its folder. What must hold: what stood there is moved aside and comes back with an undo; nobody ever sees a folder
//! that is half there.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Foreseen, Outcome};
use serde_json::Value;

use super::{Held, no_parameters};
use crate::aside::remove;
use crate::group_run::{GroupRun, failed};

pub(crate) struct InstallFiles(pub(super) Held);

/// One path that is put into place.
struct Install {
    from: PathBuf,
    to: PathBuf,
    /// Where it is put together.
    partial: PathBuf,
    /// Where what stood there before is kept.
    aside: PathBuf,
    /// Stands there when nothing did.
    made: PathBuf,
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{name}.{ending}"))
}

fn installs(run: &GroupRun) -> Result<Vec<Install>, ActionError> {
    let files = &run.targets.rewrite.files;
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let root = run.targets.files.as_ref().ok_or_else(|| {
        ActionError::failed(format!(
            "`rewrite.files` puts restored files into place, and group {} restores none\n  hint: `places.{0}.files:` in farsite.yaml",
            run.group
        ))
    })?;
    let install = |(old, new): (&PathBuf, &PathBuf)| Install {
        from: root.join(old.strip_prefix("/").unwrap_or(old)),
        to: new.clone(),
        partial: beside(new, &format!("partial-{}", run.promotion)),
        aside: beside(new, &format!("before-{}", run.promotion)),
        made: beside(new, &format!("made-by-{}", run.promotion)),
    };
    Ok(files.iter().map(install).collect())
}

impl Install {
    /// Twice is as good as once: what stood there first is what is kept.
    fn put(&self) -> io::Result<()> {
        remove(&self.partial)?;
        // What an earlier attempt put there is nobody's but ours.
        let stood = if self.made.exists() {
            None
        } else {
            fs::symlink_metadata(&self.aside).or_else(|_| fs::symlink_metadata(&self.to)).ok()
        };
        if let Some(parent) = self.to.parent() {
            fs::create_dir_all(parent)?;
        }
        let owner = match &stood {
            Some(stood) => Some((stood.uid(), stood.gid())),
            None => self.folders_owner()?,
        };
        copy(&self.from, &self.partial, owner)?;
        if stood.is_none() && !self.made.exists() {
            fs::File::create(&self.made)?.sync_all()?;
        }
        if self.to.symlink_metadata().is_ok() {
            if self.aside.symlink_metadata().is_ok() || self.made.exists() {
                remove(&self.to)?;
            } else {
                fs::rename(&self.to, &self.aside)?;
            }
        }
        fs::rename(&self.partial, &self.to)?;
        let parent = self.to.parent().unwrap_or(Path::new("/"));
        fs::File::open(parent)?.sync_all()
    }

    /// Where nothing stood: whose the folder is. Root's tells nothing, and the numbers of the lost site may be the same here.
    fn folders_owner(&self) -> io::Result<Option<(u32, u32)>> {
        let folder = fs::metadata(self.to.parent().unwrap_or(Path::new("/")))?;
        Ok((folder.uid() != 0).then(|| (folder.uid(), folder.gid())))
    }

    fn take_back(&self) -> io::Result<()> {
        remove(&self.partial)?;
        if self.aside.symlink_metadata().is_ok() {
            remove(&self.to)?;
            fs::rename(&self.aside, &self.to)?;
        } else if self.made.exists() {
            remove(&self.to)?;
        }
        remove(&self.made)
    }
}

/// A copy with modes; `owner` for all of it, or each one's own.
fn copy(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if metadata.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), owner)?;
        }
    } else {
        // With its mode from the start: it may be a key.
        fs::copy(from, to)?;
        fs::File::open(to)?.sync_all()?;
    }
    let (uid, gid) = owner.unwrap_or((metadata.uid(), metadata.gid()));
    if rustix::process::geteuid().is_root() {
        lchown(to, Some(uid), Some(gid))?;
    }
    if !metadata.is_symlink() {
        fs::set_permissions(to, metadata.permissions())?;
    }
    Ok(())
}

#[async_trait]
impl Action for InstallFiles {
    fn name(&self) -> &'static str {
        "install-files"
    }
    fn summary(&self) -> &'static str {
        "restored files to where this site's services look for them (`places.<group>.rewrite.files`), with the owner of what stood there"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        no_parameters(with)
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(10)
    }
    async fn check(&self, _: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        Ok(Done::No)
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let mut outcome = Outcome::said("no file has another place here");
        for (number, install) in installs(run)?.into_iter().enumerate() {
            context.lease.check()?;
            let to = install.to.display().to_string();
            let what = format!("putting {} into place as {to}", install.from.display());
            if install.from.symlink_metadata().is_err() {
                return Err(failed(
                    context,
                    format!(
                        "{what}: the point did not bring it; what stands at {to} is as it was\n  hint: correct `rewrite.files` in farsite.yaml, or put it among the policy's `files`; if its files came another way, skip this step"
                    ),
                ));
            }
            tokio::task::spawn_blocking(move || install.put())
                .await
                .map_err(|e| failed(context, e))?
                .map_err(|e| failed(context, format!("{what}: {e}")))?;
            outcome.detail = format!("{} put into place", number + 1);
            outcome = outcome.with(&to, "what stood there is beside it");
        }
        Ok(outcome)
    }
    async fn undo(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        for install in installs(self.0.run()?)? {
            context.lease.check()?;
            install.take_back().map_err(|e| failed(context, format!("{}: {e}", install.to.display())))?;
        }
        Ok(Outcome::said("what stood there before is back"))
    }
    async fn dry_run(&self, _: &ActionContext, _: &Value) -> Result<Foreseen, ActionError> {
        let run = self.0.run()?;
        let installs = installs(run)?;
        let carried = if installs.is_empty() {
            Vec::new()
        } else {
            run.carried_files().await.map_err(ActionError::Failed)?
        };
        for old in run.targets.rewrite.files.keys() {
            let path = old.strip_prefix("/").unwrap_or(old);
            if !carried.iter().any(|entry| Path::new(&entry.path).starts_with(path)) {
                return Err(ActionError::failed(format!(
                    "the point does not hold {}, which `rewrite.files` puts into place\n  hint: put it among the policy's `files`, and take a new point; or correct `rewrite.files` in farsite.yaml",
                    old.display()
                )));
            }
        }
        for install in &installs {
            let there = install.to.ancestors().skip(1).find(|path| path.is_dir());
            let may_write =
                there.is_some_and(|path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok());
            if !may_write {
                return Err(ActionError::failed(format!("{} cannot be written to", install.to.display())));
            }
        }
        Ok(match installs.len() {
            0 => "no file has another place here".into(),
            n => format!("{n} paths; what stands there is moved aside").into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn world() -> (tempfile::TempDir, Install) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (folder, text) in [("carried", "north"), ("keys", "south")] {
            fs::create_dir(at(folder)).unwrap();
            fs::write(at(folder).join("0"), text).unwrap();
        }
        fs::set_permissions(at("carried").join("0"), fs::Permissions::from_mode(0o600)).unwrap();
        let install = Install {
            from: at("carried"),
            to: at("keys"),
            partial: at("keys.partial"),
            aside: at("keys.before"),
            made: at("keys.made"),
        };
        (dir, install)
    }

    fn text(install: &Install) -> String {
        fs::read_to_string(install.to.join("0")).unwrap()
    }

    #[test]
    fn files_come_with_their_mode_and_what_stood_there_comes_back() {
        let (_dir, install) = world();
        for _ in 0..2 {
            install.put().unwrap();
            assert_eq!(text(&install), "north");
        }
        assert_eq!(fs::metadata(install.to.join("0")).unwrap().permissions().mode() & 0o777, 0o600);
        for _ in 0..2 {
            install.take_back().unwrap();
            assert_eq!(text(&install), "south");
        }
        assert!(!install.aside.exists() && !install.partial.exists());
    }

    #[test]
    fn files_belong_to_whom_what_stood_there_did_or_else_the_folder_when_root() {
        use std::os::unix::fs::chown;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let owner = |install: &Install| {
            let there = fs::metadata(install.to.join("0")).unwrap();
            (there.uid(), there.gid())
        };
        let (dir, install) = world();
        chown(install.from.join("0"), Some(4701), Some(4702)).unwrap();
        chown(&install.to, Some(4711), Some(4712)).unwrap();
        install.put().unwrap();
        assert_eq!(owner(&install), (4711, 4712));
        remove(&install.to).unwrap();
        remove(&install.aside).unwrap();
        install.put().unwrap();
        assert_eq!(owner(&install), (4701, 4702), "the folder is root's");
        install.put().unwrap();
        assert_eq!(owner(&install), (4701, 4702), "what stands there now is our own");
        chown(dir.path(), Some(4721), Some(4722)).unwrap();
        remove(&install.to).unwrap();
        install.put().unwrap();
        assert_eq!(owner(&install), (4721, 4722));
    }

    #[test]
    fn what_stood_nowhere_before_is_gone_again() {
        let (_dir, install) = world();
        fs::remove_dir_all(&install.to).unwrap();
        install.put().unwrap();
        install.put().unwrap();
        assert_eq!(text(&install), "north");
        install.take_back().unwrap();
        assert!(!install.to.exists() && !install.aside.exists() && !install.made.exists());
        install.take_back().unwrap();
    }

    #[test]
    fn what_was_cut_off_half_way_is_done_again() {
        let (_dir, install) = world();
        fs::create_dir(&install.partial).unwrap();
        fs::rename(&install.to, &install.aside).unwrap();
        install.put().unwrap();
        assert_eq!(text(&install), "north");
        install.take_back().unwrap();
        assert_eq!(text(&install), "south");
    }
}
