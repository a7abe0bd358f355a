//! What this crate's unit tests share: an entry of a policy out of its YAML, and a run's context.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::clock::SystemClock;
use farsite_model::config::Site;
use farsite_model::policy::{Item, Policy};

use farsite_openstack::{Limits, SiteCloud};

use crate::{CaptureContext, Source, SourceError};

/// The source of an entry at a site without a cloud.
pub(crate) fn source(item: &Item) -> Result<Box<dyn Source>, SourceError> {
    let site = "north".parse().unwrap();
    crate::source(item, &Arc::new(SiteCloud::new(&site, Site::default(), Limits::default())))
}

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
