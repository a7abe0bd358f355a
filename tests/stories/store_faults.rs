//! A site is replicated to an S3 store that fails: at every call in turn, in every way. What must hold: no point is ever
//! lost, none is there twice, and what was said to be committed is restored as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use farsite_model::PointId;
use farsite_model::clock::SystemClock;
use farsite_replicate::group::Group;
use farsite_replicate::restore;
use farsite_replicate::run::RunOptions;
use farsite_s3server::{Credentials, Fault, Server};
use farsite_scenarios::{Random, TwoSites, noise, run, seed, site};
use farsite_store::read::ReadStats;

/// Every way in which one call can go wrong.
const FAULTS: [Fault; 8] = [
    Fault::Refuse(500),
    Fault::Refuse(503),
    Fault::Refuse(429),
    Fault::LoseAnswer(500),
    Fault::HangUp,
    Fault::CutRequest,
    Fault::CutAnswer,
    Fault::Twice,
];

struct Story {
    sites: TwoSites,
    server: Server,
    random: Random,
    content: Vec<u8>,
}

/// Two sites whose store is the same folder, served over S3.
async fn story(random: Random) -> Story {
    let sites = TwoSites::founded("  - cinder: { path: NORTH/volumes }\n").await;
    std::fs::create_dir_all(sites.data("volumes")).unwrap();
    let owner =
        Credentials { access_key: "owner".into(), secret_key: "secret-secret".into(), may_only_add: false };
    let server = Server::start(&sites.path("south"), 0, vec![owner]).await.unwrap();
    std::fs::write(sites.path("access"), "owner").unwrap();
    std::fs::write(sites.path("secret"), "secret-secret").unwrap();
    let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    for file in ["access", "secret"] {
        std::fs::set_permissions(sites.path(file), private.clone()).unwrap();
    }
    for at in ["north", "south"] {
        let folder = sites.path("south/replica").display().to_string();
        let s3 = format!(
            "\"s3://replica?endpoint={}&answer-timeout=5s\", access-key: \"file:{}\", secret-key: \"file:{}\"",
            server.endpoint(),
            sites.path("access").display(),
            sites.path("secret").display()
        );
        sites.edit(&format!("{at}/farsite.yaml"), |text| text.replace(&folder, &s3));
    }
    let content = noise(1, 400_000);
    let mut story = Story { sites, server, random, content };
    story.write();
    story
}

impl Story {
    /// Changes one block of the volume.
    fn write(&mut self) {
        let at = self.random.between(0, self.content.len() as u64 / 4096 - 1) as usize * 4096;
        self.random.fill(&mut self.content[at..at + 4096]);
        std::fs::write(self.sites.data("volumes/volume-a"), &self.content).unwrap();
    }

    async fn points(&self) -> Vec<PointId> {
        let ledger = self.sites.ledger().await;
        assert!(ledger.state().damage.is_empty(), "{:?}", ledger.state().damage);
        ledger.state().points.iter().map(farsite_store::ledger::CommittedPoint::id).collect()
    }

    /// One run, as an agent does it; what goes wrong is said in words.
    async fn run(&self) -> Result<PointId, String> {
        let (config, policy) = (self.sites.config("north"), self.sites.the_policy());
        let south = site("south");
        let group = Group::open(&config, &policy, &south, Arc::new(SystemClock)).await;
        let group = group.map_err(|error| error.to_string())?;
        let report = run(group, RunOptions::default()).await;
        report.map(|report| report.point).map_err(|error| error.to_string())
    }

    /// The newest point is the volume as it is now.
    async fn check_newest(&self, point: PointId, what: &str) {
        let manifest = self.sites.manifest(point).await;
        let to = self.sites.path("restored");
        let _ = std::fs::remove_file(&to);
        let reader = self.sites.reader().await;
        restore::item(&reader, &manifest.items[0], &to, &restore::unguarded(), &ReadStats::default())
            .await
            .unwrap();
        assert!(std::fs::read(&to).unwrap() == self.content, "{what}");
    }

    /// One run in which the calls that `hit` (counted from 1) fail so, then what must hold. Says how many calls it made. The
    /// race of probes before the run is not counted: it writes nothing that stays.
    async fn one_run(
        &mut self,
        fault: Fault,
        hit: impl Fn(u64) -> bool + Send + Sync + 'static,
        what: &str,
    ) -> u64 {
        self.write();
        let before = self.points().await;
        let counted = Arc::new(AtomicU64::new(0));
        let counter = counted.clone();
        self.server.set_faults(Arc::new(move |call| {
            let counts = !call.path.contains("/probe/");
            if counts && hit(counter.fetch_add(1, Ordering::SeqCst) + 1) { fault } else { Fault::None }
        }));
        let result = self.run().await;
        self.server.set_faults(Arc::new(|_| Fault::None));
        let calls = counted.load(Ordering::SeqCst);
        let after = self.points().await;
        assert!(after.starts_with(&before), "{what}: a point is gone: {before:?} {after:?}");
        let new = &after[before.len()..];
        match &result {
            Ok(point) => assert_eq!(new, [*point], "{what}"),
            Err(error) => assert!(new.len() <= 1, "{what}: {error}: {new:?}"),
        }
        let newest = match new {
            [point] => *point,
            // The run failed: the next one makes good.
            _ => self.run().await.unwrap_or_else(|error| panic!("{what}: after {result:?}: {error}")),
        };
        let after = self.points().await;
        assert_eq!((after.len(), after.last()), (before.len() + 1, Some(&newest)), "{what}");
        self.check_newest(newest, what).await;
        calls
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_at_some_call_never_loses_or_doubles_a_point() {
    let mut story = story(Random(seed())).await;
    let calls = story.one_run(Fault::None, |_| false, "no fault").await;
    for fault in FAULTS {
        let at = story.random.between(1, calls + 1);
        story.one_run(fault, move |call| call == at, &format!("{fault:?} at call {at} of {calls}")).await;
    }
}

/// One fault at every call of a run in turn, each in a run of its own.
async fn at_every_call(fault: Fault) {
    let mut story = story(Random(seed())).await;
    let calls = story.one_run(Fault::None, |_| false, "no fault").await;
    // A later run makes some calls more than the first one, which has no point to build on.
    let calls = calls.max(story.one_run(Fault::None, |_| false, "no fault").await);
    println!("{fault:?} at {calls} calls");
    for at in 1..=calls {
        let what = format!("{fault:?} at call {at} of {calls}");
        story.one_run(fault, move |call| call == at, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_refusal_at_every_call_never_loses_or_doubles_a_point() {
    at_every_call(Fault::Refuse(503)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_lost_answer_at_every_call_never_loses_or_doubles_a_point() {
    at_every_call(Fault::LoseAnswer(500)).await;
    at_every_call(Fault::HangUp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_half_a_message_at_every_call_never_loses_or_doubles_a_point() {
    at_every_call(Fault::CutRequest).await;
    at_every_call(Fault::CutAnswer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_call_that_is_delivered_twice_never_loses_or_doubles_a_point() {
    at_every_call(Fault::Twice).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_store_that_dies_in_the_middle_of_a_run_keeps_every_point_and_takes_the_next_one() {
    let mut story = story(Random(seed())).await;
    let calls = story.one_run(Fault::None, |_| false, "no fault").await;
    for fault in [Fault::Refuse(503), Fault::LoseAnswer(500), Fault::HangUp] {
        for _ in 0..2 {
            let at = story.random.between(1, calls + 1);
            let what = format!("{fault:?} from call {at} of {calls} on");
            story.one_run(fault, move |call| call >= at, &what).await;
        }
    }
}
