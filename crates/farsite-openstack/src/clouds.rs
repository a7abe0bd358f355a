//! clouds.yaml: where it is and what it names.
//! Source: openstacksdk, "Configuring OpenStack SDK Applications"
//! (<https://docs.openstack.org/openstacksdk/latest/user/config/configuration.html>).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farsite_model::nearest::did_you_mean;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{AuthUrl, InvalidAuthUrl};

/// One cloud, as far as finding and reaching it needs; no credential is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloud {
    pub name: String,
    pub auth_url: AuthUrl,
    /// `region_name`, or the only one of `regions`.
    pub region: Option<String>,
    /// All regions that the file names for it.
    pub regions: Vec<String>,
    pub project: Option<String>,
}

/// Why no cloud could be had. None of these quotes the file: a password may stand in any line of it.
#[derive(Debug, thiserror::Error)]
pub enum CloudsError {
    #[error(
        "there is no clouds.yaml; looked for {}. Hint: point $OS_CLIENT_CONFIG_FILE at it",
        list(searched)
    )]
    NotFound { searched: Vec<PathBuf> },
    #[error("{} cannot be read: {source}. Hint: Farsite's user needs to read it (`$OS_CLIENT_CONFIG_FILE`?)", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    /// From 1; line 0 when the place is not known.
    #[error(
        "{}:{line}:{column}: this is not what a clouds.yaml has there (the line is not shown: it may hold a \
         password). Hint: `openstack --os-cloud NAME catalog list` shows whether other clients can read it",
        file.display()
    )]
    Invalid { file: PathBuf, line: u64, column: u64 },
    #[error("{} has no cloud {name:?}{hint}", file.display())]
    Unknown { file: PathBuf, name: String, hint: String },
    #[error(
        "the cloud {name:?} in {} has no `auth: {{ auth_url: … }}`{}. Hint: write it there",
        file.display(),
        if *profile { ", only a `profile`, which Farsite does not read" } else { "" }
    )]
    NoAuthUrl { file: PathBuf, name: String, profile: bool },
    #[error("the auth_url of the cloud {name:?} in {} is not valid: {why}", file.display())]
    InvalidAuthUrl { file: PathBuf, name: String, why: InvalidAuthUrl },
}

/// A clouds.yaml that was read.
#[derive(Debug, Clone)]
pub struct Clouds {
    file: PathBuf,
    entries: BTreeMap<String, Entry>,
}

/// Only what is named here is kept of the file; the rest, credentials above all, is skipped while it is parsed.
#[derive(Debug, Clone, Deserialize)]
struct Document {
    clouds: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Deserialize)]
struct Entry {
    auth: Option<Auth>,
    region_name: Option<String>,
    #[serde(default)]
    regions: Vec<Region>,
    profile: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
struct Auth {
    auth_url: Option<RawUrl>,
    project_name: Option<String>,
}

/// As it stands in the file, so perhaps with a password: it is parsed when its cloud is asked for, and has no
/// way to be shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
struct RawUrl(String);

impl std::fmt::Debug for RawUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawUrl(***)")
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Region {
    Name(String),
    WithValues { name: String },
}

impl Clouds {
    /// Reads `$OS_CLIENT_CONFIG_FILE` where it is set, else the first of `./clouds.yaml`,
    /// `~/.config/openstack/clouds.yaml` and `/etc/openstack/clouds.yaml` that exists.
    pub fn load() -> Result<Self, CloudsError> {
        Self::load_with(&|name| std::env::var(name).ok(), Path::new("."), Path::new("/etc/openstack"))
    }

    /// The same with another environment, working folder and system folder.
    pub fn load_with(
        environment: &dyn Fn(&str) -> Option<String>,
        working_folder: &Path,
        system_folder: &Path,
    ) -> Result<Self, CloudsError> {
        let set = |name| environment(name).filter(|value| !value.is_empty());
        // Who names a file means it: another one must not stand in for it when it is missing.
        if let Some(file) = set("OS_CLIENT_CONFIG_FILE") {
            return Self::read(Path::new(&file));
        }
        let of_user = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(&set("HOME")?).join(".config")))
            .map(|folder| folder.join("openstack"));
        let searched: Vec<PathBuf> =
            [Some(working_folder.to_owned()), of_user, Some(system_folder.to_owned())]
                .into_iter()
                .flatten()
                .flat_map(|folder| [folder.join("clouds.yaml"), folder.join("clouds.yml")])
                .collect();
        match searched.iter().find(|file| file.exists()) {
            Some(file) => Self::read(file),
            None => Err(CloudsError::NotFound { searched }),
        }
    }

    /// Reads one file.
    pub fn read(file: &Path) -> Result<Self, CloudsError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| CloudsError::Unreadable { file: file.to_owned(), source })?;
        // The parser's own message and line would quote the file.
        let document: Document = serde_saphyr::from_str(&text).map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
            CloudsError::Invalid { file: file.to_owned(), line, column }
        })?;
        Ok(Self { file: file.to_owned(), entries: document.clouds })
    }

    /// The file that was read.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The names of all clouds, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// One cloud. A mistyped name is answered with the nearest ones. What is wrong with other clouds of the file
    /// does not matter here.
    pub fn find(&self, name: &str) -> Result<Cloud, CloudsError> {
        let file = self.file.clone();
        let Some(entry) = self.entries.get(name) else {
            let mut hint = did_you_mean(name, self.names());
            if hint.is_empty() {
                hint = match self.names().collect::<Vec<_>>().as_slice() {
                    [] => "; it has none".to_owned(),
                    names => format!("; it has {}", names.join(", ")),
                };
            }
            return Err(CloudsError::Unknown { file, name: name.to_owned(), hint });
        };
        let auth = entry.auth.as_ref();
        let Some(RawUrl(auth_url)) = auth.and_then(|auth| auth.auth_url.as_ref()) else {
            return Err(CloudsError::NoAuthUrl {
                file,
                name: name.to_owned(),
                profile: entry.profile.is_some(),
            });
        };
        let auth_url = auth_url.parse().map_err(|why| CloudsError::InvalidAuthUrl {
            file,
            name: name.to_owned(),
            why,
        })?;
        let mut regions: Vec<String> = entry
            .regions
            .iter()
            .map(|region| match region {
                Region::Name(name) | Region::WithValues { name } => name.clone(),
            })
            .collect();
        let region = entry.region_name.clone().or_else(|| match regions.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        });
        if let Some(region) = region.as_ref().filter(|region| !regions.contains(region)) {
            regions.insert(0, region.clone());
        }
        let project = auth.and_then(|auth| auth.project_name.clone());
        Ok(Cloud { name: name.to_owned(), auth_url, region, regions, project })
    }
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
