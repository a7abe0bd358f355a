//! Stories of what is unusual: a volume that is encrypted under its owner is flagged and is no failover's default, and the
//! work of a normal week is not.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use farsite_scenarios::{Random, TwoSites, noise, said};

const MIB: usize = 1 << 20;
const VOLUME: usize = 24 * MIB;
const ITEMS: &str =
    "  - cinder: { path: NORTH/volumes }\n  - files: { name: papers, paths: [NORTH/papers] }\n";

/// Lines as of a log: compressible, and no two alike.
fn text(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = Vec::with_capacity(bytes + 100);
    while out.len() < bytes {
        let line = format!(
            "2026-11-24T03:{:02}:{:02} north agent[{}]: volume {} was captured, {} bytes have changed\n",
            random.between(0, 60),
            random.between(0, 60),
            random.between(100, 9999),
            random.between(0, 40),
            random.draw() % 1_000_000
        );
        out.extend_from_slice(line.as_bytes());
    }
    out.truncate(bytes);
    out
}

fn write_at(sites: &TwoSites, offset: usize, bytes: &[u8]) {
    let volume = File::options().write(true).open(sites.data("volumes/volume-a")).unwrap();
    volume.write_all_at(bytes, offset as u64).unwrap();
}

/// A volume of which 16 MiB are text and the rest is free, and a folder of papers.
async fn a_site() -> TwoSites {
    let sites = TwoSites::founded(ITEMS).await;
    fs::create_dir_all(sites.data("volumes")).unwrap();
    fs::create_dir_all(sites.data("papers")).unwrap();
    fs::write(sites.data("volumes/volume-a"), text(1, 16 * MIB)).unwrap();
    File::options().write(true).open(sites.data("volumes/volume-a")).unwrap().set_len(VOLUME as u64).unwrap();
    for n in 0..20 {
        fs::write(sites.data(&format!("papers/{n}.txt")), text(100 + n, 150_000)).unwrap();
    }
    sites
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_volume_is_flagged_and_no_default_and_a_normal_week_is_not() {
    let sites = a_site().await;
    let first = sites.replicate().await;
    assert!(first.suspicious.is_empty(), "a first copy is never suspicious: {:?}", first.suspicious);
    let mut last = first.point;
    let mut random = Random(7);
    for day in 0..8 {
        // Work as on any day: text over text, here and there.
        for _ in 0..12 {
            let at = random.between(0, 15 << 20) as usize;
            write_at(&sites, at, &text(random.draw(), 5000));
        }
        match day {
            // An archive on free ground, and another on ground that was used before.
            2 => write_at(&sites, 16 * MIB, &noise(3, 5 * MIB)),
            4 => write_at(&sites, 3 * MIB, &noise(4, MIB)),
            // A paper is written anew, one goes and one comes.
            5 => {
                fs::write(sites.data("papers/3.txt"), text(500, 170_000)).unwrap();
                fs::remove_file(sites.data("papers/4.txt")).unwrap();
                fs::write(sites.data("papers/new.txt"), text(501, 90_000)).unwrap();
            }
            // A log file of 4 MiB is replaced.
            6 => write_at(&sites, 8 * MIB, &text(600, 4 * MIB)),
            _ => {}
        }
        let report = sites.replicate().await;
        assert!(report.suspicious.is_empty(), "day {day}: {:?}", report.suspicious);
        last = report.point;
    }

    // Somebody encrypts a third of the volume, and the papers, which get other names.
    write_at(&sites, 4 * MIB, &noise(9, 5 * MIB));
    for (n, paper) in fs::read_dir(sites.data("papers")).unwrap().enumerate() {
        let paper = paper.unwrap().path();
        fs::write(&paper, noise(50 + n as u64, 150_000)).unwrap();
        fs::rename(&paper, paper.with_extension("locked")).unwrap();
    }
    let report = sites.replicate().await;
    let words = report.suspicious.join("\n");
    assert!(words.contains("cinder/volume-a: ") && words.contains("as if it were encrypted"), "{words}");
    assert!(words.contains("files/papers: ") && words.contains("20 of 20 files are gone"), "{words}");
    let ledger = sites.ledger().await;
    assert_eq!(ledger.state().default_point().unwrap().id(), last, "the point before is the default");
    // It goes on; that it went on does not excuse it.
    write_at(&sites, 9 * MIB, &noise(10, 5 * MIB));
    let newest = sites.replicate().await;
    assert!(!newest.suspicious.is_empty());
    let newest = newest.point.to_string();
    assert_eq!(sites.ledger().await.state().default_point().unwrap().id(), last);

    // It is told wherever a person looks.
    for args in [&["status", "cloud"][..], &["points", "list"], &["points", "show", &newest]] {
        let output = said(&sites.farsite("south", args));
        assert!(output.contains("as if it were encrypted"), "{args:?}: {output}");
    }
    let shown = said(&sites.farsite("south", &["points", "show", &newest]));
    assert!(shown.contains("100% of what is new incompressible"), "{shown}");

    // Quiet again: the point is like any other, and a person is told what it stands on.
    write_at(&sites, 100, b"a little work");
    assert!(sites.replicate().await.suspicious.is_empty());
    let status = said(&sites.farsite("south", &["status", "cloud"]));
    assert!(status.contains("the points after it stand on it"), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_has_lost_its_record_reads_what_is_usual_from_the_store() {
    let sites = a_site().await;
    sites.replicate().await;
    write_at(&sites, 0, &text(2, 2 * MIB));
    sites.replicate().await;
    for file in ["record.sqlite", "record.sqlite-wal", "record.sqlite-shm"] {
        let _ = fs::remove_file(sites.path(&format!("north/state/{file}")));
    }
    write_at(&sites, 4 * MIB, &noise(9, 5 * MIB));
    let words = sites.replicate().await.suspicious.join("\n");
    assert!(words.contains("as if it were encrypted"), "{words}");
}
