//! Entries that another host of the site reads. A [`Line`] to a process there comes in (`farsite serve-sources`, started by a
//! command of the configuration and spoken with over its standard input and output); out go sources that are used as if
//! they were of this host: captures, holes, change tracking, kept versions.
//!
//! What must hold: nobody waits without a limit for a host that says nothing; when either end goes away, what was held still
//! is let go there and no snapshot stays; a capture time is of the coordinator's clock and never later than it was when it
//! asked; no more memory is taken than a few reads under way.

mod client;
mod content;
mod frames;
mod line;
mod messages;
mod process;
mod room;
mod serve;
mod served;
mod state;
mod tracking;

pub use client::source;
pub use line::Line;
pub use messages::Hello;
pub use serve::{ServeOptions, serve};

/// Both ends speak this or do not speak: any change of a message makes it another.
pub const PROTOCOL: u32 = 1;

/// One read, in bytes. Larger ones are several of these under way at once, so that the way there and back costs nothing.
const READ_BYTES: usize = 256 << 10;
/// Reads that are under way on one line: 8 MiB.
const READS: usize = 32;
/// An answer that is longer is cut into frames of this size.
const ANSWER_BYTES: usize = 1 << 20;
/// The longest answer: a list of extents or of files.
const LONGEST_ANSWER: usize = 64 << 20;
