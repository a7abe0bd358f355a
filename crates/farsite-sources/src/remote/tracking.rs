//! Change tracking of a capture at another host.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use farsite_model::content::ReadAt;

use super::client::Held;
use super::content::FarVolume;
use super::messages::{Call, Part, TrackingIs};
use crate::tracking::ChangeTracking;

pub(super) struct FarTracking {
    held: Held,
    is: TrackingIs,
}

impl FarTracking {
    pub(super) fn new(held: Held, is: TrackingIs) -> Self {
        Self { held, is }
    }
}

impl ChangeTracking for FarTracking {
    fn kind(&self) -> &str {
        &self.is.kind
    }

    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>> {
        let line = &self.held.line;
        let call = Call::ChangedSince { of: self.held.id, token: token.to_owned() };
        let told: Option<Vec<(u64, u64)>> = line.ask_now(line.next_id(), call)?;
        Ok(told.map(|ranges| ranges.into_iter().map(|(start, end)| start..end).collect()))
    }

    fn keeps_versions(&self) -> bool {
        self.is.keeps_versions
    }

    fn version(&self, token: &str) -> Option<Arc<dyn ReadAt>> {
        let line = &self.held.line;
        let id = line.next_id();
        let call = Call::Version { of: self.held.id, token: token.to_owned() };
        let size_bytes = line.ask_now::<Option<u64>>(id, call).ok()??;
        let held = Held { line: line.clone(), id, part: Part::Content };
        Some(Arc::new(FarVolume::new(held, size_bytes)))
    }

    fn token(&self) -> Option<&str> {
        self.is.token.as_deref()
    }

    fn keep(&self) -> io::Result<String> {
        self.held.line.ask_now(self.held.line.next_id(), Call::Keep { of: self.held.id })
    }

    fn forget_others(&self, tokens: &[String]) {
        let line = &self.held.line;
        let call = Call::ForgetOthers { of: self.held.id, tokens: tokens.to_vec() };
        if let Err(error) = line.ask_now::<()>(line.next_id(), call) {
            tracing::warn!("old versions stay where they are until the next run: {error}");
        }
    }
}
