//! What `check` says of the clouds that the sites name: a token, and where the services are. Without credentials only whether
//! Keystone can be reached.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::{Config, Site};
use farsite_openstack::{AskError, Clouds, CloudsError, Limits, Service, SiteCloud, probe};

use super::{Lines, Verdict};

const AREA: &str = "clouds";
/// A cloud that is lost must not hold up what is said of the others.
const LIMIT: Duration = Duration::from_secs(10);
const ONE_TRY: Limits = Limits {
    connect: Duration::from_secs(5),
    call: LIMIT,
    tries: 1,
    pause: Duration::ZERO,
    longest_pause: Duration::ZERO,
};

pub async fn look(config: &Config, lines: &mut Lines) {
    let named: Vec<(&SiteName, &Site)> =
        config.sites.iter().filter(|(_, about)| about.cloud.is_some()).collect();
    if named.is_empty() {
        return;
    }
    let clouds = match Clouds::load() {
        Ok(clouds) => clouds,
        Err(error) => return lines.warn(AREA, "clouds.yaml", error.to_string()),
    };
    let mode = std::fs::metadata(clouds.file()).map_or(0, |about| about.permissions().mode());
    if mode & 0o007 != 0 {
        let file = clouds.file().display();
        lines.warn(AREA, "clouds.yaml", format!("{file} can be read by everybody; run `chmod o= {file}`"));
    }
    for (site, about) in named {
        let name = about.cloud.as_deref().unwrap_or_default();
        match clouds.find(name) {
            Err(error) => lines.wrong(AREA, site.as_str(), error.to_string()),
            Ok(cloud) => {
                let file = clouds.file().display();
                lines.ok(AREA, site.as_str(), format!("is cloud {name} in {file}"));
                // Of another site nothing is needed here, and it may be lost.
                let verdict = if *site == config.site { Verdict::Wrong } else { Verdict::Warning };
                match clouds.credentials(name) {
                    Ok(_) => answers(site, about, verdict, lines).await,
                    Err(why) => {
                        lines.warn(AREA, site.as_str(), format!("{why}: nothing is asked of it"));
                        match probe(&cloud, LIMIT).await {
                            Ok(reached) => {
                                let at = reached.address;
                                lines.ok(AREA, site.as_str(), format!("Keystone can be reached at {at}"));
                            }
                            Err(error) => lines.add(AREA, site.as_str(), verdict, error.to_string()),
                        }
                    }
                }
            }
        }
    }
}

/// Asks for a token and looks what its catalog has.
async fn answers(site: &SiteName, about: &Site, verdict: Verdict, lines: &mut Lines) {
    let cloud = SiteCloud::new(site, about.clone(), ONE_TRY);
    let asked = async {
        let client = cloud.client().await?;
        let token = client.token().await?;
        let roles: Vec<&str> = token.roles().collect();
        lines.ok(
            AREA,
            site.as_str(),
            format!("gives a token to {} (roles: {})", token.holder(), roles.join(", ")),
        );
        for service in [Service::Image, Service::BlockStorage] {
            match client.endpoint(service).await {
                Ok(url) => lines.ok(AREA, site.as_str(), format!("{service} is at {url}")),
                Err(error) => lines.add(AREA, site.as_str(), verdict, error.to_string()),
            }
        }
        Ok::<_, AskError>(())
    };
    match asked.await {
        Ok(()) => {}
        Err(AskError::Clouds(error @ CloudsError::Unusable { .. })) => {
            lines.wrong(AREA, site.as_str(), error.to_string());
        }
        Err(error) => lines.add(AREA, site.as_str(), verdict, error.to_string()),
    }
}
