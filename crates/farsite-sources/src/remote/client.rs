//! Sources whose items another host reads, as the coordinator uses them.

use std::sync::Arc;

use async_trait::async_trait;
use farsite_model::policy::Item;
use farsite_model::{CaptureTime, ItemId};
use farsite_openstack::SiteCloud;

use super::Line;
use super::content::{FarFiles, FarVolume};
use super::messages::{Call, Captured, ContentIs, Lent, Part, SourceRef};
use super::tracking::FarTracking;
use crate::{Capture, CaptureContext, CheckLine, Content, KeptSpace, Source, SourceError};

/// The source of an entry that is read at the other end. Nothing is asked yet.
pub fn source(line: &Arc<Line>, item: &Item, cloud: &Arc<SiteCloud>) -> Result<Box<dyn Source>, SourceError> {
    // The policy's own words for it are the same everywhere.
    let words = format!("{}, on host {}", crate::source(item, cloud)?.describe(), line.host());
    let id = line.next_id();
    let held = Held { line: line.clone(), id, part: Part::Source };
    Ok(Box::new(Far { held, entry: Some(item.id()), words, since: None }))
}

/// What is held at the other end until this is dropped.
pub(super) struct Held {
    pub(super) line: Arc<Line>,
    pub(super) id: u64,
    pub(super) part: Part,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.line.release(self.id, Some(self.part));
    }
}

struct Far {
    held: Held,
    /// `None` where it is an instant that came of a call.
    entry: Option<ItemId>,
    words: String,
    /// Of an instant: the coordinator's clock before it was asked for.
    since: Option<CaptureTime>,
}

impl Far {
    fn line(&self) -> &Arc<Line> {
        &self.held.line
    }
    fn source(&self) -> SourceRef {
        SourceRef { id: self.held.id, entry: self.entry.clone() }
    }
}

#[async_trait]
impl Source for Far {
    fn describe(&self) -> String {
        self.words.clone()
    }

    async fn check(&self) -> Vec<CheckLine> {
        let host = self.line().host();
        let asked = self.line().ask(self.line().next_id(), Call::Check { source: self.source() }, None).await;
        let lines: Vec<CheckLine> = asked.unwrap_or_else(|error: SourceError| {
            vec![CheckLine { subject: self.words.clone(), result: Err(error.to_string()) }]
        });
        let named = |line: CheckLine| CheckLine { subject: format!("host {host}: {}", line.subject), ..line };
        lines.into_iter().map(named).collect()
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        self.line().ask(self.line().next_id(), Call::Items { source: self.source() }, None).await
    }

    async fn lost(&self, gone: &[ItemId]) -> Result<Vec<ItemId>, SourceError> {
        let call = Call::Lost { source: self.source(), gone: gone.to_vec() };
        if gone.is_empty() {
            Ok(Vec::new())
        } else {
            self.line().ask(self.line().next_id(), call, None).await
        }
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let before = context.clock.capture_time();
        let id = self.line().next_id();
        let call = Call::Capture { source: self.source(), item: item.clone(), context: Lent::of(context) };
        let captured: Captured = self.line().ask(id, call, Some(context.timeout)).await?;
        let held = |part| Held { line: self.line().clone(), id, part };
        // The other end carries this clock on by its own ticks, so it is behind; whatever it says, no capture is younger than
        // the question.
        let latest = self.since.map_or(before, |since| since.min(before));
        let content = held(Part::Content);
        Ok(Capture {
            item: captured.item,
            kind: captured.kind,
            captured: captured.at.min(latest),
            consistency: captured.consistency,
            content: match captured.content {
                ContentIs::Volume { size_bytes } => {
                    Content::Volume(Arc::new(FarVolume::new(content, size_bytes)))
                }
                ContentIs::Tree => Content::FarTree(Arc::new(FarFiles::new(content))),
            },
            still: captured.still,
            ancestor: captured.ancestor,
            details: captured.details,
            tracking: captured.tracking.map(|tracking| -> Box<dyn crate::tracking::ChangeTracking> {
                Box::new(FarTracking::new(held(Part::Tracking), tracking))
            }),
            guard: Some(Box::new(held(Part::Guard))),
        })
    }

    async fn prepare(&self) -> bool {
        let asked =
            self.line().ask(self.line().next_id(), Call::Prepare { source: self.source() }, None).await;
        asked.unwrap_or_else(|error: SourceError| {
            tracing::warn!("{}: not all of it can be of one moment: {error}", self.words);
            false
        })
    }

    async fn instant(&self, context: &CaptureContext) -> Result<Option<Box<dyn Source>>, SourceError> {
        let since = context.clock.capture_time();
        let id = self.line().next_id();
        let call = Call::Instant { source: self.source(), context: Lent::of(context) };
        if !self.line().ask::<bool>(id, call, Some(context.timeout)).await? {
            return Ok(None);
        }
        let held = Held { line: self.line().clone(), id, part: Part::Source };
        Ok(Some(Box::new(Self { held, entry: None, words: self.words.clone(), since: Some(since) })))
    }

    async fn kept(&self, context: &CaptureContext) -> Result<Vec<KeptSpace>, SourceError> {
        let call = Call::Kept { source: self.source(), context: Lent::of(context) };
        self.line().ask(self.line().next_id(), call, Some(context.timeout)).await
    }

    async fn forget(&self, item: &ItemId, context: &CaptureContext) {
        let call = Call::Forget { source: self.source(), item: item.clone(), context: Lent::of(context) };
        let asked: Result<(), SourceError> =
            self.line().ask(self.line().next_id(), call, Some(context.timeout)).await;
        if let Err(error) = asked {
            tracing::warn!(%item, "what is kept of it stays where it is: {error}");
        }
    }
}
