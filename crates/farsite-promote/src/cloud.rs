//! Whether this site's own cloud can be asked, as farsite.yaml names it. No step of a promotion depends on it; but a cloud that
//! gives no token has a service that is down or a wrong word in clouds.yaml, and what looks at it afterwards would fail.

use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::Config;
use farsite_openstack::{AskError, Limits, Service, SiteCloud};

/// The longest that one call may take: a dry run is for people who wait.
const CALL: Duration = Duration::from_secs(10);
/// For all of it.
const LIMIT: Duration = Duration::from_secs(30);
const ONE_TRY: Limits = Limits {
    connect: Duration::from_secs(5),
    call: CALL,
    tries: 1,
    pause: Duration::ZERO,
    longest_pause: Duration::ZERO,
};

/// Asks for a token, the services' addresses, and a page of what Glance and Cinder have: a service that gives its version and then
/// fails is found too. A note when no cloud is named.
pub(crate) async fn answers(config: &Config, site: &SiteName) -> Result<Option<String>, String> {
    let about = config.sites.get(site).cloned().unwrap_or_default();
    let Some(name) = about.cloud.clone() else { return Ok(None) };
    let fail = |why: String| {
        format!(
            "the cloud {name} of {site} cannot be asked: {why}\n  hint: is a service of it down, or clouds.yaml wrong? A standby whose services do not run before a promotion names no `cloud` under `sites.{site}`"
        )
    };
    let cloud = SiteCloud::new(site, about, ONE_TRY);
    match tokio::time::timeout(LIMIT, ask(&cloud)).await {
        Ok(Ok(())) => Ok(None),
        // It answers; what its user may see is another question.
        Ok(Err(error @ (AskError::Forbidden { .. } | AskError::NotAll { .. }))) => {
            Ok(Some(error.to_string()))
        }
        Ok(Err(error)) => Err(fail(error.to_string())),
        Err(_) => Err(fail(format!("no answer within {}s", LIMIT.as_secs()))),
    }
}

async fn ask(cloud: &SiteCloud) -> Result<(), AskError> {
    let client = cloud.client().await?;
    client.token().await?;
    for service in [Service::Image, Service::BlockStorage] {
        match client.endpoint(service).await {
            Ok(_) => {}
            // A cloud need not have it.
            Err(AskError::NoService { .. }) => continue,
            Err(error) => return Err(error),
        }
        match service {
            Service::Image => drop(client.images(false).next().await?),
            Service::BlockStorage => {
                let wanted = farsite_openstack::Wanted::default();
                drop(client.volumes(&wanted).await?.next().await?);
            }
            Service::Identity => {}
        }
    }
    Ok(())
}
