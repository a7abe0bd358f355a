//! Volumes that are qcow2 images: a run reads their virtual disks, and of those what the bitmaps in them say was written; a
//! bitmap that cannot be believed, or that was wrong, costs reading and never data; an image that somebody has open is not
//! read behind his back.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use farsite_scenarios::images::{BLOCK, Images, MIB, path, tool};
use farsite_scenarios::mounts::{self, Mounted};
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::said;

const ITEMS: &str = "  - cinder: { path: NORTH/volumes, format: qcow2 }\n";
/// XFS lives in an image file here, which only root may mount.
const PROBE: [&str; 3] = ["sh", "-c", "test -w /dev/loop-control && mount -t tmpfs tmpfs /mnt"];

/// A guest that has the image open; killed when this is dropped, as by a crash of its host.
struct Guest(Child);

impl Guest {
    /// Open, and what it writes first is written.
    fn start(site: &Images, command: &str) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", "qcow2", path(&site.image())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{command}\nflush").unwrap();
        let mut answers = BufReader::new(child.stdout.as_mut().unwrap());
        let mut answer = String::new();
        while !answer.contains("wrote") {
            assert!(answers.read_line(&mut answer).unwrap() > 0, "{answer}");
        }
        Self(child)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What every file system must do.
fn follows_what_is_written(site: &Images) {
    // The disk, not the file: its holes are not read.
    let first = site.reads(33 * MIB / BLOCK);
    assert_eq!(first["weakest"], "crash", "{first}");
    // The last block bears the mark of the bitmap, and is read each time: here it is a hole.
    site.reads(0);
    site.io(&["write -P 33 5M 4k"]);
    let report = site.reads(1);
    assert_eq!(report["changed_bytes"], BLOCK, "{report}");
    // A patch, against a copy of what was shipped.
    assert!(report["shipped_bytes"].as_u64().unwrap() < 3_000, "{report}");
    // Data where there was none, and none where there was.
    site.io(&["write -P 34 80M 128k", "write -z 1M 1M", "discard 2M 1M"]);
    site.reads(2);
    // Longer.
    tool("qemu-img", &["resize", "-q", "-f", "qcow2", path(&site.image()), "130M"]);
    site.io(&["write -P 35 129M 64k"]);
    site.reads(1);
    // Shorter and as long as before: a bitmap tells nothing of that, and is not believed.
    tool("qemu-img", &["resize", "-q", "--shrink", "-f", "qcow2", path(&site.image()), "16M"]);
    tool("qemu-img", &["resize", "-q", "-f", "qcow2", path(&site.image()), "130M"]);
    site.reads(14 * MIB / BLOCK);
    // Cleared by somebody: not believed either.
    site.io(&["write -P 36 6M 64k"]);
    let bitmap = site.bitmaps().remove(0);
    tool("qemu-img", &["bitmap", "--clear", path(&site.image()), &bitmap]);
    site.reads(14 * MIB / BLOCK);
    // And lost.
    let bitmap = site.bitmaps().remove(0);
    tool("qemu-img", &["bitmap", "--remove", path(&site.image()), &bitmap]);
    site.reads(14 * MIB / BLOCK);
    site.io(&["write -P 37 7M 64k"]);
    site.reads(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_closed_image_is_read_as_its_disk_and_only_what_its_bitmap_tells() {
    follows_what_is_written(&Images::new(ITEMS).await.with_image());
}

#[test]
fn heavy_on_a_file_system_with_reflinks_a_copy_of_the_image_is_read() {
    if !mounts::are_own() {
        return mounts::with_own(
            module_path!(),
            "heavy_on_a_file_system_with_reflinks_a_copy_of_the_image_is_read",
            &PROBE,
        );
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let site = Images::new(ITEMS).await;
        let _disk = Mounted::xfs(&site.sites.data("volumes"), &site.sites.path("xfs.image"), 400);
        follows_what_is_written(&site.with_image());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_image_is_not_read_behind_its_process_and_a_bitmap_in_use_is_not_believed() {
    let site = Images::new(ITEMS).await.with_image();
    site.reads(33 * MIB / BLOCK);
    let guest = Guest::start(&site, "write -P 40 3M 64k");
    let output = site.sites.farsite("north", &["replicate"]);
    let words = said(&output);
    assert!(words.contains("another process has it open") && words.contains("hint:"), "{words}");
    let check = said(&site.sites.farsite("north", &["check"]));
    assert!(check.contains("another process has it open"), "{check}");
    // Its process dies, and what it had written since the flush of its bitmap is told nowhere.
    drop(guest);
    let report = site.reads(33 * MIB / BLOCK);
    assert_eq!(report["changed_bytes"], BLOCK, "{report}");
    // The new bitmap is good again.
    site.io(&["write -P 41 4M 64k"]);
    site.reads(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_run_that_is_killed_or_fails_leaves_a_bitmap_that_is_right_and_none_too_many() {
    let site = Images::new(ITEMS).await.with_image();
    site.reads(33 * MIB / BLOCK);
    site.io(&["write -P 50 1M 64k"]);
    // Slow enough to be killed between its bitmap and its point.
    site.policy(|text| format!("{text}hooks: {{ after-capture: ['sleep 30'] }}\n"));
    let log = site.sites.path("killed.log");
    let mut run = Running::start(site.sites.command("north/farsite.yaml", &["replicate"]), &log);
    let has_two =
        comes_true(Duration::from_secs(20), || site.bitmaps_now().is_some_and(|two| two.len() == 2));
    assert!(has_two, "{:?}\n{}", site.bitmaps(), run.said());
    run.kill();
    site.policy(|text| {
        text.lines().filter(|l| !l.starts_with("hooks")).collect::<Vec<_>>().join("\n") + "\n"
    });
    site.io(&["write -P 51 2M 64k"]);
    site.reads(2);

    // A capture that the policy does not want: its bitmap goes with it, and nothing else.
    site.io(&["write -P 52 3M 64k"]);
    let before = site.bitmaps();
    site.policy(|text| text.replace("format: qcow2", "consistency: application, format: qcow2"));
    let words = said(&site.sites.farsite("north", &["replicate"]));
    assert!(words.contains("demands application"), "{words}");
    assert_eq!(site.bitmaps(), before);
    site.policy(|text| text.replace("consistency: application, ", ""));
    site.reads(1);

    // An item that leaves the policy leaves nothing behind.
    let other = site.sites.data("volumes/volume-b");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", path(&other), "1M"]);
    site.policy(|text| text.replace("format: qcow2", "select: { ids: [b] }, format: qcow2"));
    site.replicate();
    assert_eq!(site.bitmaps(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_change_that_a_bitmap_did_not_tell_is_found_by_the_full_read_and_it_is_distrusted() {
    let site = Images::new(ITEMS).await.with_image();
    site.reads(33 * MIB / BLOCK);
    // Somebody writes into the file itself, past QEMU.
    let map = tool("qemu-img", &["map", "--output=json", "-f", "qcow2", path(&site.image())]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let cluster = map.as_array().unwrap().iter().find(|piece| piece["start"] == 0).unwrap();
    let file = File::options().write(true).open(site.image()).unwrap();
    file.write_all_at(b"untold", cluster["offset"].as_u64().unwrap()).unwrap();
    let fooled = site.replicate();
    assert_eq!(fooled["changed_bytes"], 0, "the lie is not seen without a full read");

    site.verify_tracking("0s");
    let words = said(&site.sites.farsite("north", &["replicate"]));
    assert!(words.contains("65536 bytes of cinder/volume-a had changed"), "{words}");
    assert!(words.contains("not believed again"), "{words}");
    site.verify_tracking("7d");
    site.reads(33 * MIB / BLOCK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_never_has_other_files_of_the_host_read() {
    let site = Images::new(ITEMS).await;
    let secret = site.sites.path("secret");
    fs::write(&secret, vec![7; 100_000]).unwrap();
    let image = site.image();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", path(&secret), path(&image)]);
    let words = said(&site.sites.farsite("north", &["replicate"]));
    assert!(words.contains("in the same folder"), "{words}");
    // A backing file beside it is a part of its disk, which is then read in full.
    let base = site.sites.data("base.raw");
    fs::rename(&secret, &base).unwrap();
    site.policy(|text| text.replace("format: qcow2", "select: { ids: [a] }, format: qcow2"));
    fs::create_dir_all(site.sites.data("volumes")).unwrap();
    fs::rename(&base, site.sites.data("volumes/base.raw")).unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", path(&image)]);
    let report = site.replicate();
    site.assert_restores(&report);
    assert_eq!(site.bitmaps(), Vec::<String>::new());
}
