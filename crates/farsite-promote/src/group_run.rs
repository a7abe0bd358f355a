//! One group within one promotion: all that its actions look at, and what its runbook's variables are. The ledger says
//! which point and which logs; the configuration says where to.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farsite_model::content::TreeEntry;
use farsite_model::{Epoch, GroupName, ItemKind, Level, Mode, PointId, PromotionId, SiteName};
use farsite_replicate::restore::{self, Guard};
use farsite_replicate::spot::Spot;
use farsite_runbook::action::{ActionContext, ActionError, Registry};
use farsite_runbook::plan::{Plan, render};
use farsite_sources::mariadb::instance::Instance;
use farsite_store::ledger::AcceptedLog;
use farsite_store::logs::TimelineId;
use farsite_store::manifest::{Manifest, ManifestItem};
use farsite_store::read::ReadStats;
use serde_json::{Value, json};

use crate::choose::Replay;
use crate::place::{MariadbTarget, Targets};
use crate::runbooks::Bundle;
use crate::sql::Database;
use crate::{PromoteError, Standby, actions};

/// Names that a journal keeps its own facts under, among the values of variables; no runbook's variable begins so.
pub const FACT: &str = "farsite.";

/// What every action of a run holds.
pub struct GroupRun {
    pub standby: Standby,
    pub promotion: PromotionId,
    pub group: GroupName,
    pub from: SiteName,
    pub mode: Mode,
    pub level: Level,
    /// The epoch that the promotion began; in a drill the one that is current. SQL steps refuse an older one.
    pub term: Epoch,
    pub point: PointId,
    pub manifest: Manifest,
    /// How far the epoch accepts each log.
    pub logs: Vec<AcceptedLog>,
    pub replay: Replay,
    pub targets: Targets,
    pub stats: ReadStats,
}

impl GroupRun {
    /// The plan, checked against the actions that belong to this run.
    pub fn plan(self: &Arc<Self>, bundle: &Bundle) -> Result<(Registry, Plan), PromoteError> {
        let registry = actions::registry(Some(self.clone()));
        let plan = bundle.plan(&registry)?;
        Ok((registry, plan))
    }

    /// Values for templates, and the same as plain texts. `given` goes before the runbook's defaults. A value may use the
    /// built-in names, such as `{{ place.sqlite }}`, so that one value serves a promotion and a drill.
    pub fn variables(
        &self,
        plan: &Plan,
        given: &BTreeMap<String, String>,
    ) -> Result<(Value, BTreeMap<String, String>), PromoteError> {
        let built_in = json!({
            "place": self.targets.as_variables(&self.manifest),
            "promotion": self.promotion,
            "mode": self.mode,
            "level": self.level,
            "group": self.group,
            "site": self.standby.site,
            "from": self.from,
            "to": self.standby.site,
        });
        let mut values: BTreeMap<&String, &String> = plan.variables.iter().collect();
        values.extend(given.iter().filter(|(name, _)| !name.starts_with(FACT)));
        let (mut all, mut plain) = (built_in.clone(), BTreeMap::new());
        for (name, value) in values {
            if built_in.get(name).is_some() {
                return Err(PromoteError::Usage(format!(
                    "variable {name:?} has a meaning of its own in every runbook\n  hint: call yours something else"
                )));
            }
            let rendered = render(&Value::String(value.clone()), &built_in)
                .map_err(|why| PromoteError::Usage(format!("variable {name:?}: {why}")))?;
            plain.insert(name.clone(), rendered.as_str().unwrap_or_default().to_owned());
            all[name.as_str()] = rendered;
        }
        Ok((all, plain))
    }

    pub(crate) fn is_drill(&self) -> bool {
        self.targets.drill.is_some()
    }

    pub(crate) fn items<'r>(&'r self, kinds: &'r [ItemKind]) -> impl Iterator<Item = &'r ManifestItem> {
        self.manifest.items.iter().filter(move |item| kinds.contains(&item.kind))
    }

    /// Files and folders of all file sets of the point, by the paths that they had.
    pub(crate) async fn carried_files(&self) -> Result<Vec<TreeEntry>, String> {
        let mut carried = Vec::new();
        for item in self.items(&[ItemKind::Files]) {
            if let Some(directory) = &item.directory {
                let entries = restore::entries(&self.standby.reader, item, directory).await;
                carried.extend(entries.map_err(|error| format!("{}: {error}", item.id))?);
            }
        }
        Ok(carried)
    }

    pub(crate) fn spot(&self, item: &ManifestItem) -> Result<Spot, ActionError> {
        self.targets.item(&self.manifest, item).map_err(ActionError::Failed)
    }

    /// The path of an item that is in no pool.
    pub(crate) fn path(&self, item: &ManifestItem) -> Result<PathBuf, ActionError> {
        match self.spot(item)? {
            Spot::File(path) => Ok(path),
            Spot::Image(image) => Err(ActionError::Failed(format!("{}: {image} is no file", item.id))),
        }
    }

    /// The last segment of a timeline that may be replayed; `None` sets no limit.
    pub(crate) fn accepted(&self, timeline: TimelineId) -> Result<Option<u64>, ActionError> {
        match self.logs.iter().find(|log| log.timeline == timeline) {
            Some(AcceptedLog { last_sequence: Some(last), .. }) => Ok(Some(*last)),
            Some(_) => Err(ActionError::failed(format!(
                "the epoch accepts nothing of the log {timeline}, which the point needs\n  hint: choose another point"
            ))),
            // A point that a person chose later may stand on another timeline. The point's own position was durable
            // before it was committed; what lies behind it was not accepted.
            None if self.replay == Replay::Point => Ok(None),
            None => Err(ActionError::failed(format!(
                "the epoch does not accept the log {timeline} beyond the point\n  hint: restore the point as it is"
            ))),
        }
    }

    pub(crate) fn mariadb(&self) -> Result<&MariadbTarget, ActionError> {
        self.targets.mariadb.as_ref().ok_or_else(|| {
            ActionError::failed(format!(
                "group {} has no place for its mariadb items\n  hint: `places.{}.mariadb:` in farsite.yaml",
                self.group, self.group
            ))
        })
    }

    /// The instance as it serves after the promotion.
    pub(crate) fn instance(&self) -> Result<Instance, ActionError> {
        let target = self.mariadb()?;
        Ok(Instance {
            datadir: target.datadir.clone(),
            socket: target.socket.clone(),
            port: target.port,
            server_args: target.server_args.clone(),
        })
    }

    /// The same files served to nobody but this process: while the log is replayed.
    pub(crate) fn private_instance(&self) -> Result<Instance, ActionError> {
        let serving = self.instance()?;
        Ok(Instance { socket: self.targets.sockets.join("private.sock"), port: None, ..serving })
    }

    /// Makes the folder that the instance's socket lies in: nobody but the server's own user may enter it.
    pub(crate) fn socket_folder(&self, socket: &Path) -> std::io::Result<()> {
        // The place's own socket lies where the administrator says; only this run's folder is made here.
        if socket.parent() != Some(self.targets.sockets.as_path()) {
            return Ok(());
        }
        let folder = &self.targets.sockets;
        match std::fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let (found, data) =
            (std::fs::symlink_metadata(folder)?, std::fs::metadata(&self.instance_datadir()?)?);
        let own = rustix::process::geteuid().as_raw();
        if !found.is_dir() || (found.uid() != own && found.uid() != data.uid()) {
            return Err(std::io::Error::other(format!("{} belongs to somebody else", folder.display())));
        }
        if own == 0 && found.uid() != data.uid() {
            std::os::unix::fs::chown(folder, Some(data.uid()), Some(data.gid()))?;
        }
        Ok(())
    }

    fn instance_datadir(&self) -> std::io::Result<PathBuf> {
        self.mariadb().map(|target| target.datadir.clone()).map_err(std::io::Error::other)
    }

    pub(crate) fn databases(&self) -> Vec<&ManifestItem> {
        self.manifest.items.iter().filter(|item| item.kind.is_database()).collect()
    }

    /// The restored database that a step means: the only one, or the one that it names (`mariadb/main`).
    pub(crate) fn database(&self, named: Option<&str>) -> Result<(Database, &ManifestItem), ActionError> {
        let databases = self.databases();
        let ids = || databases.iter().map(|i| i.id.as_str()).collect::<Vec<_>>().join(", ");
        let item = match (named, databases.as_slice()) {
            (Some(name), all) => all.iter().find(|i| i.id.as_str() == name).copied().ok_or_else(|| {
                ActionError::failed(format!("the point holds no database {name:?} (it holds: {})", ids()))
            })?,
            (None, [one]) => one,
            (None, []) => return Err(ActionError::failed("the point holds no database")),
            (None, _) => {
                return Err(ActionError::failed(format!(
                    "the point holds several databases ({})\n  hint: say which with `item:`",
                    ids()
                )));
            }
        };
        let database = if item.kind == ItemKind::Mariadb {
            Database::Mariadb(self.instance()?)
        } else {
            Database::Sqlite(self.path(item)?)
        };
        Ok((database, item))
    }
}

/// Asked before every write: the step's time is not over, and nobody wants it to stop.
pub(crate) fn guard(context: &ActionContext) -> Guard {
    let (lease, cancel) = (context.lease, context.cancel.clone());
    Arc::new(move || {
        if cancel.is_cancelled() {
            return Err(std::io::Error::other("cancelled"));
        }
        lease.check().map_err(std::io::Error::other)
    })
}

/// An error of a write, told apart from a step whose time is over and from a wish to cancel.
pub(crate) fn failed(context: &ActionContext, error: impl std::fmt::Display) -> ActionError {
    if context.cancel.is_cancelled() {
        return ActionError::Cancelled;
    }
    match context.lease.check() {
        Err(over) => over,
        Ok(()) => ActionError::Failed(error.to_string()),
    }
}
