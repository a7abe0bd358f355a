//! The source's clock as a parameter, so that tests can set it an hour ahead, an hour behind, or make it jump.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

use crate::CaptureTime;

/// Reads the wall clock of the machine it runs on.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
    fn capture_time(&self) -> CaptureTime {
        CaptureTime(self.now())
    }
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The operating system's clock plus an offset that can change while a run is under way.
#[derive(Debug, Clone, Default)]
pub struct SkewedClock {
    offset_ms: Arc<AtomicI64>,
}

impl SkewedClock {
    pub fn ahead_by(offset: SignedDuration) -> Self {
        let clock = Self::default();
        clock.jump_to(offset);
        clock
    }
    pub fn jump_to(&self, offset: SignedDuration) {
        self.offset_ms.store(i64::try_from(offset.as_millis()).unwrap_or(0), Ordering::SeqCst);
    }
}
impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_millis(self.offset_ms.load(Ordering::SeqCst))
    }
}
