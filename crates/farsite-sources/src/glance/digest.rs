//! The hash that Glance has recorded of an image, as its bytes are held against it.

use std::fmt::Write;

use aws_lc_rs::digest::{self, Context};
use farsite_openstack::records::Image;

/// An image's recorded hash.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    name: String,
    algorithm: &'static digest::Algorithm,
    /// In hexadecimal digits.
    expected: String,
}

impl Recorded {
    /// None where Glance has recorded none, or one that is not known here (`hashing_algorithm` in glance-api.conf may be
    /// anything that Python's hashlib has).
    pub(super) fn of(image: &Image) -> Option<Self> {
        let (name, expected) = (image.os_hash_algo.clone()?, image.os_hash_value.clone()?);
        let algorithm = match name.as_str() {
            "sha224" => &digest::SHA224,
            "sha256" => &digest::SHA256,
            "sha384" => &digest::SHA384,
            "sha512" => &digest::SHA512,
            "sha3_256" => &digest::SHA3_256,
            "sha3_384" => &digest::SHA3_384,
            "sha3_512" => &digest::SHA3_512,
            _ => return None,
        };
        Some(Self { name, algorithm, expected: expected.to_ascii_lowercase() })
    }

    /// `sha512-abc…`
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.name, self.expected)
    }

    pub(super) fn begin(&self) -> Context {
        Context::new(self.algorithm)
    }

    /// Compares what was read with what was recorded.
    pub(super) fn judge(&self, read: Context) -> Result<(), String> {
        let mut found = String::new();
        for byte in read.finish().as_ref() {
            // Writing to a text never fails.
            let _ = write!(found, "{byte:02x}");
        }
        if found == self.expected {
            return Ok(());
        }
        Err(format!("its {} is {found}, and Glance has recorded {}", self.name, self.expected))
    }
}
