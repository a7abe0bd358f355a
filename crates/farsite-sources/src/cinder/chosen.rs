//! Which volumes an entry means, as files or images. A selection comes in, and what Cinder says of it where names of files
//! cannot answer it; the names of the selected ones go out. What must hold: a selected volume that is not where the entry looks
//! is in the list all the same, so that its capture fails and is heard of; only one that Cinder no longer has is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use farsite_model::ItemId;
use farsite_model::policy::{self, Select, is_like};
use farsite_openstack::SiteCloud;
use farsite_openstack::records::Volume;

use crate::SourceError;

/// How Cinder names files and images by default (`volume_name_template`).
const PREFIX: &str = "volume-";

/// Answers an entry's selection.
#[derive(Clone)]
pub(super) struct Chooser {
    entry: ItemId,
    select: Select,
    backend: Option<String>,
    cloud: Arc<SiteCloud>,
}

/// What was selected at one moment.
pub(super) enum Chosen {
    /// By the names of files alone.
    ByName,
    /// By Cinder: what their files are named after, and whether something must be there.
    Told(BTreeMap<String, bool>),
}

impl Chooser {
    pub(super) fn new(entry: ItemId, cinder: &policy::Cinder, cloud: Arc<SiteCloud>) -> Self {
        let select = cinder.select.as_deref().cloned().unwrap_or_default();
        Self { entry, select, backend: cinder.backend.clone(), cloud }
    }

    /// Asks the cloud, where that is needed.
    pub(super) async fn choose(&self) -> Result<Chosen, SourceError> {
        if !self.select.asks_cloud() {
            return Ok(Chosen::ByName);
        }
        let told = self.told().await?;
        Ok(Chosen::Told(told.iter().map(|v| (v.stored_as().to_owned(), v.has_data())).collect()))
    }

    async fn told(&self) -> Result<Vec<Volume>, SourceError> {
        self.cloud.selected(&self.select, self.backend.as_deref()).await.map_err(|error| {
            SourceError::new(
                format!("asking which volumes {} selects, without which none is captured", self.entry),
                error,
            )
        })
    }

    /// Those of the files or images `there` that are selected, and selected ones that are missing.
    pub(super) async fn pick(&self, chosen: &Chosen, there: Vec<String>) -> Result<Vec<String>, SourceError> {
        let Chosen::Told(told) = chosen else {
            return Ok(there.into_iter().filter(|file| self.picks_by_name(file)).collect());
        };
        let fits = |file: &str| is_any_or_like(&self.select.files, file);
        let (mut picked, others): (Vec<String>, Vec<String>) =
            there.into_iter().partition(|file| stored_as(file).is_some_and(|id| told.contains_key(id)));
        self.refuse_names_of_files(&others)?;
        let found: BTreeSet<&str> = picked.iter().filter_map(|file| stored_as(file)).collect();
        let missing: Vec<&String> = told
            .iter()
            .filter(|(id, has_data)| **has_data && !found.contains(id.as_str()))
            .map(|(id, _)| id)
            .collect();
        let mut missing: Vec<String> = if missing.is_empty() {
            Vec::new()
        } else {
            // Deleted since they were selected?
            let Chosen::Told(now) = self.choose().await? else { return Ok(picked) };
            let is_still = |id: &&String| now.get(*id).copied().unwrap_or(false);
            missing.into_iter().filter(is_still).map(|id| format!("{PREFIX}{id}")).collect()
        };
        if !missing.is_empty() {
            tracing::warn!(
                entry = %self.entry,
                "selected, and not where it looks: {}; volumes of other back ends are left out where the entry names its \
                 `backend:`",
                missing.join(", ")
            );
        }
        picked.append(&mut missing);
        picked.retain(|file| fits(file));
        picked.sort();
        Ok(picked)
    }

    fn picks_by_name(&self, file: &str) -> bool {
        let Select { ids, files, .. } = &self.select;
        (ids.is_empty() || ids.iter().any(|id| is_volume(file, id))) && is_any_or_like(files, file)
    }

    /// Names once meant files: whoever still writes them so must not get fewer volumes without a word.
    fn refuse_names_of_files(&self, left_out: &[String]) -> Result<(), SourceError> {
        let mut meant = self.select.names.iter().filter(|name| name.starts_with(PREFIX));
        match meant.find(|name| left_out.iter().any(|file| is_like(name, file))) {
            None => Ok(()),
            Some(name) => Err(SourceError::new(
                format!("selecting the volumes of {}", self.entry),
                format!("`names: [{name}]` fits files of volumes that nobody calls so; `names` are what users call them"),
            )
            .hint(format!("write `files: [{name}]` for the names of files and images"))),
        }
    }

    /// What is selected and does not exist, in words.
    pub(super) async fn in_vain(&self, picked: &[String]) -> Vec<String> {
        let mut vain = Vec::new();
        let told = if self.select.asks_cloud() {
            match self.told().await {
                Ok(told) => Some(told),
                Err(error) => return vec![error.to_string()],
            }
        } else {
            None
        };
        for id in &self.select.ids {
            let is_there = match &told {
                Some(told) => told.iter().any(|v| v.id == *id || v.stored_as() == id),
                None => picked.iter().any(|file| is_volume(file, id)),
            };
            if !is_there {
                vain.push(format!("no volume here is {id}\n  hint: look at the id and at the back end"));
            }
        }
        for name in &self.select.names {
            let is_called = |v: &Volume| v.name.as_deref().is_some_and(|given| is_like(name, given));
            if told.as_ref().is_some_and(|told| !told.iter().any(is_called)) {
                vain.push(format!("no volume that the rest selects is called {name}"));
            }
        }
        if let (true, Some([])) = (vain.is_empty(), told.as_deref()) {
            vain.push(
                "it selects no volume\n  hint: compare it with `openstack volume list --all-projects --long`"
                    .to_owned(),
            );
        }
        vain
    }
}

fn is_any_or_like(patterns: &[String], file: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| is_like(pattern, file))
}

/// Cinder names a volume's file `volume-ID`, some back ends with an ending behind it.
fn is_volume(file: &str, id: &str) -> bool {
    let rest = file.strip_prefix(PREFIX).unwrap_or(file).strip_prefix(id);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The id that a file or image is named after.
pub(super) fn stored_as(file: &str) -> Option<&str> {
    let id = file.strip_prefix(PREFIX)?.split('.').next()?;
    (!id.is_empty()).then_some(id)
}

/// The id of the volume whose disk this file is, and how disks end here; none for records of snapshots and their overlays.
pub(super) fn disk_of(file: &str) -> Option<(&str, &str)> {
    let id = stored_as(file)?;
    let ending = &file[PREFIX.len() + id.len()..];
    matches!(ending, "" | ".raw" | ".img" | ".qcow2").then_some((id, ending))
}

/// The file of another volume's disk.
pub(super) fn file_of(id: &str, ending: &str) -> String {
    format!("{PREFIX}{id}{ending}")
}
