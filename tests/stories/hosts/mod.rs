//! A group whose items lie on two hosts: this one coordinates, and `stor1` serves what is local to it. The other host is a
//! process with a host name, a configuration and a state folder of its own, reached by a command over a pipe, as through ssh.

mod broken;
mod pool;
mod rows;
mod ssh;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use farsite_scenarios::mounts::{self, Mounted};
use farsite_scenarios::process::comes_true;
use farsite_scenarios::{TwoSites, binary, noise, said};

/// Btrfs lives in an image file here, and a host name of one's own is only root's to give.
const PROBE: [&str; 3] =
    ["sh", "-c", "test -w /dev/loop-control && mount -t tmpfs tmpfs /mnt && unshare --uts hostname x"];
const MIB: u64 = 1 << 20;

fn here() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What stor1 does when it is called: it writes down the process that serves, which is then the program itself.
fn serve(sites: &TwoSites) -> String {
    format!(
        "hostname stor1; echo $$ >> {}; exec {} --config {} serve-sources",
        sites.path("served.pids").display(),
        binary().display(),
        sites.path("north/stor1.yaml").display()
    )
}

/// What the coordinator's configuration says of stor1.
fn reached_by(sites: &TwoSites, command: &[&str]) {
    sites.edit("north/farsite.yaml", |text| {
        let rest = text.lines().filter(|line| !line.starts_with("hosts:")).collect::<Vec<_>>().join("\n");
        let command = serde_json::to_string(command).unwrap();
        format!("{rest}\nhosts: {{ stor1: {{ command: {command}, patience: 4s }} }}\n")
    });
}

const SHARE: &str = "  - cinder: { path: NORTH/volumes, on: stor1 }\n";

/// A file here; files, a small database and a share of volumes that is a Btrfs subvolume at stor1.
async fn two_hosts() -> (TwoSites, Mounted) {
    let mine = format!("  - files: {{ name: keys, paths: [NORTH/keys], on: {} }}\n", here());
    let theirs = "  - files: { name: etc, paths: [NORTH/etc], on: stor1 }\n  - sqlite: { path: NORTH/small.db, on: stor1 }\n";
    with_items(&format!("{mine}{theirs}{SHARE}")).await
}

async fn with_items(items: &str) -> (TwoSites, Mounted) {
    let sites = TwoSites::founded(items).await;
    fs::write(sites.data("keys"), b"the keys").unwrap();
    fs::create_dir(sites.data("etc")).unwrap();
    // Larger than what goes over the line at once, and empty.
    fs::write(sites.data("etc/large"), noise(3, 3_000_001)).unwrap();
    fs::write(sites.data("etc/empty"), b"").unwrap();
    std::os::unix::fs::symlink("large", sites.data("etc/link")).unwrap();
    let small = rusqlite::Connection::open(sites.data("small.db")).unwrap();
    small.execute_batch("CREATE TABLE t (n); INSERT INTO t VALUES (42)").unwrap();
    fs::create_dir(sites.data("volumes")).unwrap();
    let disk = Mounted::btrfs(&sites.data("volumes"), &sites.path("btrfs.image"), 1200);
    for (seed, name) in [(7, "volume-a"), (8, "volume-b")] {
        fs::write(sites.data("volumes").join(name), noise(seed, 8 << 20)).unwrap();
    }
    reached_by(&sites, &["unshare", "--uts", "sh", "-c", &serve(&sites)]);
    fs::write(sites.path("north/stor1.yaml"), "site: north\nsites: { north: {} }\nstate: state-of-stor1\n")
        .unwrap();
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
        let owners =
            fs::read_dir(sites.path("north/state-of-stor1/served/cloud")).into_iter().flatten().flatten();
        owners.map(|owner| fs::read_dir(owner.path().join("runs")).unwrap().count()).sum::<usize>()
    };
    let volumes = sites.data("volumes");
    let is_clean = || serving(sites).is_empty() && snapshots(&volumes) == 0 && scratch() == 0;
    assert!(
        comes_true(Duration::from_secs(20), is_clean),
        "processes {:?} of {:?}; {} scratch folders, of snapshots and volumes {:?}",
        serving(sites),
        fs::read_to_string(sites.path("served.pids")),
        scratch(),
        fs::read_dir(&volumes).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    );
}

#[test]
fn one_point_holds_what_two_hosts_read_and_only_changes_travel_again() {
    if !mounts::are_own() {
        return mounts::with_own(
            module_path!(),
            "one_point_holds_what_two_hosts_read_and_only_changes_travel_again",
            &PROBE,
        );
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = two_hosts().await;
        let report = replicate(&sites);
        assert_eq!((&report["whole"], report["items"].as_u64()), (&true.into(), Some(5)), "{report}");
        assert!(restored(&sites, &report, "cinder/volume-a") == noise(7, 8 << 20));
        let small = sites.path("small.db");
        fs::write(&small, restored(&sites, &report, "sqlite/small")).unwrap();
        let number = |row: &rusqlite::Row<'_>| row.get::<_, u32>(0);
        let small = rusqlite::Connection::open(small).unwrap();
        assert_eq!(small.query_row("SELECT n FROM t", [], number).unwrap(), 42);
        let (point, to) = (report["point"].as_str().unwrap(), sites.path("etc"));
        let words = ["restore", point, "files/etc", "--to", to.to_str().unwrap()];
        let output = sites.farsite("south", &words);
        assert!(output.status.success(), "{}", said(&output));
        let etc = to.join(sites.data("etc").strip_prefix("/").unwrap());
        assert!(fs::read(etc.join("large")).unwrap() == noise(3, 3_000_001));
        assert_eq!(fs::read(etc.join("empty")).unwrap(), b"");
        assert_eq!(fs::read_link(etc.join("link")).unwrap(), Path::new("large"));
        assert_nothing_is_left(&sites);

        let mut bytes = noise(8, 8 << 20);
        bytes[3 << 20..(3 << 20) + 9].copy_from_slice(b"something");
        let file = fs::File::options().write(true).open(sites.data("volumes").join("volume-b")).unwrap();
        file.write_all_at(b"something", 3 << 20).unwrap();
        let report = replicate(&sites);
        assert_eq!(report["whole"], true, "{report}");
        assert!(report["read_bytes"].as_u64().unwrap() < 4 * MIB, "the files and what has changed: {report}");
        assert!(restored(&sites, &report, "cinder/volume-b") == bytes);
        assert_nothing_is_left(&sites);
    });
}

#[test]
fn the_check_says_what_nobody_can_reach_and_why() {
    if !mounts::are_own() {
        return mounts::with_own(module_path!(), "the_check_says_what_nobody_can_reach_and_why", &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = two_hosts().await;
        let check = |at: &str| said(&sites.command(at, &["check"]).output().unwrap());
        let answer = check("north/farsite.yaml");
        assert!(answer.contains("host stor1: cinder/main"), "each line of that host begins so: {answer}");
        assert!(answer.contains("nothing is wrong"), "{answer}");

        let greets = "echo Welcome to stor1; exec cat";
        let other = serve(&sites).replace("hostname stor1", "hostname stor2");
        let newer = "head -c 1 >/dev/null; printf 'FARSITE\\n\\046\\000\\000\\000\\000\\000\\000\\000{\"protocol\":7,\"version\":\"9.9.9\",\"x\":1}'; cat";
        let cases: [(&[&str], &str); 5] = [
            (&["sh", "-c", "echo 'Permission denied (publickey).' >&2; exit 255"], "Permission denied (publickey)."),
            (&["sh", "-c", greets], "Welcome to stor1"),
            (&["unshare", "--uts", "sh", "-c", &other], "calls itself stor2, and stor1 was meant"),
            (&["sh", "-c", newer], "protocol 7 (farsite 9.9.9), and this host speaks 1"),
            (&["/nowhere/ssh"], "No such file"),
        ];
        for (command, why) in cases {
            reached_by(&sites, command);
            let answer = check("north/farsite.yaml");
            assert!(answer.contains(why), "{command:?}: {answer}");
            assert!(answer.contains("✗ cinder/main: host stor1") && answer.contains("hint: "), "{answer}");
        }
        sites.edit("north/farsite.yaml", |text| text.replace("stor1:", "stor3:"));
        let answer = check("north/farsite.yaml");
        assert!(answer.contains("nothing says how stor1 is reached"), "{answer}");
        // What can be reached is captured all the same.
        let report = replicate(&sites);
        assert_eq!((&report["whole"], report["items"].as_u64()), (&false.into(), Some(1)), "{report}");
    });
}

#[test]
fn an_agent_that_does_not_coordinate_says_so_and_makes_no_point() {
    if !mounts::are_own() {
        let name = "an_agent_that_does_not_coordinate_says_so_and_makes_no_point";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let sites = TwoSites::founded("  - files: { name: keys, paths: [NORTH/keys], on: ctl1 }\n").await;
        let coordinated = "coordinated by the agent on host ctl1";
        for words in [&["replicate"][..], &["check"], &["status"]] {
            let answer = said(&sites.farsite("north", words));
            assert!(answer.contains(coordinated), "{words:?}: {answer}");
        }
        assert!(sites.ledger().await.state().points.is_empty());

        // A name that no host has: every host leaves the group to another, and every check says so.
        let check = || said(&sites.farsite("north", &["check"]));
        let answer = check();
        assert!(
            answer.contains("✗ coordination") && answer.contains("holds no point of the group"),
            "{answer}"
        );
        assert!(answer.contains(&format!("this host, {}", here())), "{answer}");
        // Its agent is at work.
        fs::write(sites.data("keys"), b"the keys").unwrap();
        let policy = |from: &str, to: &str| {
            sites.edit("north/policies/cloud.yaml", |text| text.replace(from, to));
        };
        policy("on: ctl1", &format!("on: {}", here()));
        let report = replicate(&sites);
        assert_eq!(report["whole"], true, "{report}");
        policy(&format!("on: {}", here()), "on: ctl1");
        policy("rpo: 20s", "rpo: 1h");
        let answer = check();
        assert!(
            answer.contains("✓ coordination") && answer.contains("its newest point at south is"),
            "{answer}"
        );
        // It is not any more.
        policy("rpo: 1h", "rpo: 1s");
        std::thread::sleep(Duration::from_secs(2));
        let answer = check();
        assert!(answer.contains("✗ coordination") && answer.contains("more than its rpo of 1s"), "{answer}");
        // What cannot be told here.
        fs::rename(sites.path("south/replica"), sites.path("away")).unwrap();
        let answer = check();
        assert!(answer.contains("! coordination") && answer.contains("cannot be told here"), "{answer}");
    });
}
