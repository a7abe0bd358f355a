//! Where a promotion writes to: the places that the configuration names, or an isolated folder for a drill.
//!
//! What must hold: everything of a drill lies below its own folder, beside one short folder for sockets; nothing of it
//! listens on the network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farsite_model::config::{Config, SiteRewrite, StoragePlace};
use farsite_model::nearest::did_you_mean;
use farsite_model::policy::Rbd;
use farsite_model::{GroupName, ItemKind, PromotionId};
use farsite_replicate::spot::Spot;
use farsite_sources::rbd::ImageName;
use farsite_store::manifest::{Manifest, ManifestItem};
use serde_json::{Value, json};

use crate::PromoteError;

/// Longest path of a socket that the kernel takes is 107 bytes (unix(7)); some is left for names beside it.
const SOCKET_BYTES: usize = 95;

/// The standby's database instance, as a promotion uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MariadbTarget {
    pub datadir: PathBuf,
    /// Where the promoted instance answers.
    pub socket: PathBuf,
    /// None: nothing listens on the network.
    pub port: Option<u16>,
    pub server_args: Vec<String>,
}

/// Where a back end keeps images or volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    Folder(PathBuf),
    Pool(Rbd),
}

impl Storage {
    fn of(place: &StoragePlace) -> Option<Self> {
        let folder = place.path.clone().map(Self::Folder);
        folder.or_else(|| place.rbd.clone().map(Self::Pool))
    }

    /// A pool is no folder.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Pool(_) => None,
        }
    }

    fn item(&self, name: &str) -> Spot {
        match self {
            Self::Folder(folder) => Spot::File(folder.join(name)),
            Self::Pool(rbd) => Spot::Image(ImageName { rbd: rbd.clone(), name: name.to_owned() }),
        }
    }

    /// In a runbook's words: a path, or `rbd:POOL`.
    fn as_variable(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Pool(rbd) => match &rbd.namespace {
                Some(namespace) => format!("rbd:{}/{namespace}", rbd.pool),
                None => format!("rbd:{}", rbd.pool),
            },
        }
    }
}

/// A group's places in one promotion.
#[derive(Debug, Clone)]
pub struct Targets {
    pub group: GroupName,
    pub promotion: PromotionId,
    /// The folder that holds everything: only in a drill.
    pub drill: Option<PathBuf>,
    /// What a drill has in files, and a failover would have in a pool.
    pub instead_of_pools: Vec<ItemKind>,
    /// A short folder for sockets of this promotion.
    pub sockets: PathBuf,
    pub mariadb: Option<MariadbTarget>,
    pub sqlite: Option<PathBuf>,
    pub glance: Option<Storage>,
    pub cinder: Option<Storage>,
    pub volume: Option<PathBuf>,
    pub files: Option<PathBuf>,
    /// What is called differently here.
    pub rewrite: SiteRewrite,
    /// Values for the runbook's variables.
    pub variables: BTreeMap<String, String>,
}

/// A folder with a name that is short whatever the state folder is called.
fn sockets(promotion: PromotionId, group: &GroupName) -> PathBuf {
    let tag = &blake3::hash(group.as_str().as_bytes()).to_hex()[..6];
    let name = format!("farsite-{promotion}-{tag}");
    let folder = std::env::temp_dir().join(&name);
    if folder.as_os_str().len() + "/private.sock".len() <= SOCKET_BYTES {
        folder
    } else {
        Path::new("/tmp").join(name)
    }
}

impl Targets {
    /// The places that the configuration gives the group.
    pub fn real(config: &Config, group: &GroupName, promotion: PromotionId) -> Result<Self, PromoteError> {
        let places = config.places.get(group).ok_or_else(|| {
            PromoteError::Usage(format!(
                "group {group} has no places at this host{}\n  hint: say under `places.{group}:` in farsite.yaml where its database, images and volumes are restored to",
                did_you_mean(group.as_str(), config.places.keys().map(GroupName::as_str))
            ))
        })?;
        let path = |place: &Option<farsite_model::config::Place>| place.as_ref().map(|p| p.path.clone());
        Ok(Self {
            group: group.clone(),
            promotion,
            drill: None,
            instead_of_pools: Vec::new(),
            sockets: sockets(promotion, group),
            mariadb: places.mariadb.as_ref().map(|m| MariadbTarget {
                datadir: m.datadir.clone(),
                socket: m.socket.clone(),
                port: m.port,
                server_args: m.server_args.clone(),
            }),
            sqlite: path(&places.sqlite),
            glance: places.glance.as_ref().and_then(Storage::of),
            cinder: places.cinder.as_ref().and_then(Storage::of),
            volume: path(&places.volume),
            files: path(&places.files),
            rewrite: places.rewrite.clone().unwrap_or_default(),
            variables: places.variables.clone(),
        })
    }

    /// An isolated folder below this host's state.
    pub fn drill(config: &Config, group: &GroupName, promotion: PromotionId) -> Self {
        let root = drill_folder(config, promotion);
        let places = config.places.get(group);
        let sockets = sockets(promotion, group);
        let mut rewrite = places.and_then(|p| p.rewrite.clone()).unwrap_or_default();
        // Images that have another path here lie in the drill's own folder.
        if let Some(real) = places.and_then(|p| p.glance.as_ref()?.path.as_ref()) {
            let (real, drilled) = (real.display().to_string(), root.join("glance").display().to_string());
            for new in rewrite.paths.values_mut() {
                if let Some(below) = new.strip_prefix(&real) {
                    *new = format!("{drilled}{below}");
                }
            }
        }
        let in_pool = |place: Option<&StoragePlace>| place.is_some_and(|place| place.rbd.is_some());
        let kinds = [
            (ItemKind::Glance, in_pool(places.and_then(|p| p.glance.as_ref()))),
            (ItemKind::Cinder, in_pool(places.and_then(|p| p.cinder.as_ref()))),
        ];
        Self {
            group: group.clone(),
            promotion,
            instead_of_pools: kinds.into_iter().filter(|(_, is)| *is).map(|(kind, _)| kind).collect(),
            mariadb: Some(MariadbTarget {
                datadir: root.join("mariadb"),
                socket: sockets.join("db.sock"),
                port: None,
                server_args: places
                    .and_then(|p| p.mariadb.as_ref())
                    .map_or_else(Vec::new, |m| without_network(&m.server_args)),
            }),
            sqlite: Some(root.join("sqlite")),
            glance: Some(Storage::Folder(root.join("glance"))),
            cinder: Some(Storage::Folder(root.join("cinder"))),
            volume: Some(root.join("volume")),
            files: Some(root.join("files")),
            rewrite,
            variables: places.map(|p| p.variables.clone()).unwrap_or_default(),
            drill: Some(root),
            sockets,
        }
    }

    /// The folder or file of a kind; a pool is neither.
    fn of(&self, kind: ItemKind) -> Option<&Path> {
        match kind {
            ItemKind::Mariadb => self.mariadb.as_ref().map(|m| m.datadir.as_path()),
            ItemKind::Sqlite => self.sqlite.as_deref(),
            ItemKind::Glance => self.glance.as_ref().and_then(Storage::folder),
            ItemKind::Cinder => self.cinder.as_ref().and_then(Storage::folder),
            ItemKind::Volume => self.volume.as_deref(),
            ItemKind::Files => self.files.as_deref(),
        }
    }

    /// Where one item goes: images, volumes and databases are files, or images of a pool; a tree is laid out below the folder.
    pub fn item(&self, manifest: &Manifest, item: &ManifestItem) -> Result<Spot, String> {
        let name = item.id.name();
        let safe = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '@', '\0']);
        if !safe && item.directory.is_none() {
            return Err(format!("{}: its name cannot be a file's name", item.id));
        }
        let storage = match item.kind {
            ItemKind::Glance => self.glance.as_ref(),
            ItemKind::Cinder => self.cinder.as_ref(),
            _ => None,
        };
        if let Some(storage) = storage {
            return Ok(storage.item(name));
        }
        let place = self.of(item.kind).ok_or_else(|| self.no_place(item.kind))?;
        Ok(Spot::File(match item.kind {
            ItemKind::Mariadb | ItemKind::Files | ItemKind::Glance | ItemKind::Cinder => place.to_owned(),
            // One database or device: the place is its file. Several: the place is their folder.
            ItemKind::Sqlite | ItemKind::Volume => {
                let several = manifest.items.iter().filter(|i| i.kind == item.kind).count() > 1;
                if several || self.drill.is_some() || place.is_dir() {
                    let ending = if item.kind == ItemKind::Sqlite { ".db" } else { "" };
                    place.join(format!("{name}{ending}"))
                } else {
                    place.to_owned()
                }
            }
        }))
    }

    fn no_place(&self, kind: ItemKind) -> String {
        format!(
            "group {} has no place for its {kind} items\n  hint: `places.{}.{kind}:` in farsite.yaml",
            self.group, self.group
        )
    }

    /// What a point holds and no place is given for.
    pub fn missing(&self, manifest: &Manifest) -> Vec<String> {
        let mut missing: Vec<String> =
            manifest.items.iter().filter_map(|item| self.item(manifest, item).err()).collect();
        missing.sort();
        missing.dedup();
        missing.extend(self.shared());
        missing
    }

    /// Two kinds in one folder would each take the other's files for its own.
    fn shared(&self) -> Option<String> {
        let mut seen: BTreeMap<&Path, ItemKind> = BTreeMap::new();
        for kind in ItemKind::ALL {
            if let Some(path) = self.of(kind)
                && let Some(other) = seen.insert(path, kind)
            {
                return Some(format!(
                    "{other} and {kind} of group {} have the same place {}\n  hint: give each a folder of its own",
                    self.group,
                    path.display()
                ));
            }
        }
        None
    }

    /// What runbooks see as `{{ place.… }}`.
    pub fn as_variables(&self, manifest: &Manifest) -> Value {
        let text = |path: Option<&Path>| path.map(|p| p.display().to_string()).unwrap_or_default();
        let only = |kind: ItemKind| {
            let item = manifest.items.iter().find(|i| i.kind == kind);
            let spot = item.and_then(|i| self.item(manifest, i).ok());
            let path = spot.and_then(|spot| match spot {
                Spot::File(path) => Some(path),
                Spot::Image(_) => None,
            });
            path.or_else(|| self.of(kind).map(Path::to_owned))
        };
        let mariadb = self.mariadb.as_ref();
        json!({
            "mariadb": {
                "datadir": text(mariadb.map(|m| m.datadir.as_path())),
                "socket": text(mariadb.map(|m| m.socket.as_path())),
                "port": mariadb.and_then(|m| m.port).map(|p| p.to_string()).unwrap_or_default(),
            },
            "sqlite": text(only(ItemKind::Sqlite).as_deref()),
            "glance": self.glance.as_ref().map(Storage::as_variable).unwrap_or_default(),
            "cinder": self.cinder.as_ref().map(Storage::as_variable).unwrap_or_default(),
            "volume": text(only(ItemKind::Volume).as_deref()),
            "files": text(self.files.as_deref()),
            "folder": text(self.drill.as_deref()),
        })
    }

    /// The pools that a promotion writes to, and what for.
    pub fn pools(&self) -> Vec<(ItemKind, &Rbd)> {
        [(ItemKind::Glance, &self.glance), (ItemKind::Cinder, &self.cinder)]
            .into_iter()
            .filter_map(|(kind, storage)| match storage {
                Some(Storage::Pool(rbd)) => Some((kind, rbd)),
                _ => None,
            })
            .collect()
    }

    /// The folders and files that a promotion writes to.
    pub fn all(&self) -> Vec<PathBuf> {
        ItemKind::ALL.iter().filter_map(|kind| self.of(*kind).map(Path::to_owned)).collect()
    }
}

/// Options that would open a drill's instance to the network are not taken over.
fn without_network(args: &[String]) -> Vec<String> {
    let opens = |arg: &str| {
        let name = arg.trim_start_matches('-').split('=').next().unwrap_or("").replace('_', "-");
        matches!(
            name.as_str(),
            "port" | "bind-address" | "skip-networking" | "socket" | "datadir" | "extra-port"
        ) || name.starts_with("wsrep")
            || name.starts_with("report-")
    };
    let mut kept = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        if !opens(arg) {
            kept.push(arg.clone());
        } else if !arg.contains('=') {
            // `--port 3307`: the value goes with its name.
            let _ = args.next_if(|value| !value.starts_with('-'));
        }
    }
    kept
}

/// Where all drills of this host lie.
pub fn drills_folder(config: &Config) -> PathBuf {
    config.state_dir().join("drills")
}

/// Where one drill lies.
pub fn drill_folder(config: &Config, promotion: PromotionId) -> PathBuf {
    drills_folder(config).join(promotion.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> Config {
        let text = "site: south\nsites: { north: {}, south: {} }\nstate: ./state\nplaces:\n  cloud:\n    mariadb: { datadir: ./db, socket: ./db.sock, port: 3307, server-args: [--port=3307, --bind_address=0.0.0.0, --innodb-buffer-pool-size=1G] }\n    glance: { path: ./images }\n    cinder: { path: ./images }\n";
        Config::parse("farsite.yaml", text, folder).unwrap()
    }

    #[test]
    fn everything_of_a_drill_lies_in_its_own_folder_and_listens_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let id = PromotionId::from_random(7);
        let targets = Targets::drill(&config, &GroupName::new("cloud").unwrap(), id);
        let root = drill_folder(&config, id);
        assert!(targets.all().iter().all(|path| path.starts_with(&root)), "{targets:?}");
        let mariadb = targets.mariadb.unwrap();
        assert_eq!(mariadb.port, None);
        assert_eq!(mariadb.server_args, ["--innodb-buffer-pool-size=1G"]);
        assert!(mariadb.socket.as_os_str().len() <= SOCKET_BYTES);
    }

    #[test]
    fn an_item_of_a_group_with_a_pool_becomes_an_image_of_its_name_and_in_a_drill_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let text = "site: south\nsites: { north: {}, south: {} }\nplaces:\n  cloud:\n    cinder: { rbd: { pool: volumes, conf: ./ceph.conf } }\n";
        let config = Config::parse("farsite.yaml", text, dir.path()).unwrap();
        let (group, id) = (GroupName::new("cloud").unwrap(), PromotionId::from_random(7));
        let targets = Targets::real(&config, &group, id).unwrap();
        let [(ItemKind::Cinder, rbd)] = targets.pools()[..] else { panic!("one pool") };
        assert_eq!(rbd.conf.as_deref(), Some(dir.path().join("ceph.conf").as_path()));
        assert_eq!(targets.all(), Vec::<PathBuf>::new());
        assert_eq!(targets.cinder.as_ref().unwrap().as_variable(), "rbd:volumes");
        let drill = Targets::drill(&config, &group, id);
        assert!(drill.pools().is_empty());
        assert_eq!(drill.instead_of_pools, [ItemKind::Cinder]);
    }

    #[test]
    fn two_kinds_in_one_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let id = PromotionId::from_random(7);
        let targets = Targets::real(&config, &GroupName::new("cloud").unwrap(), id).unwrap();
        assert!(targets.shared().unwrap().contains("the same place"));
        let other = GroupName::new("clout").unwrap();
        let error = Targets::real(&config, &other, id).unwrap_err();
        assert!(error.to_string().contains("cloud"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
