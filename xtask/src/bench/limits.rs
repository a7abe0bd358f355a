//! What this machine can do with the volume at all, measured in the same run: reading it cold, writing it and making it
//! durable, and the processor's part of the work on all cores.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::measure::cold_cache;
use super::table::Row;
use crate::failure::Failure;

#[derive(Debug, Clone)]
pub struct Limits {
    cold: bool,
    read_s: f64,
    write_s: f64,
    /// On all cores: keyed BLAKE3, zstd -1, AES-256-GCM of all data.
    hash_s: f64,
    compress_s: f64,
    seal_s: f64,
}

pub fn measure(limits: &Path, folder: &Path, volume: &Path) -> Result<Limits, Failure> {
    let cold = cold_cache();
    let read_s = read(volume).map_err(|e| super::at(volume, &e))?;
    let target = folder.join("written");
    let write_s = write(volume, &target).map_err(|e| super::at(&target, &e))?;
    let output = Command::new(limits)
        .arg(volume)
        .output()
        .map_err(|e| Failure::new(format!("{}: {e}", limits.display()), "build it again"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [hash_s, compress_s, seal_s] = numbers[..] else {
        return Err(Failure::new(format!("the example `limits` said {text:?}"), "run it by hand"));
    };
    Ok(Limits { cold, read_s, write_s, hash_s, compress_s, seal_s })
}

/// Only what is data, as every tool here may.
fn data(volume: &Path) -> std::io::Result<Vec<(u64, u64)>> {
    // SEEK_DATA without a library: the kernel says it through filefrag-like tools only, so blocks of zeros are skipped.
    let mut file = File::open(volume)?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let got = file.read(&mut buffer)?;
        if got == 0 {
            return Ok(ranges);
        }
        if buffer[..got].iter().any(|b| *b != 0) {
            match ranges.last_mut() {
                Some((_, end)) if *end == at => *end = at + got as u64,
                _ => ranges.push((at, at + got as u64)),
            }
        }
        at += got as u64;
    }
}

fn read(volume: &Path) -> std::io::Result<f64> {
    use std::os::unix::fs::FileExt;
    let ranges = data(volume)?;
    cold_cache();
    let file = File::open(volume)?;
    let mut buffer = vec![0; 4 << 20];
    let begun = Instant::now();
    for (start, end) in ranges {
        let mut at = start;
        while at < end {
            let size = buffer.len().min((end - at) as usize);
            file.read_exact_at(&mut buffer[..size], at)?;
            at += size as u64;
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn write(volume: &Path, target: &Path) -> std::io::Result<f64> {
    let bytes: u64 = data(volume)?.iter().map(|(start, end)| end - start).sum();
    let chunk = vec![0xa5; 4 << 20];
    let _ = std::fs::remove_file(target);
    cold_cache();
    let begun = Instant::now();
    let mut file = File::create(target)?;
    let mut left = bytes as usize;
    while left > 0 {
        let size = chunk.len().min(left);
        file.write_all(&chunk[..size])?;
        left -= size;
    }
    file.sync_all()?;
    let took = begun.elapsed().as_secs_f64();
    std::fs::remove_file(target)?;
    Ok(took)
}

impl Limits {
    fn processor_s(&self) -> f64 {
        self.hash_s + self.compress_s + self.seal_s
    }

    /// No program can be faster than the slowest of the things that it must do.
    pub fn of(&self, row: Row) -> Option<f64> {
        match row {
            Row::First => Some(self.processor_s().max(self.read_s)),
            Row::NoChange => Some(self.read_s),
            Row::Restore => Some(self.write_s),
            _ => None,
        }
    }

    pub fn print(&self) -> String {
        format!(
            "Limits: {} read {:.2} s, write and fsync {:.2} s; on all cores keyed BLAKE3 {:.2} s, zstd -1 {:.2} s, AES-256-GCM {:.2} s, together {:.2} s.\n",
            if self.cold { "cold" } else { "warm" },
            self.read_s,
            self.write_s,
            self.hash_s,
            self.compress_s,
            self.seal_s,
            self.processor_s()
        )
    }
}
