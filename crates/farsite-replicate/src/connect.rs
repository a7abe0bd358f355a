//! From a configuration to opened stores and loaded keys.

use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::{Config, Identity, StoreConfig};
use farsite_model::nearest::did_you_mean;
use farsite_model::secret::SecretRef;
use farsite_store::Store;
use farsite_store::backend::{self, S3Access, SharedBackend};
use farsite_store::chain::Head;
use farsite_store::hex::Hex;
use farsite_store::keys::{self, BlockSecret, Signer};
use farsite_store::read::Reader;
use farsite_store::seal::Opener;
use serde::{Deserialize, Serialize};

use crate::ReplicateError;

/// The configuration of the store at `site`.
pub fn store_config<'c>(config: &'c Config, site: &SiteName) -> Result<&'c StoreConfig, ReplicateError> {
    config.stores.get(site).ok_or_else(|| {
        let known: Vec<&str> = config.stores.keys().map(SiteName::as_str).collect();
        ReplicateError::Setup(format!(
            "no store is configured at site {site}{}\n  hint: add it under `stores:` in farsite.yaml",
            did_you_mean(site.as_str(), known)
        ))
    })
}

/// How to reach S3, out of the configuration and the usual AWS_* variables.
pub fn s3_access(store: &StoreConfig) -> Result<S3Access, ReplicateError> {
    let secret = |reference: Option<&SecretRef>, variable: &str| match reference {
        Some(reference) => reference
            .resolve()
            .map(|s| s.expose().to_owned())
            .map_err(|e| ReplicateError::Setup(e.to_string())),
        None => Ok(std::env::var(variable).unwrap_or_default()),
    };
    Ok(S3Access {
        endpoint: std::env::var("AWS_ENDPOINT_URL_S3").or_else(|_| std::env::var("AWS_ENDPOINT_URL")).ok(),
        region: std::env::var("AWS_REGION").unwrap_or_default(),
        access_key: secret(store.access_key.as_ref(), "AWS_ACCESS_KEY_ID")?,
        secret_key: secret(store.secret_key.as_ref(), "AWS_SECRET_ACCESS_KEY")?,
        session_token: std::env::var("AWS_SESSION_TOKEN").ok(),
        path_style: false,
    })
}

/// The store's URL with what the configuration says beside it, which goes before the URL's own.
fn url(store: &StoreConfig) -> String {
    let mut url = store.url.clone();
    if !url.starts_with("s3://") {
        return url;
    }
    let said = [
        ("endpoint", store.endpoint.clone()),
        ("region", store.region.clone()),
        ("path-style", store.path_style.map(|yes| yes.to_string())),
    ];
    for (key, value) in said {
        if let Some(value) = value {
            // Of a key that stands twice the last one counts.
            url.push(if url.contains('?') { '&' } else { '?' });
            let _ = write!(url, "{key}={value}");
        }
    }
    url
}

/// The place where a store's objects lie.
pub fn backend(config: &Config, site: &SiteName, create: bool) -> Result<SharedBackend, ReplicateError> {
    let store = store_config(config, site)?;
    Ok(backend::open(&url(store), &s3_access(store)?, create)?)
}

/// Opens the store at `site`; its identity is compared with the one that the configuration pins.
pub async fn store(config: &Config, site: &SiteName) -> Result<Store, ReplicateError> {
    let pinned = match &store_config(config, site)?.id {
        None => None,
        Some(id) => {
            Some(id.parse::<Hex<16>>().map_err(|e| ReplicateError::Setup(format!("stores.{site}.id: {e}")))?)
        }
    };
    let store = Store::open(backend(config, site, false)?, pinned.as_ref()).await?;
    remember(config, site, &store).await?;
    Ok(store)
}

/// How far this host has read a store's amendments.
#[derive(Serialize, Deserialize)]
struct Seen {
    store: Hex<16>,
    head: Head,
}

/// Compares the amendments of the store's keys with what this host has read of them before: a store that was rolled back
/// has lost some. That is damage, which nobody seals behind; reading goes on.
pub async fn remember(config: &Config, site: &SiteName, store: &Store) -> Result<(), ReplicateError> {
    let path = config.state_dir().join("stores").join(format!("{site}.amendments.json"));
    let seen: Option<Seen> = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let seen = seen.filter(|seen| seen.store == store.id).map_or(Head::START, |seen| seen.head);
    if seen != store.format().amended.head {
        store.expect_amendments(seen).await?;
    }
    let amended = &store.format().amended;
    if !amended.damage.is_empty() {
        let damage = amended.damage.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        tracing::warn!("the amendments of the keys of the store at {site} are damaged: {damage}");
    } else if seen != amended.head {
        let note = serde_json::to_vec(&Seen { store: store.id, head: amended.head }).unwrap_or_default();
        if let Err(error) = keep(&path, &note) {
            // A rollback is found out by other hosts, or not at all.
            tracing::warn!("{} was not written: {error}", path.display());
        }
    }
    Ok(())
}

fn keep(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&temporary, bytes)?;
    std::fs::File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, path)
}

fn key_path<'c>(
    path: Option<&'c std::path::PathBuf>,
    name: &str,
    what: &str,
) -> Result<&'c std::path::PathBuf, ReplicateError> {
    path.ok_or_else(|| {
        ReplicateError::Setup(format!(
            "this host has no {what} key (keys.{name} in farsite.yaml)\n  hint: `farsite init` says which key file goes to which machine"
        ))
    })
}

/// The operator's signing key.
pub fn operator(config: &Config) -> Result<Signer, ReplicateError> {
    Ok(Signer::load(&config.resolve(key_path(config.keys.operator.as_ref(), "operator", "operator's")?))?)
}

/// The source agent's signing key.
pub fn source_agent(config: &Config) -> Result<Signer, ReplicateError> {
    Ok(Signer::load(&config.resolve(key_path(
        config.keys.source_agent.as_ref(),
        "source-agent",
        "source agent's",
    )?))?)
}

/// The standby agent's signing key.
pub fn standby_agent(config: &Config) -> Result<Signer, ReplicateError> {
    Ok(Signer::load(&config.resolve(key_path(
        config.keys.standby_agent.as_ref(),
        "standby-agent",
        "standby agent's",
    )?))?)
}

/// The secret under which block ids are computed.
pub fn block_secret(config: &Config) -> Result<BlockSecret, ReplicateError> {
    Ok(BlockSecret::load(&config.resolve(key_path(
        config.keys.block_secret.as_ref(),
        "block-secret",
        "block secret",
    )?))?)
}

/// How long a command that prints an identity may take.
const IDENTITY_LIMIT: Duration = Duration::from_mins(1);

/// A reader with the identity that lives at this host.
pub async fn reader(config: &Config, site: &SiteName, store: &Store) -> Result<Reader, ReplicateError> {
    let identity = store_config(config, site)?.identity.as_ref().ok_or_else(|| {
        ReplicateError::Setup(format!(
            "this host has no identity that opens the store at {site} (stores.{site}.identity)\n  hint: it lives at the standby only"
        ))
    })?;
    let identities = match identity {
        Identity::File(path) => keys::load_identities(path)?,
        Identity::Secret(reference) => {
            let secret = reference.resolve().map_err(|e| ReplicateError::Setup(e.to_string()))?;
            keys::parse_identities(secret.expose()).map_err(|why| no_identity(site, &why))?
        }
        Identity::Command { command } => {
            let printed = printed_by(command).await.map_err(|why| no_identity(site, &why))?;
            keys::parse_identities(&printed).map_err(|why| no_identity(site, &why))?
        }
    };
    Ok(Reader::new(store.clone(), Arc::new(Opener::new(store, identities)?)))
}

fn no_identity(site: &SiteName, why: &str) -> ReplicateError {
    ReplicateError::Setup(format!("stores.{site}.identity: {why}"))
}

/// What a program prints; its output is a secret and stands in no error.
async fn printed_by(command: &[String]) -> Result<String, String> {
    let [program, args @ ..] = command else { return Err("its command is empty".to_owned()) };
    let child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(IDENTITY_LIMIT, child).await {
        Err(_) => Err(format!("{program} did not end within {}s", IDENTITY_LIMIT.as_secs())),
        Ok(Err(error)) => Err(format!("{program} cannot be started: {error}")),
        Ok(Ok(output)) if !output.status.success() => Err(format!("{program} ended with {}", output.status)),
        Ok(Ok(output)) => String::from_utf8(output.stdout).map_err(|_| format!("{program} printed no text")),
    }
}
