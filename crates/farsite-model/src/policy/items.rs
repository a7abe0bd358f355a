//! What a policy protects: one variant for each kind of item.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Select;
use super::hooks::ItemHooks;
use crate::quantity::ByteSize;
use crate::secret::SecretRef;
use crate::{Consistency, ItemId, ItemKind};

/// One entry of `items`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Item {
    Mariadb(Mariadb),
    Sqlite(Sqlite),
    Glance(Glance),
    Cinder(Cinder),
    Files(Files),
    Volume(Volume),
}

/// The settings that every kind has, besides its own.
macro_rules! item {
    ($(#[$doc:meta])* $type:ident { $($(#[$field_doc:meta])* $field:ident: $field_type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $type {
            $($(#[$field_doc])* pub $field: $field_type,)*
            /// Tells items of one kind apart; a default is made out of the kind's own settings.
            #[serde(default, deserialize_with = "crate::env::deserialize")]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub name: Option<String>,
            /// The host that reads it, as it calls itself (`uname -n`); the one whose agent coordinates the group where it is not
            /// given: that of the logged databases, else of the first entry that names one.
            #[serde(default, deserialize_with = "crate::env::deserialize")]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub on: Option<String>,
            /// The least that its capture may be called; a run that reaches less fails.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub consistency: Option<Consistency>,
            /// Commands around its capture.
            #[serde(default, skip_serializing_if = "ItemHooks::is_empty")]
            pub hooks: ItemHooks,
        }
    };
}

item!(
    /// A MariaDB server: a physical backup, and its binary log behind it.
    Mariadb {
        /// The server's socket; or else `host`.
        #[serde(default, deserialize_with = "crate::env::deserialize")]
        #[serde(skip_serializing_if = "Option::is_none")]
        socket: Option<PathBuf>,
        /// The server's address, where there is no socket.
        #[serde(default, deserialize_with = "crate::env::deserialize")]
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// 3306 where it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// The account; the agent's own user where it is not given.
        #[serde(default, deserialize_with = "crate::env::deserialize")]
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// The account's password: where it is, never the password itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password: Option<SecretRef>,
        /// `all`, or a list of names.
        #[serde(default)]
        databases: Databases,
        /// `continuous` ships the binary log between points: recovery to any moment, an RPO of seconds.
        #[serde(default)]
        log: Log,
        /// More arguments for mariadb-backup. Never a password: arguments can be seen by everybody on the host.
        #[serde(default, deserialize_with = "crate::env::deserialize")]
        #[serde(skip_serializing_if = "Vec::is_empty")]
        backup_args: Vec<String>,
    }
);

item!(
    /// An SQLite database, read through SQLite's own backup.
    Sqlite {
        /// The database's file.
        #[serde(deserialize_with = "crate::env::deserialize")]
        path: PathBuf,
    }
);

item!(
    /// The images of Glance's file store or Ceph pool, or of whatever store its API reads them from, one item each.
    Glance {
        /// The folder that holds them (`filesystem_store_datadir`); or else `rbd` or `api`.
        #[serde(default, deserialize_with = "crate::env::deserialize")]
        #[serde(skip_serializing_if = "Option::is_none")]
        store: Option<PathBuf>,
        /// The Ceph pool that holds them (`rbd_store_pool`), in place of `store`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rbd: Option<Rbd>,
        /// In place of `store` and `rbd`, where neither can be reached: images are downloaded once through Glance's API of the site's
        /// cloud (`sites.<site>.cloud`), and again only for `verify-tracking`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        api: bool,
        /// Where Glance's own checksums can be looked up; images are then compared with them. Its API tells them by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checksums: Option<Checksums>,
    }
);

item!(
    /// Cinder's volumes, one item each.
    Cinder {
        /// The back end's name in cinder.conf.
        #[serde(default, deserialize_with = "crate::env::deserialize")]
        #[serde(skip_serializing_if = "Option::is_none")]
        backend: Option<String>,
        /// The folder with the volumes' files (NFS and other file back ends).
        #[serde(default, deserialize_with = "crate::env::deserialize")]
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
        /// What the files in `path` are. It is never guessed: whoever may write to a raw disk can make it look like a qcow2.
        #[serde(default, skip_serializing_if = "DiskFormat::is_raw")]
        format: DiskFormat,
        /// Where the processes of QEMU answer that may have an image open: it is then read through them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        qmp: Option<Qmp>,
        /// The Ceph pool with the volumes' images, in place of `path`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rbd: Option<Rbd>,
        /// Which volumes; all where it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        select: Option<Box<Select>>,
        /// Items of this policy that hold the keys of encrypted volumes, such as `mariadb/main` with Barbican's database and
        /// `files/barbican` with the key that opens that, or the file with Cinder's `fixed_key`. `farsite coverage` counts an
        /// encrypted volume as unprotected without it; a dry run and a drill fail where the point lacks these items.
        #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Vec::is_empty")]
        encryption_keys: Vec<String>,
    }
);

item!(
    /// Files and folders, such as Keystone's keys: one item.
    Files {
        /// Absolute paths; a folder with all that is in it.
        #[serde(deserialize_with = "crate::env::deserialize")]
        paths: Vec<PathBuf>,
    }
);

item!(
    /// Any file or block device.
    Volume {
        /// The file or device.
        #[serde(deserialize_with = "crate::env::deserialize")]
        path: PathBuf,
        /// What the file is. It is never guessed: whoever may write to a raw disk can make it look like a qcow2.
        #[serde(default, skip_serializing_if = "DiskFormat::is_raw")]
        format: DiskFormat,
        /// Where the processes of QEMU answer that may have the image open: it is then read through them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        qmp: Option<Qmp>,
        /// The size of its blocks where it differs from the policy's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        block_size: Option<ByteSize>,
    }
);

/// What a volume's file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Its bytes are the disk's.
    #[default]
    Raw,
    /// A qcow2 image: its virtual disk is read, and persistent dirty bitmaps in it tell what changed.
    Qcow2,
}

impl DiskFormat {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_raw(&self) -> bool {
        *self == Self::Raw
    }
}

/// How an image is read that a process of QEMU has open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qmp {
    /// The socket of a QMP monitor that nobody else uses, or a folder of such sockets.
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub socket: PathBuf,
    /// The socket of the process's own NBD server, where it has one already; one is started for each capture otherwise.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub nbd: Option<PathBuf>,
    /// A folder that both the agent and the process can write to; the image's own where it is not given.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// The most that is kept there of what the guest overwrites while its image is read; 10GiB where it is not given, and
    /// never more than half of what is free. A capture that needs more fails, and the guest goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_size: Option<ByteSize>,
}

/// Where the images of a pool are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rbd {
    /// The pool (`rbd_pool` in cinder.conf, `rbd_store_pool` in glance-api.conf).
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub pool: String,
    /// The RADOS namespace within it.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The cluster's configuration file (`rbd_ceph_conf` in cinder.conf, rbd_store_ceph_conf in glance-api.conf); /etc/ceph/ceph.conf where it is not given.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub conf: Option<PathBuf>,
    /// The Ceph user without `client.` (`rbd_user`, `rbd_store_user`); its key stands in the keyring that the configuration names.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// How a database's log is shipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Log {
    /// Not at all: recovery to the points of the schedule alone.
    #[default]
    None,
    /// Every second or so.
    Continuous,
}

/// Where Glance's checksums are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Checksums {
    /// Glance's database as an SQLite file.
    Sqlite(#[serde(deserialize_with = "crate::env::deserialize")] PathBuf),
    /// Glance's database in MariaDB.
    Mariadb(ChecksumsInMariadb),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChecksumsInMariadb {
    /// The server's socket.
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub socket: PathBuf,
    /// The account; the agent's own user where it is not given.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The account's password: where it is, never the password itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// Glance's database.
    #[serde(default = "glance_database", deserialize_with = "crate::env::deserialize")]
    pub database: String,
}

fn glance_database() -> String {
    "glance".to_owned()
}

/// `all`, or a list of names.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema)]
#[schemars(untagged)]
pub enum Databases {
    #[default]
    #[schemars(with = "AllWord")]
    All,
    Named(Vec<String>),
}

/// The word alone, for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
#[allow(dead_code, reason = "stands for itself in the JSON Schema")]
enum AllWord {
    All,
}

impl<'de> Deserialize<'de> for Databases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AllOrList;
        impl<'de> Visitor<'de> for AllOrList {
            type Value = Databases;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`all` or a list of database names")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Databases, E> {
                match text {
                    "all" => Ok(Databases::All),
                    other => {
                        Err(E::custom(format!("expected `all` or a list such as [{other}], found {other:?}")))
                    }
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Databases, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                Ok(Databases::Named(names))
            }
        }
        deserializer.deserialize_any(AllOrList)
    }
}
impl Serialize for Databases {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

/// The same field of whichever variant it is.
macro_rules! common {
    ($item:expr, $field:ident) => {
        match $item {
            Item::Mariadb(item) => &item.$field,
            Item::Sqlite(item) => &item.$field,
            Item::Glance(item) => &item.$field,
            Item::Cinder(item) => &item.$field,
            Item::Files(item) => &item.$field,
            Item::Volume(item) => &item.$field,
        }
    };
}

impl Item {
    pub fn kind(&self) -> ItemKind {
        match self {
            Self::Mariadb(_) => ItemKind::Mariadb,
            Self::Sqlite(_) => ItemKind::Sqlite,
            Self::Glance(_) => ItemKind::Glance,
            Self::Cinder(_) => ItemKind::Cinder,
            Self::Files(_) => ItemKind::Files,
            Self::Volume(_) => ItemKind::Volume,
        }
    }

    /// Its name as given, or: `main` for MariaDB, Glance and Cinder (which has its back end's name where that is
    /// given), a file's name for a volume, the same without its ending for SQLite, and the last part of the first
    /// path for files.
    pub fn name(&self) -> String {
        if let Some(name) = common!(self, name) {
            return name.clone();
        }
        let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let derived = match self {
            Self::Mariadb(_) | Self::Glance(_) => None,
            Self::Cinder(cinder) => cinder.backend.clone(),
            Self::Sqlite(sqlite) => sqlite.path.file_stem().map(|name| name.to_string_lossy().into_owned()),
            Self::Files(files) => files.paths.first().and_then(|path| last(path)),
            Self::Volume(volume) => last(&volume.path),
        };
        derived.unwrap_or_else(|| "main".to_owned())
    }

    /// `mariadb/main`. Glance and Cinder entries stand for many items, which have ids of their own.
    pub fn id(&self) -> ItemId {
        ItemId::new(self.kind(), &self.name())
    }

    /// The host that reads it; `None` for the one whose agent coordinates the group.
    pub fn on(&self) -> Option<&str> {
        common!(self, on).as_deref()
    }

    /// The least that its capture may be called.
    pub fn consistency(&self) -> Option<Consistency> {
        *common!(self, consistency)
    }

    pub fn hooks(&self) -> &ItemHooks {
        common!(self, hooks)
    }

    /// Whether its log is shipped between points.
    pub fn ships_log(&self) -> bool {
        matches!(self, Self::Mariadb(Mariadb { log: Log::Continuous, .. }))
    }
}
