//! `farsite store keys list`.

use farsite_model::config::Config;
use farsite_store::amendments::{Said, roster};
use farsite_store::keys::Role;

use super::At;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED};
use crate::output::Tone;
use crate::stores;

pub async fn run(at: &At, config: &Config, context: &Context) -> Ended {
    let (_, store) = stores::open(config, at.store.as_ref()).await?;
    let roster = roster(&store).await?;
    let ended = if roster.damage.is_empty() { DONE } else { FAILED };
    if context.out.json {
        context.out.json(&roster);
        return Ok(ended);
    }
    let out = context.out;
    out.line(format!("{}, id {}, {} amendments", roster.store, roster.id, roster.amendments));
    let since = |added: Option<&Said>| match added {
        None => format!("{:.0}", roster.created),
        Some(said) => format!("{:.0} by {}: {}", said.at.0, said.who, said.reason),
    };
    let rows: Vec<Vec<String>> = roster
        .recipients
        .iter()
        .map(|line| {
            let recipient = &line.recipient;
            let state = match &recipient.removed {
                None => "in force".to_owned(),
                Some(said) => format!("removed {:.0} by {}: {}", said.at.0, said.who, said.reason),
            };
            let opens = format!("{} of {}", line.opens, roster.content_keys);
            vec![
                recipient.recipient.clone(),
                recipient.name.clone(),
                opens,
                since(recipient.added.as_ref()),
                state,
            ]
        })
        .collect();
    out.table(&["recipient", "name", "opens content keys", "since", "state"], &rows);
    let rows: Vec<Vec<String>> = roster
        .signers
        .iter()
        .map(|line| {
            let state = match &line.retired {
                None => "in force".to_owned(),
                Some(said) => format!("retired {:.0} by {}: {}", said.at.0, said.who, said.reason),
            };
            let site = line.site.as_ref().map(ToString::to_string).unwrap_or_default();
            vec![
                line.id.to_string(),
                line.role.to_string(),
                site,
                line.name.clone(),
                since(line.added.as_ref()),
                state,
            ]
        })
        .collect();
    out.table(&["signing key", "role", "site", "name", "since", "state"], &rows);
    let lagging = roster.recipients.iter().filter(|line| line.in_force && line.opens < roster.content_keys);
    for line in lagging {
        out.line(out.paint(
            Tone::Warn,
            &format!(
                "{} cannot open {} content keys; `farsite store keys rotate` wraps them for it.",
                line.recipient.recipient,
                roster.content_keys - line.opens
            ),
        ));
    }
    if !roster.opened_by_nobody.is_empty() {
        out.line(out.paint(
            Tone::Bad,
            &format!(
                "{} content keys can be opened by no recipient in force.",
                roster.opened_by_nobody.len()
            ),
        ));
    }
    if roster.signers.iter().filter(|line| line.in_force && line.role == Role::Operator).count() == 1 {
        out.line(out.paint(
            Tone::Warn,
            "One operator's key only: who loses it can change no key and begin no failover. `farsite store keys add-signer --role operator` lists another one.",
        ));
    }
    for (number, why) in &roster.void {
        out.line(out.paint(Tone::Warn, &format!("amendment {number} has no effect: {why}")));
    }
    for damage in &roster.damage {
        out.line(out.paint(Tone::Bad, &format!("damaged: {damage}")));
    }
    Ok(ended)
}
