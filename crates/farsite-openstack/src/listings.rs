//! What a cloud has, kind by kind, of all projects. Nothing is asked until the first page is.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::paging::Pages;
use crate::records::{Encryption, Image, Pool, Project, Snapshot, VolumeType};
use crate::{AskError, Client, Service};

fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
    query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl Client {
    /// Images of every visibility; hidden ones are a listing of their own.
    pub fn images(&self, hidden: bool) -> Pages<'_, Image> {
        let hidden = if hidden { "true" } else { "false" };
        let query = pairs(&[("visibility", "all"), ("os_hidden", hidden)]);
        Pages::new(self, Service::Image, "/images", "images", query, None)
    }

    /// All images, hidden ones too; an error for whoever is shown only a part of them. Glance leaves out other projects' images
    /// without a word for whoever is not its administrator, so its tasks are asked for first: it refuses those to everybody else.
    pub async fn all_images(&self) -> Result<Vec<Image>, AskError> {
        let limit = pairs(&[("limit", "1")]);
        match self.get::<Value>(Service::Image, "/tasks", &limit, None).await {
            Err(AskError::Forbidden { cloud, user, .. }) => {
                return Err(AskError::NotAll { cloud, user, what: "images" });
            }
            // A Glance without them.
            Err(AskError::Status { status: 404, .. })
                if self.token().await?.roles().any(|role| role == "admin") => {}
            asked => drop(asked?),
        }
        let mut images = self.images(false).all().await?;
        images.extend(self.images(true).all().await?);
        Ok(images)
    }

    /// One image; none when Glance has no such image.
    pub async fn image(&self, id: &str) -> Result<Option<Image>, AskError> {
        match self.get(Service::Image, &format!("/images/{id}"), &[], None).await {
            Ok(image) => Ok(Some(image)),
            Err(AskError::Status { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn snapshots(&self) -> Pages<'_, Snapshot> {
        let query = pairs(&[("all_tenants", "1")]);
        Pages::new(self, Service::BlockStorage, "/snapshots/detail", "snapshots", query, None)
    }

    /// What the scheduler knows: back ends that report.
    pub async fn pools(&self) -> Result<Vec<Pool>, AskError> {
        #[derive(Deserialize)]
        struct Pools {
            pools: Vec<Pool>,
        }
        let query = pairs(&[("detail", "true")]);
        let found: Pools =
            self.get(Service::BlockStorage, "/scheduler-stats/get_pools", &query, None).await?;
        Ok(found.pools)
    }

    /// Volume types, private ones too.
    fn types(&self) -> Pages<'_, VolumeType> {
        let query = pairs(&[("is_public", "None")]);
        Pages::new(self, Service::BlockStorage, "/types", "volume_types", query, None)
    }

    pub(crate) async fn type_names(&self) -> Result<Vec<String>, AskError> {
        Ok(self.types().all().await?.into_iter().map(|kind| kind.name).collect())
    }

    /// Volume types, each with its encryption: one question for each.
    pub async fn volume_types(&self) -> Result<Vec<VolumeType>, AskError> {
        let mut types = self.types().all().await?;
        for kind in &mut types {
            let path = format!("/types/{}/encryption", kind.id);
            let answer: Value = self.get(Service::BlockStorage, &path, &[], None).await?;
            // A type without encryption is answered with `{}`.
            if answer.get("provider").is_some() {
                let unreadable = |error: serde_json::Error| AskError::Unreadable {
                    cloud: self.name().to_owned(),
                    what: format!("the encryption of volume type {}", kind.name),
                    why: error.to_string(),
                };
                kind.encryption = Some(serde_json::from_value::<Encryption>(answer).map_err(unreadable)?);
            }
        }
        Ok(types)
    }

    /// Names of projects by their ids.
    pub async fn projects(&self) -> Result<BTreeMap<String, String>, AskError> {
        let pages: Pages<'_, Project> =
            Pages::new(self, Service::Identity, "/projects", "projects", Vec::new(), None);
        Ok(pages.all().await?.into_iter().map(|project| (project.id, project.name)).collect())
    }

    /// The id of the project that is called so, or has this id.
    pub async fn project(&self, name: &str) -> Result<String, AskError> {
        let projects = self.projects().await?;
        if projects.contains_key(name) {
            return Ok(name.to_owned());
        }
        let ids: Vec<&String> =
            projects.iter().filter(|(_, known)| *known == name).map(|(id, _)| id).collect();
        let cloud = || self.name().to_owned();
        match ids.as_slice() {
            [only] => Ok((*only).clone()),
            [] => {
                let near = farsite_model::nearest::did_you_mean(name, projects.values().map(String::as_str));
                Err(AskError::Unknown { cloud: cloud(), what: "project", name: name.to_owned(), near })
            }
            several => {
                Err(AskError::Ambiguous { cloud: cloud(), name: name.to_owned(), count: several.len() })
            }
        }
    }
}
