//! One image of a Ceph pool as the `rbd` command sees it: its snapshots are made, listed and removed. What must hold: only
//! snapshots of our own name are ever removed; no key stands in an argument (it is in the keyring that the cluster's
//! configuration names).

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farsite_model::policy::Rbd;
use serde::Deserialize;

use crate::{SourceError, commands};

const CONF: &str = "/etc/ceph/ceph.conf";

/// A pool and the way to its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) rbd: Rbd,
    /// Longest time that one command may take.
    pub(crate) limit: Duration,
}

/// One image of it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) pool: Pool,
    pub(crate) name: String,
}

#[derive(Deserialize)]
struct Listed {
    id: u64,
    name: String,
}

/// An image, or one of its snapshots.
#[derive(Debug, Deserialize)]
pub(crate) struct ListedImage {
    pub(crate) image: String,
    pub(crate) snapshot: Option<String>,
    #[serde(rename = "size")]
    pub(crate) size_bytes: u64,
}

/// What an image took since the snapshot before, up to one of its own or up to now.
#[derive(Debug, Deserialize)]
pub(crate) struct Used {
    #[serde(rename = "name")]
    pub(crate) image: String,
    pub(crate) snapshot: Option<String>,
    #[serde(rename = "used_size")]
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
struct Usage {
    images: Vec<Used>,
}

impl Pool {
    /// As a child takes them.
    pub(super) fn as_arguments(&self) -> [PathBuf; 4] {
        let rbd = &self.rbd;
        [
            self.conf().to_owned(),
            rbd.user.clone().unwrap_or_default().into(),
            rbd.pool.clone().into(),
            rbd.namespace.clone().unwrap_or_default().into(),
        ]
    }

    fn conf(&self) -> &Path {
        self.rbd.conf.as_deref().unwrap_or(Path::new(CONF))
    }

    /// The names of all its images.
    pub(crate) fn images(&self) -> Result<Vec<String>, SourceError> {
        let what = format!("listing the images of {self}");
        let said = self.rbd(&what, &["ls", "--format", "json"], &[])?;
        let mut names: Vec<String> = serde_json::from_str(&said)
            .map_err(|error| SourceError::new(what, format!("what rbd says makes no sense: {error}")))?;
        names.sort();
        Ok(names)
    }

    /// All its images, and the snapshots of each.
    pub(crate) fn images_with_snapshots(&self) -> Result<Vec<ListedImage>, SourceError> {
        let what = format!("listing the images of {self} with their sizes");
        let said = self.rbd(&what, &["ls", "--long", "--format", "json"], &[])?;
        serde_json::from_str(&said)
            .map_err(|error| SourceError::new(what, format!("what rbd says makes no sense: {error}")))
    }

    /// Of all its images, for each the oldest snapshot first and the present last.
    pub(crate) fn usage(&self) -> Result<Vec<Used>, SourceError> {
        let what = format!("measuring the images of {self}");
        let said = self.rbd(&what, &["du", "--format", "json"], &[])?;
        let usage: Usage = serde_json::from_str(&said)
            .map_err(|error| SourceError::new(what, format!("what rbd says makes no sense: {error}")))?;
        Ok(usage.images)
    }

    fn rbd(&self, what: &str, words: &[&str], more: &[(&str, &str)]) -> Result<String, SourceError> {
        let mut args: Vec<OsString> = words.iter().map(OsString::from).collect();
        let mut add = |name: &str, value: OsString| args.extend([name.into(), value]);
        add("--conf", self.conf().into());
        if let Some(user) = &self.rbd.user {
            add("--id", user.into());
        }
        add("--pool", (&self.rbd.pool).into());
        if let Some(namespace) = &self.rbd.namespace {
            add("--namespace", namespace.into());
        }
        for (name, value) in more {
            add(name, value.into());
        }
        let mut command = commands::tied(&commands::require(&["rbd"], "ceph-common")?);
        command.args(args);
        let hint =
            "is the cluster well (`ceph -s`), and may this user read and snapshot the pool (`profile rbd`)?";
        let done = commands::run_now(what, command, self.limit).map_err(|error| error.hint(hint))?;
        Ok(done.success(what).map_err(|error| error.hint(hint))?.stdout)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rbd.namespace {
            Some(namespace) => write!(f, "the pool {}/{namespace}", self.rbd.pool),
            None => write!(f, "the pool {}", self.rbd.pool),
        }
    }
}

impl Image {
    /// As a child takes them.
    pub(super) fn as_arguments(&self) -> [PathBuf; 5] {
        let [conf, user, pool, namespace] = self.pool.as_arguments();
        [conf, user, pool, namespace, self.name.clone().into()]
    }

    pub(crate) fn add_snapshot(&self, name: &str) -> Result<(), SourceError> {
        self.snapshot("create", name)
    }

    pub(crate) fn remove_snapshot(&self, name: &str) -> Result<(), SourceError> {
        self.snapshot("rm", name)
    }

    fn snapshot(&self, verb: &str, name: &str) -> Result<(), SourceError> {
        let what = format!("`rbd snap {verb}` of {name} of {self}");
        self.pool.rbd(&what, &["snap", verb], &[("--image", &self.name), ("--snap", name)])?;
        Ok(())
    }

    /// The names of its snapshots.
    pub(crate) fn snapshots(&self) -> Result<Vec<String>, SourceError> {
        Ok(self.listed()?.into_iter().map(|snapshot| snapshot.name).collect())
    }

    /// The pool's own number of a snapshot, if there is one of this name.
    pub(crate) fn snapshot_id(&self, name: &str) -> Result<Option<u64>, SourceError> {
        Ok(self.listed()?.into_iter().find(|snapshot| snapshot.name == name).map(|snapshot| snapshot.id))
    }

    fn listed(&self) -> Result<Vec<Listed>, SourceError> {
        let what = format!("listing the snapshots of {self}");
        let said = self.pool.rbd(&what, &["snap", "ls", "--format", "json"], &[("--image", &self.name)])?;
        serde_json::from_str(&said)
            .map_err(|error| SourceError::new(what, format!("what rbd says makes no sense: {error}")))
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.name, self.pool)
    }
}
