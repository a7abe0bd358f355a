//! How long those of a round who are done wait for those who are not. What must hold: all waits of a round together are no
//! longer than its patience, so that a slow store costs the other ones no more than that.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use farsite_model::policy::Policy;

/// Of the time that the policy allows a point to be old, this part may be spent waiting; within bounds that neither a
/// short hiccup nor a long schedule oversteps.
const SHARE: u32 = 20;
const LEAST: Duration = Duration::from_secs(2);
const MOST: Duration = Duration::from_mins(1);

/// One round's.
#[derive(Debug)]
pub(crate) struct Patience {
    total: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spent: Duration,
    waiting: usize,
    since: Option<Instant>,
}

impl Patience {
    pub(crate) fn of(policy: &Policy) -> Self {
        Self::new((policy.rpo.duration() / SHARE).clamp(LEAST, MOST))
    }

    pub(crate) fn new(total: Duration) -> Self {
        Self { total, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn total(&self) -> Duration {
        self.total
    }

    pub(crate) fn left(&self) -> Duration {
        let state = self.lock();
        let spent = state.spent + state.since.map_or(Duration::ZERO, |since| since.elapsed());
        self.total.saturating_sub(spent)
    }

    /// Time passes for whoever waits until this is dropped; several who wait at once count once.
    pub(crate) fn waits(&self) -> Waits<'_> {
        let mut state = self.lock();
        state.waiting += 1;
        state.since.get_or_insert_with(Instant::now);
        Waits(self)
    }
}

pub(crate) struct Waits<'p>(&'p Patience);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.waiting -= 1;
        if state.waiting == 0
            && let Some(since) = state.since.take()
        {
            state.spent += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_waits_together_are_counted_and_those_at_once_only_once() {
        let hour = Duration::from_hours(1);
        let patience = Patience::new(hour);
        let begun = Instant::now();
        {
            let (_one, _other) = (patience.waits(), patience.waits());
            std::thread::sleep(Duration::from_millis(20));
        }
        let most = begun.elapsed();
        let spent = hour.saturating_sub(patience.left());
        assert!(Duration::from_millis(20) <= spent && spent <= most, "{spent:?} of {most:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(hour.saturating_sub(patience.left()), spent, "nobody waits now");
        let _again = patience.waits();
        std::thread::sleep(Duration::from_millis(5));
        assert!(hour.saturating_sub(patience.left()) > spent);
    }
}
