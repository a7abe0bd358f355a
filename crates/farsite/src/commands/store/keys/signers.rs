//! Signing keys come and go: `farsite store keys add-signer|retire-signer`.

use std::path::{Path, PathBuf};

use farsite_model::SiteName;
use farsite_model::config::Config;
use farsite_replicate::connect;
use farsite_store::amendments::{self, Amendment};
use farsite_store::keys::{KeyId, KeyRole, PublicKey, Role, SecretText, Signer, describe, key_id};
use farsite_store::{Store, StoreError};
use serde_json::json;

use super::{Change, amend, open, remembered, said};
use crate::commands::Ended;
use crate::context::{Context, who};
use crate::failure::Failure;
use crate::founding::{BLOCK_SECRET, OPERATOR_KEY, SOURCE_AGENT_KEY, STANDBY_AGENT_KEY};

#[derive(Debug, clap::Args)]
pub struct Add {
    /// What it may sign.
    #[arg(long, value_parser = role)]
    role: Role,
    /// The site that an agent speaks for.
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// For people: whose key it is.
    #[arg(long)]
    name: String,
    /// Make a new key, in a file below this folder; with the block secret beside it for a source agent.
    #[arg(long, value_name = "DIR", required_unless_present = "key", conflicts_with = "key")]
    out: Option<PathBuf>,
    /// A public key that was made elsewhere (64 hex digits).
    #[arg(long, value_name = "HEX")]
    key: Option<String>,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, clap::Args)]
pub struct Retire {
    /// The key's id, its beginning, or its name.
    #[arg(value_name = "KEY")]
    key: String,
    #[command(flatten)]
    change: Change,
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "source-agent" => Ok(Role::SourceAgent),
        "standby-agent" => Ok(Role::StandbyAgent),
        "operator" => Ok(Role::Operator),
        other => Err(format!("{other} is no role; source-agent, standby-agent and operator are")),
    }
}

pub async fn add(args: Add, config: &Config, context: &Context) -> Ended {
    let (site, store, signer) = open(config, &args.change).await?;
    let (public, text) = if let Some(hex) = &args.key {
        let key: PublicKey = hex.parse().map_err(|why: String| Failure::usage(format!("--key: {why}")))?;
        (key, None)
    } else {
        let (made, text) = Signer::generate();
        (made.public(), Some(text))
    };
    let listed = KeyRole { key: public, role: args.role, site: args.site.clone(), name: args.name.clone() };
    let described = describe(&listed);
    let reason = args.change.reason.clone();
    let says = |_: &farsite_store::format::Format| {
        Ok(Amendment::SignerAdded { signer: listed.clone(), who: who(), reason: reason.clone() })
    };
    amendments::would(&store, &signer, says).await?;
    let mut files = Vec::new();
    let more = |files: &[PathBuf]| json!({ "signer": listed, "id": key_id(&public), "files": files });
    if args.change.dry_run {
        let words = format!("A {} would be listed ({}).", args.role, args.name);
        return Ok(said(context, &args.change, None, "signer-added", more(&files), &words));
    }
    context.confirm(&format!("List {described} in {}?", store.backend.describe()))?;
    if let (Some(text), Some(out)) = (text, &args.out) {
        files = write_files(&args, out, &text, config, &site, &store).await?;
    }
    let number = match amend(config, &site, &store, &signer, says).await {
        Ok(number) => number,
        Err(error) => {
            // A key that is surely not listed is of no use.
            if matches!(error, StoreError::Refused(_)) {
                for file in &files {
                    drop(std::fs::remove_file(file));
                }
            }
            return Err(error.into());
        }
    };
    let shown = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    let whither =
        if files.is_empty() { String::new() } else { format!(" Its files go to its machine: {shown}.") };
    Ok(said(
        context,
        &args.change,
        Some(number),
        "signer-added",
        more(&files),
        &format!("{described} may sign from now on.{whither}"),
    ))
}

/// The key's file is durable before the key is listed.
async fn write_files(
    args: &Add,
    out: &Path,
    text: &SecretText,
    config: &Config,
    site: &SiteName,
    store: &Store,
) -> Result<Vec<PathBuf>, Failure> {
    let name = match args.role {
        Role::SourceAgent => SOURCE_AGENT_KEY,
        Role::StandbyAgent => STANDBY_AGENT_KEY,
        Role::Operator => OPERATOR_KEY,
    };
    let mut files = Vec::new();
    // First what may fail: only who can open the store can hand out its block secret.
    let secret = match args.role {
        Role::SourceAgent => Some(connect::reader(config, site, store).await?.opener.block_secret().text()),
        _ => None,
    };
    let key = out.join(name);
    text.write_new(&key, &format!("{}: {}", args.role, args.name))?;
    files.push(key);
    if let Some(secret) = secret {
        let path = out.join(BLOCK_SECRET);
        let what = "computes block ids, shared by the agents of the source sites; opens nothing";
        if let Err(error) = secret.write_new(&path, what) {
            drop(std::fs::remove_file(&files[0]));
            return Err(error.into());
        }
        files.push(path);
    }
    std::fs::File::open(out)
        .and_then(|folder| folder.sync_all())
        .map_err(Failure::io(format!("syncing {}", out.display())))?;
    Ok(files)
}

pub async fn retire(args: Retire, config: &Config, context: &Context) -> Ended {
    let (site, store, signer) = open(config, &args.change).await?;
    let format = store.format();
    let known: Vec<(String, &str)> = format
        .keys
        .iter()
        .filter(|role| format.in_force(&key_id(&role.key)).is_some())
        .map(|role| (key_id(&role.key).to_string(), role.name.as_str()))
        .collect();
    let known: Vec<(&str, &str)> = known.iter().map(|(id, name)| (id.as_str(), *name)).collect();
    let id = super::recipients::meant(&known, &args.key)?;
    let id: KeyId = id.parse().map_err(Failure::usage)?;
    let Some(role) = format.in_force(&id) else {
        return Err(Failure::usage(format!("no key {id} is in force")));
    };
    let described = describe(role);
    let plan = amendments::plan_retirement(&store, &signer, &id).await?;
    let more = |plan: &amendments::Counts| json!({ "key": id, "role": role.role, "name": role.name, "counts": plan });
    let tells = "What it has signed so far still counts, what it signs from then on does not";
    if args.change.dry_run {
        let words = format!("{described} would sign nothing more. {tells}.");
        return Ok(said(context, &args.change, None, "signer-retired", more(&plan), &words));
    }
    context.confirm(&format!("Let {described} sign nothing more, for good? {tells}."))?;
    let (number, counts) = amendments::retire(&store, &signer, &id, &who(), &args.change.reason).await?;
    remembered(config, &site, &store).await;
    let words = format!("{described} signs nothing more. {tells}.");
    Ok(said(context, &args.change, Some(number), "signer-retired", more(&counts), &words))
}
