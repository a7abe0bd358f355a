//! Keeping the store: what the live points of a group need is marked, and what nothing needs is removed.
//!
//! What comes in: a group's ledger, and an identity that opens block maps. What goes out: marks, and deletions. What must
//! hold: nothing that a live point, a pin, a hold, a patch base or an open promotion reaches is ever removed, whatever
//! runs beside it and wherever it is cut off. No clock decides that; the order of the ledger does:
//!
//! 1. A run pins before it writes. So whoever lists objects first and reads the ledger afterwards knows the run of
//!    everything that was listed: it lives, it has committed, or it can commit no more.
//! 2. `gc-begun` comes before the first deletion. A run that loses its pin by it cannot commit behind it.
//! 3. What was garbage stays garbage: later points are made of what pinned points hold and what their own runs wrote.
//!
//! A group's points refer to packs of this group's runs only, so each group is kept by itself.

mod check;
mod compact;
mod gc;
mod lives;
mod mark;
mod owner;
mod repair;
mod stats;
mod walk;

pub use check::{Checked, Depth, Found, check};
pub use compact::{CompactOptions, Compacted, GroupCompacted, compact};
pub use gc::{Collected, GcOptions, GroupCollected, Progress, Removed, collect};
pub use mark::MarkOptions;
pub use repair::{GroupRepaired, RepairOptions, Repaired, repair};
pub use stats::{Stats, stats};
