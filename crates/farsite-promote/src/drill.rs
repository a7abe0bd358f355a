//! A drill: the same runbook in an isolated place, while replication goes on. A point comes in; it is restored,
//! checked, measured, removed again; a verdict and, when it passed, the point's proof go out.
//!
//! What must hold: no epoch begins; nothing is written outside the drill's folder; what is left behind fails the
//! drill; old data cannot make it pass; what it says of itself stands in its journal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farsite_model::{GroupName, Level, Mode, PointId, PromotionId};
use farsite_replicate::pin::ReadPin;
use farsite_runbook::engine::EngineError;
use farsite_runbook::journal::{JournalEntry, RunResult, StepStatus, What};
use farsite_runbook::state::RunState;
use farsite_sources::mariadb::instance::Instance;
use farsite_store::keys::Signer;
use farsite_store::ledger::{Ledger, Statement};
use farsite_store::read::ReadStats;
use jiff::Timestamp;

use crate::choose::{PointChoice, Replay, choose};
use crate::drive::{Driving, Prepared, failed_steps, prepare};
use crate::failover::{fact, facts, refused};
use crate::group_run::GroupRun;
use crate::journal::{StoreJournal, groups_of};
use crate::leaks::{Listing, processes_naming};
use crate::people::DrillAnswers;
use crate::place::{Targets, drill_folder};
use crate::promises::{level_of, promises};
use crate::report::Report;
use crate::rpo;
use crate::runbooks;
use crate::survey::{Survey, accepted_logs, read_manifest};
use crate::{PromoteError, Standby, encrypted};

/// The steps that a drill itself adds to its journal; no runbook's step has such a name.
pub const CLEAN_UP: &str = "(clean-up)";
pub const VERDICT: &str = "(verdict)";

/// A drill starts only when the newest point is no older than this many times the target.
const LAG_LIMIT: f64 = 3.0;

/// What is drilled, and how.
#[derive(Clone)]
pub struct DrillOptions {
    /// Drawn by the caller.
    pub promotion: PromotionId,
    pub point: PointChoice,
    /// A file or a name; none for the level's own.
    pub runbook: Option<PathBuf>,
    /// Starts although the newest point is too old.
    pub forced: bool,
    pub who: String,
    /// Who drives; gates are answered by their defaults, whoever is here.
    pub driving: Driving,
}

/// How a drill ended.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillEnded {
    pub promotion: PromotionId,
    pub passed: bool,
    /// Why it did not pass.
    pub reasons: Vec<String>,
    pub rto_s: Option<f64>,
    pub rpo_s: Option<f64>,
}

/// What a drill's journal says of its result.
pub(crate) fn result_of(state: &RunState) -> String {
    match state.steps.get(VERDICT).map(|s| s.status) {
        Some(StepStatus::Completed) => "passed".into(),
        Some(_) => "failed".into(),
        None => "open".into(),
    }
}

/// Runs a drill from its first entry to its verdict.
pub async fn drill(
    standby: &Standby,
    signer: &Arc<Signer>,
    group: &GroupName,
    level: Option<Level>,
    options: &DrillOptions,
) -> Result<DrillEnded, PromoteError> {
    let level = level.unwrap_or_else(|| level_of(&standby.config, [group]));
    let real = Real::now(standby, group).await;
    let group_run = begin(standby, signer, group, level, options).await?;
    let pin = ReadPin::begin(&standby.store, signer, group, &[group_run.point]).await;
    let drilled = restored_and_checked(&group_run, signer, options, &real).await;
    if let Some(pin) = pin {
        pin.end().await;
    }
    verdict(standby, signer, &group_run, &options.who, &options.driving, drilled?).await
}

/// The runbook and the clean-up. Returns why the drill has not passed.
async fn restored_and_checked(
    group_run: &Arc<GroupRun>,
    signer: &Arc<Signer>,
    options: &DrillOptions,
    real: &Real,
) -> Result<Vec<String>, PromoteError> {
    let mut driving = options.driving.clone();
    let plan = {
        let prepared = prepare(group_run, signer, &driving).await?;
        driving.people = Arc::new(DrillAnswers::of(&prepared.plan));
        prepared.plan
    };
    let Prepared { run, .. } = prepare(group_run, signer, &driving).await?;
    let mut reasons = match run.execute(&plan).await {
        Ok((RunResult::Completed, _)) => Vec::new(),
        Ok((result, state)) => {
            let failed = failed_steps(&plan, &state);
            if failed.is_empty() {
                vec![format!("the run is {result}")]
            } else {
                failed.into_iter().map(|(step, why)| format!("step {step}: {why}")).collect()
            }
        }
        // Another driver is at it, or this one was told to stop: neither is a verdict.
        Err(
            source @ (EngineError::Interrupted | EngineError::TakenOver { .. } | EngineError::Journal(_)),
        ) => {
            return Err(PromoteError::Engine { group: group_run.group.clone(), source });
        }
        Err(source) => vec![source.to_string()],
    };
    reasons.extend(encrypted::look(&group_run.manifest).problems);
    // Cleaning up goes on even though the run was told to stop.
    let Prepared { run, .. } = prepare(group_run, signer, &driving).await?;
    reasons.extend(clean_up(group_run, signer, &run, &plan, &driving, Some(real)).await?);
    Ok(reasons)
}

/// The real places as they were before a drill.
struct Real {
    places: Vec<PathBuf>,
    listing: Listing,
    /// Where this site's own server writes all the time.
    served: Option<PathBuf>,
}

impl Real {
    async fn now(standby: &Standby, group: &GroupName) -> Self {
        let targets = Targets::real(&standby.config, group, PromotionId::from_random(0)).ok();
        let mut places = targets.as_ref().map(Targets::all).unwrap_or_default();
        let mut served = None;
        if let Some(mariadb) = targets.and_then(|targets| targets.mariadb) {
            let instance = Instance {
                datadir: mariadb.datadir.clone(),
                socket: mariadb.socket,
                port: mariadb.port,
                server_args: Vec::new(),
            };
            if instance.is_running().await.unwrap_or(false) {
                places.retain(|place| *place != mariadb.datadir);
                served = Some(mariadb.datadir);
            }
        }
        let listing = Listing::of(&places);
        Self { places, listing, served }
    }
}

/// Refuses what must not start, and writes the journal's first entry.
async fn begin(
    standby: &Standby,
    signer: &Arc<Signer>,
    group: &GroupName,
    level: Level,
    options: &DrillOptions,
) -> Result<Arc<GroupRun>, PromoteError> {
    let survey = Survey::of(standby, group, Some(signer)).await?;
    let state = survey.state();
    let from = state.primary().cloned().ok_or_else(|| {
        PromoteError::Usage(format!("the store at {} holds nothing of group {group}", standby.site))
    })?;
    let promises = promises(&standby.config, group);
    if let (Some(target), Some(point)) = (promises.rpo_s, state.default_point()) {
        let lag = point.exposure(survey.now).as_secs_f64();
        if lag > LAG_LIMIT * target && !options.forced {
            return Err(PromoteError::Refused(format!(
                "group {group} lags {lag:.0}s behind, and its target is {target:.0}s: a drill would say little and take from replication; nothing was changed\n  hint: `farsite status {group}`; or force it"
            )));
        }
    }
    let chosen = choose(&state, &options.point, survey.now).map_err(refused)?;
    let point = survey.point(chosen.point)?;
    let manifest = read_manifest(standby, group, &point).await?;
    let targets = Targets::drill(&standby.config, group, options.promotion);
    for folder in targets.drill.iter().chain([&targets.sockets]) {
        require_empty(folder)?;
    }
    let missing = targets.missing(&manifest);
    if !missing.is_empty() {
        return Err(PromoteError::Usage(missing.join("\n")));
    }
    let logs = accepted_logs(standby, group, &point, &from).await?;
    let run = Arc::new(GroupRun {
        standby: standby.clone(),
        promotion: options.promotion,
        group: group.clone(),
        from,
        mode: Mode::Drill,
        level,
        // As a promotion now would have it: the copy's own notes of earlier promotions are older.
        term: state.epoch().next(),
        point: chosen.point,
        manifest,
        logs,
        replay: chosen.replay,
        targets,
        stats: ReadStats::default(),
    });
    let bundle = runbooks::find(&standby.config, level, options.runbook.as_deref())?;
    let (_, plan) = run.plan(&bundle)?;
    let mut variables = run.targets.variables.clone();
    run.variables(&plan, &variables)?;
    let seconds = |value: Option<f64>| value.map(|s| s.to_string()).unwrap_or_default();
    let json = |value: &dyn Fn() -> serde_json::Result<String>| value().unwrap_or_default();
    variables.extend(facts(&[
        ("from", run.from.to_string()),
        ("to", standby.site.to_string()),
        ("point", run.point.to_string()),
        ("flaws", chosen.flaws.join("; ")),
        ("term", run.term.to_string()),
        ("replay", json(&|| serde_json::to_string(&run.replay))),
        ("logs", json(&|| serde_json::to_string(&run.logs))),
        ("rpo-target-s", seconds(promises.rpo_s)),
        ("rto-target-s", seconds(promises.rto_s)),
        ("driver", options.driving.driver.clone()),
    ]));
    let begun = JournalEntry::Begun {
        promotion: run.promotion,
        runbook: plan.name,
        runbook_text: bundle.to_json(),
        mode: Mode::Drill,
        level,
        variables,
        who: options.who.clone(),
    };
    let journal = StoreJournal::writing(&standby.store, run.promotion, group, signer);
    if !journal.say(|so_far| Ok(so_far.is_empty().then(|| begun.clone()))).await? {
        return Err(PromoteError::Refused(format!("drill {} exists already", run.promotion)));
    }
    Ok(run)
}

/// Old data could make a drill pass.
fn require_empty(folder: &Path) -> Result<(), PromoteError> {
    let mut entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(PromoteError::io(format!("listing {}", folder.display())))?,
    };
    if entries.next().is_none() {
        return Ok(());
    }
    Err(PromoteError::Refused(format!(
        "{} is not empty: old data could make a drill pass; nothing was changed\n  hint: `farsite drill cleanup`",
        folder.display()
    )))
}

/// Undoes the steps, removes the folder, and looks for anything left. Returns what is wrong.
async fn clean_up(
    group_run: &Arc<GroupRun>,
    signer: &Arc<Signer>,
    run: &farsite_runbook::engine::Run,
    plan: &farsite_runbook::plan::Plan,
    driving: &Driving,
    real_before: Option<&Real>,
) -> Result<Vec<String>, PromoteError> {
    let started = Timestamp::now();
    let mut run = run.clone();
    run.cancel = tokio_util::sync::CancellationToken::new();
    let state = run
        .roll_back(plan, RunResult::RolledBack)
        .await
        .map_err(|source| PromoteError::Engine { group: group_run.group.clone(), source })?;
    let mut wrong: Vec<String> = plan
        .steps
        .iter()
        .map(|step| (&step.id, state.step(&step.id)))
        .filter(|(_, s)| s.detail.starts_with("undo "))
        .map(|(id, s)| format!("clean-up of step {id}: {}", s.detail))
        .collect();
    let targets = &group_run.targets;
    let folders: Vec<&Path> =
        targets.drill.iter().map(PathBuf::as_path).chain([targets.sockets.as_path()]).collect();
    let processes = processes_naming(&folders);
    for (pid, program) in &processes {
        wrong.push(format!("left behind: process {pid} ({program}) of the drill still runs"));
    }
    // Under a running server nothing is removed: it would write on into files that nobody sees.
    if processes.is_empty() {
        for folder in &folders {
            remove_folder(folder, &mut wrong);
        }
    }
    for folder in folders.iter().filter(|folder| folder.exists()) {
        wrong.push(format!("left behind: {}", folder.display()));
    }
    let mut evidence = BTreeMap::from([("processes".to_owned(), processes.len().to_string())]);
    match real_before {
        Some(before) => {
            let changed = Listing::of(&before.places).differences(&before.listing);
            evidence.insert("real-places".into(), format!("{} differences", changed.len()));
            if let Some(served) = &before.served {
                let words = format!("{}: this site's own server runs there", served.display());
                evidence.insert("not compared".into(), words);
            }
            wrong.extend(changed.iter().take(20).map(|what| format!("the real places changed: {what}")));
        }
        None => {
            evidence.insert("real-places".into(), "not compared: the drill began in another process".into());
        }
    }
    let detail = if wrong.is_empty() { "nothing is left".to_owned() } else { wrong.join("; ") };
    say(group_run, signer, driving, CLEAN_UP, wrong.is_empty(), detail, evidence, started).await?;
    Ok(wrong)
}

fn remove_folder(folder: &Path, wrong: &mut Vec<String>) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            wrong.push(format!("removing {}: {error}", folder.display()));
        }
        _ => {}
    }
}

#[allow(clippy::too_many_arguments, reason = "one entry's fields, each named at its only two callers")]
async fn say(
    group_run: &GroupRun,
    signer: &Arc<Signer>,
    driving: &Driving,
    step: &str,
    well: bool,
    detail: String,
    evidence: BTreeMap<String, String>,
    started: Timestamp,
) -> Result<(), PromoteError> {
    let entry = JournalEntry::Outcome {
        step: step.to_owned(),
        what: What::Do,
        attempt: 1,
        driver: driving.driver.clone(),
        status: if well { StepStatus::Completed } else { StepStatus::Failed },
        detail,
        evidence,
        started,
        ended: Timestamp::now(),
    };
    let store = &group_run.standby.store;
    let journal = StoreJournal::writing(store, group_run.promotion, &group_run.group, signer);
    journal.say(|_| Ok(Some(entry.clone()))).await?;
    Ok(())
}

/// Measures against the targets, writes the verdict, and proves the point when it passed.
async fn verdict(
    standby: &Standby,
    signer: &Arc<Signer>,
    group_run: &GroupRun,
    who: &str,
    driving: &Driving,
    mut reasons: Vec<String>,
) -> Result<DrillEnded, PromoteError> {
    let report = Report::of(standby, group_run.promotion).await?;
    let measured = report.groups.iter().find(|g| g.group == group_run.group);
    let rto_s = measured.and_then(|g| g.rto.as_ref()).map(|rto| rto.seconds);
    let rpo_s = measured.and_then(|g| g.rpo.as_ref()).map(|rpo| rpo.total.at_most_s);
    if let Some(group) = measured {
        for (what, got, target) in [("RTO", rto_s, group.rto_target_s), ("RPO", rpo_s, group.rpo_target_s)] {
            if let (Some(got), Some(target)) = (got, target)
                && got > target
            {
                reasons.push(format!("{what} of {got:.1}s misses its target of {target:.0}s"));
            }
        }
    }
    let passed = reasons.is_empty();
    let seconds = |value: Option<f64>| value.map_or_else(|| "not known".into(), |s| format!("{s:.3}"));
    let evidence = BTreeMap::from([
        ("rto-s".to_owned(), seconds(rto_s)),
        ("rpo-s".to_owned(), seconds(rpo_s)),
        ("point".to_owned(), group_run.point.to_string()),
    ]);
    let detail = if passed { "passed".to_owned() } else { reasons.join("; ") };
    say(group_run, signer, driving, VERDICT, passed, detail, evidence, Timestamp::now()).await?;
    if passed {
        let proven = Statement::PointProven {
            point: group_run.point,
            how: format!("drill {} ({who})", group_run.promotion),
        };
        let mut ledger = Ledger::open(&standby.store, &group_run.group).await?;
        ledger.append(signer, |_| Ok(proven.clone())).await?;
    }
    Ok(DrillEnded { promotion: group_run.promotion, passed, reasons, rto_s, rpo_s })
}

/// Cleans up after a drill that was cut off, or whose clean-up failed; can be repeated. `force` removes the folder even though
/// a process still names it.
pub async fn cleanup(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    force: bool,
    driving: &Driving,
) -> Result<Vec<String>, PromoteError> {
    let mut wrong = Vec::new();
    let groups = groups_of(&standby.store, id).await?;
    if groups.is_empty() {
        return Err(PromoteError::Usage(format!(
            "no drill {id} is in the store at {}\n  hint: `farsite drill list`",
            standby.site
        )));
    }
    for group in groups {
        let group_run = reload(standby, id, &group).await?;
        let Prepared { run, plan, .. } = prepare(&group_run, signer, driving).await?;
        let left = clean_up(&group_run, signer, &run, &plan, driving, None).await?;
        if force && !left.is_empty() {
            let mut still = Vec::new();
            for folder in [drill_folder(&standby.config, id), group_run.targets.sockets.clone()] {
                remove_folder(&folder, &mut still);
            }
            let processes = processes_naming(&[&drill_folder(&standby.config, id)]);
            still.extend(processes.iter().map(|(pid, program)| {
                format!("process {pid} ({program}) still runs; Farsite ends no process that it did not start\n  hint: end it yourself")
            }));
            wrong.extend(still);
        } else {
            wrong.extend(left);
        }
    }
    Ok(wrong)
}

/// A drill as its journal's first entry says it.
async fn reload(
    standby: &Standby,
    id: PromotionId,
    group: &GroupName,
) -> Result<Arc<GroupRun>, PromoteError> {
    let entries = StoreJournal::reading(&standby.store, id, group).entries().await?;
    let Some((_, JournalEntry::Begun { mode: Mode::Drill, variables, level, .. })) = entries.first() else {
        return Err(PromoteError::Usage(format!(
            "{id} is not a drill\n  hint: `farsite rollback {id}` takes a promotion back"
        )));
    };
    let damaged = |what: &str| PromoteError::Failed(format!("the journal of drill {id} has no {what}"));
    let point: PointId =
        fact(variables, "point").and_then(|p| p.parse().ok()).ok_or_else(|| damaged("point"))?;
    let survey = Survey::of(standby, group, None).await?;
    let manifest = survey.manifest(standby, point).await?;
    let read = |name: &str| fact(variables, name).unwrap_or_default();
    Ok(Arc::new(GroupRun {
        standby: standby.clone(),
        promotion: id,
        group: group.clone(),
        from: read("from").parse().map_err(|_| damaged("site"))?,
        mode: Mode::Drill,
        level: *level,
        term: farsite_model::Epoch(read("term").parse().map_err(|_| damaged("term"))?),
        point,
        manifest,
        logs: serde_json::from_str(&read("logs")).map_err(|_| damaged("logs"))?,
        replay: serde_json::from_str(&read("replay")).unwrap_or(Replay::Point),
        targets: Targets::drill(&standby.config, group, id),
        stats: ReadStats::default(),
    }))
}

/// What a failover at the drill's beginning would have lost.
pub(crate) async fn lost(
    standby: &Standby,
    group: &GroupName,
    variables: &BTreeMap<String, String>,
    begun: farsite_model::StoreTime,
) -> Result<Option<rpo::Achieved>, PromoteError> {
    let read = |name: &str| fact(variables, name).unwrap_or_default();
    let Ok(point) = read("point").parse::<PointId>() else { return Ok(None) };
    let survey = Survey::of(standby, group, None).await?;
    let manifest = survey.manifest(standby, point).await?;
    let logs: Vec<_> = serde_json::from_str(&read("logs")).unwrap_or_default();
    let replay = serde_json::from_str(&read("replay")).unwrap_or(Replay::Point);
    let stamps = rpo::stamps(&standby.store, &manifest, &logs, replay).await?;
    Ok(Some(rpo::achieved(&stamps, begun, standby.store.latest(begun), None)))
}
