//! Hydration: a recovery point comes in; each of its files is kept as a hydrated copy, applied in place, in the standby's own
//! back end, so that promotion copies nothing. A copy lies in a hidden folder beside its place (`.farsite-hydrated`), on
//! the same file system, where no service takes it for a disk of its own before a promotion moves it there.
//!
//! What must hold: what a copy is, is known or not claimed. `dirty from → to` is durable before the first byte changes, and a
//! copy is called a point's only after all of it is durable; a copy that is dirty, or that anybody may have touched since, is
//! compared by its contents before it is called anything again.

mod copy;
mod hand_over;
mod keeper;
mod lock;
mod state;

pub use copy::{Applied, Copy, How};
pub use hand_over::hand_over;
pub use keeper::{Hydrated, Keeper, Place, hydrate_group};
pub use state::{Stamp, Stands, Version};
