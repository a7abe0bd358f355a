//! Fresh random bytes of the operating system, for ids and passwords that nobody may guess.

use std::fs::File;
use std::io::{self, Read};

pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
