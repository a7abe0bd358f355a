//! What exists at a site that no policy protects. The policies and the site's cloud come in; each image and each volume that
//! no entry captures goes out, and what the policies name in vain. What must hold: nothing is called protected that the next
//! run would not capture, as far as it can be seen from this host; what cannot be seen from here is said.

mod compare;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::config::Config;
use farsite_model::policy::{Item, Policy};
use farsite_model::{GroupName, ItemId, SiteName};
use farsite_openstack::{AskError, Client, Service, SiteCloud, Wanted};
use serde::Serialize;

use crate::hosts::Hosts;
use compare::{Comparison, Covers, Entry};

/// The longest that listing one entry's items may take.
const LISTING_LIMIT: Duration = Duration::from_mins(5);

/// What a site has, and what is protected of it.
#[derive(Debug, Serialize)]
pub struct Coverage {
    pub site: SiteName,
    /// Its name in clouds.yaml.
    pub cloud: String,
    pub images: Tally,
    pub volumes: Tally,
    pub unprotected: Vec<Unprotected>,
    /// What policies name and the cloud does not have.
    pub in_vain: Vec<InVain>,
    /// Volume types whose volumes are encrypted.
    pub encrypting_types: Vec<String>,
    /// What could not be seen from here, one sentence each.
    pub notes: Vec<String>,
}

/// How many there are of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub protected: u64,
    pub unprotected: u64,
    /// Being made or deleted, or failed: there is nothing to capture.
    pub without_data: u64,
    pub unprotected_bytes: u64,
}

/// Something that is lost with its site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unprotected {
    /// `image` or `volume`.
    pub kind: &'static str,
    pub id: String,
    /// As its user calls it.
    pub name: Option<String>,
    /// The project's name, or its id where that is all that is known.
    pub project: Option<String>,
    pub size_bytes: u64,
    pub why: String,
}

/// Something in a policy that protects nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InVain {
    pub group: GroupName,
    pub entry: ItemId,
    pub what: String,
}

/// Compares what the cloud of a site has with what its policies capture.
pub async fn coverage(
    config: &Config,
    policies: &[Policy],
    site: &SiteName,
    cloud: &Arc<SiteCloud>,
) -> Result<Coverage, AskError> {
    let client = cloud.client().await?;
    let mut notes = Vec::new();
    let (has_images, has_volumes) = services(client, &mut notes).await?;
    let pools = if has_volumes { client.pools().await? } else { Vec::new() };
    let backends: BTreeSet<String> =
        pools.iter().filter_map(|pool| pool.backend().map(str::to_owned)).collect();
    let projects = match client.projects().await {
        Ok(projects) => projects,
        Err(
            error @ (AskError::Forbidden { .. } | AskError::NoService { .. } | AskError::NoEndpoint { .. }),
        ) => {
            notes.push(format!("projects are shown by their ids: {error}"));
            std::collections::BTreeMap::new()
        }
        Err(error) => return Err(error),
    };
    let mut entries = Vec::new();
    let config = Arc::new(config.clone());
    for policy in policies.iter().filter(|policy| policy.site == *site) {
        let hosts = Hosts::of(&config, policy, cloud);
        for item in &policy.items {
            if let Some(covers) = covers(&config, policy, item, &hosts, client, &mut notes).await? {
                entries.push(Entry::new(policy.group.clone(), item, covers));
            }
        }
    }
    let mut comparison = Comparison::new(entries, backends, projects);
    if has_images {
        for hidden in [false, true] {
            let mut pages = client.images(hidden);
            while let Some(page) = pages.next().await? {
                for image in &page {
                    comparison.image(image);
                }
            }
        }
    }
    let mut encrypting_types = Vec::new();
    if has_volumes {
        let types = client.volume_types().await?;
        comparison.knows_types(types.iter().map(|kind| kind.name.clone()).collect());
        encrypting_types =
            types.into_iter().filter(|kind| kind.encryption.is_some()).map(|kind| kind.name).collect();
        let mut pages = client.volumes(&Wanted::default()).await?;
        while let Some(page) = pages.next().await? {
            for volume in &page {
                comparison.volume(volume);
            }
        }
    }
    let compared = comparison.end();
    Ok(Coverage {
        site: site.clone(),
        cloud: client.name().to_owned(),
        images: compared.images,
        volumes: compared.volumes,
        unprotected: compared.unprotected,
        in_vain: compared.in_vain,
        encrypting_types,
        notes,
    })
}

/// Whether there is an image service, and one for volumes.
async fn services(client: &Client, notes: &mut Vec<String>) -> Result<(bool, bool), AskError> {
    let mut there = [false; 2];
    for (is_there, service) in there.iter_mut().zip([Service::Image, Service::BlockStorage]) {
        match client.endpoint(service).await {
            Ok(_) => *is_there = true,
            Err(AskError::NoService { .. }) => notes.push(format!("this cloud has no {service} service")),
            Err(error) => return Err(error),
        }
    }
    Ok((there[0], there[1]))
}

/// What an entry captures: as its source lists it where it is read by this host or by one that it reaches, else by the policy's words. `None` for what
/// is neither images nor volumes of Cinder.
async fn covers(
    config: &Config,
    policy: &Policy,
    item: &Item,
    hosts: &Hosts,
    client: &Client,
    notes: &mut Vec<String>,
) -> Result<Option<Covers>, AskError> {
    match item {
        Item::Glance(_) | Item::Cinder(_) => {}
        Item::Volume(volume) => return Ok(Covers::file(&volume.path)),
        _ => return Ok(None),
    }
    let elsewhere = match item.on() {
        _ if policy.site != config.site => Some(format!("at site {}", policy.site)),
        Some(host) if hosts.is_elsewhere(item) && !config.hosts.contains_key(host) => {
            Some(format!("on host {host}"))
        }
        _ => None,
    };
    if let Some(elsewhere) = elsewhere {
        let (group, entry) = (&policy.group, item.id());
        notes.push(format!(
            "group {group}, {entry} is read {elsewhere}: taken by the policy's words, not looked at"
        ));
        return by_words(item, client).await.map(Some);
    }
    let listed = match hosts.source(item).await {
        Ok(source) => match tokio::time::timeout(LISTING_LIMIT, source.items()).await {
            Ok(listed) => listed.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it took longer than {} s", LISTING_LIMIT.as_secs())),
        },
        Err(error) => Err(error.to_string()),
    };
    Ok(Some(match listed {
        Ok(items) => Covers::listed(item, &items),
        Err(why) => {
            notes.push(format!("group {}, {} cannot be listed: {why}", policy.group, item.id()));
            Covers::nothing(item)
        }
    }))
}

async fn by_words(item: &Item, client: &Client) -> Result<Covers, AskError> {
    let Item::Cinder(cinder) = item else { return Ok(Covers::AllImages) };
    let select = cinder.select.as_deref().cloned().unwrap_or_default();
    let project = match &select.project {
        None => None,
        Some(project) => match client.project(project).await {
            Ok(id) => Some(id),
            // No volume is of a project that does not exist.
            Err(AskError::Unknown { .. }) => Some(String::new()),
            Err(error) => return Err(error),
        },
    };
    Ok(Covers::ByWords { select: Box::new(select), project, backend: cinder.backend.clone() })
}
