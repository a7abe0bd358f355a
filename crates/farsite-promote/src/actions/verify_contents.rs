//! `verify-contents`: reads back what was restored, and compares it with the point: by block hashes, and images by the
//! checksum that Glance has recorded.
//!
//! What must hold: what was not compared is said; a difference is named by its item and its place.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::{ItemId, ItemKind};
use farsite_replicate::spot::Spot;
use farsite_runbook::action::{Action, ActionContext, ActionError, Outcome, parameters};
use farsite_store::manifest::ManifestItem;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::Value;

use super::restore_items::folder_of;
use super::{Held, RESTORE_LIMIT, pool_items};
use crate::aside::{Stamps, root_of};
use crate::compare::{self, Difference};
use crate::group_run::{GroupRun, failed};

pub(crate) struct VerifyContents(pub(super) Held);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    #[serde(default)]
    hydrated: Hydrated,
}

/// What is done with copies that were hydrated, and proved untouched when they were taken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Hydrated {
    /// They are read back like everything else.
    #[default]
    Read,
    /// They are what was authenticated when it was written; reading terabytes again would be most of the recovery time.
    Trust,
}

/// The items that this promotion took from hydrated copies.
async fn hydrated(run: &GroupRun) -> Result<BTreeSet<ItemId>, String> {
    let mut all = BTreeSet::new();
    for item in &run.manifest.items {
        let Ok(Spot::File(place)) = run.spot(item) else { continue };
        let list = Stamps::open(&folder_of(item, &place), item.kind, run.promotion);
        if list.is_ok_and(|list| list.was_hydrated(&place, &root_of(item))) {
            all.insert(item.id.clone());
        }
    }
    for (kind, rbd) in run.targets.pools() {
        let kinds = [kind];
        let items: Vec<&ManifestItem> = run.items(&kinds).collect();
        if !items.is_empty() {
            all.extend(pool_items::proved(run, rbd, &items).await?);
        }
    }
    Ok(all)
}

/// For the step that brings rows and data together, on whichever machine it runs.
async fn note_odd(run: &GroupRun, item: &ManifestItem) -> Result<(), String> {
    match run.spot(item).map_err(|error| error.to_string())? {
        Spot::Image(image) => pool_items::note_odd(run, &item.id, &image).await,
        Spot::File(place) => Stamps::open(&folder_of(item, &place), item.kind, run.promotion)
            .and_then(|mut list| list.mark_odd(&place))
            .map_err(|error| error.to_string()),
    }
}

/// Reads what was restored once more.
type Hash = Box<dyn FnOnce() -> std::io::Result<String> + Send>;

/// Items read back at once.
const AT_ONCE: usize = 2;

async fn one(
    run: &GroupRun,
    context: &ActionContext,
    item: &ManifestItem,
) -> Result<(Difference, Option<String>), ActionError> {
    context.lease.check()?;
    if context.cancel.is_cancelled() {
        return Err(ActionError::Cancelled);
    }
    let spot = run.spot(item)?;
    let fail = |e: String| failed(context, format!("{}: {e}", item.id));
    let reader = &run.standby.reader;
    let (compared, hash): (_, Hash) = match spot.clone() {
        Spot::File(path) => {
            let compared = compare::item(reader, item, &path).await;
            (compared, Box::new(move || compare::sha512(&path)))
        }
        Spot::Image(image) => {
            let content = pool_items::opened(&image).await.map_err(fail)?;
            let compared = compare::content(reader, item, content.clone(), &image.to_string()).await;
            (compared, Box::new(move || compare::sha512_of(&*content)))
        }
    };
    let difference = compared.map_err(|e| fail(e.to_string()))?;
    if let Some(expected) = item.details.get("sha512").filter(|_| difference.is_none()) {
        let found = tokio::task::spawn_blocking(hash)
            .await
            .map_err(|e| failed(context, e))?
            .map_err(|e| fail(format!("{spot}: {e}")))?;
        if !found.eq_ignore_ascii_case(expected) {
            let why =
                format!("it is what the point holds, and not what Glance has recorded (SHA-512 {expected})");
            return Ok((difference, Some(why)));
        }
    }
    Ok((difference, None))
}

#[async_trait]
impl Action for VerifyContents {
    fn name(&self) -> &'static str {
        "verify-contents"
    }
    fn summary(&self) -> &'static str {
        "reads back what was restored and compares it with the point, block by block; `hydrated: trust` leaves out proved copies"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        let holds_template =
            with.get("hydrated").and_then(Value::as_str).is_some_and(|text| text.contains("{{"));
        if holds_template { Ok(()) } else { parameters::<With>(with).map(|_| ()) }
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        RESTORE_LIMIT
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let With { hydrated: with } = parameters(with).map_err(ActionError::Failed)?;
        let mut whole = Difference::default();
        // A database whose server has run is no longer its base byte by byte: its own checks speak for it.
        let (servers, comparable): (Vec<&ManifestItem>, Vec<&ManifestItem>) =
            run.manifest.items.iter().partition(|item| item.kind == ItemKind::Mariadb);
        let run = &**run;
        let trusted = match with {
            Hydrated::Trust => hydrated(run).await.map_err(|e| failed(context, e))?,
            Hydrated::Read => BTreeSet::new(),
        };
        let (trusted, comparable): (Vec<&ManifestItem>, Vec<&ManifestItem>) =
            comparable.into_iter().partition(|item| trusted.contains(&item.id));
        let work: Vec<_> = comparable
            .iter()
            .map(|item| async move { one(run, context, item).await.map(|compared| (*item, compared)) })
            .collect();
        let compared: Vec<(&ManifestItem, (Difference, Option<String>))> =
            stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await?;
        let mut odd = Vec::new();
        for (item, (difference, why)) in compared {
            whole.take_in(difference);
            odd.extend(why.map(|why| (item, why)));
        }
        for (item, why) in &odd {
            // Nothing here can mend what was so at its source. A drill says it while that is still there; a promotion goes on
            // without the image.
            if run.is_drill() {
                whole.add(format!("{}: {why}", item.id));
            }
            note_odd(run, item).await.map_err(|e| failed(context, format!("{}: {e}", item.id)))?;
        }
        if !whole.is_none() {
            let more = if whole.more > 0 { format!("\n  and {} more", whole.more) } else { String::new() };
            return Err(failed(
                context,
                format!("not what the point holds:\n  {}{more}", whole.named.join("\n  ")),
            ));
        }
        let outcome = Outcome::said(format!("{} items are what the point holds", comparable.len()))
            .with("bytes", whole.compared_bytes)
            .with("items", comparable.len())
            .with("checksums", comparable.iter().filter(|i| i.details.contains_key("sha512")).count());
        let outcome = odd.into_iter().fold(outcome, |outcome, (item, why)| {
            outcome.with(item.id.as_str(), format!("{why}: it is not served at the level `application`"))
        });
        let outcome = if trusted.is_empty() {
            outcome
        } else {
            let words = format!(
                "{} items: authenticated when they were hydrated, and untouched since",
                trusted.len()
            );
            outcome.with("not read again", words)
        };
        Ok(if servers.is_empty() {
            outcome
        } else {
            let ids: Vec<&str> = servers.iter().map(|item| item.id.as_str()).collect();
            outcome.with("not compared", format!("{}: its server's own checks count", ids.join(", ")))
        })
    }
}
