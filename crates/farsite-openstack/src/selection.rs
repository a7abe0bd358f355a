//! The volumes that a policy selects, as Cinder tells. What must hold: never a shorter list; what the service filters is
//! compared here once more, so that a filter that it does not know costs time and nothing else.

use farsite_model::nearest::did_you_mean;
use farsite_model::policy::{Select, is_like};

use crate::records::Volume;
use crate::{AskError, Client, Wanted};

impl Client {
    /// The volumes for which everything in `select` holds; of one back end, where one is named. Each question reads the
    /// selected project's or metadata's volumes alone, and without those all of them.
    pub async fn selected(&self, select: &Select, backend: Option<&str>) -> Result<Vec<Volume>, AskError> {
        let project = match &select.project {
            Some(project) => Some(self.project(project).await?),
            None => None,
        };
        let wanted =
            Wanted { project: project.clone(), metadata: select.metadata.clone(), updated_since: None };
        let mut pages = self.volumes(&wanted).await?;
        let mut found = std::collections::BTreeMap::new();
        while let Some(page) = pages.next().await? {
            for volume in page {
                let is_there = backend.is_none_or(|backend| volume.backend().is_none_or(|of| of == backend));
                if is_there && holds(select, project.as_deref(), &volume) {
                    found.insert(volume.id.clone(), volume);
                }
            }
        }
        if let (true, Some(kind)) = (found.is_empty(), &select.volume_type) {
            self.volume_type(kind).await?;
        }
        Ok(found.into_values().collect())
    }

    /// A mistyped type is an error, and not a type without volumes.
    async fn volume_type(&self, name: &str) -> Result<(), AskError> {
        let types = self.type_names().await?;
        if types.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(AskError::Unknown {
            cloud: self.name().to_owned(),
            what: "volume type",
            name: name.to_owned(),
            near: did_you_mean(name, types.iter().map(String::as_str)),
        })
    }
}

/// Whether everything that is given holds for a volume. `project` is the id of the one that `select` names.
pub fn holds(select: &Select, project: Option<&str>, volume: &Volume) -> bool {
    let any =
        |given: &[String], fits: &dyn Fn(&str) -> bool| given.is_empty() || given.iter().any(|one| fits(one));
    let name = volume.name.as_deref().unwrap_or_default();
    select.metadata.iter().all(|(key, value)| volume.metadata.get(key) == Some(value))
        && any(&select.ids, &|id| id == volume.id || id == volume.stored_as())
        && any(&select.names, &|pattern| is_like(pattern, name))
        && project.is_none_or(|project| volume.project.as_deref() == Some(project))
        && select.volume_type.as_ref().is_none_or(|kind| volume.volume_type.as_ref() == Some(kind))
}
