//! Whole runs: killed after every entry, taken over, stopped by people, undone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::{Level, Mode};
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Outcome, People, Registry};
use farsite_runbook::engine::{Always, Decision, EngineError, Observer, Run};
use farsite_runbook::journal::{Journal, JournalEntry, MemoryJournal, RunResult, StepStatus};
use farsite_runbook::plan::{Plan, plan};
use farsite_runbook::state::RunState;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// The world that actions change: what stands in it, and every effect in order.
#[derive(Clone, Default)]
struct World(Arc<Mutex<(BTreeSet<String>, Vec<String>)>>);

impl World {
    fn set(&self, name: &str) {
        let mut world = self.0.lock().unwrap();
        world.0.insert(name.to_owned());
        world.1.push(format!("+{name}"));
    }
    fn unset(&self, name: &str) {
        let mut world = self.0.lock().unwrap();
        world.0.remove(name);
        world.1.push(format!("-{name}"));
    }
    fn holds(&self, name: &str) -> bool {
        self.0.lock().unwrap().0.contains(name)
    }
    fn names(&self) -> String {
        self.0.lock().unwrap().0.iter().cloned().collect()
    }
    fn effects(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

/// `make`: puts its name into the world; can tell whether it is there.
struct Make {
    world: World,
    fails: Arc<AtomicU64>,
    freeze: Arc<Mutex<Option<String>>>,
}

fn name(with: &Value) -> String {
    with["name"].as_str().unwrap_or_default().to_owned()
}

#[async_trait]
impl Action for Make {
    fn name(&self) -> &'static str {
        "make"
    }
    fn summary(&self) -> &'static str {
        "puts a name into the world"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        if with["name"].is_string() { Ok(()) } else { Err("`name` is missing".into()) }
    }
    fn idempotent(&self) -> bool {
        false
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_secs(5)
    }
    async fn check(&self, _: &ActionContext, with: &Value) -> Result<Done, ActionError> {
        Ok(if self.world.holds(&name(with)) { Done::Yes("it stands there".into()) } else { Done::No })
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let frozen = self.freeze.lock().unwrap().take_if(|n| *n == name(with)).is_some();
        if frozen {
            // As SIGSTOP does: this thread stands still, and time goes on.
            tokio::task::block_in_place(|| std::thread::sleep(context.timeout + Duration::from_secs(3)));
        }
        context.lease.check()?;
        if self.fails.load(Ordering::SeqCst) > 0 {
            self.fails.fetch_sub(1, Ordering::SeqCst);
            return Err(ActionError::failed("it broke"));
        }
        assert!(!self.world.holds(&name(with)), "{} was made twice", name(with));
        self.world.set(&name(with));
        Ok(Outcome::said("made"))
    }
    async fn undo(&self, _: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        self.world.unset(&name(with));
        Ok(Outcome::said("unmade"))
    }
}

struct Nobody;
#[async_trait]
impl People for Nobody {
    async fn answer(&self, _: &str, _: &str, _: &str) -> Result<Option<bool>, ActionError> {
        Ok(None)
    }
    fn waits(&self) -> bool {
        false
    }
}

const BOOK: &str = "name: r
stages:
- name: one
  parallel: 1
  steps:
  - { id: a, action: make, with: { name: a } }
  - { id: b, action: make, with: { name: b }, needs: [a] }
- name: two
  steps:
  - { id: c, action: make, with: { name: c } }
";

struct Setting {
    world: World,
    journal: MemoryJournal,
    fails: Arc<AtomicU64>,
    freeze: Arc<Mutex<Option<String>>>,
}

impl Setting {
    fn new() -> Self {
        Self {
            world: World::default(),
            journal: MemoryJournal::default(),
            fails: Arc::default(),
            freeze: Arc::default(),
        }
    }
    fn registry(&self) -> Registry {
        let mut registry = Registry::standard();
        registry.add(Make {
            world: self.world.clone(),
            fails: self.fails.clone(),
            freeze: self.freeze.clone(),
        });
        registry
    }
    fn plan(&self, text: &str) -> Plan {
        plan("r.yaml", text, &BTreeMap::new(), &self.registry()).unwrap()
    }
    fn run(&self, driver: &str) -> Run {
        Run {
            registry: self.registry(),
            journal: Arc::new(self.journal.clone()),
            observer: Arc::new(()),
            decider: Arc::new(Always(Decision::Stop)),
            people: Arc::new(Nobody),
            mode: Mode::Failover,
            level: Level::Application,
            variables: serde_json::json!({}),
            plain_variables: BTreeMap::new(),
            driver: driver.into(),
            cancel: CancellationToken::new(),
        }
    }
    async fn state(&self) -> RunState {
        RunState::fold(&self.journal.read_from(0).await.unwrap())
    }
}

/// Ends the driver, as kill -9 does, right after the n-th entry is durable.
struct KillAfter {
    entries: u64,
    dead: CancellationToken,
}
impl Observer for KillAfter {
    fn journaled(&self, number: u64, _: &JournalEntry) {
        if number + 1 == self.entries {
            self.dead.cancel();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_killed_after_any_entry_ends_as_if_it_had_not_been_killed() {
    let whole = Setting::new();
    let (result, _) = whole.run("one").execute(&whole.plan(BOOK)).await.unwrap();
    assert_eq!((result, whole.world.names().as_str()), (RunResult::Completed, "abc"));
    let entries = whole.journal.entries().len() as u64;
    assert!(entries >= 7, "an intent and an outcome for each step, and the end");
    for killed_after in 1..=entries {
        let setting = Setting::new();
        let plan = setting.plan(BOOK);
        let dead = CancellationToken::new();
        let mut first = setting.run("first");
        first.observer = Arc::new(KillAfter { entries: killed_after, dead: dead.clone() });
        tokio::select! {
            biased;
            () = dead.cancelled() => {}
            _ = first.execute(&plan) => {}
        }
        // The steps of a stage run as tasks of their own: they die with the driver.
        tokio::task::yield_now().await;
        let mut second = setting.run("second");
        second.observer = Arc::new(());
        let (result, state) = second
            .execute(&plan)
            .await
            .unwrap_or_else(|error| panic!("killed after {killed_after}: {error}"));
        assert_eq!(result, RunResult::Completed, "killed after {killed_after}");
        assert_eq!(setting.world.names(), "abc", "killed after {killed_after}");
        assert!(
            state.steps.values().all(|s| s.status == StepStatus::Completed),
            "killed after {killed_after}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_was_frozen_and_taken_over_does_nothing_when_thawed() {
    let book = "name: r\nstages:\n- name: one\n  steps:\n  - { id: a, action: make, with: { name: a }, timeout: 1s }\n  - { id: b, action: make, with: { name: b }, needs: [a] }\n";
    let setting = Setting::new();
    let plan = setting.plan(book);
    *setting.freeze.lock().unwrap() = Some("a".into());
    let frozen = setting.run("frozen");
    let frozen_plan = plan.clone();
    let thawing = tokio::spawn(async move { frozen.execute(&frozen_plan).await });
    while setting.journal.entries().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (result, _) = setting.run("second").execute(&plan).await.unwrap();
    assert_eq!(result, RunResult::Completed);
    let after = setting.world.effects();
    let entries = setting.journal.entries().len();
    let thawed = thawing.await.unwrap();
    assert!(matches!(thawed, Err(EngineError::TakenOver { .. })), "{thawed:?}");
    assert_eq!(setting.world.effects(), after, "the thawed driver changed nothing");
    assert_eq!(setting.journal.entries().len(), entries, "and wrote nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_step_stops_its_dependants_and_not_its_siblings() {
    let book = "name: r\nstages:\n- name: one\n  parallel: 1\n  steps:\n  - { id: a, action: make, with: { name: a } }\n  - { id: b, action: make, with: { name: b }, needs: [a] }\n  - { id: s, action: make, with: { name: s } }\n- name: two\n  steps:\n  - { id: c, action: make, with: { name: c } }\n";
    let setting = Setting::new();
    setting.fails.store(1, Ordering::SeqCst);
    let plan = setting.plan(book);
    let (result, _) = setting.run("one").execute(&plan).await.unwrap();
    assert_eq!((result, setting.world.names().as_str()), (RunResult::Failed, "s"));
    let (result, _) = setting.run("two").execute(&plan).await.unwrap();
    assert_eq!(
        (result, setting.world.names().as_str()),
        (RunResult::Completed, "abcs"),
        "it goes on where it failed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_is_tried_again_as_often_as_it_may() {
    let book = "name: r\nstages:\n- name: one\n  steps:\n  - { id: a, action: make, with: { name: a }, retry: { count: 2, backoff: 10ms } }\n";
    let setting = Setting::new();
    setting.fails.store(2, Ordering::SeqCst);
    let (result, state) = setting.run("one").execute(&setting.plan(book)).await.unwrap();
    assert_eq!((result, state.step("a").attempts), (RunResult::Completed, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_undoes_what_was_done_last_first() {
    let setting = Setting::new();
    let plan = setting.plan(BOOK);
    setting.run("one").execute(&plan).await.unwrap();
    let state = setting.run("one").roll_back(&plan, RunResult::RolledBack).await.unwrap();
    assert_eq!(setting.world.names(), "");
    assert_eq!(setting.world.effects()[3..], ["-c", "-b", "-a"]);
    assert_eq!(state.finished.map(|(result, _)| result), Some(RunResult::RolledBack));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_who_is_not_there_is_waited_for_and_the_run_resumes() {
    let book = "name: r\nstages:\n- name: one\n  steps:\n  - id: phones\n    action: person-confirms\n    gate: { who: switchboard, prompt: are calls routed?, timeout: 1h }\n  - { id: b, action: make, with: { name: b }, needs: [phones] }\n";
    let setting = Setting::new();
    let plan = setting.plan(book);
    let waiting = setting.run("one").execute(&plan).await;
    assert!(matches!(waiting, Err(EngineError::WaitingForPerson { .. })), "{waiting:?}");
    assert_eq!(setting.state().await.step("phones").status, StepStatus::Waiting);
    let number = setting.state().await.next;
    let yes = JournalEntry::Gate {
        step: "phones".into(),
        answer: true,
        who: "ann".into(),
        at: jiff::Timestamp::now(),
    };
    setting.journal.append(number, &yes).await.unwrap();
    let (result, state) = setting.run("two").execute(&plan).await.unwrap();
    assert_eq!((result, setting.world.names().as_str()), (RunResult::Completed, "b"));
    assert_eq!(state.step("phones").gate, Some((true, "ann".into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_may_decide_to_go_on_without_a_step() {
    let book = "name: r\nstages:\n- name: one\n  steps:\n  - { id: a, action: make, with: { name: a }, on-failure: ask }\n  - { id: b, action: make, with: { name: b }, needs: [a] }\n";
    let setting = Setting::new();
    setting.fails.store(1, Ordering::SeqCst);
    let mut run = setting.run("one");
    run.decider = Arc::new(Always(Decision::Skip { who: "ann".into(), reason: "not needed today".into() }));
    let (result, state) = run.execute(&setting.plan(book)).await.unwrap();
    assert_eq!((result, setting.world.names().as_str()), (RunResult::Completed, "b"));
    assert_eq!(state.step("a").status, StepStatus::Skipped);
    assert!(state.step("a").detail.contains("not needed today"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_drivers_never_begin_the_same_step() {
    for _ in 0..20 {
        let setting = Setting::new();
        let plan = setting.plan(BOOK);
        let (one, two) = (setting.run("one"), setting.run("two"));
        // The action itself fails the test when a name is made twice.
        let _ = tokio::join!(one.execute(&plan), two.execute(&plan));
        let third = setting.run("three").execute(&plan).await.unwrap();
        assert_eq!((third.0, setting.world.names().as_str()), (RunResult::Completed, "abc"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_a_step_that_is_left_out_still_waits_for_what_that_one_needs() {
    let setting = Setting::new();
    let book = "name: r
stages:
- name: one
  parallel: 3
  steps:
  - { id: a, action: wait, with: { for: 300ms } }
  - { id: a2, action: make, with: { name: a }, needs: [a] }
  - { id: b, action: make, with: { name: b }, needs: [a2], when: { set: nothing } }
  - { id: c, action: make, with: { name: c }, needs: [b] }
";
    let book = format!("{book}variables: {{ nothing: \"\" }}\n");
    let (result, state) = setting.run("one").execute(&setting.plan(&book)).await.unwrap();
    assert_eq!(result, RunResult::Completed);
    assert_eq!(state.step("b").status, StepStatus::Skipped);
    assert_eq!(setting.world.effects(), ["+a", "+c"]);
}
