//! A clock for one run: the source's wall clock as it stood when it was last compared with the store's, carried on by
//! monotonic time. When somebody sets the wall clock while a run is under way, capture times do not follow.

use std::sync::Mutex;
use std::time::Instant;

use farsite_model::CaptureTime;
use farsite_model::clock::Clock;
use farsite_model::rpo::ClockSkew;
use farsite_store::Store;
use farsite_store::backend::BackendError;
use jiff::{SignedDuration, Timestamp};

/// An anchored clock, and the skew that holds for it.
pub struct RunClock {
    anchor: Mutex<Anchor>,
}

#[derive(Clone, Copy)]
struct Anchor {
    wall: Timestamp,
    at: Instant,
    skew: ClockSkew,
}

/// The most that quartz drifts between two anchors: 100 ppm, as kernels assume for a clock without discipline.
const DRIFT_PPM: u64 = 100;

impl RunClock {
    /// One request to the store.
    pub async fn anchored(store: &Store, wall: &dyn Clock) -> Result<Self, BackendError> {
        Ok(Self { anchor: Mutex::new(probe(store, wall).await?) })
    }

    /// Compares again; later capture times count from here.
    pub async fn anchor_again(&self, store: &Store, wall: &dyn Clock) -> Result<ClockSkew, BackendError> {
        let anchor = probe(store, wall).await?;
        *self.anchor.lock().expect("no holder of this lock panics") = anchor;
        Ok(anchor.skew)
    }

    /// The skew that capture times of this clock carry, widened by what the hardware may have drifted since.
    pub fn skew(&self) -> ClockSkew {
        let anchor = *self.anchor.lock().expect("no holder of this lock panics");
        let drift_ms = (anchor.at.elapsed().as_millis() as u64 * DRIFT_PPM).div_ceil(1_000_000);
        ClockSkew { uncertainty_ms: anchor.skew.uncertainty_ms + drift_ms, ..anchor.skew }
    }

    /// How long ago the clocks were compared.
    pub fn age(&self) -> std::time::Duration {
        self.anchor.lock().expect("no holder of this lock panics").at.elapsed()
    }
}

async fn probe(store: &Store, wall: &dyn Clock) -> Result<Anchor, BackendError> {
    let start = Instant::now();
    let before = wall.capture_time();
    let time = store.backend.time().await?;
    // Monotonic for the round trip: the wall clock may jump even during the request.
    let after = CaptureTime(before.0 + SignedDuration::try_from(start.elapsed()).unwrap_or_default());
    let skew = ClockSkew::measure(before, time, after, store.backend.clock_grain_ms());
    Ok(Anchor { wall: before.0, at: start, skew })
}

impl Clock for RunClock {
    fn now(&self) -> Timestamp {
        let anchor = *self.anchor.lock().expect("no holder of this lock panics");
        anchor.wall + SignedDuration::try_from(anchor.at.elapsed()).unwrap_or_default()
    }
}
