//! Why a cloud could not be asked, for the person who reads it at 3 a.m. No token, password or query is ever part of it.

use std::path::PathBuf;
use std::time::Duration;

use crate::CloudsError;

/// Why a cloud could not be asked, or did not tell.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Clouds(#[from] CloudsError),
    #[error(
        "the site {site} has no `cloud:` in farsite.yaml, so nothing can be asked there\n  hint: name the cloud's entry in \
         clouds.yaml: `sites: {{ {site}: {{ cloud: NAME }} }}`"
    )]
    NoCloud { site: String },
    #[error("the certificates in {} cannot be used: {why}\n  hint: `cacert` of clouds.yaml names a PEM file", file.display())]
    Certificates { file: PathBuf, why: String },
    #[error("no HTTP client can be made: {0}")]
    Client(String),
    #[error(
        "{what} of cloud {cloud:?} failed: {why}\n  hint: the service or what stands before it may be down; `farsite check` asks again"
    )]
    Unreachable { cloud: String, what: String, why: String },
    #[error(
        "{what} of cloud {cloud:?} did not end within {} s\n  hint: look at the service's load and log",
        limit.as_secs()
    )]
    TimedOut { cloud: String, what: String, limit: Duration },
    #[error(
        "Keystone of cloud {cloud:?} does not accept what clouds.yaml says ({says})\n  hint: try `openstack --os-cloud {cloud} token issue`; \
         an application credential ends with its user's roles"
    )]
    Refused { cloud: String, says: String },
    #[error("{what} is forbidden to {user} in cloud {cloud:?}: {says}\n  hint: {RIGHTS}")]
    Forbidden { cloud: String, what: String, user: String, says: String },
    #[error(
        "{what} of cloud {cloud:?} was answered with status {status}: {says}\n  hint: the service's log says more; `farsite check` asks again"
    )]
    Status { cloud: String, what: String, status: u16, says: String },
    #[error(
        "{what} of cloud {cloud:?} was answered with something else than expected: {why}\n  hint: is this address really the service's?"
    )]
    Unreadable { cloud: String, what: String, why: String },
    #[error(
        "the data of image {image} of cloud {cloud:?} was not told: {why}\n  hint: look at Glance's log and at the image's store; \
         `openstack image save` tries the same"
    )]
    Data { cloud: String, image: String, why: String },
    #[error(
        "the catalog of cloud {cloud:?} has no {service} service (it has {there})\n  hint: `openstack --os-cloud {cloud} catalog list`"
    )]
    NoService { cloud: String, service: &'static str, there: String },
    #[error(
        "the catalog of cloud {cloud:?} has no {interface} address of the {service} service{} (there are: {there})\n  hint: `region` of \
         the site in farsite.yaml, `interface` in clouds.yaml",
        region.as_ref().map_or_else(String::new, |region| format!(" in region {region}"))
    )]
    NoEndpoint {
        cloud: String,
        service: &'static str,
        interface: &'static str,
        region: Option<String>,
        there: String,
    },
    #[error(
        "{user} does not see the {what} of all projects of cloud {cloud:?}, and a part of them is not taken for all\n  hint: {RIGHTS}"
    )]
    NotAll { cloud: String, user: String, what: &'static str },
    #[error("cloud {cloud:?} has {count} projects called {name:?}\n  hint: write the project's id")]
    Ambiguous { cloud: String, name: String, count: usize },
    #[error("cloud {cloud:?} has no {what} {name:?}{near}")]
    Unknown { cloud: String, what: &'static str, name: String, near: String },
}

const RIGHTS: &str = "Cinder and Glance show everything only to their administrators: give the user of clouds.yaml the role `admin` there, \
                      or what the services' policies ask for";
