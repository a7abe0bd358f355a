//! What this crate's unit tests share: an entry of a policy out of its YAML, and a run's context.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::clock::SystemClock;
use farsite_model::policy::{Item, Policy};

use crate::CaptureContext;

/// `glance: { store: /x }` as a policy holds it.
pub(crate) fn item(entry: &str) -> Item {
    let text = format!(
        "group: g\nsite: north\nlevel: data\nto: [south]\nschedule: '@hourly'\nrpo: 1h\nitems:\n  - {entry}\n"
    );
    let mut policy = Policy::parse("p.yaml", &text).unwrap();
    policy.items.remove(0)
}

pub(crate) fn context(scratch: &Path) -> CaptureContext {
    std::fs::create_dir_all(scratch).unwrap();
    CaptureContext {
        clock: Arc::new(SystemClock),
        scratch: scratch.to_owned(),
        timeout: Duration::from_mins(1),
        frozen: false,
        kept: scratch.join("kept"),
        owner: "test".to_owned(),
    }
}
