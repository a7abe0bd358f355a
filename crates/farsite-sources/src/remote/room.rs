//! Room for the reads that are under way on one line: what is asked for lies in memory when it comes.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub(super) struct Room {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Room for one read, which is free again when this is dropped.
pub(super) struct Place(Arc<Room>);

impl Room {
    pub(super) fn new(reads: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(reads), freed: Condvar::new() })
    }

    /// Waits for it; an error when none is free within `limit`.
    pub(super) fn take(self: &Arc<Self>, limit: Duration) -> io::Result<Place> {
        let free = self.free.lock().expect("no holder of this lock panics");
        let (mut free, waited) = self
            .freed
            .wait_timeout_while(free, limit, |free| *free == 0)
            .expect("no holder of this lock panics");
        if waited.timed_out() && *free == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        *free -= 1;
        Ok(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock().expect("no holder of this lock panics") += 1;
        self.0.freed.notify_one();
    }
}
