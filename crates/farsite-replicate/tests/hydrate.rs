//! Hydrated copies: they follow the points by what differs, go back, are never mistaken for a point that they are not, and are
//! handed to a promotion.

#[path = "../../farsite-store/tests/store/common/mod.rs"]
mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::patched::{self, Version};
use common::{World, noise};
use farsite_model::config::Config;
use farsite_model::{ItemId, ItemKind, PointId};
use farsite_replicate::hydrate::{Applied, Copy, How, Place, Stands, hand_over, hydrate_group};
use farsite_replicate::restore::{self, Guard, unguarded};
use farsite_replicate::spot::Spot;
use farsite_store::ledger::Ledger;
use farsite_store::manifest::ManifestItem;
use farsite_store::read::ReadStats;

const BLOCK: usize = 4096;
const SIZE: usize = 3 << 20;

fn point(n: u64) -> PointId {
    PointId::from_random(n)
}
fn item(version: &Version) -> ManifestItem {
    common::manifest(1, version.map.clone()).items.remove(0)
}

/// Five versions of a volume, each with other changes, holes among them, and other sizes.
async fn versions(world: &World) -> Vec<Version> {
    let mut content = noise(1, SIZE);
    content[BLOCK * 100..BLOCK * 200].fill(0);
    let mut versions: Vec<Version> = Vec::new();
    for n in 0..5u64 {
        for i in 0..40 {
            let block = (n as usize * 131 + i * 17) % (content.len() / BLOCK);
            let bytes = if i % 5 == 0 { vec![0; BLOCK] } else { noise(n * 1000 + i as u64, BLOCK) };
            content[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(&bytes);
        }
        content.truncate(SIZE - n as usize * 5000);
        versions.push(patched::write(world, n, content.clone(), BLOCK, versions.last()).await);
    }
    versions
}

struct Site {
    world: World,
    versions: Vec<Version>,
    copy: Copy,
    place: PathBuf,
}

impl Site {
    async fn new() -> Self {
        let world = World::in_folder().await;
        let versions = versions(&world).await;
        let place = world.dir.path().join("volumes/v");
        let copy = Copy::of(&ItemId::new(ItemKind::Volume, "v"), &place);
        Self { world, versions, copy, place }
    }
    async fn apply(&self, n: usize, guard: &Guard) -> Result<Applied, String> {
        let version = &self.versions[n];
        let (stats, reader) = (ReadStats::default(), self.world.reader());
        let applied = self.copy.apply(&reader, &item(version), point(n as u64), guard, &stats).await;
        applied.map_err(|e| e.to_string())?.ok_or_else(|| "somebody else works on it".to_owned())
    }
    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.copy.path()).unwrap()
    }
    /// Whatever happened: what it says it is, it is.
    fn check_honest(&self, when: &str) -> Option<PointId> {
        let version = self.copy.untouched().unwrap()?;
        let n = (0..5).find(|n| point(*n) == version.point).unwrap();
        assert!(self.bytes() == self.versions[n as usize].content, "{when}: it is not point {n}");
        Some(version.point)
    }
}

/// Stops at the nth step.
fn stops_after(steps: u64) -> Guard {
    let left = AtomicU64::new(steps);
    Arc::new(move || {
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err() {
            return Err(std::io::Error::other("stopped here"));
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_follows_the_points_by_what_differs_and_goes_back_the_same_way() {
    let site = Site::new().await;
    let first = site.apply(0, &unguarded()).await.unwrap();
    assert_eq!(first.how, How::Anew);
    for n in [1, 2, 3, 4, 2, 0, 4] {
        let applied = site.apply(n, &unguarded()).await.unwrap();
        assert_eq!(applied.how, How::ByMaps, "to {n}");
        assert!(applied.written_bytes < 800 << 10, "to {n}: {} bytes", applied.written_bytes);
        assert_eq!(site.check_honest("after it"), Some(point(n as u64)));
    }
    let again = site.apply(4, &unguarded()).await.unwrap();
    assert_eq!((again.how, again.written_bytes), (How::Already, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_at_any_step_a_copy_is_dirty_and_the_next_attempt_puts_all_of_it_right() {
    let site = Site::new().await;
    site.apply(0, &unguarded()).await.unwrap();
    for steps in 0..60 {
        let (from, to) = (steps as usize % 4, (steps as usize + 1) % 4);
        site.apply(from, &unguarded()).await.unwrap();
        let stopped = site.apply(to, &stops_after(steps)).await;
        if stopped.is_err() && steps > 1 {
            let stands = site.copy.stands().unwrap();
            assert!(matches!(stands, Some(Stands::Dirty { .. })), "step {steps}: {stands:?}");
        }
        site.check_honest(&format!("stopped at step {steps}"));
        // Another point may be the newest by then.
        let next = (to + steps as usize) % 5;
        site.apply(next, &unguarded()).await.unwrap();
        assert_eq!(site.check_honest("gone on with"), Some(point(next as u64)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_anybody_touched_is_found_out_and_compared() {
    let site = Site::new().await;
    site.apply(0, &unguarded()).await.unwrap();
    let path = site.copy.path().to_owned();
    let touches: [fn(&Path); 4] = [
        // One byte, and the time of modification put back as it was.
        |path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(b"!", 2_000_000).unwrap();
            file.set_modified(modified).unwrap();
        },
        |path| std::fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap(),
        // Another file in its place.
        |path| {
            let bytes = noise(9, SIZE);
            std::fs::write(path.with_extension("other"), bytes).unwrap();
            std::fs::rename(path.with_extension("other"), path).unwrap();
        },
        |path| std::fs::remove_file(path).unwrap(),
    ];
    for (i, touch) in touches.into_iter().enumerate() {
        touch(&path);
        assert_eq!(site.copy.untouched().unwrap(), None, "touch {i}");
        let applied = site.apply(0, &unguarded()).await.unwrap();
        let expected = if i == 3 { How::Anew } else { How::ByContents };
        assert_eq!(applied.how, expected, "touch {i}");
        assert_eq!(site.check_honest("put right"), Some(point(0)));
    }
    // What is said of it may be lost or odd as well.
    let state = path.with_file_name(".v.state");
    for odd in [&b""[..], b"{}\n0", b"nonsense"] {
        std::fs::write(&state, odd).unwrap();
        assert_eq!(site.copy.untouched().unwrap(), None);
        assert_eq!(site.apply(1, &unguarded()).await.unwrap().how, How::ByContents);
        assert_eq!(site.check_honest("put right"), Some(point(1)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_gets_the_copy_and_writes_only_what_differs() {
    let site = Site::new().await;
    for (hydrated, promoted, touched) in [(2, 2, false), (1, 3, false), (4, 0, true)] {
        let _ = std::fs::remove_file(&site.place);
        site.apply(hydrated, &unguarded()).await.unwrap();
        if touched {
            let file = std::fs::File::options().write(true).open(site.copy.path()).unwrap();
            file.write_all_at(&[1; 9000], 1_000_000).unwrap();
        }
        let item = item(&site.versions[promoted]);
        let known = hand_over(&item, &site.place).await.unwrap().expect("there is a copy");
        assert_eq!(known.is_some(), !touched);
        assert!(!site.copy.path().exists() && site.copy.stands().unwrap().is_none());
        let (stats, reader) = (ReadStats::default(), site.world.reader());
        restore::item_from(&reader, &item, &site.place, known.as_ref(), &unguarded(), &stats).await.unwrap();
        assert!(std::fs::read(&site.place).unwrap() == site.versions[promoted].content);
        let written = stats.written_bytes.load(Ordering::Relaxed);
        assert!(written < 1 << 20, "{written} bytes");
        assert_eq!(written == 0, hydrated == promoted);
        assert!(hand_over(&item, &site.place).await.unwrap().is_none(), "it is taken once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hydrates_lets_a_promotion_in() {
    let site = Site::new().await;
    site.apply(0, &unguarded()).await.unwrap();
    let slow: Guard = Arc::new(|| {
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    });
    let item = item(&site.versions[3]);
    let promoted = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        hand_over(&item, &site.place).await.unwrap()
    };
    let (hydrated, handed) = tokio::join!(site.apply(3, &slow), promoted);
    assert!(hydrated.unwrap_err().contains("a promotion wants this copy"));
    assert_eq!(handed, Some(None), "it was half-way: its contents are compared");
    let (stats, reader) = (ReadStats::default(), site.world.reader());
    restore::item_from(&reader, &item, &site.place, None, &unguarded(), &stats).await.unwrap();
    assert!(std::fs::read(&site.place).unwrap() == site.versions[3].content);
}

/// Set in the child process that is killed.
const CHILD: &str = "FARSITE_TEST_HYDRATE_CHILD";

const KILLED: &str = "killed_at_any_instant_a_copy_is_never_mistaken_about_which_point_it_is";

/// Hydrates to one point after another until it is killed.
async fn hydrate_for_ever(folder: &Path) {
    let site = Site::new().await;
    let copy = Copy::of(&site.copy.item, &folder.join("v"));
    std::fs::write(folder.join("ready"), b"").unwrap();
    let reader = site.world.reader();
    for n in (0..5).cycle() {
        let (item, stats) = (item(&site.versions[n]), ReadStats::default());
        copy.apply(&reader, &item, point(n as u64), &unguarded(), &stats).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant_a_copy_is_never_mistaken_about_which_point_it_is() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return hydrate_for_ever(Path::new(&folder)).await;
    }
    // The contents of the versions are the same in every world; the store's keys are not, and are not needed here.
    let mut site = Site::new().await;
    let folder = site.world.dir.path().join("volumes");
    std::fs::create_dir(&folder).unwrap();
    site.copy = Copy::of(&site.copy.item, &folder.join("v"));
    let mut dirty = 0;
    for round in 0..15u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", KILLED, "--nocapture"])
            .env(CHILD, &folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !folder.join("ready").exists() {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(20 + round * 7));
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_file(folder.join("ready")).unwrap();
        site.check_honest(&format!("killed in round {round}"));
        dirty += u64::from(matches!(site.copy.stands().unwrap(), Some(Stands::Dirty { .. })));
        // Half of the rounds go on with what the child left.
        if round % 2 == 0 {
            let n = round as usize % 5;
            site.apply(n, &unguarded()).await.unwrap();
            assert_eq!(site.check_honest("gone on with"), Some(point(n as u64)));
        }
    }
    assert!(dirty > 0, "no round was killed in the middle");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_hydrates_the_newest_whole_point_and_leaves_a_promoted_group_alone() {
    let world = World::in_folder().await;
    let volumes = world.dir.path().join("volumes");
    let config =
        Config::parse("farsite.yaml", "site: south\nsites: { north: {}, south: {} }\n", &volumes).unwrap();
    let at = volumes.join("v");
    let place: Place = {
        let at = at.clone();
        Arc::new(move |_, _, _, _| Ok(Spot::File(at.clone())))
    };
    let mut ledger = Ledger::open(&world.store, &common::group()).await.unwrap();
    ledger.append(&world.operator, |_| Ok(common::founded())).await.unwrap();
    let reader = world.reader();
    let (group, guard) = (common::group(), unguarded());
    let look = || hydrate_group(&config, &world.store, &reader, &group, &place, None, &guard);
    let copy = Copy::of(&ItemId::new(ItemKind::Volume, "v"), &at);
    for n in 1..=3u64 {
        let content = noise(n, 500_000);
        common::run_to_commit(&world, &world.store, n, content.clone()).await.unwrap();
        let hydrated = look().await.unwrap();
        assert_eq!(hydrated.point, Some(point(n)), "{:?}", hydrated.failed);
        assert!(std::fs::read(copy.path()).unwrap() == content);
        assert!(!at.exists(), "the place is the promotion's");
    }
    ledger.refresh().await.unwrap();
    ledger.append(&world.operator, |_| Ok(common::epoch(2))).await.unwrap();
    let left = look().await.unwrap();
    assert!(left.point.is_none() && left.items.is_empty());
}
