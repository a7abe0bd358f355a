//! Fingerprints: a block's bytes come in; 16 bytes go out that say, on this host, whether the block is the one that
//! was read last. They are GMAC, a keyed polynomial hash: two different blocks of 64 KiB agree with a chance of about
//! 2⁻¹¹⁶ as long as the key is secret, whoever chose them, and four times as many bytes are taken in a second as by BLAKE3.
//! What must hold: a fingerprint never leaves the host and names nothing in the store; ids are BLAKE3 always.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::keys::BlockSecret;

pub const PRINT_BYTES: usize = 16;
pub type Print = [u8; PRINT_BYTES];

/// Makes fingerprints.
pub struct Printer(LessSafeKey);

impl Printer {
    pub fn new(secret: &BlockSecret) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, secret.print_key()).expect("32 bytes are an AES-256 key");
        Self(LessSafeKey::new(key))
    }

    pub fn print(&self, bytes: &[u8]) -> Print {
        // Nothing is sealed with this key: one nonce for all makes equal blocks have equal fingerprints.
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(bytes), &mut [])
            .expect("GMAC takes any block");
        tag.as_ref().try_into().expect("a tag of GCM has 16 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_blocks_have_equal_fingerprints_and_one_bit_makes_another() {
        let printer = Printer::new(&BlockSecret::from_bytes([7; 32]));
        let block = vec![5; 65536];
        assert_eq!(printer.print(&block), printer.print(&block));
        let mut seen = std::collections::BTreeSet::from([printer.print(&block)]);
        for bit in 0..4096 {
            let mut other = block.clone();
            other[bit * 16] ^= 1 << (bit % 8);
            assert!(seen.insert(printer.print(&other)), "bit {bit}");
        }
        let elsewhere = Printer::new(&BlockSecret::from_bytes([8; 32]));
        assert_ne!(printer.print(&block), elsewhere.print(&block));
        assert_ne!(printer.print(&block[..65535]), printer.print(&block));
    }
}
