//! `farsite.yaml`: one per host. Which site this is, which stores there are, and where this host's own files lie.

mod hosts;
mod identity;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use hosts::Host;
pub use identity::Identity;

use crate::nearest::did_you_mean;
use crate::policy::{Policy, Rbd};
use crate::secret::SecretRef;
use crate::yaml::{self, At, Source, YamlError};
use crate::{GroupName, SiteName};

/// Where a configuration is looked for, after `--config` and `$FARSITE_CONFIG`.
const LOOKED_FOR: [&str; 2] = ["./farsite.yaml", "/etc/farsite/farsite.yaml"];
/// Where policies are when none lie beside the configuration.
const SYSTEM_POLICIES: &str = "/etc/farsite/policies";

/// A host's configuration. Once loaded, all its paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "Farsite configuration")]
pub struct Config {
    /// The site that this host is in.
    pub site: SiteName,
    /// Every site that this file or a policy names.
    pub sites: BTreeMap<SiteName, Site>,
    /// By standby site: the store that others replicate to.
    #[serde(default)]
    pub stores: BTreeMap<SiteName, StoreConfig>,
    /// Where this host keeps what it must remember: local maps, spools, the RPO record.
    #[serde(default = "default_state", deserialize_with = "crate::env::deserialize")]
    pub state: PathBuf,
    /// Address of dashboard, API and metrics, such as `127.0.0.1:7400`; none where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web: Option<String>,
    /// Folder of policies, or one policy; `policies` beside this file, else `/etc/farsite/policies`.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub policies: Option<PathBuf>,
    /// Folder of runbooks that go before the built-in ones; `runbooks` beside this file.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub runbooks: Option<PathBuf>,
    /// Key files that this host has.
    #[serde(default)]
    pub keys: Keys,
    /// Other hosts of this site, by the name that policies call them in `on:`. Where this host coordinates a group, what they
    /// read is read through a process on each of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, Host>,
    /// At a standby, by group: where a promotion restores to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<GroupName, Places>,
    /// The folder that this file lies in; relative paths start there.
    #[serde(skip)]
    pub folder: PathBuf,
}

fn default_state() -> PathBuf {
    "/var/lib/farsite".into()
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Site {
    /// A name in clouds.yaml.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<String>,
    /// Its region there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreConfig {
    /// `./folder` or `s3://bucket/prefix?endpoint=…&region=…`
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub url: String,
    /// Fingerprint of the store's format object, as `farsite init` printed it: another store is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Who can open it (age recipients); the store's own list counts, this one is compared with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    /// The age identity that opens it: only at the standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// S3 credentials; `AWS_ACCESS_KEY_ID` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<SecretRef>,
    /// S3 credentials; `AWS_SECRET_ACCESS_KEY` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<SecretRef>,
    /// S3 region; goes before the URL's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// S3 endpoint; goes before the URL's.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `https://endpoint/bucket` in place of `https://bucket.endpoint`: what most S3 servers but AWS need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// One recipient is enough. Who loses its identity loses the store, so this has to be said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_recipient: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Keys {
    /// Signs promotions, epochs and holds.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub operator: Option<PathBuf>,
    /// Signs proofs.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub standby_agent: Option<PathBuf>,
    /// Signs recovery points and log segments of its own site.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub source_agent: Option<PathBuf>,
    /// Computes the ids of blocks; the same for all agents of a source site.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub block_secret: Option<PathBuf>,
}

/// Where a promotion restores a group's items to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Places {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mariadb: Option<MariadbPlace>,
    /// The database's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqlite: Option<Place>,
    /// Glance's store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glance: Option<StoragePlace>,
    /// Where Cinder's back end keeps the volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cinder: Option<StoragePlace>,
    /// The file or device; a folder where the point holds several volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Place>,
    /// The folder under which files are laid out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Place>,
    /// What is called differently at this site than at the one that is promoted here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<SiteRewrite>,
    /// Values for the runbook's variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
}

/// Names of the lost site, each with the name that takes its place here. What is called the same at both sites needs no entry.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SiteRewrite {
    /// Keystone's regions.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub regions: BTreeMap<String, String>,
    /// How the addresses of the services' endpoints begin: `http://api.north:5000`, or `http://api.north` for all of them.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub urls: BTreeMap<String, String>,
    /// What Cinder's services call their hosts (`host` in cinder.conf), without `@backend`.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub hosts: BTreeMap<String, String>,
    /// Exports on which volumes lie: `nfs.north:/export/cinder`.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exports: BTreeMap<String, String>,
    /// Folders in the addresses of Glance's images.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub paths: BTreeMap<String, String>,
    /// Ceph clusters in the addresses of Glance's images: `fsid` in ceph.conf, or `fsid/pool` where the pools' names differ too.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub clusters: BTreeMap<String, String>,
    /// Cinder's availability zones.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub zones: BTreeMap<String, String>,
    /// Restored files and folders, by the path that they had, and where this site's services look for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<PathBuf, PathBuf>,
    /// Passwords that this site's services have for the database's accounts: where each is, by the account's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub database_passwords: BTreeMap<String, SecretRef>,
    /// Passwords that this site's services have for themselves in Keystone, by the user's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub service_passwords: BTreeMap<String, SecretRef>,
}

/// A folder or file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Place {
    /// Where it is.
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub path: PathBuf,
}

/// A folder of files, or a Ceph pool of images: one of the two.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoragePlace {
    /// The folder; or else `rbd`.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The Ceph pool in which each item becomes an image of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rbd: Option<Rbd>,
    /// Refused; known so that the refusal can say why.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub api: bool,
}

/// The standby's own database instance.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MariadbPlace {
    /// Its data folder; what stands there is moved aside.
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub datadir: PathBuf,
    /// Where the promoted instance answers.
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub socket: PathBuf,
    /// A TCP port beside the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Further options for mariadbd when Farsite itself starts the instance.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Vec::is_empty")]
    pub server_args: Vec<String>,
}

/// The same file once more, only for where its names stand.
#[derive(Deserialize)]
struct Located {
    site: At<SiteName>,
    #[serde(default)]
    stores: BTreeMap<SiteName, At<LocatedStore>>,
    #[serde(default)]
    hosts: BTreeMap<String, At<Host>>,
    #[serde(default)]
    places: BTreeMap<GroupName, LocatedPlaces>,
}
#[derive(Deserialize)]
struct LocatedPlaces {
    glance: Option<At<StoragePlace>>,
    cinder: Option<At<StoragePlace>>,
}
#[derive(Deserialize)]
struct LocatedStore {
    url: At<String>,
    #[serde(default)]
    recipients: Vec<At<String>>,
}

impl Config {
    /// `explicit`, else `$FARSITE_CONFIG`, `./farsite.yaml`, `/etc/farsite/farsite.yaml`.
    pub fn discover(explicit: Option<&Path>) -> Result<Self, YamlError> {
        if let Some(path) = explicit {
            return Self::load(path);
        }
        if let Some(path) = std::env::var_os("FARSITE_CONFIG") {
            return Self::load(Path::new(&path));
        }
        match LOOKED_FOR.iter().map(Path::new).find(|path| path.exists()) {
            Some(path) => Self::load(path),
            None => Err(Source { file: LOOKED_FOR[0], text: "" }.whole(
                format!(
                    "no configuration is here, none at {}, and $FARSITE_CONFIG is not set",
                    LOOKED_FOR[1]
                ),
                Some("write one, or name it with --config; `farsite demo` needs none".into()),
            )),
        }
    }

    pub fn load(path: &Path) -> Result<Self, YamlError> {
        let file = path.display().to_string();
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::parse(&file, &yaml::read(path)?, folder)
    }

    /// `file` is only for messages; relative paths start at `folder`.
    pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Self, YamlError> {
        let mut config: Self = yaml::parse(file, text)?;
        config.folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        config.check(Source { file, text }, &yaml::parse(file, text)?)?;
        config.make_absolute();
        Ok(config)
    }

    fn check(&self, source: Source<'_>, located: &Located) -> Result<(), YamlError> {
        self.site(&self.site).map_err(|why| source.error(&located.site, why, None))?;
        for (name, store) in &located.stores {
            self.site(name)
                .map_err(|why| source.error(store, format!("a store at {name}, but {why}"), None))?;
            if has_credentials(&store.url) {
                let hint = Some("write `access-key:` and `secret-key:` as references to secrets".to_owned());
                return Err(source.whole(
                    format!("the URL of the store at {name} (line {}) holds a secret", store.url.line),
                    hint,
                ));
            }
            for recipient in &store.recipients {
                if !recipient.starts_with("age1") && !recipient.starts_with("ssh-") {
                    return Err(source.whole(
                        format!("line {}: this is not a recipient", recipient.line),
                        Some("a recipient begins with age1; an identity (AGE-SECRET-KEY-…) opens the store and does not belong here".into()),
                    ));
                }
            }
        }
        for (name, host) in &located.hosts {
            if let Err((why, hint)) = host.check() {
                return Err(source.error(host, format!("host {name}: {why}"), Some(hint.to_owned())));
            }
        }
        for (group, places) in &located.places {
            for (kind, place) in [("glance", &places.glance), ("cinder", &places.cinder)] {
                let Some(place) = place else { continue };
                if place.api {
                    let why = format!(
                        "{kind} of group {group}: nothing can be restored through an API: Glance takes data only for an image that is \
                         queued, and the restored rows say that theirs are there"
                    );
                    let hint =
                        "give `path:` or `rbd:` of a store of this site; Glance can have it beside others";
                    return Err(source.error(place, why, Some(hint.to_owned())));
                }
                let (why, hint) = match (&place.path, &place.rbd) {
                    (Some(_), None) | (None, Some(_)) => continue,
                    (None, None) => ("nothing says where", "add `path:` or `rbd:`"),
                    (Some(_), Some(_)) => ("it has two places", "remove `path:` or `rbd:`"),
                };
                let why = format!("{kind} of group {group}: {why}");
                return Err(source.error(place, why, Some(hint.to_owned())));
            }
        }
        Ok(())
    }

    fn make_absolute(&mut self) {
        let folder = self.folder.clone();
        // `absolute` drops `./` without looking at the disk.
        let rebase = |path: &mut PathBuf| {
            let joined = folder.join(&*path);
            *path = std::path::absolute(&joined).unwrap_or(joined);
        };
        rebase(&mut self.state);
        let keys = &mut self.keys;
        let optional = [
            &mut self.policies,
            &mut self.runbooks,
            &mut keys.operator,
            &mut keys.standby_agent,
            &mut keys.source_agent,
            &mut keys.block_secret,
        ];
        optional.into_iter().flatten().for_each(rebase);
        for store in self.stores.values_mut() {
            if !store.url.contains("://") {
                let mut path = PathBuf::from(&store.url);
                rebase(&mut path);
                store.url = path.display().to_string();
            }
            if let Some(Identity::File(path)) = &mut store.identity {
                rebase(path);
            }
        }
        for places in self.places.values_mut() {
            let Places { mariadb, sqlite, glance, cinder, volume, files, rewrite: _, variables: _ } = places;
            for place in [sqlite, volume, files].into_iter().flatten() {
                rebase(&mut place.path);
            }
            for place in [glance, cinder].into_iter().flatten() {
                place.path.iter_mut().for_each(&rebase);
                place.rbd.iter_mut().filter_map(|rbd| rbd.conf.as_mut()).for_each(&rebase);
            }
            if let Some(mariadb) = mariadb {
                rebase(&mut mariadb.datadir);
                rebase(&mut mariadb.socket);
            }
        }
    }

    /// A site by name; an unknown one gets the nearest.
    pub fn site(&self, name: &SiteName) -> Result<&Site, String> {
        self.sites.get(name).ok_or_else(|| unknown("site", name, self.sites.keys()))
    }

    /// The store at a standby site; an unknown one gets the nearest.
    pub fn store(&self, standby: &SiteName) -> Result<&StoreConfig, String> {
        self.stores.get(standby).ok_or_else(|| unknown("store at", standby, self.stores.keys()))
    }

    /// A path as it would stand in this file, made absolute.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    pub fn state_dir(&self) -> PathBuf {
        self.resolve(&self.state)
    }
    pub fn policies_dir(&self) -> PathBuf {
        let beside = self.resolve(self.policies.as_deref().unwrap_or(Path::new("policies")));
        if self.policies.is_none() && !beside.exists() { SYSTEM_POLICIES.into() } else { beside }
    }
    pub fn runbooks_dir(&self) -> PathBuf {
        self.resolve(self.runbooks.as_deref().unwrap_or(Path::new("runbooks")))
    }

    /// All policies, in order of file name. A folder that is missing holds none, unless the configuration names
    /// it.
    pub fn load_policies(&self) -> Result<Vec<(PathBuf, Policy)>, YamlError> {
        let place = self.policies_dir();
        if place.is_file() {
            let policy = Policy::load(&place)?;
            return Ok(vec![(place, policy)]);
        }
        let name = place.display().to_string();
        let unreadable = |error: std::io::Error| {
            Source { file: &name, text: "" }.whole(format!("the policies cannot be listed: {error}"), None)
        };
        let entries = match std::fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.policies.is_none() => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(unreadable(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                files.push(path);
            }
        }
        files.sort();
        let mut policies: Vec<(PathBuf, Policy)> = Vec::new();
        for path in files {
            let policy = Policy::load(&path)?;
            if let Some((other, _)) = policies.iter().find(|(_, other)| other.group == policy.group) {
                let file = path.display().to_string();
                return Err(Source { file: &file, text: "" }.whole(
                    format!("group {} is the one of {} as well", policy.group, other.display()),
                    Some("each group has one policy".into()),
                ));
            }
            policies.push((path, policy));
        }
        Ok(policies)
    }

    pub fn json_schema() -> schemars::Schema {
        schemars::schema_for!(Config)
    }
}

fn unknown<'a>(what: &str, name: &SiteName, known: impl Iterator<Item = &'a SiteName>) -> String {
    let known: Vec<&str> = known.map(SiteName::as_str).collect();
    let near = did_you_mean(name.as_str(), known.iter().copied());
    format!("no {what} {name} is known{near} (known: {})", known.join(", "))
}

/// Whether a URL carries a user's password or a key in its query.
fn has_credentials(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let host = place.split('/').next().unwrap_or("");
    host.contains('@')
        || query.to_lowercase().split('&').any(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            key.contains("secret") || key.contains("access") || key.contains("token") || value.contains('@')
        })
}
