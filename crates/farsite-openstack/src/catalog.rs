//! A token, and the catalog that comes with it: which service answers where.
//! Source: service types and their aliases, <https://service-types.openstack.org/service-types.json>.

use std::collections::BTreeSet;
use std::fmt;

use farsite_model::secret::Secret;
use serde::Deserialize;

use crate::{AskError, Cloud};

/// A service that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Image,
    BlockStorage,
    Identity,
}

impl Service {
    pub fn name(self) -> &'static str {
        self.types()[0]
    }
    /// What catalogs call it, the usual name first.
    fn types(self) -> &'static [&'static str] {
        match self {
            Self::Image => &["image"],
            Self::BlockStorage => &["block-storage", "volumev3", "block-store", "volume"],
            Self::Identity => &["identity"],
        }
    }
    /// Where the version begins that is asked, given an address out of a catalog.
    fn versioned(self, url: &str) -> String {
        let url = url.trim_end_matches('/');
        match self {
            Self::Image => {
                let url = url.strip_suffix("/v2").or_else(|| url.strip_suffix("/v1")).unwrap_or(url);
                format!("{url}/v2")
            }
            Self::Identity => {
                let url = url.strip_suffix("/v3").or_else(|| url.strip_suffix("/v2.0")).unwrap_or(url);
                format!("{url}/v3")
            }
            // A project's id may stand behind the version.
            Self::BlockStorage if url.ends_with("/v3") || url.contains("/v3/") => url.to_owned(),
            Self::BlockStorage => format!("{url}/v3"),
        }
    }
}
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What Keystone gave.
#[derive(Debug)]
pub struct Token {
    pub(crate) id: Secret,
    about: About,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    token: About,
}

#[derive(Debug, Deserialize)]
struct About {
    user: User,
    project: Option<Project>,
    #[serde(default)]
    roles: Vec<Role>,
    #[serde(default)]
    catalog: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct User {
    name: String,
}
#[derive(Debug, Deserialize)]
struct Project {
    name: String,
}
#[derive(Debug, Deserialize)]
struct Role {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Entry {
    r#type: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    interface: String,
    region_id: Option<String>,
    /// The same in old answers.
    region: Option<String>,
    url: String,
}

impl Endpoint {
    fn region(&self) -> Option<&str> {
        self.region_id.as_deref().or(self.region.as_deref())
    }
}

impl Token {
    pub(crate) fn new(id: Secret, answer: Answer) -> Self {
        Self { id, about: answer.token }
    }

    /// Whose it is: `user farsite, project dr`.
    pub fn holder(&self) -> String {
        let project = self.about.project.as_ref();
        let project = project.map_or_else(String::new, |project| format!(", project {}", project.name));
        format!("user {}{project}", self.about.user.name)
    }

    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.about.roles.iter().map(|role| role.name.as_str())
    }

    /// Where a service is asked, without a `/` at its end. Without a region the service must have one only.
    pub fn endpoint(
        &self,
        service: Service,
        cloud: &Cloud,
        region: Option<&str>,
    ) -> Result<String, AskError> {
        let of_type =
            |kind: &&str| self.about.catalog.iter().filter(|entry| entry.r#type == **kind).collect();
        let entries: Vec<&Entry> =
            service.types().iter().map(of_type).find(|found: &Vec<_>| !found.is_empty()).unwrap_or_default();
        if entries.is_empty() {
            let there: BTreeSet<&str> =
                self.about.catalog.iter().map(|entry| entry.r#type.as_str()).collect();
            let there = if there.is_empty() { "none at all".to_owned() } else { join(there) };
            return Err(AskError::NoService { cloud: cloud.name.clone(), service: service.name(), there });
        }
        let all: Vec<&Endpoint> = entries.into_iter().flat_map(|entry| &entry.endpoints).collect();
        let interface = cloud.interface.as_str();
        let fitting: Vec<&Endpoint> = all
            .iter()
            .copied()
            .filter(|e| e.interface.trim_end_matches("URL") == interface)
            .filter(|e| region.is_none_or(|region| e.region() == Some(region)))
            .collect();
        let regions: BTreeSet<_> = fitting.iter().map(|endpoint| endpoint.region()).collect();
        match fitting.first() {
            Some(first) if regions.len() == 1 => Ok(service.versioned(&first.url)),
            _ => Err(AskError::NoEndpoint {
                cloud: cloud.name.clone(),
                service: service.name(),
                interface,
                region: region.map(str::to_owned),
                there: join(all.iter().map(|endpoint| {
                    format!("{} in {}", endpoint.interface, endpoint.region().unwrap_or("no region"))
                })),
            }),
        }
    }
}

fn join(words: impl IntoIterator<Item = impl Into<String>>) -> String {
    words.into_iter().map(Into::into).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud() -> Cloud {
        Cloud {
            name: "north".to_owned(),
            auth_url: "http://keystone".parse().unwrap(),
            region: None,
            regions: Vec::new(),
            project: None,
            interface: crate::Interface::Internal,
            cacert: None,
            verify: true,
        }
    }

    fn token() -> Token {
        let endpoint = |interface: &str, region: &str, url: &str| serde_json::json!({ "interface": interface, "region": region, "region_id": region, "url": url });
        let answer = serde_json::json!({ "token": {
            "user": { "name": "farsite", "id": "u" },
            "project": { "name": "dr", "id": "p" },
            "roles": [{ "name": "admin", "id": "r" }],
            "catalog": [
                { "type": "image", "endpoints": [
                    endpoint("public", "One", "http://public"), endpoint("internal", "One", "http://glance:9292/"),
                ] },
                { "type": "volumev3", "endpoints": [
                    endpoint("internal", "One", "http://one:8776/v3/p"), endpoint("internal", "Two", "http://two/volume"),
                ] },
            ],
        } });
        Token::new(Secret::new("t"), serde_json::from_value(answer).unwrap())
    }

    #[test]
    fn a_service_is_found_by_its_type_an_alias_its_interface_and_its_region() {
        let token = token();
        assert_eq!(token.holder(), "user farsite, project dr");
        let at = |service, region| token.endpoint(service, &cloud(), region);
        assert_eq!(at(Service::Image, None).unwrap(), "http://glance:9292/v2");
        assert_eq!(at(Service::BlockStorage, Some("One")).unwrap(), "http://one:8776/v3/p");
        assert_eq!(at(Service::BlockStorage, Some("Two")).unwrap(), "http://two/volume/v3");
    }

    #[test]
    fn what_the_catalog_does_not_have_is_said_with_what_it_has() {
        let token = token();
        let why = |service, region| token.endpoint(service, &cloud(), region).unwrap_err().to_string();
        assert!(why(Service::Identity, None).contains("has image, volumev3"));
        let two = why(Service::BlockStorage, None);
        assert!(two.contains("internal in One, internal in Two"), "a region has to be chosen: {two}");
        assert!(why(Service::Image, Some("Two")).contains("in region Two"));
    }
}
