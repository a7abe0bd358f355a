//! `reconcile`: what the restored database says of images and volumes is compared with what lies in their places, before any
//! service starts. What must hold: all rows are put right in one transaction with its note, or none; everything that was not
//! as it should be is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_model::policy::Rbd;
use farsite_replicate::pool;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Outcome};
use farsite_runbook::journal::{JournalEntry, StepStatus};
use farsite_sources::glance;
use farsite_sources::rbd::{self, PoolImage};
use farsite_store::manifest::ManifestItem;
use serde_json::Value;

use super::{Held, no_parameters};
use crate::aside::Stamps;
use crate::group_run::{GroupRun, failed};
use crate::journal::StoreJournal;
use crate::own;
use crate::place::Storage;
use crate::reconcile::kept::{self, Kept};
use crate::reconcile::volumes::{Here, Rows};
use crate::reconcile::{Plan, backups, files, folders, hosts, images, volumes};
use crate::site::Accounts;
use crate::sql::{Database, Rewrite};

pub(crate) struct Reconcile(pub(super) Held);

/// The most that are listed one by one in the journal; the database has all.
const LISTED: usize = 500;

fn note(run: &GroupRun, statements: Vec<String>) -> Rewrite {
    Rewrite {
        term: run.term.0,
        promotion: run.promotion.to_string(),
        hash: blake3::hash(b"reconcile").to_hex().to_string(),
        statements,
        schema: "farsite".to_owned(),
    }
}

/// Sizes in bytes. A point without such items leaves no folder.
fn listed(folder: &Path) -> Result<BTreeMap<String, u64>, String> {
    match files(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        there => there.map_err(|error| format!("listing {}: {error}", folder.display())),
    }
}

async fn of_images(run: &GroupRun, database: &Database) -> Result<Plan, String> {
    // Of OpenStack's making.
    if !database.has_table("glance", "images").await?
        || !database.has_table("glance", "alembic_version").await?
    {
        return Ok(Plan::default());
    }
    let rows = images::Row::gather(database.query(images::QUESTION).await?);
    let Some(storage) = run.targets.glance.as_ref().filter(|_| !rows.is_empty()) else {
        return Ok(images::plan_nowhere(&rows));
    };
    let here = match storage {
        Storage::Folder(folder) => {
            let here = images_in_folder(run, folder)?;
            return in_folders(run, rows, here, folder).await;
        }
        Storage::Pool(rbd) => images_in_pool(run, rbd).await?,
    };
    Ok(images::plan(&rows, &here))
}

/// Where Glance looks for them is looked at as well.
async fn in_folders(
    run: &GroupRun,
    rows: Vec<images::Row>,
    mut here: images::Here,
    place: &Path,
) -> Result<Plan, String> {
    let mut right: Vec<PathBuf> = run.targets.rewrite.paths.values().map(PathBuf::from).collect();
    right.push(place.to_owned());
    // A drill's images lie somewhere else than those of the place, of which the rows speak.
    let places = run.standby.config.places.get(&run.group).and_then(|places| places.glance.as_ref());
    right.extend(places.and_then(|glance| glance.path.clone()));
    let place = place.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        here.lost = folders::lost(&rows, &here, &right);
        match folders::too_many(&rows, &here, &place) {
            Some(why) => Err(why),
            None => Ok(images::plan(&rows, &here)),
        }
    });
    looked.await.map_err(|error| error.to_string())?
}

/// Whether the point's images come out of every store that Glance has.
fn through_api(run: &GroupRun) -> bool {
    let mut images = run.items(&[ItemKind::Glance]);
    images.any(|image| image.details.get(glance::BACKEND).is_some_and(|it| it == glance::BACKEND_API))
}

fn images_in_folder(run: &GroupRun, folder: &Path) -> Result<images::Here, String> {
    let files = listed(folder)?;
    let stamps = Stamps::open(folder, ItemKind::Glance, run.promotion)
        .map_err(|error| format!("reading what was restored in {}: {error}", folder.display()))?;
    let odd = stamps.odd().filter_map(|place| place.file_name());
    let is_pool = run.targets.instead_of_pools.contains(&ItemKind::Glance);
    Ok(images::Here {
        files,
        scheme: if is_pool { images::IN_POOL } else { images::IN_FOLDER },
        around: (!is_pool).then(|| (format!("{}{}/", images::IN_FOLDER, folder.display()), String::new())),
        odd: odd.map(|name| name.to_string_lossy().into_owned()).collect(),
        lost: BTreeSet::new(),
        is_of_all_stores: through_api(run),
    })
}

/// Of an image in a pool its own marks tell what it is; there is no list beside it.
async fn images_in_pool(run: &GroupRun, rbd: &Rbd) -> Result<images::Here, String> {
    let there = rbd::images(rbd).await.map_err(|error| error.to_string())?;
    let writer = rbd::Writer::start(rbd).await.map_err(|error| error.to_string())?;
    let items: Vec<&ManifestItem> = run.items(&[ItemKind::Glance]).collect();
    let looked = tokio::task::block_in_place(|| {
        let mut odd = BTreeSet::new();
        for item in items {
            let found = writer.look(item.id.name())?;
            if found.as_ref().and_then(pool::Mark::of).is_some_and(|mark| mark.is_odd(run.promotion)) {
                odd.insert(item.id.name().to_owned());
            }
        }
        Ok::<_, std::io::Error>((odd, writer.fsid()?))
    });
    let (odd, fsid) = looked.map_err(|error| error.to_string())?;
    // Glance's locations have no place for a namespace.
    let around = rbd
        .namespace
        .is_none()
        .then(|| (format!("{}{fsid}/{}/", images::IN_POOL, rbd.pool), "/snap".to_owned()));
    Ok(images::Here {
        files: there.into_iter().map(|(name, image)| (name, image.size_bytes)).collect(),
        scheme: images::IN_POOL,
        around,
        odd,
        lost: BTreeSet::new(),
        is_of_all_stores: through_api(run),
    })
}

/// Whether a service of this site answers for each volume; or why that was not looked at.
async fn of_hosts(run: &GroupRun, database: &Database) -> Result<Result<Plan, String>, String> {
    let rows = if database.has_table("cinder", "volumes").await?
        && database.has_table("cinder", "alembic_version").await?
    {
        database.query(hosts::QUESTION).await?
    } else {
        Vec::new()
    };
    if rows.is_empty() {
        return Ok(Ok(Plan::default()));
    }
    let known = if run.is_drill() {
        let accounts = Accounts::fetch(&run.targets.rewrite)?;
        own::hosts::volume_hosts(&accounts, &own::doors(&run.standby.config, &run.group)).await
    } else {
        let journal = StoreJournal::reading(&run.standby.store, run.promotion, &run.group);
        let entries = journal.entries().await.map_err(|error| error.to_string())?;
        let evidence = entries.iter().filter_map(|(_, entry)| match entry {
            JournalEntry::Outcome { status: StepStatus::Completed, evidence, .. } => Some(evidence),
            _ => None,
        });
        evidence.filter_map(own::hosts::of_detail).last()
    };
    let site = run.standby.site.as_str();
    let Some(hosts) = known.filter(|hosts| !hosts.is_empty()) else {
        return Ok(Err(format!(
            "what {site}'s own volume services are called is not known: that one of them answers for each volume is not certain"
        )));
    };
    let same = run.targets.rewrite.hosts.iter().filter(|(old, new)| old == new);
    let said = same.map(|(name, _)| name.clone()).collect();
    hosts::plan(&rows, &hosts::Own { site, hosts, said }).map(Ok)
}

/// Whatever Cinder has besides volumes whose states nobody would end.
async fn of_backups(database: &Database) -> Result<Plan, String> {
    let mut plan = Plan::default();
    for kind in &backups::KINDS {
        if database.has_table("cinder", kind.table).await? {
            plan.append(backups::plan(kind, &database.query(kind.question).await?));
        }
    }
    Ok(plan)
}

async fn of_volumes(run: &GroupRun, database: &Database) -> Result<Plan, String> {
    if !database.has_table("cinder", "volumes").await?
        || !database.has_table("cinder", "alembic_version").await?
    {
        return Ok(Plan::default());
    }
    let rows = Rows {
        volumes: database
            .query(volumes::VOLUMES)
            .await?
            .into_iter()
            .filter_map(volumes::Volume::of)
            .collect(),
        snapshots: database
            .query(volumes::SNAPSHOTS)
            .await?
            .into_iter()
            .filter_map(volumes::Snapshot::of)
            .collect(),
        workers: database
            .query(volumes::WORKERS)
            .await?
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect(),
    };
    let here = match &run.targets.cinder {
        Some(Storage::Folder(folder)) if run.targets.instead_of_pools.contains(&ItemKind::Cinder) => {
            let there = listed(folder)?;
            let image = |size_bytes| PoolImage { size_bytes, snapshots: BTreeSet::new() };
            Here::Pool(there.into_iter().map(|(name, size)| (name, image(size))).collect())
        }
        Some(Storage::Folder(share)) => Here::Share(share.clone()),
        Some(Storage::Pool(rbd)) => Here::Pool(rbd::images(rbd).await.map_err(|error| error.to_string())?),
        None => Here::Nowhere,
    };
    let mut plan = tokio::task::spawn_blocking(move || volumes::plan(&rows, &here))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("looking at the volumes' files: {error}"))?;
    plan.append(of_backups(database).await?);
    Ok(plan)
}

/// The gravest by their subjects, and where the others are.
fn told(said: &str, kept: Kept, promotion: &str) -> Outcome {
    let mut outcome = Outcome::said(match (kept.found, kept.held_back) {
        (0, _) => format!("{said}: all is as its row says"),
        (found, 0) => format!("{said}; {found} things not as they should be, none held back"),
        (found, held) => format!("{said}; {found} things not as they should be, {held} of them held back"),
    });
    let more = kept.found - kept.first.len().min(kept.found);
    for (subject, line) in kept.first {
        let said = outcome.evidence.remove(&subject).map(|before| format!("{before}; ")).unwrap_or_default();
        outcome = outcome.with(&subject, format!("{said}{line}"));
    }
    if more == 0 {
        return outcome;
    }
    let all = kept::question(promotion);
    outcome.with("more", format!("{more} less grave ones; the restored database has all of them: {all}"))
}

#[async_trait]
impl Action for Reconcile {
    fn name(&self) -> &'static str {
        "reconcile"
    }
    fn summary(&self) -> &'static str {
        "puts rows of Glance and Cinder right that do not agree with the data that is here, and lists them"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        no_parameters(with)
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(30)
    }
    async fn check(&self, _: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        // What is done is found by its note, and told once more.
        Ok(Done::No)
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let (database, item) = run.database(None)?;
        let fail = |e: String| failed(context, format!("{}: {e}", item.id));
        if !matches!(database, Database::Mariadb(_)) {
            return Ok(Outcome::said("the database is no server's: no row in it is looked at"));
        }
        let promotion = run.promotion.to_string();
        let said = if database.is_rewritten(&note(run, Vec::new())).await.map_err(fail)? {
            "done already: the database holds its note".to_owned()
        } else {
            let mut plan = of_images(run, &database).await.map_err(fail)?;
            plan.append(of_volumes(run, &database).await.map_err(fail)?);
            match of_hosts(run, &database).await.map_err(fail)? {
                Ok(hosts) => plan.append(hosts),
                Err(why) => plan.note("hosts of volumes", why),
            }
            let Plan { mut statements, mut lines, looked } = plan;
            lines.sort();
            let changes = statements.len();
            statements.extend(kept::statements(&promotion, &lines));
            context.lease.check()?;
            kept::make_room(&database).await.map_err(fail)?;
            database.rewrite_once(&note(run, statements)).await.map_err(fail)?;
            format!("{looked} rows looked at, {changes} statements")
        };
        let kept = kept::read(&database, &promotion, LISTED).await.map_err(fail)?;
        Ok(kept.map_or_else(|| Outcome::said(&said), |kept| told(&said, kept, &promotion)))
    }
    async fn undo(&self, _: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        Ok(Outcome::said("the rows go with the restored copy that they are in"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_too_long_says_how_many_more_there_are_and_where() {
        let first = vec![("volume a".to_owned(), "x".to_owned()), ("volume a".to_owned(), "y".to_owned())];
        let outcome = told("done", Kept { found: 7, held_back: 1, first }, "p1");
        assert_eq!(outcome.detail, "done; 7 things not as they should be, 1 of them held back");
        assert_eq!(outcome.evidence["volume a"], "x; y");
        let more = &outcome.evidence["more"];
        assert!(more.starts_with("5 less grave") && more.contains("WHERE promotion = 'p1'"), "{more}");
        let nothing = told("done", Kept::default(), "p1");
        assert_eq!((nothing.detail.as_str(), nothing.evidence.len()), ("done: all is as its row says", 0));
    }
}
