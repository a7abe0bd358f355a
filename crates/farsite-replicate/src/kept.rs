//! Versions that sources keep between runs: what they take is measured and noted, and what takes too much is let go. What
//! must hold: no run fails for it; it is done also while no run succeeds, for that is when they grow.

use std::sync::Arc;
use std::time::Duration;

use farsite_model::clock::Clock;
use farsite_model::policy::Policy;
use farsite_model::quantity::ByteSize;
use farsite_model::status::KeptVersions;
use farsite_sources::{CaptureContext, KeptSpace, Source};
use jiff::{SignedDuration, Timestamp};

use crate::group::Home;
use crate::hosts::Hosts;
use crate::record::Record;

/// Measuring takes a command for each pool, and a look at each volume's extents.
const FRESH: SignedDuration = SignedDuration::from_mins(10);
/// The longest that it may take, for each entry of the policy.
const LIMIT: Duration = Duration::from_mins(5);

/// Measures what a group keeps for all its standbys, and lets go of what is too much.
pub(crate) async fn bound(
    policy: &Policy,
    home: &Home,
    hosts: &Hosts,
    clock: Arc<dyn Clock>,
    record: &Record,
) {
    let before = record.kept(policy.group.as_str()).ok().flatten();
    let is_fresh = before.is_some_and(|kept| {
        let age = Timestamp::now().duration_since(kept.measured);
        !age.is_negative() && age < FRESH
    });
    if is_fresh && policy.keep_versions.is_none() {
        return;
    }
    let context = CaptureContext {
        clock,
        scratch: home.scratch(),
        timeout: LIMIT,
        frozen: false,
        kept: home.kept(),
        owner: home.owner(),
    };
    let mut all: Vec<(KeptSpace, Arc<dyn Source>)> = Vec::new();
    for item in &policy.items {
        if item.kind().is_database() {
            continue;
        }
        // Who cannot be reached is told of where the entry is captured.
        let Ok(source) = hosts.source(item).await else { continue };
        let source: Arc<dyn Source> = Arc::from(source);
        match tokio::time::timeout(LIMIT, source.kept(&context)).await {
            Ok(Ok(kept)) => all.extend(kept.into_iter().map(|kept| (kept, source.clone()))),
            Ok(Err(error)) => tracing::warn!(entry = %item.id(), "what it keeps is not measured: {error}"),
            Err(_) => tracing::warn!(entry = %item.id(), "what it keeps could not be measured in time"),
        }
    }
    all.sort_by_key(|(kept, _)| std::cmp::Reverse(kept.bytes));
    let mut found = KeptVersions {
        measured: Timestamp::now(),
        versions: all.len() as u64,
        bytes: all.iter().map(|(kept, _)| kept.bytes).sum(),
        let_go: 0,
    };
    for (kept, source) in all {
        let too_much = policy.keep_versions.is_some_and(|limit| found.bytes > limit.0);
        let no_room = kept.free_bytes.is_some_and(|free| kept.bytes > free);
        if !too_much && !no_room {
            continue;
        }
        let held = tokio::task::block_in_place(|| home.hold_versions());
        if let Err(error) = held {
            tracing::warn!(item = %kept.item, "the version kept of it is not let go: {error}");
            continue;
        }
        source.forget(&kept.item, &context).await;
        drop(held);
        tracing::warn!(
            group = %policy.group,
            item = %kept.item,
            "the version kept of it held {} and is let go ({}): the next run reads all of it",
            ByteSize(kept.bytes),
            if too_much { "more than `keep-versions` allows" } else { "less than that was free there" }
        );
        found.bytes -= kept.bytes;
        found.versions -= 1;
        found.let_go += 1;
    }
    if let Err(error) = record.note_kept(policy.group.as_str(), &found) {
        tracing::warn!(group = %policy.group, "what is kept is not in the record: {error}");
    }
}
