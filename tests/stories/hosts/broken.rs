//! The way to the other host breaks, or either end does, in the middle of a run.

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use farsite_scenarios::process::Running;

/// What is read waits for what is sent, of which little is held.
const SLOW: &str = "bandwidth: { limit: 16MiB/s }\nmemory: 64MiB\n";

/// A round that reads slowly enough to be met in the middle: its process at stor1 has a snapshot, and is read from.
async fn in_the_middle() -> (TwoSites, Mounted, Running) {
    let (sites, disk) = two_hosts().await;
    let point = replicate(&sites);
    assert_eq!(point["whole"], true, "{point}");
    assert_nothing_is_left(&sites);
    for (seed, name) in [(17, "volume-a"), (18, "volume-b")] {
        fs::write(sites.data("volumes").join(name), noise(seed, 96 << 20)).unwrap();
    }
    sites.edit("north/policies/cloud.yaml", |text| format!("{text}{SLOW}"));
    let command = sites.command("north/farsite.yaml", &["replicate", "--json"]);
    let run = Running::start(command, &sites.path("run.log"));
    let volumes = sites.data("volumes");
    assert!(comes_true(Duration::from_secs(30), || snapshots(&volumes) == 1), "{}", run.said());
    std::thread::sleep(Duration::from_secs(1));
    (sites, disk, run)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// The run goes on at full speed.
fn hurry(sites: &TwoSites) {
    sites.edit("north/policies/cloud.yaml", |text| text.replace(SLOW, ""));
}

/// The point that is made has all of this host, of the other what it had before, and says why.
#[track_caller]
fn assert_partial(run: &mut Running, why: &[&str]) {
    run.ends_within(Duration::from_mins(2));
    let answer = run.said();
    let begin = answer.find("[\n").unwrap_or_else(|| panic!("{answer}"));
    let mut told = serde_json::Deserializer::from_str(&answer[begin..]).into_iter::<serde_json::Value>();
    let told = told.next().unwrap().unwrap();
    let report = &told[0]["report"];
    assert_eq!(report["whole"], false, "{report}");
    assert_eq!(report["items"].as_u64(), Some(5), "what was not captured is there as it was: {report}");
    let failed = report["failed"].as_array().unwrap();
    assert!(failed.iter().any(|item| item["id"] == "cinder/volume-b"), "{report}");
    for word in why {
        assert!(
            failed.iter().any(|item| item["why"].as_str().unwrap().contains(word)),
            "no {word:?}: {report}"
        );
    }
}

#[track_caller]
fn assert_next_is_whole(sites: &TwoSites) {
    hurry(sites);
    let report = replicate(sites);
    assert_eq!(report["whole"], true, "{report}");
    assert!(restored(sites, &report, "cinder/volume-b") == noise(18, 96 << 20));
    assert_nothing_is_left(sites);
}

#[test]
fn a_serving_process_that_is_killed_makes_a_partial_point_and_the_next_is_whole() {
    if !mounts::are_own() {
        let name = "a_serving_process_that_is_killed_makes_a_partial_point_and_the_next_is_whole";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk, mut run) = in_the_middle().await;
        for pid in serving(&sites) {
            signal(pid, Signal::KILL);
        }
        assert_partial(&mut run, &["host stor1, through `unshare --uts", "signal: 9", "hint: "]);
        assert_next_is_whole(&sites);
    });
}

#[test]
fn a_host_that_says_nothing_any_more_is_given_up() {
    if !mounts::are_own() {
        let name = "a_host_that_says_nothing_any_more_is_given_up";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk, mut run) = in_the_middle().await;
        for pid in serving(&sites) {
            signal(pid, Signal::STOP);
        }
        assert_partial(&mut run, &["it has said nothing for 4 s and was given up"]);
        assert_next_is_whole(&sites);
    });
}

#[test]
fn a_coordinator_that_is_killed_leaves_nothing_at_the_other_host() {
    if !mounts::are_own() {
        let name = "a_coordinator_that_is_killed_leaves_nothing_at_the_other_host";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk, mut run) = in_the_middle().await;
        assert_eq!(serving(&sites).len(), 1);
        run.kill();
        assert_nothing_is_left(&sites);
        assert_next_is_whole(&sites);
    });
}

#[test]
fn a_coordinator_that_hangs_is_given_up_by_the_other_host() {
    if !mounts::are_own() {
        let name = "a_coordinator_that_hangs_is_given_up_by_the_other_host";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk, mut run) = in_the_middle().await;
        run.signal(Signal::STOP);
        assert_nothing_is_left(&sites);
        run.signal(Signal::CONT);
        assert_partial(&mut run, &["host stor1, through `unshare --uts"]);
        assert_next_is_whole(&sites);
    });
}
