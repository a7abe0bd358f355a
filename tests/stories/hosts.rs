//! A group whose items lie on two hosts: this one coordinates, and `stor1` serves what is local to it. The other host is a
//! process with a host name, a configuration and a state folder of its own, reached by a command over a pipe, as through ssh.

use std::fs;
use std::path::Path;
use std::time::Duration;

use farsite_scenarios::mounts::{self, Mounted};
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, binary, noise, said};

/// Btrfs lives in an image file here, and a host name of one's own is only root's to give.
const PROBE: [&str; 3] =
    ["sh", "-c", "test -w /dev/loop-control && mount -t tmpfs tmpfs /mnt && unshare --uts hostname x"];
const MIB: u64 = 1 << 20;

fn here() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What stor1 does when it is called: it writes down the process that serves, which is then the program itself.
fn hosts(sites: &TwoSites, patience: &str) -> String {
    let (program, config) = (binary().display().to_string(), sites.path("north/stor1.yaml"));
    let script = format!(
        "hostname stor1; echo $$ >> {}; exec {program} --config {} serve-sources",
        sites.path("served.pids").display(),
        config.display()
    );
    format!("hosts:\n  stor1: {{ command: [unshare, --uts, sh, -c, '{script}'], patience: {patience} }}\n")
}

/// A file here, and a share of volumes that is a Btrfs subvolume at stor1.
async fn two_hosts() -> (TwoSites, Mounted) {
    let items = format!(
        "  - files: {{ name: keys, paths: [NORTH/keys], on: {} }}\n  - cinder: {{ path: NORTH/volumes, on: stor1 }}\n",
        here()
    );
    let sites = TwoSites::founded(&items).await;
    fs::write(sites.data("keys"), b"the keys").unwrap();
    fs::create_dir(sites.data("volumes")).unwrap();
    let disk = Mounted::btrfs(&sites.data("volumes"), &sites.path("btrfs.image"), 600);
    for (seed, name) in [(7, "volume-a"), (8, "volume-b")] {
        fs::write(sites.data("volumes").join(name), noise(seed, 8 << 20)).unwrap();
    }
    let text = format!("{}{}", fs::read_to_string(sites.path("north/farsite.yaml")).unwrap(), hosts(&sites, "5s"));
    fs::write(sites.path("north/farsite.yaml"), text).unwrap();
    fs::write(sites.path("north/stor1.yaml"), "site: north\nsites: { north: {} }\nstate: state-of-stor1\n").unwrap();
    (sites, disk)
}

#[track_caller]
fn replicate(sites: &TwoSites) -> serde_json::Value {
    let output = sites.farsite("north", &["replicate", "--json"]);
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    answer[0]["report"].clone()
}

#[track_caller]
fn restored(sites: &TwoSites, report: &serde_json::Value, item: &str) -> Vec<u8> {
    let to = sites.path("restored");
    fs::write(&to, b"").unwrap();
    let point = report["point"].as_str().unwrap();
    let words = ["restore", point, item, "--in-place", "--yes", "--to", to.to_str().unwrap()];
    let output = sites.farsite("south", &words);
    assert!(output.status.success(), "{}", said(&output));
    fs::read(to).unwrap()
}

fn serving(sites: &TwoSites) -> Vec<u32> {
    let pids = fs::read_to_string(sites.path("served.pids")).unwrap_or_default();
    let pids = pids.lines().map(|line| line.parse::<u32>().unwrap());
    pids.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    })
    .collect()
}

fn snapshots(volumes: &Path) -> usize {
    let names = fs::read_dir(volumes).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".farsite-snap")).count()
}

/// No process, no snapshot, no scratch file.
#[track_caller]
fn assert_nothing_is_left(sites: &TwoSites) {
    let scratch = || {
        let owners = fs::read_dir(sites.path("north/state-of-stor1/served/cloud")).into_iter().flatten().flatten();
        owners.map(|owner| fs::read_dir(owner.path().join("runs")).unwrap().count()).sum::<usize>()
    };
    let volumes = sites.data("volumes");
    let is_clean = || serving(sites).is_empty() && snapshots(&volumes) == 0 && scratch() == 0;
    assert!(
        comes_true(Duration::from_secs(20), is_clean),
        "processes {:?}, {} snapshots, {} scratch folders",
        serving(sites),
        snapshots(&volumes),
        scratch()
    );
}

#[test]
fn one_point_holds_what_two_hosts_read_and_only_changes_travel_again() {
    if !mounts::are_own() {
        return mounts::with_own(module_path!(), "one_point_holds_what_two_hosts_read_and_only_changes_travel_again", &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = two_hosts().await;
        let report = replicate(&sites);
        assert_eq!((&report["whole"], report["items"].as_u64()), (&true.into(), Some(3)), "{report}");
        assert!(restored(&sites, &report, "cinder/volume-a") == noise(7, 8 << 20));
        assert_nothing_is_left(&sites);

        let mut bytes = noise(8, 8 << 20);
        bytes[3 << 20..(3 << 20) + 9].copy_from_slice(b"something");
        let file = fs::File::options().write(true).open(sites.data("volumes").join("volume-b")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"something", 3 << 20).unwrap();
        let report = replicate(&sites);
        assert_eq!(report["whole"], true, "{report}");
        assert!(report["read_bytes"].as_u64().unwrap() < MIB, "{report}");
        assert!(restored(&sites, &report, "cinder/volume-b") == bytes);
        assert_nothing_is_left(&sites);
    });
}
