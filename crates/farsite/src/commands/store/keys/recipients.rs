//! Recipients come and go: `farsite store keys add-recipient|remove-recipient|rotate`.

use farsite_model::SiteName;
use farsite_model::config::Config;
use farsite_replicate::connect;
use farsite_store::amendments::{self, Amendment, Wrapped, roster, wrap_missing};
use farsite_store::keys::Signer;
use farsite_store::read::Reader;
use farsite_store::{Damage, Store};
use serde_json::json;

use super::{At, Change, amend, open, said};
use crate::commands::Ended;
use crate::context::{Context, who};
use crate::failure::{DONE, FAILED, Failure};
use crate::progress::Progress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Add {
    /// An age recipient; its identity never comes here.
    #[arg(value_name = "age1…")]
    recipient: String,
    /// For people: whose identity it is, and where it is kept.
    #[arg(long)]
    name: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, clap::Args)]
pub struct Remove {
    /// The recipient, its beginning, or its name.
    #[arg(value_name = "RECIPIENT")]
    recipient: String,
    /// One recipient may be left: who loses its identity then loses the store.
    #[arg(long)]
    single_recipient: bool,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, clap::Args)]
pub struct Rotate {
    #[command(flatten)]
    at: At,
    /// Count what would be wrapped; change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub async fn add(args: Add, config: &Config, context: &Context) -> Ended {
    let (site, store, signer) = open(config, &args.change).await?;
    let reader = connect::reader(config, &site, &store).await?;
    let format = store.format();
    let there = format.recipients.contains(&args.recipient);
    let mut recipients = format.recipients.clone();
    let secret = reader.opener.wrap_block_secret(&args.recipient)?;
    if !there {
        recipients.push(args.recipient.clone());
    }
    let planned = wrapped(&store, &reader, &signer, &recipients, true).await?;
    let (described, keys) = (store.backend.describe(), planned.content_keys);
    let more =
        |wrapped: &Wrapped| json!({ "recipient": args.recipient, "name": args.name, "wrapped": wrapped });
    if args.change.dry_run {
        let words = format!(
            "{} would open {described}: all that is sealed from then on, and the {keys} content keys that are there ({} wraps to write{}).",
            args.recipient,
            planned.written,
            not_opened(&planned.not_opened)
        );
        return Ok(said(context, &args.change, None, "recipient-added", more(&planned), &words));
    }
    let mut number = None;
    if !there {
        context.confirm(&format!(
            "Let {} ({}) open everything in {described}, the {keys} content keys that are there included?",
            args.recipient, args.name
        ))?;
        let (recipient, name, reason) = (&args.recipient, &args.name, &args.change.reason);
        let append = amend(config, &site, &store, &signer, |_| {
            Ok(Amendment::RecipientAdded {
                recipient: recipient.clone(),
                name: name.clone(),
                block_secret: secret.clone(),
                who: who(),
                reason: reason.clone(),
            })
        });
        number = Some(append.await?);
    }
    let recipients = store.format().recipients.clone();
    let done = wrapped(&store, &reader, &signer, &recipients, false).await?;
    let words = format!(
        "{} opens {described} now: {} wraps were written{}. What an agent began to seal before it reads this is wrapped by `farsite store keys rotate`.",
        args.recipient,
        done.written,
        not_opened(&done.not_opened)
    );
    said(context, &args.change, number, "recipient-added", more(&done), &words);
    Ok(ended(&done))
}

/// Names nothing: damage is counted here and named by `list`.
fn not_opened(damage: &[Damage]) -> String {
    match damage.first() {
        None => String::new(),
        Some(first) => format!("; {} content keys cannot be opened here, the first is {first}", damage.len()),
    }
}

fn ended(wrapped: &Wrapped) -> u8 {
    if wrapped.not_opened.is_empty() { DONE } else { FAILED }
}

async fn wrapped(
    store: &Store,
    reader: &Reader,
    signer: &Signer,
    recipients: &[String],
    dry_run: bool,
) -> Result<Wrapped, Failure> {
    let progress = Progress::new();
    let result = wrap_missing(store, &reader.opener, signer, recipients, dry_run, &progress).await;
    progress.clear();
    Ok(result?)
}

pub async fn remove(args: Remove, config: &Config, context: &Context) -> Ended {
    let (site, store, signer) = open(config, &args.change).await?;
    let roster = roster(&store).await?;
    let recipient = meant(
        &roster
            .recipients
            .iter()
            .filter(|line| line.in_force)
            .map(|line| (line.recipient.recipient.as_str(), line.recipient.name.as_str()))
            .collect::<Vec<_>>(),
        &args.recipient,
    )?;
    if let Some(only) = roster.only.get(&recipient) {
        return Err(Failure::refused(format!(
            "{recipient} is the only recipient in force that can open {} of the {} content keys; nothing was changed",
            only.len(),
            roster.content_keys
        ))
        .hint("`farsite store keys rotate`, by somebody who can open them, wraps them for the others first"));
    }
    let opens = roster
        .recipients
        .iter()
        .find(|line| line.recipient.recipient == recipient)
        .map_or(0, |line| line.opens);
    let keeps = format!(
        "It can still open what it could before ({opens} of {} content keys) until those points have expired and were collected, and it knows the block secret",
        roster.content_keys
    );
    let more = json!({ "recipient": recipient, "still_opens": opens, "content_keys": roster.content_keys });
    let reason = args.change.reason.clone();
    let says = |format: &farsite_store::format::Format| {
        if !format.recipients.contains(&recipient) {
            return Err(farsite_store::ledger::Refusal::Unsafe(format!("{recipient} is no recipient now")));
        }
        Ok(Amendment::RecipientRemoved {
            recipient: recipient.clone(),
            single_recipient: args.single_recipient,
            who: who(),
            reason: reason.clone(),
        })
    };
    if args.change.dry_run {
        amendments::would(&store, &signer, says).await?;
        let words = format!("Nothing more would be sealed for {recipient}. {keeps}.");
        return Ok(said(context, &args.change, None, "recipient-removed", more, &words));
    }
    context.confirm(&format!("Seal nothing more for {recipient}? {keeps}."))?;
    let number = amend(config, &site, &store, &signer, says).await?;
    let words = format!(
        "Nothing more is sealed for {recipient}: runs that begin from now on leave it out. {keeps}. Take it out of `recipients:` in the configurations."
    );
    Ok(said(context, &args.change, Some(number), "recipient-removed", more, &words))
}

pub async fn rotate(args: Rotate, config: &Config, context: &Context) -> Ended {
    let (site, store): (SiteName, Store) = stores::open(config, args.at.store.as_ref()).await?;
    let signer = connect::operator(config).or_else(|_| connect::standby_agent(config))?;
    let reader = connect::reader(config, &site, &store).await?;
    let recipients = store.format().recipients.clone();
    let mut done = wrapped(&store, &reader, &signer, &recipients, true).await?;
    if !args.dry_run && done.written > 0 {
        context.confirm(&format!(
            "Write {} wraps so that all {} recipients of {} open its {} content keys?",
            done.written,
            recipients.len(),
            store.backend.describe(),
            done.content_keys
        ))?;
        done = wrapped(&store, &reader, &signer, &recipients, false).await?;
    }
    if context.out.json {
        context.out.json(&json!({ "dry_run": args.dry_run, "recipients": recipients, "wrapped": done }));
    } else {
        let would = if args.dry_run { "would be" } else { "were" };
        context.out.line(format!(
            "{} content keys, {} recipients in force: {} wraps {would} written, {} content keys were complete{}.",
            done.content_keys,
            recipients.len(),
            done.written,
            done.complete,
            not_opened(&done.not_opened)
        ));
    }
    Ok(ended(&done))
}

/// The one that is meant: all of it, its beginning, or its name.
pub fn meant(known: &[(&str, &str)], typed: &str) -> Result<String, Failure> {
    let exact = known.iter().filter(|(id, name)| *id == typed || *name == typed);
    let begins = known.iter().filter(|(id, _)| typed.len() >= 4 && id.starts_with(typed));
    let mut found: Vec<&str> = exact.map(|(id, _)| *id).collect();
    if found.is_empty() {
        found = begins.map(|(id, _)| *id).collect();
    }
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(Failure::usage(format!("{typed} is not listed or not in force; nothing was changed"))
            .hint("`farsite store keys list` shows what is")),
        _ => {
            Err(Failure::usage(format!("{typed} may be several: {}; nothing was changed", found.join(", "))))
        }
    }
}
