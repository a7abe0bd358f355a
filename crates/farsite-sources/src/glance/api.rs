//! Images through Glance's API, where their store cannot be read itself. What must hold: an image is downloaded only when
//! something reads it, and nothing does that while the point before holds the same hash and length; a listing that may be a
//! part is an error.
//!
//! Active images never change (Glance, "Image properties": `os_hash_value` of an id is set once), so that hash and length are
//! what a version is known by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use farsite_model::{Consistency, ItemId, ItemKind};
use farsite_openstack::SiteCloud;
use farsite_openstack::records::Image;

use super::digest::Recorded;
use super::download::Downloaded;
use super::immutable::Immutable;
use super::{BACKEND, BACKEND_API, Details, few, is_image_id};
use crate::tracking::ChangeTracking;
use crate::{Capture, CaptureContext, CheckLine, Content, SourceError};

pub(super) struct Api {
    cloud: Arc<SiteCloud>,
    /// As they were listed: one question serves all.
    listed: Mutex<BTreeMap<String, Image>>,
}

impl Api {
    pub(super) fn new(cloud: &Arc<SiteCloud>) -> Self {
        Self { cloud: cloud.clone(), listed: Mutex::default() }
    }

    /// For messages.
    pub(super) fn shown(&self) -> String {
        format!("Glance's API of cloud {}", self.cloud.name().unwrap_or("(none named)"))
    }

    /// Ids of all images that have data.
    pub(super) async fn list(&self) -> Result<Vec<String>, SourceError> {
        let images = self.all().await?;
        let with_data = images.into_iter().filter(|image| image.has_data() && is_image_id(&image.id));
        let with_data: BTreeMap<String, Image> = with_data.map(|image| (image.id.clone(), image)).collect();
        let ids = with_data.keys().cloned().collect();
        *self.listed.lock().expect("no holder of this lock panics") = with_data;
        Ok(ids)
    }

    async fn all(&self) -> Result<Vec<Image>, SourceError> {
        let ask = async { self.cloud.client().await?.all_images().await };
        ask.await.map_err(|error| SourceError::new("listing the images that Glance's API has", error))
    }

    pub(super) async fn check(
        &self,
        line: impl Fn(&str, Result<String, String>) -> CheckLine,
    ) -> Vec<CheckLine> {
        let images = match self.all().await {
            Ok(images) => images,
            Err(error) => return vec![line("images", Err(error.to_string()))],
        };
        let (with_data, without): (Vec<&Image>, Vec<&Image>) =
            images.iter().partition(|image| image.has_data());
        let mut said = format!("{} images through {}", with_data.len(), self.shown());
        if !without.is_empty() {
            said = format!("{said}; {} more are queued or being uploaded", without.len());
        }
        let mut lines = vec![line("images", Ok(said))];
        let ids =
            |images: Vec<&&Image>| few(&images.iter().map(|image| image.id.clone()).collect::<Vec<_>>());
        let unsized_ones: Vec<_> = with_data.iter().filter(|image| image.size.is_none()).collect();
        if !unsized_ones.is_empty() {
            let why = format!(
                "Glance tells no length of {}, and cannot be taken at its word\n  hint: download and upload them again",
                ids(unsized_ones)
            );
            lines.push(line("lengths", Err(why)));
        }
        let unhashed: Vec<_> = with_data.iter().filter(|image| Recorded::of(image).is_none()).collect();
        if !unhashed.is_empty() {
            let said = format!("by their length alone, and downloaded in each run: {}", ids(unhashed));
            lines.push(line("images without a hash that is known here", Ok(said)));
        }
        lines
    }

    pub(super) async fn capture(
        &self,
        item: &ItemId,
        context: &CaptureContext,
    ) -> Result<Capture, SourceError> {
        let captured = context.clock.capture_time();
        let id = crate::plain_name(item)?;
        let what = || format!("reading {item} through {}", self.shown());
        let listed = self.listed.lock().expect("no holder of this lock panics").get(id).cloned();
        let image = if let Some(image) = listed {
            image
        } else {
            let ask = async { self.cloud.client().await?.image(id).await };
            let told = ask.await.map_err(|error| SourceError::new(what(), error))?;
            told.ok_or_else(|| SourceError::new(what(), "Glance has no such image"))?
        };
        let Some(size_bytes) = image.size.filter(|_| image.has_data()) else {
            let why = format!("Glance calls it {} and tells no length of data", image.status);
            return Err(SourceError::new(what(), why).hint("the next run asks again"));
        };
        let expected = Recorded::of(&image);
        let tracking = expected.as_ref().map(|expected| -> Box<dyn ChangeTracking> {
            Box::new(Immutable::by_hash(&expected.name(), size_bytes))
        });
        let content = Downloaded::new(self.cloud.clone(), id, size_bytes, expected.clone(), context);
        Ok(Capture {
            item: item.clone(),
            kind: ItemKind::Glance,
            captured,
            // Whoever reads it finds out; what is not as it should be fails.
            consistency: if expected.is_some() { Consistency::Application } else { Consistency::Crash },
            guard: Some(Box::new(content.ends())),
            content: Content::Volume(Arc::new(content)),
            still: true,
            ancestor: None,
            details: details(&image),
            tracking,
        })
    }
}

fn details(image: &Image) -> Details {
    let mut details = Details::from([
        ("status".to_owned(), image.status.clone()),
        (BACKEND.to_owned(), BACKEND_API.to_owned()),
    ]);
    for (key, value) in [
        ("disk_format", &image.disk_format),
        ("container_format", &image.container_format),
        ("md5", &image.checksum),
    ] {
        details.extend(value.clone().map(|value| (key.to_owned(), value)));
    }
    if let (Some(algorithm), Some(hash)) = (&image.os_hash_algo, &image.os_hash_value) {
        details.insert(algorithm.clone(), hash.clone());
    }
    details
}
