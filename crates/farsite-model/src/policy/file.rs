//! A policy as it stands in its file: every place kept, nothing checked but its shape.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::hooks::GroupHooks;
use super::items::Item;
use super::{Compression, Keep, Retention};
use crate::quantity::{ByteSize, Rate, Span};
use crate::yaml::At;
use crate::{GroupName, Level, SiteName};

/// What a protection group is, when and where to it is replicated, and what recovery is promised.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "Farsite policy")]
pub(super) struct PolicyFile {
    /// The protection group's name.
    pub(super) group: GroupName,
    /// The site that it is at.
    pub(super) site: At<SiteName>,
    /// The standby sites that it is replicated to.
    pub(super) to: At<Vec<At<SiteName>>>,
    /// How much is promoted.
    pub(super) level: Level,
    /// crontab(5): minute, hour, day of month, month, day of week; six fields begin with seconds; or `@daily`.
    pub(super) schedule: At<String>,
    /// The time zone of all schedules here, such as `Europe/Berlin`; the machine's own where it is not given.
    #[serde(default)]
    pub(super) tz: Option<At<String>>,
    /// The most that a disaster may lose.
    pub(super) rpo: At<Span>,
    /// The longest that a promotion may take.
    #[serde(default)]
    pub(super) rto: Option<At<Span>>,
    /// What is protected, all of it recovered to one point.
    pub(super) items: At<Vec<At<Item>>>,
    #[serde(default)]
    pub(super) retention: Option<At<RetentionFile>>,
    #[serde(default)]
    pub(super) bandwidth: BandwidthFile,
    #[serde(default)]
    pub(super) hooks: GroupHooks,
    #[serde(default)]
    pub(super) drill: Option<DrillFile>,
    #[serde(default)]
    pub(super) alerts: AlertsFile,
    /// 4KiB to 4MiB, a power of two; 64KiB where it is not given.
    #[serde(default)]
    pub(super) block_size: Option<At<ByteSize>>,
    /// The most memory that a run takes; 256MiB where it is not given.
    #[serde(default)]
    pub(super) memory: Option<At<ByteSize>>,
    /// Room in the state folder for copies of the blocks that were shipped last, so that a change to one of them is sent
    /// as a patch; 4GiB where it is not given, 0 for none. Sources that keep snapshots need none of it.
    #[serde(default)]
    pub(super) cache: Option<At<ByteSize>>,
    /// `auto` presses harder when the line is slow and lighter when the processor is; 1 to 19 is always that level of zstd.
    #[serde(default)]
    pub(super) compression: Compression,
    /// How long what a source says of its changes is believed before all is read and compared once; 7d where it is not
    /// given, 0s never believes it.
    #[serde(default)]
    pub(super) verify_tracking: Option<At<Span>>,
    /// The most that versions kept at the source (reflink copies, snapshots of a pool) may hold there that nothing else uses,
    /// all items together. What takes too much is let go, the largest first, and such an item is read in full. Where it is
    /// not given, a version never holds more than is free on its file system, and a pool's are not limited.
    #[serde(default)]
    pub(super) keep_versions: Option<At<ByteSize>>,
    /// What items were made from: `cinder/volume-b: glance/IMAGE`. The first copy of such an item sends only what differs.
    /// Items that are not named are compared with a few blocks of all others.
    #[serde(default)]
    pub(super) ancestors: BTreeMap<String, String>,
}

/// Which points are kept. A point is kept when any of these keeps it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RetentionFile {
    /// The newest so many.
    #[serde(default)]
    last: u32,
    /// The newest of each of the last so many hours that have one.
    #[serde(default)]
    hourly: u32,
    /// Likewise of days.
    #[serde(default)]
    daily: u32,
    /// Likewise of weeks.
    #[serde(default)]
    weekly: u32,
    /// Likewise of months.
    #[serde(default)]
    monthly: u32,
    /// Likewise of years.
    #[serde(default)]
    yearly: u32,
    /// `proven`: the newest proven point is kept whatever its age.
    #[serde(default)]
    keep: Keep,
}

impl RetentionFile {
    pub(super) fn checked(&self) -> Retention {
        let Self { last, hourly, daily, weekly, monthly, yearly, keep } = *self;
        Retention { last, hourly, daily, weekly, monthly, yearly, keep }
    }
}

/// How fast replication may send: `limit`, and windows by any other name.
#[derive(Debug, Default, JsonSchema)]
pub(super) struct BandwidthFile {
    /// At any time.
    pub(super) limit: Option<At<Rate>>,
    #[schemars(flatten)]
    pub(super) windows: BTreeMap<String, WindowFile>,
}

/// A time at which another limit holds.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct WindowFile {
    /// Every minute that this names is in the window: `* 8-18 * * 1-5`.
    pub(super) cron: At<String>,
    /// Goes before the general limit; of several windows the lowest counts.
    pub(super) limit: At<Rate>,
}

impl<'de> Deserialize<'de> for BandwidthFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LimitAndWindows;
        impl<'de> Visitor<'de> for LimitAndWindows {
            type Value = BandwidthFile;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`limit: 200MiB/s`, and windows such as `office-hours: { cron: …, limit: … }`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BandwidthFile, A::Error> {
                let mut file = BandwidthFile::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "limit" {
                        file.limit = Some(map.next_value()?);
                    } else {
                        file.windows.insert(key, map.next_value()?);
                    }
                }
                Ok(file)
            }
        }
        deserializer.deserialize_map(LimitAndWindows)
    }
}

/// When the group is drilled, and how.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DrillFile {
    /// Written as the policy's own.
    pub(super) schedule: At<String>,
    /// The policy's own level where it is not given.
    #[serde(default)]
    pub(super) level: Option<Level>,
    /// A runbook's name or file; the level's own where it is not given.
    #[serde(default, deserialize_with = "crate::env::deserialize")]
    pub(super) runbook: Option<String>,
}

/// Who hears of a missed target.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AlertsFile {
    /// A URL that is sent a JSON object.
    #[serde(default)]
    pub(super) webhook: Option<At<String>>,
    /// One address or a list.
    #[serde(default)]
    pub(super) mail: Addresses,
}

#[derive(Debug, Default, JsonSchema)]
#[schemars(with = "AddressesInFile")]
pub(super) struct Addresses(pub(super) Vec<String>);

#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "the shape for the JSON Schema; reading keeps the place of an error")]
enum AddressesInFile {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        fn address<E: serde::de::Error>(text: &str) -> Result<String, E> {
            let text = crate::env::expand(text).map_err(E::custom)?;
            if text.contains('@') {
                Ok(text)
            } else {
                Err(E::custom(format!("{text:?} is not a mail address")))
            }
        }
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Addresses;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mail address or a list of them")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Addresses, E> {
                Ok(Addresses(vec![address(text)?]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Addresses, A::Error> {
                let mut addresses = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    addresses.push(address(&text)?);
                }
                Ok(Addresses(addresses))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}
