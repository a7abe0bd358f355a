//! A policy: what is protected together, when, to where, and what recovery is promised. A file comes in, a
//! checked [`Policy`] goes out; what is wrong is said with file, line and column.

mod check;
mod compression;
mod file;
mod hooks;
mod hosts;
mod items;
mod select;

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use compression::Compression;
pub use hooks::{GroupHooks, Hook, ItemHooks};
pub use items::{
    Checksums, ChecksumsInMariadb, Cinder, Databases, DiskFormat, Files, Glance, Item, Log, Mariadb, Qmp,
    Rbd, Sqlite, Volume,
};
pub use select::{Select, is_like};

use crate::quantity::{ByteSize, Rate, Span};
use crate::schedule::Schedule;
use crate::yaml::{Source, YamlError};
use crate::{GroupName, ItemId, Level, SiteName, env, yaml};

/// A policy in which everything has been checked that can be without looking at the site.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The file that it was read from, for messages.
    pub file: String,
    pub group: GroupName,
    pub site: SiteName,
    /// Never empty, never `site`.
    pub to: Vec<SiteName>,
    pub level: Level,
    pub tz: Option<String>,
    pub rpo: Span,
    pub rto: Option<Span>,
    /// Never empty; no two of one kind have the same name.
    pub items: Vec<Item>,
    pub retention: Retention,
    pub bandwidth: Bandwidth,
    pub hooks: GroupHooks,
    pub drill: Option<Drill>,
    pub alerts: Alerts,
    /// A power of two from 4 KiB to 4 MiB.
    pub block_size: ByteSize,
    /// The most memory that a run takes.
    pub memory: ByteSize,
    /// Room for copies of the blocks that were shipped last; a change to one of them is sent as a patch.
    pub cache: ByteSize,
    pub compression: Compression,
    /// What a source says of its changes is compared with a full read when the last one is as old as this.
    pub verify_tracking: Span,
    /// The most that kept versions may hold at the source, all together.
    pub keep_versions: Option<ByteSize>,
    /// What items were made from, as far as a person has said so.
    pub ancestors: BTreeMap<ItemId, ItemId>,
    schedule: Schedule,
    warnings: Vec<String>,
}

impl Policy {
    /// Reads a file. An unreadable one is a [`YamlError`] like any other, without a line.
    pub fn load(path: &Path) -> Result<Self, YamlError> {
        Self::parse(&path.display().to_string(), &yaml::read(path)?)
    }

    /// `file` is only for messages. `${env:NAME}` in paths and names is replaced out of the process's
    /// environment.
    pub fn parse(file: &str, text: &str) -> Result<Self, YamlError> {
        check::check(Source { file, text }, yaml::parse(file, text)?)
    }

    /// The same with another environment.
    pub fn parse_with(
        file: &str,
        text: &str,
        environment: impl Fn(&str) -> Option<String> + 'static,
    ) -> Result<Self, YamlError> {
        env::with_environment(environment, || Self::parse(file, text))
    }

    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What is allowed but hardly meant, one sentence each, with file, line and column.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the policy asks for and this version does not do yet, one sentence each: nobody may count on it.
    pub fn not_yet(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.drill.is_some() {
            missing.push("`drill` is not run by its schedule yet: `farsite drill run` runs one".to_owned());
        }
        if self.alerts != Alerts::default() {
            missing.push("`alerts` are not sent yet: watch `farsite status` or the metrics".to_owned());
        }
        for item in &self.items {
            match item {
                Item::Cinder(cinder) if cinder.path.is_none() && cinder.rbd.is_none() => {
                    missing.push(format!("{} cannot be captured yet without `path:` or `rbd:`", item.id()));
                }
                Item::Mariadb(mariadb) if mariadb.databases != Databases::All => {
                    missing.push(format!(
                        "{} cannot be captured yet: a physical backup holds all databases (`databases: all`)",
                        item.id()
                    ));
                }
                _ => {}
            }
        }
        missing
    }

    /// The JSON Schema of a policy's file.
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(file::PolicyFile).to_value()
    }
}

/// Which points are kept. A point is kept when any of these keeps it; never all zero. Applied by `farsite store gc`,
/// see [`crate::retention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Retention {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many hours that have one; days, weeks, months and years likewise.
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    pub keep: Keep,
}
impl Default for Retention {
    fn default() -> Self {
        Self { last: 24, hourly: 0, daily: 7, weekly: 4, monthly: 0, yearly: 0, keep: Keep::Proven }
    }
}

/// What is kept whatever its age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The newest proven point: without it a standby could be left with points that nobody has ever restored.
    #[default]
    Proven,
    None,
}

/// How fast replication may send.
#[derive(Debug, Clone, Default)]
pub struct Bandwidth {
    pub limit: Option<Rate>,
    pub windows: Vec<Window>,
}

/// A time at which another limit holds.
#[derive(Debug, Clone)]
pub struct Window {
    pub name: String,
    /// Every minute that it names is in the window.
    pub cron: Schedule,
    pub limit: Rate,
}

impl Bandwidth {
    /// The limit that holds at `at`: the lowest of the windows that cover it, else the general one; `None` for
    /// no limit.
    pub fn limit_at(&self, at: Timestamp) -> Option<Rate> {
        let windows = self.windows.iter().filter(|window| window.cron.covers(at));
        windows.map(|window| window.limit).min().or(self.limit)
    }
}

/// When the group is drilled, and how.
#[derive(Debug, Clone)]
pub struct Drill {
    pub schedule: Schedule,
    pub level: Level,
    /// A runbook's name or file; `None` for the level's own.
    pub runbook: Option<String>,
}

/// Who hears of a missed target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Alerts {
    pub webhook: Option<String>,
    pub mail: Vec<String>,
}
