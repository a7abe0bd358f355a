//! `verify-contents`: reads back what was restored, and compares it with the point: by block hashes, and images by the
//! checksum that Glance has recorded.
//!
//! What must hold: what was not compared is said; a difference is named by its item and its place.

use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_replicate::spot::Spot;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Outcome};
use farsite_store::manifest::ManifestItem;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;

use super::{Held, RESTORE_LIMIT, no_parameters, pool_items};
use crate::compare::{self, Difference};
use crate::group_run::{GroupRun, failed};

pub(crate) struct VerifyContents(pub(super) Held);

/// Reads what was restored once more.
type Hash = Box<dyn FnOnce() -> std::io::Result<String> + Send>;

/// Items read back at once.
const AT_ONCE: usize = 2;

async fn one(
    run: &GroupRun,
    context: &ActionContext,
    item: &ManifestItem,
) -> Result<Difference, ActionError> {
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
    let mut difference = compared.map_err(|e| fail(e.to_string()))?;
    if let Some(expected) = item.details.get("sha512").filter(|_| difference.is_none()) {
        let found = tokio::task::spawn_blocking(hash)
            .await
            .map_err(|e| failed(context, e))?
            .map_err(|e| fail(format!("{spot}: {e}")))?;
        if !found.eq_ignore_ascii_case(expected) {
            difference.add(format!(
                "{}: {spot} is what the point holds, and not what Glance has recorded (SHA-512 {expected})",
                item.id
            ));
        }
    }
    Ok(difference)
}

#[async_trait]
impl Action for VerifyContents {
    fn name(&self) -> &'static str {
        "verify-contents"
    }
    fn summary(&self) -> &'static str {
        "reads back what was restored and compares it with the point, block by block"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        no_parameters(with)
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        RESTORE_LIMIT
    }
    async fn check(&self, _: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        Ok(Done::No)
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let mut whole = Difference::default();
        // A database whose server has run is no longer its base byte by byte: its own checks speak for it.
        let (servers, comparable): (Vec<&ManifestItem>, Vec<&ManifestItem>) =
            run.manifest.items.iter().partition(|item| item.kind == ItemKind::Mariadb);
        let run = &**run;
        let work: Vec<_> = comparable.iter().map(|item| one(run, context, item)).collect();
        let differences: Vec<Difference> = stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await?;
        for difference in differences {
            whole.take_in(difference);
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
        Ok(if servers.is_empty() {
            outcome
        } else {
            let ids: Vec<&str> = servers.iter().map(|item| item.id.as_str()).collect();
            outcome.with("not compared", format!("{}: its server's own checks count", ids.join(", ")))
        })
    }
}
