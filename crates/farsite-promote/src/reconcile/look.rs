//! What is to be compared is brought here: rows out of the restored database, what lies in the group's places, what this site's own
//! services are called. A group's run comes in; a plan of everything that is to be put right goes out, and nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use farsite_model::ItemKind;
use farsite_model::policy::Rbd;
use farsite_replicate::pool;
use farsite_runbook::journal::{JournalEntry, StepStatus};
use farsite_sources::glance;
use farsite_sources::rbd::{self, PoolImage};
use farsite_store::manifest::ManifestItem;

use super::volumes::{Here, Rows};
use super::{Gravity, Plan, backups, exports, files, folders, hosts, images, volumes};
use crate::aside::Stamps;
use crate::group_run::GroupRun;
use crate::journal::StoreJournal;
use crate::own;
use crate::place::Storage;
use crate::site::Accounts;
use crate::sql::Database;

/// What is found of images, volumes and all that belongs to them. An error says why nothing may be put right.
pub(crate) async fn look(run: &GroupRun, database: &Database) -> Result<Plan, String> {
    let mut plan = of_images(run, database).await?;
    plan.append(of_volumes(run, database).await?);
    plan.append(of_hosts(run, database).await?);
    Ok(plan)
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

/// Whether a service of this site answers for each volume.
async fn of_hosts(run: &GroupRun, database: &Database) -> Result<Plan, String> {
    let rows = if database.has_table("cinder", "volumes").await?
        && database.has_table("cinder", "alembic_version").await?
    {
        database.query(hosts::QUESTION).await?
    } else {
        Vec::new()
    };
    if rows.is_empty() {
        return Ok(Plan::default());
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
        evidence.filter_map(own::hosts::of_detail).next_back()
    };
    let site = run.standby.site.as_str();
    let Some(hosts) = known.filter(|hosts| !hosts.is_empty()) else {
        let mut plan = Plan::default();
        plan.say(Gravity::Noted, "hosts of volumes".to_owned(), format!("what {site}'s own volume services are called is not known: that one of them answers for each volume is not certain"));
        return Ok(plan);
    };
    let same = run.targets.rewrite.hosts.iter().filter(|(old, new)| old == new);
    let said = same.map(|(name, _)| name.clone()).collect();
    hosts::plan(&rows, &hosts::Own { site, hosts, said })
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
    let said: Vec<String> = run.targets.rewrite.exports.values().cloned().collect();
    // In a drill too the rows name the export that a failover would have.
    let places = run.standby.config.places.get(&run.group).and_then(|places| places.cinder.as_ref());
    let place = places.and_then(|cinder| cinder.path.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let mut plan = volumes::plan(&rows, &here)?;
        if matches!(here, Here::Share(_)) {
            let mounted = place.and_then(|place| exports::mounted(&place));
            plan.append(exports::plan(&rows.volumes, &said, mounted.as_deref()));
        }
        Ok(plan)
    });
    let mut plan = looked
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error: std::io::Error| format!("looking at the volumes' files: {error}"))?;
    plan.append(of_backups(database).await?);
    Ok(plan)
}
