//! `./folder` or `s3://bucket/prefix?endpoint=…&region=…&checksums=…&lock=30d` to a backend.

use std::path::PathBuf;
use std::sync::Arc;

use super::folder::Folder;
use super::s3::S3;
use super::s3::settings::{self, Settings};
use super::{BackendError, SharedBackend};

/// How to reach an S3 server. Secrets are resolved by the caller.
#[derive(Clone, Default)]
pub struct S3Access {
    pub endpoint: Option<String>,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
    pub path_style: bool,
}

/// Opens what `url` names; `access` fills in what the URL does not say. `create` makes a missing folder.
pub fn open(url: &str, access: &S3Access, create: bool) -> Result<SharedBackend, BackendError> {
    let Some(rest) = url.strip_prefix("s3://") else {
        if let Some((scheme, _)) = url.split_once("://") {
            return Err(BackendError::Other {
                store: url.to_owned(),
                operation: "opening",
                key: String::new(),
                why: format!(
                    "{scheme}:// is not known: a store is a folder (./replica) or s3://bucket/prefix"
                ),
            });
        }
        let path = PathBuf::from(url);
        return Ok(Arc::new(if create { Folder::create_root(path)? } else { Folder::open(path)? }));
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let mut access = access.clone();
    let mut settings = Settings::default();
    let wrong = |why: String| BackendError::Other {
        store: url.to_owned(),
        operation: "opening",
        key: String::new(),
        why,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "endpoint" => {
                access.endpoint = Some(value.to_owned());
                // Servers other than AWS seldom have a name per bucket.
                access.path_style = true;
            }
            "region" => value.clone_into(&mut access.region),
            "path-style" => access.path_style = value == "true",
            other => {
                if !settings.set(other, value).map_err(wrong)? {
                    let known = ["endpoint", "region", "path-style"].into_iter().chain(settings::NAMES);
                    let meant = farsite_model::nearest::did_you_mean(other, known);
                    return Err(wrong(format!("unknown setting {other:?}{meant}")));
                }
            }
        }
    }
    if access.region.is_empty() {
        "us-east-1".clone_into(&mut access.region);
    }
    Ok(Arc::new(S3::with(bucket, prefix, &access, settings)))
}
