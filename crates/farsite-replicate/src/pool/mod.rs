//! Items as images of a Ceph pool at a standby. A recovery point's item comes in; an image of its name that is just that goes
//! out, made ready under a name of our own and named last. What is known of an image is written on it (a mark), so that it
//! goes wherever the image goes and needs no list beside it.
//!
//! What must hold: an image under an item's own name is whole; a mark is believed of the image only that it was made for,
//! and what it says of the contents only as long as the cluster itself says that nothing was written since.

mod hydrated;
mod mark;
mod moves;
mod names;
mod restored;

pub use hydrated::apply;
pub use mark::{Mark, Restored};
pub use moves::{GivenBack, give_back, make_room};
pub use names::{HIDDEN, before, hydrated_name, item_of_before};
pub use restored::{Came, note_odd, restore, restore_anew};
