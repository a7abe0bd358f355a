//! What the APIs answer, as far as it is used: one record for each kind of thing.
//! Sources: Image API v2 "Images", Block Storage API v3 "Volumes", "Snapshots", "Back-end storage pools", "Volume types"
//! (<https://docs.openstack.org/api-ref/image/v2/>, <https://docs.openstack.org/api-ref/block-storage/v3/>).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// One of Glance's images.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Image {
    pub id: String,
    pub name: Option<String>,
    /// `active`, `queued`, `saving`, …
    pub status: String,
    /// In bytes; none before there is data.
    pub size: Option<u64>,
    pub os_hash_algo: Option<String>,
    pub os_hash_value: Option<String>,
    /// MD5, which older images have alone.
    #[serde(default)]
    pub checksum: Option<String>,
    /// The project's id.
    pub owner: Option<String>,
    pub visibility: String,
    /// Names of the stores that hold it, where Glance has several: separated by commas.
    #[serde(default)]
    pub stores: Option<String>,
    pub disk_format: Option<String>,
    #[serde(default)]
    pub container_format: Option<String>,
    /// Old versions of images are hidden from listings.
    #[serde(default)]
    pub os_hidden: bool,
    #[serde(deserialize_with = "time")]
    pub created_at: Option<Timestamp>,
    #[serde(deserialize_with = "time")]
    pub updated_at: Option<Timestamp>,
}

impl Image {
    /// Whether its data is there.
    pub fn has_data(&self) -> bool {
        matches!(self.status.as_str(), "active" | "deactivated")
    }
}

/// One of Cinder's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    pub id: String,
    /// As its user calls it.
    pub name: Option<String>,
    /// `available`, `in-use`, `creating`, …
    pub status: String,
    /// In GiB.
    pub size: u64,
    #[serde(rename = "os-vol-tenant-attr:tenant_id")]
    pub project: Option<String>,
    /// The type's name.
    pub volume_type: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// `host@backend#pool`; only administrators see it.
    #[serde(rename = "os-vol-host-attr:host")]
    pub host: Option<String>,
    /// What the back end calls it after a migration, in place of the id.
    #[serde(default, rename = "os-vol-mig-status-attr:name_id")]
    pub name_id: Option<String>,
    #[serde(default)]
    pub encrypted: bool,
    /// Told from microversion 3.64 on, and never of Cinder's own `fixed_key`.
    #[serde(default)]
    pub encryption_key_id: Option<String>,
    #[serde(default, deserialize_with = "truth")]
    pub bootable: bool,
    pub source_volid: Option<String>,
    pub snapshot_id: Option<String>,
    /// What is known of the image that it was made from; `image_id` among it.
    #[serde(default)]
    pub volume_image_metadata: BTreeMap<String, Value>,
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    #[serde(deserialize_with = "time")]
    pub created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    pub updated_at: Option<Timestamp>,
}

/// Where a volume is in use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    pub server_id: Option<String>,
    pub host_name: Option<String>,
    pub device: Option<String>,
}

impl Volume {
    /// The id that its file or image is named after.
    pub fn stored_as(&self) -> &str {
        self.name_id.as_deref().unwrap_or(&self.id)
    }
    /// The name of its back end in cinder.conf.
    pub fn backend(&self) -> Option<&str> {
        backend(self.host.as_deref()?)
    }
    /// The image that it was made from.
    pub fn image(&self) -> Option<&str> {
        self.volume_image_metadata.get("image_id")?.as_str()
    }
    /// Whether its back end holds something of it that is worth keeping.
    pub fn has_data(&self) -> bool {
        !matches!(self.status.as_str(), "creating" | "downloading" | "error" | "deleting" | "error_deleting")
    }
}

fn backend(host: &str) -> Option<&str> {
    let (_, behind) = host.split_once('@')?;
    Some(behind.split('#').next().unwrap_or(behind))
}

/// One of Cinder's snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    pub id: String,
    pub name: Option<String>,
    pub status: String,
    /// In GiB.
    pub size: u64,
    pub volume_id: String,
    #[serde(default, rename = "os-extended-snapshot-attributes:project_id")]
    pub project: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    #[serde(deserialize_with = "time")]
    pub created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    pub updated_at: Option<Timestamp>,
}

/// Where Cinder's scheduler may put volumes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pool {
    /// `host@backend#pool`
    pub name: String,
    #[serde(default)]
    pub capabilities: Capabilities,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Capabilities {
    pub volume_backend_name: Option<String>,
    /// `nfs`, `ceph`, `iSCSI`, …
    pub storage_protocol: Option<String>,
}

impl Pool {
    /// The name of its back end in cinder.conf.
    pub fn backend(&self) -> Option<&str> {
        backend(&self.name)
    }
}

/// One of Cinder's volume types.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VolumeType {
    pub id: String,
    pub name: String,
    /// How its volumes are encrypted; asked for by itself.
    #[serde(skip)]
    pub encryption: Option<Encryption>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Encryption {
    /// `luks`, `plain`, …
    pub provider: String,
    pub cipher: Option<String>,
    /// In bits.
    pub key_size: Option<u32>,
    /// `front-end` (Nova) or `back-end` (Cinder).
    pub control_location: Option<String>,
}

/// One of Keystone's projects.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Project {
    pub id: String,
    pub name: String,
}

/// Glance says `2026-11-29T18:30:00Z`, Cinder `2026-11-29T18:30:00.000000` and means UTC.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let in_utc = |text: &str| text.parse().or_else(|_| format!("{text}Z").parse());
    in_utc(&text).map(Some).map_err(|error: jiff::Error| D::Error::custom(error))
}

/// Cinder says `"true"`.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(truth) => Ok(truth),
        Value::String(word) => Ok(word.eq_ignore_ascii_case("true")),
        _ => Ok(false),
    }
}
