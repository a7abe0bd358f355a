//! The cloud of one site, as farsite.yaml names it. Nothing is read or asked before the first question; what is held then (a
//! token, what volumes were made from) serves the later ones.

use std::collections::BTreeSet;
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::{Config, Site};
use tokio::sync::{Mutex, OnceCell};

use crate::client::Limits;
use crate::made_from::Origins;
use crate::{AskError, Client, Clouds, MadeFrom, Wanted};

/// The longest that a capture waits to hear what its volume was made from. It saves bytes, and nothing depends on it.
const ORIGIN_LIMIT: Duration = Duration::from_secs(30);

/// The cloud of a site; it may have none that can be asked.
pub struct SiteCloud {
    site: String,
    about: Site,
    limits: Limits,
    client: OnceCell<Client>,
    origins: Mutex<Origins>,
}

impl SiteCloud {
    pub fn of(config: &Config, site: &SiteName) -> Self {
        Self::new(site, config.sites.get(site).cloned().unwrap_or_default(), Limits::default())
    }

    pub fn new(site: &SiteName, about: Site, limits: Limits) -> Self {
        Self { site: site.to_string(), about, limits, client: OnceCell::new(), origins: Mutex::default() }
    }

    /// A cloud that is already known.
    pub fn with(site: &SiteName, client: Client) -> Self {
        let about = Site { cloud: Some(client.name().to_owned()), region: None };
        Self { client: OnceCell::new_with(Some(client)), ..Self::new(site, about, Limits::default()) }
    }

    /// Its name in clouds.yaml, where it has one.
    pub fn name(&self) -> Option<&str> {
        self.about.cloud.as_deref()
    }

    /// The cloud, to be asked. clouds.yaml is read now, the first time.
    pub async fn client(&self) -> Result<&Client, AskError> {
        self.client
            .get_or_try_init(|| async {
                let name =
                    self.name().ok_or_else(|| AskError::NoCloud { site: self.site.clone() })?.to_owned();
                let clouds = Clouds::load()?;
                let cloud = clouds.find(&name)?;
                Client::new(cloud, self.about.region.clone(), self.limits, move || clouds.credentials(&name))
            })
            .await
    }

    /// What the images or files of all volumes are named after that Cinder has now. `None`: the site names no cloud.
    pub async fn living_volumes(&self) -> Result<Option<BTreeSet<String>>, AskError> {
        if self.name().is_none() {
            return Ok(None);
        }
        let mut pages = self.client().await?.volumes(&Wanted::default()).await?;
        let mut living = BTreeSet::new();
        while let Some(page) = pages.next().await? {
            living.extend(page.iter().map(|volume| volume.stored_as().to_owned()));
        }
        Ok(Some(living))
    }

    /// What the volume was made from whose file or image is named after `stored_as`, the nearest first. Nothing when the cloud
    /// does not tell, or not in time.
    pub async fn made_from(&self, stored_as: &str) -> Vec<MadeFrom> {
        if self.name().is_none() {
            return Vec::new();
        }
        let ask = async {
            let mut origins = self.origins.lock().await;
            origins.of(stored_as, self.client().await?).await
        };
        match tokio::time::timeout(ORIGIN_LIMIT, ask).await {
            Ok(Ok(chain)) => chain,
            Ok(Err(error)) => {
                tracing::info!(site = self.site, "what volumes were made from is not known: {error}");
                Vec::new()
            }
            Err(_) => {
                tracing::info!(site = self.site, "what volumes were made from was not told in time");
                Vec::new()
            }
        }
    }
}
