//! clouds.yaml: where it is and what it names. Beside it `secure.yaml`, which goes before it, and `clouds-public.yaml`, which
//! describes what its `profile:` names; and the cloud `envvars`, which the variables `OS_*` describe.
//! Source: openstacksdk, "Configuring OpenStack SDK Applications"
//! (<https://docs.openstack.org/openstacksdk/latest/user/config/configuration.html>).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farsite_model::nearest::did_you_mean;
use serde::Deserialize;

use crate::files::{Environment, Files};
use crate::{AuthUrl, InvalidAuthUrl};

/// What OpenStack's clients call the cloud that the variables `OS_*` describe.
pub const ENVVARS: &str = "envvars";

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
    /// Which of a service's addresses is used.
    pub interface: Interface,
    /// Certificates that are trusted besides the system's.
    pub cacert: Option<PathBuf>,
    /// Whether certificates are looked at.
    pub verify: bool,
}

/// Who an address of a service is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Interface {
    #[default]
    Public,
    Internal,
    Admin,
}

impl Interface {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }
    /// Both ways of writing it: `internal`, `internalURL`.
    fn of(word: &str) -> Option<Self> {
        [Self::Public, Self::Internal, Self::Admin]
            .into_iter()
            .find(|i| i.as_str() == word.trim_end_matches("URL"))
    }
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
        if *profile { ", only a `profile` that no clouds-public.yaml describes" } else { "" }
    )]
    NoAuthUrl { file: PathBuf, name: String, profile: bool },
    #[error("the auth_url of the cloud {name:?} in {} is not valid: {why}", file.display())]
    InvalidAuthUrl { file: PathBuf, name: String, why: InvalidAuthUrl },
    #[error("the cloud {name:?} in {} cannot be used: {why}", file.display())]
    Unusable { file: PathBuf, name: String, why: String },
}

/// A clouds.yaml that was read.
#[derive(Debug, Clone)]
pub struct Clouds {
    files: Files,
    entries: BTreeMap<String, Entry>,
}

/// Only what is named here is kept of the file; the rest, credentials above all, is skipped while it is parsed.
#[derive(Debug, Clone, Default, Deserialize)]
struct Document {
    #[serde(default)]
    clouds: BTreeMap<String, Entry>,
    #[serde(default, rename = "public-clouds")]
    public_clouds: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Entry {
    auth: Option<Auth>,
    region_name: Option<String>,
    #[serde(default)]
    regions: Vec<Region>,
    profile: Option<String>,
    #[serde(alias = "endpoint_type")]
    interface: Option<Words>,
    cacert: Option<PathBuf>,
    verify: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
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

/// One, or several of which the first counts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Region {
    Name(String),
    WithValues { name: String },
}

impl Words {
    fn first(&self) -> Option<&str> {
        match self {
            Self::One(word) => Some(word),
            Self::Several(words) => words.first().map(String::as_str),
        }
    }
}

impl Entry {
    /// What this one does not say, `other` says.
    fn over(self, other: Self) -> Self {
        let (ours, theirs) = (self.auth.unwrap_or_default(), other.auth.unwrap_or_default());
        Self {
            auth: Some(Auth {
                auth_url: ours.auth_url.or(theirs.auth_url),
                project_name: ours.project_name.or(theirs.project_name),
            }),
            region_name: self.region_name.or(other.region_name),
            regions: if self.regions.is_empty() { other.regions } else { self.regions },
            profile: self.profile.or(other.profile),
            interface: self.interface.or(other.interface),
            cacert: self.cacert.or(other.cacert),
            verify: self.verify.or(other.verify),
        }
    }

    fn of_environment(environment: Environment<'_>) -> Self {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        Self {
            auth: Some(Auth {
                auth_url: set("OS_AUTH_URL").map(RawUrl),
                project_name: set("OS_PROJECT_NAME"),
            }),
            region_name: set("OS_REGION_NAME"),
            interface: set("OS_INTERFACE").or_else(|| set("OS_ENDPOINT_TYPE")).map(Words::One),
            cacert: set("OS_CACERT").map(PathBuf::from),
            ..Self::default()
        }
    }
}

impl Clouds {
    /// Reads `$OS_CLIENT_CONFIG_FILE` where it is set, else the first of `./clouds.yaml`,
    /// `~/.config/openstack/clouds.yaml` and `/etc/openstack/clouds.yaml` that exists. Without any of them the cloud
    /// `envvars` is there alone, where `$OS_AUTH_URL` is set.
    pub fn load() -> Result<Self, CloudsError> {
        Self::load_with(&|name| std::env::var(name).ok(), Path::new("."), Path::new("/etc/openstack"))
    }

    /// The same with another environment, working folder and system folder.
    pub fn load_with(
        environment: Environment<'_>,
        working_folder: &Path,
        system_folder: &Path,
    ) -> Result<Self, CloudsError> {
        let mut clouds = Self::of(Files::find(environment, working_folder, system_folder)?)?;
        if environment("OS_AUTH_URL").is_some_and(|url| !url.is_empty()) {
            clouds.entries.insert(ENVVARS.to_owned(), Entry::of_environment(environment));
        }
        Ok(clouds)
    }

    /// Reads one file, and what lies beside it.
    pub fn read(file: &Path) -> Result<Self, CloudsError> {
        Self::of(Files::beside(file))
    }

    fn of(files: Files) -> Result<Self, CloudsError> {
        let read = |file: &Option<PathBuf>| match file {
            Some(file) => crate::files::read::<Document>(file),
            None => Ok(Document::default()),
        };
        let (clouds, mut secure) = (read(&files.clouds)?, read(&files.secure)?);
        let public = read(&files.public)?.public_clouds;
        let entries = clouds.clouds.into_iter().map(|(name, entry)| {
            let entry = secure.clouds.remove(&name).unwrap_or_default().over(entry);
            let profile = entry.profile.as_ref().and_then(|profile| public.get(profile));
            let entry = entry.over(profile.cloned().unwrap_or_default());
            (name, entry)
        });
        Ok(Self { entries: entries.collect(), files })
    }

    /// The file that was read.
    pub fn file(&self) -> &Path {
        self.files.shown()
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// The names of all clouds, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// One cloud. A mistyped name is answered with the nearest ones. What is wrong with other clouds of the file
    /// does not matter here.
    pub fn find(&self, name: &str) -> Result<Cloud, CloudsError> {
        let file = self.file().to_owned();
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
        let interface = match &entry.interface {
            None => Interface::default(),
            Some(words) => words.first().and_then(Interface::of).ok_or_else(|| CloudsError::Unusable {
                file: self.file().to_owned(),
                name: name.to_owned(),
                why: "its `interface` is none of public, internal and admin".to_owned(),
            })?,
        };
        Ok(Cloud {
            name: name.to_owned(),
            auth_url,
            region,
            regions,
            project: auth.and_then(|auth| auth.project_name.clone()),
            interface,
            cacert: entry.cacert.clone(),
            verify: entry.verify.unwrap_or(true),
        })
    }
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
