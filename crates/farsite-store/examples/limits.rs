//! What the processor can do with a file at all: seconds for keyed BLAKE3, zstd -1 and AES-256-GCM of its data in blocks of
//! 64 KiB on all cores. The benchmark compares whole programs with these. The file is read first; holes are left out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

const BLOCK: usize = 64 << 10;

fn seconds(blocks: &[&[u8]], work: impl Fn(&[u8]) + Sync) -> f64 {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    // Some at a time, as the program itself takes them.
                    let first = next.fetch_add(16, Ordering::Relaxed);
                    let Some(some) = blocks.get(first..blocks.len().min(first + 16)) else { return };
                    if some.is_empty() {
                        return;
                    }
                    for block in some {
                        work(block);
                    }
                }
            });
        }
    });
    begun.elapsed().as_secs_f64()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which file?")?;
    let bytes = std::fs::read(path)?;
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).filter(|block| block.iter().any(|b| *b != 0)).collect();
    let hash = seconds(&blocks, |block| {
        std::hint::black_box(blake3::keyed_hash(&[7; 32], block));
    });
    let compress = seconds(&blocks, |block| {
        thread_local! {
            static CONTEXT: std::cell::RefCell<(zstd::bulk::Compressor<'static>, Vec<u8>)> =
                std::cell::RefCell::new((zstd::bulk::Compressor::new(1).expect("level 1"), vec![0; 2 * BLOCK]));
        }
        CONTEXT.with_borrow_mut(|(context, out)| {
            std::hint::black_box(context.compress_to_buffer(block, out).unwrap_or_default());
        });
    });
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "a key has 32 bytes")?);
    let seal = seconds(&blocks, |block| {
        let mut copy = block.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        std::hint::black_box(key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut copy).is_ok());
    });
    println!("{hash:.3} {compress:.3} {seal:.3}");
    Ok(())
}
