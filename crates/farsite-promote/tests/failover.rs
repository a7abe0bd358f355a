//! A site is lost and its groups come up at the standby; and every way in which people change their mind.

mod common;
#[path = "common/drives.rs"]
mod drives;

use common::{World, carried, cloud, north, south};
use drives::{back, driving, id, order};
use farsite_model::{Epoch, Level, PointId, RunId};
use farsite_promote::accept::{accept, cancel, confirm, rollback, skip};
use farsite_promote::choose::PointChoice;
use farsite_promote::drive::drive;
use farsite_promote::failover::{begin, open};
use farsite_promote::report::Report;
use farsite_promote::{dry_run, list};
use farsite_runbook::journal::{RunResult, StepStatus};
use farsite_store::ledger::{SiteLedger, Statement};
use jiff::SignedDuration;

async fn world_with(variables: &[(&str, &str)]) -> World {
    let mut world = World::new().await;
    for (name, value) in variables {
        world.variables.insert((*name).into(), (*value).into());
    }
    world
}

const REWRITE: [(&str, &str); 3] = [
    ("endpoint_table", "keystone_endpoint"),
    ("old_endpoint", "http://north:"),
    ("new_endpoint", "http://south:"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_site_comes_up_at_the_standby_and_the_report_proves_it() {
    let world = world_with(&REWRITE).await;
    world.point(1).await;
    let newest = world.point(2).await;
    let standby = world.standby("one").await;
    let dry = dry_run::dry_run(&standby, &order(1)).await.unwrap();
    assert!(dry.is_clear(), "{dry:#?}");
    assert_eq!(dry.groups[0].point, newest);
    assert_eq!(world.state().await.epoch(), Epoch(1), "a dry run changes nothing");

    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    world.assert_restored(2);
    let connection = rusqlite::Connection::open(world.south("cloud.db")).unwrap();
    let urls: i64 = connection
        .query_row("SELECT COUNT(*) FROM keystone_endpoint WHERE url LIKE 'http://south:%'", [], |r| r.get(0))
        .unwrap();
    assert_eq!(urls, 2);
    let state = world.state().await;
    let epoch = state.current().unwrap();
    assert_eq!((epoch.epoch, &epoch.primary, epoch.promoted), (Epoch(2), &south(), true));

    let report = Report::of(&standby, id(1)).await.unwrap();
    assert_eq!(report.result, "completed");
    let group = &report.groups[0];
    let rpo = group.rpo.as_ref().unwrap();
    assert!(rpo.total.at_most_s >= rpo.total.at_least_s && rpo.total.at_most_s < 120.0, "{rpo:?}");
    assert_eq!((group.rpo_met, group.rto_met), (Some(true), Some(true)));
    assert!(group.rto.as_ref().unwrap().stopped_by.contains("step"));
    assert_eq!(group.record.head.len(), 64);
    let again: Report = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(again, report, "the JSON holds everything");
    let html = report.html();
    assert!(html.contains("restore-database") && html.contains(&group.record.head), "{html}");
    assert!(report.junit().contains("failures=\"0\""), "{}", report.junit());

    accept(&standby, &world.operator, id(1), "ann").await.unwrap();
    accept(&standby, &world.operator, id(1), "ann").await.unwrap();
    let refused = rollback(&standby, &world.operator, id(1), &back("ann")).await.unwrap_err();
    assert_eq!(refused.exit_code(), 4, "{refused}");
    let listed = list::list(&standby, None).await.unwrap();
    assert_eq!((listed.len(), listed[0].result.as_str()), (1, "accepted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_while_the_old_site_may_still_serve() {
    let world = World::new().await;
    world.point(1).await;
    let standby = world.standby("one").await;
    let mut careless = order(1);
    careless.assume_site_lost = false;
    let refused = begin(&standby, &world.operator, &careless).await.unwrap_err();
    assert_eq!(refused.exit_code(), 4, "{refused}");
    careless.fenced_by = Some("power off, by the data centre".into());
    begin(&standby, &world.operator, &careless).await.unwrap();
    let report = Report::of(&standby, id(1)).await.unwrap();
    assert!(report.fencing.contains("power off"), "{}", report.fencing);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_operators_at_once_one_wins_and_the_other_is_told_who() {
    for round in 0..3 {
        let world = World::new().await;
        world.point(1).await;
        let (one, two) = (world.standby("one").await, world.standby("two").await);
        let (mut ann, mut bob) = (order(1), order(2));
        (ann.who, bob.who) = ("ann".into(), "bob".into());
        let (a, b) =
            tokio::join!(begin(&one, &world.operator, &ann), begin(&two, &world.second_operator, &bob));
        assert!(a.is_ok() != b.is_ok(), "round {round}: exactly one wins");
        let (winner, told) = if a.is_ok() { ("ann", b) } else { ("bob", a) };
        let told = told.unwrap_err();
        assert_eq!(told.exit_code(), 4);
        assert!(told.to_string().contains(&format!("begun by {winner}")), "{told}");
        assert_eq!(world.state().await.epoch(), Epoch(2), "one epoch, not two");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_came_before_the_epoch_is_taken_and_one_behind_it_is_not() {
    let world = World::new().await;
    world.point(1).await;
    let standby = world.standby("one").await;
    let late = world.manifest(2, farsite_model::CaptureTime(jiff::Timestamp::now()), |_| {}).await;
    // The order is in the store, its machine died, and the old primary's last commit arrives.
    cut_off_after_the_order(&world, &standby, 1).await;
    world.commit(&late).await;
    let other = world.standby("two").await;
    let promotion = open(&other, &north()).await.unwrap();
    let ended = drive(&other, &world.operator, &promotion, &driving("bob")).await.unwrap();
    assert!(ended.is_completed());
    world.assert_restored(2);
    let too_late =
        world.manifest(3, farsite_model::CaptureTime(jiff::Timestamp::now()), |m| m.epoch = Epoch(1)).await;
    let mut ledger = farsite_store::ledger::Ledger::open(&world.store, &cloud()).await.unwrap();
    let hash = too_late.write(&world.store, &world.source).await.unwrap();
    let committed = farsite_store::ledger::Committed {
        point: too_late.point,
        epoch: Epoch(1),
        run: RunId::from_random(9),
        manifest: hash,
        by_kind: too_late.by_kind(),
        whole: true,
        items: 1,
        weakest: too_late.weakest(),
        changed_bytes: 0,
        shipped_bytes: 0,
        suspicious: Vec::new(),
        timelines: Vec::new(),
    };
    let fenced = ledger.append(&world.source, |_| Ok(Statement::PointCommitted(committed.clone()))).await;
    assert!(fenced.is_err());
}

/// What a `begin` leaves that was killed right after the site's promotion entry.
async fn cut_off_after_the_order(world: &World, standby: &farsite_promote::Standby, n: u64) {
    let first = world.state().await.default_point().unwrap().id();
    let bundle = farsite_promote::runbooks::find(&standby.config, Level::Application, None).unwrap();
    let recipe =
        farsite_promote::failover::Recipe { bundle, choices: [(cloud(), PointChoice::Latest)].into() };
    let begun = farsite_store::ledger::SiteStatement::PromotionBegun {
        promotion: id(n),
        from: north(),
        to: south(),
        mode: farsite_model::Mode::Failover,
        level: Level::Application,
        groups: vec![(cloud(), first)],
        runbook: "application".into(),
        runbook_text: serde_json::to_string(&recipe).unwrap(),
        who: "ann".into(),
        reason: "fire".into(),
        fencing: "unfenced".into(),
        disaster_at: None,
    };
    SiteLedger::open(&world.store, &north()).await.unwrap().begin(&world.operator, begun).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_point_is_never_taken_silently() {
    let world = World::new().await;
    let whole = world.point(1).await;
    let item = format!("cinder/{}", common::VOLUME);
    let partial = world.point_with(2, |m| carried(m, &item, whole, SignedDuration::from_secs(60))).await;
    let standby = world.standby("one").await;
    let mut named = order(1);
    named.point = PointChoice::Id(partial.to_string());
    let refused = begin(&standby, &world.operator, &named).await.unwrap_err();
    assert!(refused.exit_code() == 4 && refused.to_string().contains("partial"), "{refused}");
    assert_eq!(world.state().await.epoch(), Epoch(1), "nothing was changed");
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    assert_eq!(promotion.groups, [(cloud(), whole)]);
    drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    world.assert_restored(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_named_and_the_newest_undamaged_point_is_taken() {
    let world = World::new().await;
    let good = world.point(1).await;
    let bad = world.point(2).await;
    world.spoil_object(&format!("manifests/cloud/{bad}"));
    let standby = world.standby("one").await;
    let dry = dry_run::dry_run(&standby, &order(1)).await.unwrap();
    let flawed = dry.groups[0].candidates.iter().find(|c| c.point == bad).unwrap();
    assert!(flawed.flaws.join(" ").contains("damaged"), "{flawed:?}");
    assert_eq!(dry.groups[0].point, good);
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    assert_eq!(promotion.groups, [(cloud(), good)]);
    let state = world.state().await;
    assert!(!state.point(bad).unwrap().damaged.is_empty(), "the ledger knows it now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_gives_the_primary_back_and_what_stood_there_before() {
    let world = world_with(&REWRITE).await;
    world.point(1).await;
    std::fs::create_dir_all(world.south("volumes")).unwrap();
    std::fs::write(world.south("cloud.db"), "what south had").unwrap();
    std::fs::write(world.south("volumes").join(common::VOLUME), "south's volume").unwrap();
    let standby = world.standby("one").await;
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    world.assert_restored(1);
    let other = world.standby("two").await;
    rollback(&other, &world.operator, id(1), &back("bob")).await.unwrap();
    rollback(&other, &world.operator, id(1), &back("bob")).await.unwrap();
    assert_eq!(std::fs::read_to_string(world.south("cloud.db")).unwrap(), "what south had");
    assert_eq!(list::show(&other, id(1)).await.unwrap().result, "rolled-back");
    assert_eq!(Report::of(&other, id(1)).await.unwrap().result, "rolled-back");
    let volume = std::fs::read_to_string(world.south("volumes").join(common::VOLUME)).unwrap();
    assert_eq!(volume, "south's volume");
    let state = world.state().await;
    let epoch = state.current().unwrap();
    assert_eq!((epoch.epoch, &epoch.primary), (Epoch(3), &north()));
    assert!(epoch.promoted && epoch.accepted, "nothing waits for anybody");
    let next = world.point(5).await;
    assert_eq!(world.state().await.default_point().unwrap().id(), next, "north replicates again");
    // And it can be lost again.
    let promotion = begin(&other, &world.operator, &order(2)).await.unwrap();
    drive(&other, &world.operator, &promotion, &driving("bob")).await.unwrap();
    world.assert_restored(5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_leaves_the_promotion_open_until_a_person_decides() {
    let world = world_with(&[("database_assert", "SELECT COUNT(*) = 0 FROM heartbeat")]).await;
    world.point(1).await;
    let standby = world.standby("one").await;
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert_eq!(ended.groups[0].result, RunResult::Failed);
    assert_eq!(ended.groups[0].failed[0].0, "assert-database");
    assert!(ended.hint().contains("promotion skip"), "{}", ended.hint());
    let shown = list::show(&standby, id(1)).await.unwrap();
    assert_eq!(shown.result, "open");
    let mistyped =
        skip(&standby, &world.operator, id(1), None, "asert-database", "ann", "ok").await.unwrap_err();
    assert!(mistyped.exit_code() == 2 && mistyped.to_string().contains("assert-database"), "{mistyped}");
    skip(&standby, &world.operator, id(1), None, "assert-database", "ann", "known and harmless")
        .await
        .unwrap();
    let other = world.standby("two").await;
    let promotion = open(&other, &north()).await.unwrap();
    let ended = drive(&other, &world.operator, &promotion, &driving("bob")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    let report = Report::of(&other, id(1)).await.unwrap();
    let step = report.groups[0].steps.iter().find(|s| s.id == "assert-database").unwrap();
    assert_eq!(step.status, StepStatus::Skipped);
    assert!(step.skipped.as_ref().unwrap().contains("known and harmless"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_promotion_leaves_nobody_fenced() {
    let world = world_with(&[("database_assert", "SELECT 0")]).await;
    let first = world.point(1).await;
    let standby = world.standby("one").await;
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    cancel(&standby, &world.operator, id(1), &back("ann")).await.unwrap();
    world.assert_empty();
    let state = world.state().await;
    assert_eq!((state.epoch(), state.primary()), (Epoch(3), Some(&north())));
    // The site is still lost, and its points are what they were: the next attempt needs no special words, however many there are.
    for n in 2..4 {
        assert_eq!(
            world.state().await.default_point().map(farsite_store::ledger::CommittedPoint::id),
            Some(first)
        );
        let promotion = begin(&standby, &world.operator, &order(n)).await.unwrap();
        assert_eq!(world.state().await.default_point(), None, "nothing that north has is of the new epoch");
        drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
        cancel(&standby, &world.operator, id(n), &back("ann")).await.unwrap();
    }
    let next = world.point(7).await;
    assert_eq!(
        world.state().await.default_point().map(farsite_store::ledger::CommittedPoint::id),
        Some(next)
    );
    assert!(open(&standby, &north()).await.is_err(), "nothing is open any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_waits_for_its_people_and_goes_on_when_they_have_answered() {
    let world = World::new().await;
    world.point(1).await;
    let standby = world.standby("one").await;
    let mut business = order(1);
    business.level = Level::Business;
    let promotion = begin(&standby, &world.operator, &business).await.unwrap();
    for step in ["telephones", "workplaces", "suppliers", "users-can-work"] {
        let waiting = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap_err();
        assert_eq!(waiting.exit_code(), 5, "{waiting}");
        confirm(&standby, &world.operator, id(1), None, step, true, "carol").await.unwrap();
    }
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    let report = Report::of(&standby, id(1)).await.unwrap();
    let last = report.groups[0].steps.last().unwrap();
    assert_eq!(last.gate, Some(("carol".into(), true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_place_or_an_unknown_group_changes_nothing() {
    let world = World::new().await;
    world.point(1).await;
    let standby = world.standby("one").await;
    let mut wrong = order(1);
    wrong.groups = vec![farsite_model::GroupName::new("clout").unwrap()];
    let error = begin(&standby, &world.operator, &wrong).await.unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("did you mean cloud"), "{error}");
    let mut unknown = order(1);
    unknown.point = PointChoice::Id("ffff".into());
    let error = begin(&standby, &world.operator, &unknown).await.unwrap_err();
    assert!(error.to_string().contains("ffff"), "{error}");
    let mut standby = standby;
    let mut config = (*standby.config).clone();
    config.places.get_mut(&cloud()).unwrap().glance = None;
    standby.config = std::sync::Arc::new(config);
    let error = begin(&standby, &world.operator, &order(1)).await.unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("glance"), "{error}");
    assert_eq!(world.state().await.epoch(), Epoch(1));
    assert!(open(&standby, &north()).await.is_err());
    let stolen = begin(&world.standby("one").await, &world.source, &order(1)).await.unwrap_err();
    assert_eq!(stolen.exit_code(), 4, "an agent's key begins nothing: {stolen}");
    assert_eq!(
        world.state().await.point(PointId::from_random(0xabc0_0000_0000_0001)).map(|p| p.superseded),
        Some(false)
    );
}

/// What still has to be done when everything has been checked, and a word to somebody.
const AFTER_THE_CHECK: &str = "
name: after
include: data
stages:
  - name: doors
    steps:
      - { id: open-doors, action: command, with: { run: [/bin/sleep, '1'], idempotent: true } }
      - { id: tell, action: notify, needs: [open-doors], with: { message: done } }
";

#[tokio::test(flavor = "multi_thread")]
async fn the_rto_ends_with_the_last_step_whatever_its_action_and_not_with_the_last_check() {
    let world = World::new().await;
    world.point(1).await;
    let standby = world.standby("one").await;
    let runbook = world.dir.path().join("after.yaml");
    std::fs::write(&runbook, AFTER_THE_CHECK).unwrap();
    let mut given = order(1);
    given.runbook = Some(runbook);
    let promotion = begin(&standby, &world.operator, &given).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    let report = Report::of(&standby, id(1)).await.unwrap();
    let rto = report.groups[0].rto.as_ref().unwrap();
    assert_eq!(rto.stopped_by, "the end of step open-doors");
    assert!(rto.seconds >= 1.0, "{rto:?}");
}
