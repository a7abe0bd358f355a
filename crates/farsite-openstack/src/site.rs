//! The cloud of one site, as farsite.yaml names it. Nothing is read or asked before the first question; what is held then (a
//! token, what was told of volumes) serves the later ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::{Config, Site};
use farsite_model::policy::Select;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use crate::client::Limits;
use crate::records::Volume;
use crate::told::Known;
use crate::{AskError, Client, Clouds, Told, Wanted};

/// The longest that a capture waits to hear of its volume, which is captured all the same.
const TOLD_LIMIT: Duration = Duration::from_secs(30);
/// The longest that an entry waits to hear what it selects, pages and repetitions included.
const SELECTED_LIMIT: Duration = Duration::from_mins(3);
/// The same where all volumes of a large cloud are listed for the first time.
const FIRST_LIMIT: Duration = Duration::from_mins(2);
/// Who let one wait so long is asked again after this: others wait for the rest of the run.
const SILENCE: Duration = Duration::from_mins(1);
/// The same of what captures do without.
const UNTOLD: Duration = Duration::from_mins(10);
/// What lives changes all the time; nothing is decided by it that is not an hour old.
const LIVING: Duration = Duration::from_mins(1);

/// The cloud of a site; it may have none that can be asked.
pub struct SiteCloud {
    site: String,
    about: Site,
    limits: Limits,
    /// How long any answer is waited for.
    patience: Duration,
    client: OnceCell<Client>,
    known: Mutex<Known>,
    living: Mutex<Option<(Instant, Arc<BTreeSet<String>>)>>,
    /// When a question was given up last: one that something depends on, or one that captures do without.
    silent: Mutex<Option<Instant>>,
    untold: Mutex<Option<Instant>>,
}

impl SiteCloud {
    pub fn of(config: &Config, site: &SiteName) -> Self {
        Self::new(site, config.sites.get(site).cloned().unwrap_or_default(), Limits::default())
    }

    pub fn new(site: &SiteName, about: Site, limits: Limits) -> Self {
        Self {
            site: site.to_string(),
            about,
            limits,
            patience: SELECTED_LIMIT,
            client: OnceCell::new(),
            known: Mutex::default(),
            living: Mutex::default(),
            silent: Mutex::default(),
            untold: Mutex::default(),
        }
    }

    /// A cloud that is already known.
    pub fn with(site: &SiteName, client: Client) -> Self {
        let about = Site { cloud: Some(client.name().to_owned()), region: None };
        Self { client: OnceCell::new_with(Some(client)), ..Self::new(site, about, Limits::default()) }
    }

    /// One that is given up sooner.
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
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

    /// An answer within a limit. Once a question was given up, others are refused for a while.
    async fn within<T>(
        &self,
        what: &str,
        limit: Duration,
        ask: impl Future<Output = Result<T, AskError>>,
    ) -> Result<T, AskError> {
        let limit = limit.min(self.patience);
        if is_within(&self.silent, SILENCE).await {
            return Err(
                self.given_up(&format!("{what}, not asked for again so soon after another question,"), limit)
            );
        }
        if let Ok(answer) = tokio::time::timeout(limit, ask).await {
            return answer;
        }
        *self.silent.lock().await = Some(Instant::now());
        Err(self.given_up(what, limit))
    }

    fn given_up(&self, what: &str, limit: Duration) -> AskError {
        AskError::TimedOut { cloud: self.name().unwrap_or_default().to_owned(), what: what.to_owned(), limit }
    }

    /// The volumes that a policy selects, of one back end where that is given.
    pub async fn selected(&self, select: &Select, backend: Option<&str>) -> Result<Vec<Volume>, AskError> {
        let ask = async { self.client().await?.selected(select, backend).await };
        self.within("the list of volumes that a policy selects", SELECTED_LIMIT, ask).await
    }

    /// What the images or files of all volumes are named after that Cinder has now, or had within the last minute. `None`: the
    /// site names no cloud.
    pub async fn living_volumes(&self) -> Result<Option<Arc<BTreeSet<String>>>, AskError> {
        if self.name().is_none() {
            return Ok(None);
        }
        let mut known = self.living.lock().await;
        if let Some((_, living)) = known.as_ref().filter(|(asked, _)| asked.elapsed() < LIVING) {
            return Ok(Some(living.clone()));
        }
        let asked = Instant::now();
        let ask = async {
            let mut pages = self.client().await?.volumes(&Wanted::default()).await?;
            let mut living = BTreeSet::new();
            while let Some(page) = pages.next().await? {
                living.extend(page.iter().map(|volume| volume.stored_as().to_owned()));
            }
            Ok(living)
        };
        let living = self.within("the list of all volumes", SELECTED_LIMIT, ask).await?;
        let living = Arc::new(living);
        *known = Some((asked, living.clone()));
        Ok(Some(living))
    }

    /// What is told of the volume whose file or image is named after `stored_as`. What was known before when the cloud does not
    /// tell, or not in time: a capture does without.
    pub async fn told_of(&self, stored_as: &str) -> Told {
        if self.name().is_none() {
            return Told::default();
        }
        self.ask_volumes(Some(stored_as)).await;
        self.known.lock().await.recall(stored_as)
    }

    /// What changed of volumes is asked for, where that is due: [`Self::told_of`] need not wait for it then.
    pub async fn look_at_volumes(&self) {
        if self.name().is_some() {
            self.ask_volumes(None).await;
        }
    }

    async fn ask_volumes(&self, stored_as: Option<&str>) {
        if is_within(&self.silent, SILENCE).await || is_within(&self.untold, UNTOLD).await {
            return;
        }
        let limit = if self.known.lock().await.is_empty() { FIRST_LIMIT } else { TOLD_LIMIT };
        let limit = limit.min(self.patience);
        let ask = async { self.known.lock().await.refresh(stored_as, self.client().await?).await };
        let error = match tokio::time::timeout(limit, ask).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => {
                *self.untold.lock().await = Some(Instant::now());
                self.given_up("what there is to know of volumes", limit)
            }
        };
        tracing::info!(site = self.site, "of volumes counts what was known before: {error}");
    }
}

async fn is_within(since: &Mutex<Option<Instant>>, time: Duration) -> bool {
    since.lock().await.is_some_and(|since| since.elapsed() < time)
}
