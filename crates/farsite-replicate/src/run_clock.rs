//! A clock for one round: the source's wall clock as it stood when the round began, carried on by monotonic time. When somebody
//! sets the wall clock while a run is under way, capture times do not follow. Each standby's store is compared with this one
//! clock, so that a capture that goes to several of them has one time, and each of them its own skew.

use std::time::Instant;

use farsite_model::clock::Clock;
use farsite_model::rpo::ClockSkew;
use farsite_store::Store;
use farsite_store::backend::BackendError;
use jiff::{SignedDuration, Timestamp};

#[derive(Debug, Clone, Copy)]
pub struct RunClock {
    wall: Timestamp,
    at: Instant,
}

/// How far a clock was ahead of a store's, and when that was looked at.
#[derive(Debug, Clone, Copy)]
pub struct Compared {
    skew: ClockSkew,
    at: Instant,
}

/// The most that quartz drifts between two comparisons: 100 ppm, as kernels assume for a clock without discipline.
const DRIFT_PPM: u64 = 100;

impl RunClock {
    pub fn begin(wall: &dyn Clock) -> Self {
        Self { wall: wall.now(), at: Instant::now() }
    }

    /// One request to the store.
    pub async fn compare(&self, store: &Store) -> Result<Compared, BackendError> {
        let before = self.capture_time();
        let time = store.backend.time().await?;
        let skew = ClockSkew::measure(before, time, self.capture_time(), store.backend.clock_grain_ms());
        Ok(Compared { skew, at: Instant::now() })
    }
}

impl Compared {
    /// The skew that capture times carry, widened by what the hardware may have drifted since.
    pub fn skew(&self) -> ClockSkew {
        let drift_ms = (self.at.elapsed().as_millis() as u64 * DRIFT_PPM).div_ceil(1_000_000);
        ClockSkew { uncertainty_ms: self.skew.uncertainty_ms + drift_ms, ..self.skew }
    }

    /// How long ago the clocks were compared.
    pub fn age(&self) -> std::time::Duration {
        self.at.elapsed()
    }
}

impl Clock for RunClock {
    fn now(&self) -> Timestamp {
        self.wall + SignedDuration::try_from(self.at.elapsed()).unwrap_or_default()
    }
}
