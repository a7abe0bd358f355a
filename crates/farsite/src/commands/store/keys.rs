//! `farsite store keys`: who can open what is stored, who may sign, and how that changes. A change is a signed amendment
//! by an operator, with who and why; nothing that is stored is changed. Dry runs show what would be.

mod list;
mod recipients;
mod signers;

use farsite_model::SiteName;
use farsite_model::config::Config;
use farsite_replicate::connect;
use farsite_store::amendments::{self, Amendment};
use farsite_store::format::Format;
use farsite_store::keys::Signer;
use farsite_store::ledger::Refusal;
use farsite_store::{Store, StoreError};
use serde::Serialize;

use crate::commands::Ended;
use crate::context::{Context, who};
use crate::failure::{DONE, Failure};
use crate::stores;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Recipients and how much each can open; signing keys with role, site, name, and since when.
    List(At),
    /// Let one more identity open the store: what is sealed from now on, and all that lies there.
    AddRecipient(recipients::Add),
    /// Seal no more for a recipient. What it could open it still can.
    RemoveRecipient(recipients::Remove),
    /// List one more signing key: of another operator, of a new site's agent, in place of a lost one.
    AddSigner(signers::Add),
    /// Let a signing key sign nothing more: it was lost or stolen, or its machine is gone.
    RetireSigner(signers::Retire),
    /// Wrap every content key for all recipients of now; goes on where it was cut off.
    Rotate(recipients::Rotate),
    /// Say of damaged amendments that what they said has been said again: then agents seal again.
    AcceptDamage(AcceptDamage),
}

#[derive(Debug, clap::Args)]
pub struct At {
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    store: Option<SiteName>,
}

/// What every change takes.
#[derive(Debug, clap::Args)]
pub struct Change {
    #[command(flatten)]
    at: At,
    /// Why; stands in the amendment.
    #[arg(long)]
    reason: String,
    /// Show what would change; change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub struct AcceptDamage {
    /// Numbers of the amendments, as `list` names them.
    #[arg(required = true, value_name = "NUMBER")]
    numbers: Vec<u64>,
    #[command(flatten)]
    change: Change,
}

/// What a change prints with `--json`.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    dry_run: bool,
    /// The number of the amendment; `null` when none was written.
    amendment: Option<u64>,
    /// What it changes: `recipient-added`, `recipient-removed`, `signer-added`, `signer-retired`, `damage-accepted`.
    change: &'a str,
    #[serde(flatten)]
    more: serde_json::Value,
}

pub async fn run(action: Action, context: &Context) -> Ended {
    let config = context.config()?;
    match action {
        Action::List(at) => list::run(&at, &config, context).await,
        Action::AddRecipient(args) => recipients::add(args, &config, context).await,
        Action::RemoveRecipient(args) => recipients::remove(args, &config, context).await,
        Action::Rotate(args) => recipients::rotate(args, &config, context).await,
        Action::AddSigner(args) => signers::add(args, &config, context).await,
        Action::RetireSigner(args) => signers::retire(args, &config, context).await,
        Action::AcceptDamage(args) => accept_damage(args, &config, context).await,
    }
}

/// The store that is meant, and the operator's key.
async fn open(config: &Config, change: &Change) -> Result<(SiteName, Store, Signer), Failure> {
    let (site, store) = stores::open(config, change.at.store.as_ref()).await?;
    Ok((site, store, connect::operator(config)?))
}

/// Writes the amendment that `says` makes, and has this host remember it. Returns its number.
async fn amend(
    config: &Config,
    site: &SiteName,
    store: &Store,
    signer: &Signer,
    says: impl FnMut(&Format) -> Result<Amendment, Refusal> + Send,
) -> Result<u64, StoreError> {
    let (number, _) = amendments::append(store, signer, says).await?;
    remembered(config, site, store).await;
    Ok(number)
}

/// The amendment is durable: what fails now is no reason to call it failed.
async fn remembered(config: &Config, site: &SiteName, store: &Store) {
    if let Err(error) = connect::remember(config, site, store).await {
        tracing::warn!("what was written is not remembered here: {error}");
    }
}

async fn accept_damage(args: AcceptDamage, config: &Config, context: &Context) -> Ended {
    let (site, store, signer) = open(config, &args.change).await?;
    let named: Vec<String> =
        args.numbers.iter().map(|number| format!("{}/{number:016}", amendments::PREFIX)).collect();
    let format = store.format();
    if let Some(unknown) = named.iter().find(|name| format.amended.damage.iter().all(|d| d.object != **name))
    {
        return Err(Failure::usage(format!("{unknown} is not damaged; nothing was changed")));
    }
    let says = format!("The damage of {} is accepted: agents seal again.", named.join(", "));
    if args.change.dry_run {
        return Ok(said(
            context,
            &args.change,
            None,
            "damage-accepted",
            serde_json::json!({ "numbers": args.numbers }),
            &says,
        ));
    }
    context.confirm(&format!(
        "Whatever {} said has no effect. Is it said again, or was it nothing?",
        named.join(", ")
    ))?;
    let (numbers, reason) = (args.numbers.clone(), args.change.reason.clone());
    let number = amend(config, &site, &store, &signer, |_| {
        Ok(Amendment::DamageAccepted { numbers: numbers.clone(), who: who(), reason: reason.clone() })
    })
    .await?;
    Ok(said(
        context,
        &args.change,
        Some(number),
        "damage-accepted",
        serde_json::json!({ "numbers": numbers }),
        &says,
    ))
}

/// Says what was changed, or would be.
fn said(
    context: &Context,
    change: &Change,
    amendment: Option<u64>,
    what: &str,
    more: serde_json::Value,
    words: &str,
) -> u8 {
    if context.out.json {
        context.out.json(&Answer { dry_run: change.dry_run, amendment, change: what, more });
    } else {
        let dry = if change.dry_run { "Dry run, nothing was changed. " } else { "" };
        context.out.line(format!("{dry}{words}"));
    }
    DONE
}
