//! Volumes that are qcow2 images, at a site that replicates them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{TwoSites, said};

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 64 << 10;
const DISK_BYTES: u64 = 96 * MIB;

/// Two sites, of which north has a folder of images.
pub struct Images {
    pub sites: TwoSites,
}

impl Images {
    /// `items` as [`TwoSites::founded`] takes them.
    pub async fn new(items: &str) -> Self {
        let sites = TwoSites::founded(items).await;
        fs::create_dir(sites.data("volumes")).expect("a folder");
        Self { sites }
    }

    pub fn image(&self) -> PathBuf {
        self.sites.data("volumes/volume-a")
    }

    /// 96 MiB, of which 33 hold data.
    pub fn with_image(self) -> Self {
        tool("qemu-img", &["create", "-q", "-f", "qcow2", path(&self.image()), &DISK_BYTES.to_string()]);
        self.io(&["write -P 17 0 32M", "write -P 18 64M 1M"]);
        self
    }

    /// What a guest does, from its start to its end.
    pub fn io(&self, commands: &[&str]) {
        io("qcow2", path(&self.image()), commands);
    }

    /// A run's report.
    #[track_caller]
    pub fn replicate(&self) -> serde_json::Value {
        let output = self.sites.farsite("north", &["replicate", "--json"]);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer[0]["report"].clone()
    }

    /// A run that reads so many blocks, and whose point holds what the disk holds.
    #[track_caller]
    pub fn reads(&self, blocks: u64) -> serde_json::Value {
        let report = self.replicate();
        assert_eq!(report["failed"], serde_json::json!([]), "{report}");
        assert_eq!(report["read_bytes"], blocks * BLOCK, "{report}");
        self.assert_restores(&report);
        assert_eq!(self.bitmaps().len(), 1, "{:?}", self.bitmaps());
        report
    }

    #[track_caller]
    pub fn assert_restores(&self, report: &serde_json::Value) {
        self.assert_restores_as(report, "qcow2", path(&self.image()));
    }

    /// A point's disk is the same as another one.
    #[track_caller]
    pub fn assert_restores_as(&self, report: &serde_json::Value, format: &str, disk: &str) {
        let [restored, expected] = ["restored", "expected"].map(|name| self.sites.path(name));
        self.restore(report, &restored);
        tool("qemu-img", &["convert", "-f", format, "-O", "raw", disk, path(&expected)]);
        assert!(fs::read(&restored).unwrap() == fs::read(&expected).unwrap(), "it restores as another disk");
    }

    #[track_caller]
    pub fn restore(&self, report: &serde_json::Value, to: &Path) {
        let _ = fs::remove_file(to);
        let point = report["point"].as_str().unwrap();
        let output = self.sites.farsite("south", &["restore", point, "cinder/volume-a", "--to", path(to)]);
        assert!(output.status.success(), "{}", said(&output));
    }

    pub fn bitmaps(&self) -> Vec<String> {
        self.bitmaps_now().expect("nobody writes the image")
    }

    /// None while somebody writes the image.
    pub fn bitmaps_now(&self) -> Option<Vec<String>> {
        let mut info = Command::new("qemu-img");
        info.args(["info", "-U", "--output=json", path(&self.image())]);
        let info: serde_json::Value = serde_json::from_slice(&info.output().unwrap().stdout).ok()?;
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
        Some(bitmaps.iter().map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect())
    }

    pub fn policy(&self, change: impl Fn(&str) -> String) {
        self.sites.edit("north/policies/cloud.yaml", |text| change(&text));
    }

    pub fn verify_tracking(&self, after: &str) {
        self.policy(|text| {
            let lines = text.lines().filter(|line| !line.starts_with("verify-tracking"));
            lines.collect::<Vec<_>>().join("\n") + &format!("\nverify-tracking: {after}\n")
        });
    }
}

/// As an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a program of QEMU says.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new("timeout").arg("60").arg(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Commands of qemu-io, one after another.
#[track_caller]
pub fn io(format: &str, place: &str, commands: &[&str]) {
    let mut args = vec!["-f", format];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(place);
    tool("qemu-io", &args);
}
