//! A large volume does not need a large machine: the real program replicates 4 GiB within the memory that the policy
//! allows, and says so to the kernel.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use farsite_scenarios::process::Running;
use farsite_scenarios::{Random, TwoSites};

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 4096 * MIB;
const LIMIT_BYTES: u64 = 256 * MIB;

/// Of each 4 MiB the first is incompressible, the second compresses to a few per cent and is unlike any other, and the
/// rest is a hole.
fn write_volume(path: &Path) {
    let file = File::create_new(path).unwrap();
    file.set_len(VOLUME_BYTES).unwrap();
    let mut random = Random(7);
    let mut noise = vec![0; MIB as usize];
    let mut text = vec![b'.'; MIB as usize];
    for at in (0..VOLUME_BYTES).step_by(4 * MIB as usize) {
        random.fill(&mut noise);
        file.write_all_at(&noise, at).unwrap();
        for (line, start) in (0..text.len()).step_by(256).enumerate() {
            text[start..start + 24].copy_from_slice(format!("{at:014} {line:09}").as_bytes());
        }
        file.write_all_at(&text, at + MIB).unwrap();
    }
}

/// Runs `farsite replicate` to its end; the most memory that it ever had, and its report.
fn replicate(sites: &TwoSites, name: &str) -> (u64, serde_json::Value) {
    let log = sites.path(name);
    let mut run = Running::start(sites.command("north/farsite.yaml", &["replicate", "--json"]), &log);
    let begun = Instant::now();
    let mut peak_bytes = 0;
    let code = loop {
        // The kernel keeps the highest value, so looking now and then is enough.
        peak_bytes = run.memory_bytes("VmHWM").unwrap_or(0).max(peak_bytes);
        if let Some(status) = run.ended() {
            break status.code();
        }
        assert!(begun.elapsed() < Duration::from_mins(4), "no end: {}", run.said());
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = run.said();
    // A first copy of this size takes longer than the target of 20 s allows: said with code 3, and no failure here.
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {text}");
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    println!("{name}: {} MiB at most, {:.1?}", peak_bytes / MIB, begun.elapsed());
    (peak_bytes, answer[0]["report"].clone())
}

/// Covers a first copy (1 GiB of noise and 1 GiB of text hashed, compressed, sealed, packed and written; 2 GiB of holes
/// skipped) and a second run that reads all of it again and ships one block, with the memory that a policy allows by
/// default. The limit is for the whole process as the kernel counts it, code and buffers included. It covers neither S3,
/// whose client has buffers of its own, nor reading back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_run_over_a_4_gib_volume_stays_under_256_mib() {
    let sites = TwoSites::founded("  - cinder: { path: NORTH/volumes }\n").await;
    std::fs::create_dir(sites.data("volumes")).unwrap();
    let volume = sites.data("volumes/volume-a");
    write_volume(&volume);

    let (first_bytes, report) = replicate(&sites, "first run");
    assert_eq!(report["read_bytes"].as_u64().unwrap(), VOLUME_BYTES / 2, "holes are not read: {report}");
    let shipped = report["shipped_bytes"].as_u64().unwrap();
    assert!(shipped > 1024 * MIB && shipped < 1152 * MIB, "{report}");
    assert!(first_bytes < LIMIT_BYTES, "{} MiB at most", first_bytes / MIB);

    File::options().write(true).open(&volume).unwrap().write_all_at(b"changed", 2048 * MIB).unwrap();
    let (second_bytes, report) = replicate(&sites, "second run");
    assert_eq!(report["changed_bytes"], 65536, "{report}");
    assert!(second_bytes < LIMIT_BYTES, "{} MiB at most", second_bytes / MIB);
}
