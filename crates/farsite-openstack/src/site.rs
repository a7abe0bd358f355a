//! The cloud of one site, as farsite.yaml names it. Nothing is read or asked before the first question; what is held then (a
//! token, what was told of volumes) serves the later ones.

use std::collections::BTreeSet;
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::{Config, Site};
use tokio::sync::{Mutex, OnceCell};

use crate::client::Limits;
use crate::told::Known;
use crate::{AskError, Client, Clouds, Told, Wanted};

/// The longest that a capture waits to hear of its volume, which is captured all the same.
const TOLD_LIMIT: Duration = Duration::from_secs(30);

/// The cloud of a site; it may have none that can be asked.
pub struct SiteCloud {
    site: String,
    about: Site,
    limits: Limits,
    client: OnceCell<Client>,
    known: Mutex<Known>,
}

impl SiteCloud {
    pub fn of(config: &Config, site: &SiteName) -> Self {
        Self::new(site, config.sites.get(site).cloned().unwrap_or_default(), Limits::default())
    }

    pub fn new(site: &SiteName, about: Site, limits: Limits) -> Self {
        Self { site: site.to_string(), about, limits, client: OnceCell::new(), known: Mutex::default() }
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

    /// What is told of the volume whose file or image is named after `stored_as`. Nothing when the cloud does not tell, or not
    /// in time.
    pub async fn told_of(&self, stored_as: &str) -> Told {
        if self.name().is_none() {
            return Told::default();
        }
        let ask = async {
            let mut known = self.known.lock().await;
            known.of(stored_as, self.client().await?).await
        };
        match tokio::time::timeout(TOLD_LIMIT, ask).await {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                tracing::info!(site = self.site, "nothing is told of volumes: {error}");
                Told::default()
            }
            Err(_) => {
                tracing::info!(site = self.site, "nothing was told of volumes in time");
                Told::default()
            }
        }
    }
}
