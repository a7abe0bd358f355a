//! Where an item is restored to: a file of that name (a device, a folder), or an image of a Ceph pool.

use std::fmt;
use std::path::PathBuf;

use farsite_sources::rbd::ImageName;

/// The place of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spot {
    File(PathBuf),
    Image(ImageName),
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Image(image) => image.fmt(f),
        }
    }
}
