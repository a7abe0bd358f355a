//! Cinder's rows and the files of a file back end (NFS and the like): `volume-ID`, its overlays `volume-ID.SNAPSHOT`, and
//! `volume-ID.info`, which says which of them is the active one. Or the images of a Ceph pool: `volume-ID`, with
//! `snapshot-ID` within it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use farsite_sources::rbd::PoolImage;

use super::Gravity::{HeldBack, Marked, Noted, PutRight};
use super::share::{Chain, Share};
use super::states::{self, End};
use super::{Plan, is_id};

pub(crate) const VOLUMES: &str = "SELECT v.id, COALESCE(v._name_id, v.id), v.status, v.size, v.provider_location, (SELECT m.value FROM cinder.volume_admin_metadata m WHERE m.volume_id = v.id AND m.`key` = 'format' AND m.deleted = 0 LIMIT 1), v.migration_status FROM cinder.volumes v WHERE v.deleted = 0 ORDER BY v.id";
pub(crate) const SNAPSHOTS: &str =
    "SELECT s.id, s.volume_id, s.status FROM cinder.snapshots s WHERE s.deleted = 0 ORDER BY s.id";
/// Volumes that a service goes on deleting when it starts: it goes by its own id and by the state (`do_cleanup` in Cinder's
/// manager.py). Where several hosts became one, it takes the first of their rows for its own.
pub(crate) const WORKERS: &str = "SELECT resource_id FROM cinder.workers WHERE deleted = 0 AND status = 'deleting' AND service_id IN (SELECT MIN(id) FROM cinder.services WHERE deleted = 0 GROUP BY host, `binary`)";

const GIB: u64 = 1 << 30;

#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) id: String,
    /// The id in its file's name: another one after a migration.
    pub(crate) name_id: String,
    pub(crate) status: String,
    pub(crate) size_gib: u64,
    pub(crate) location: Option<String>,
    pub(crate) format: Option<String>,
    pub(crate) migration: Option<String>,
}

impl Volume {
    pub(crate) fn of(cells: Vec<Option<String>>) -> Option<Self> {
        let mut cells = cells.into_iter();
        let mut next = || cells.next().flatten();
        let (id, name_id, status) = (next()?, next()?, next()?);
        let size_gib = next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Some(Self { id, name_id, status, size_gib, location: next(), format: next(), migration: next() })
    }

    /// Whether its back end may keep it as an image of a pool: such a row says nothing of where.
    fn is_image(&self) -> bool {
        self.location.as_ref().is_none_or(String::is_empty)
    }

    /// Whether its back end keeps it in a file of a share.
    pub(super) fn is_file(&self) -> bool {
        self.location.as_ref().is_some_and(|location| location.contains(":/"))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) volume: String,
    pub(crate) status: String,
}

impl Snapshot {
    pub(crate) fn of(cells: Vec<Option<String>>) -> Option<Self> {
        let mut cells = cells.into_iter();
        let mut next = || cells.next().flatten();
        Some(Self { id: next()?, volume: next()?, status: next()? })
    }
}

/// What a database says.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) volumes: Vec<Volume>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) workers: BTreeSet<String>,
}

/// Where the volumes are.
pub(crate) enum Here {
    /// The group has no place for volumes: their states alone are looked at.
    Nowhere,
    Share(PathBuf),
    Pool(BTreeMap<String, PoolImage>),
}

pub(crate) fn plan(rows: &Rows, here: &Here) -> std::io::Result<Plan> {
    let mut plan = Plan { looked: rows.volumes.len() + rows.snapshots.len(), ..Plan::default() };
    let share = match here {
        Here::Share(folder) => Some(Share::open(folder)?),
        _ => None,
    };
    for volume in rows.volumes.iter().filter(|volume| is_id(&volume.id) && is_id(&volume.name_id)) {
        let snapshots: Vec<&Snapshot> =
            rows.snapshots.iter().filter(|s| s.volume == volume.id && is_id(&s.id)).collect();
        let is_worked_on = rows.workers.contains(&volume.id);
        let expects_data = operation(volume, is_worked_on, &mut plan);
        if let Some(share) = share.as_ref().filter(|_| volume.is_file()) {
            let chain = share.chain(volume)?;
            if expects_data {
                contents(volume, &snapshots, &chain, &mut plan);
            }
            for snapshot in &snapshots {
                snapshot_state(snapshot, Some(&chain), is_worked_on, &mut plan);
            }
            unknown_snapshots(volume, &snapshots, &chain, &mut plan);
        } else if let Here::Pool(images) = here
            && volume.is_image()
        {
            let image = images.get(&format!("volume-{}", volume.name_id));
            if expects_data {
                in_pool(volume, image, &mut plan);
            }
            for snapshot in &snapshots {
                let chain = Chain::of_image(image, snapshot);
                snapshot_state(snapshot, Some(&chain), is_worked_on, &mut plan);
            }
        } else {
            if expects_data && !matches!(here, Here::Nowhere) {
                // Another group may have restored it: whoever reads the report must know that it was not looked at.
                let line = "it does not lie where this group's volumes were restored to: not looked at";
                plan.say(Noted, format!("volume {}", volume.id), line);
            }
            for snapshot in &snapshots {
                snapshot_state(snapshot, None, is_worked_on, &mut plan);
            }
        }
    }
    let there: Vec<&String> = match (here, &share) {
        (Here::Pool(images), _) => images.keys().collect(),
        (_, Some(share)) => share.files.keys().collect(),
        _ => Vec::new(),
    };
    if !there.is_empty() {
        let known: BTreeSet<&str> = rows.volumes.iter().map(|volume| volume.name_id.as_str()).collect();
        for name in there {
            let id = name.strip_prefix("volume-").map(|rest| rest.get(..36).unwrap_or(rest));
            if let Some(id) = id.filter(|id| is_id(id) && !known.contains(id)) {
                plan.say(Noted, format!("file {name}"), format!("Cinder has no row of volume {id}: kept"));
            }
        }
    }
    Ok(plan)
}

fn set(plan: &mut Plan, table: &str, id: &str, from: &str, to: &str) {
    plan.statements
        .push(format!("UPDATE cinder.{table} SET status = '{to}' WHERE id = '{id}' AND status = '{from}'"));
}

/// What was under way ends in a stated state. Returns whether the volume is to be used: its data must be there then.
fn operation(volume: &Volume, is_worked_on: bool, plan: &mut Plan) -> bool {
    let subject = || format!("volume {}", volume.id);
    let status = volume.status.as_str();
    if volume.migration.as_deref().is_some_and(|state| !matches!(state, "" | "success" | "error" | "none")) {
        plan.statements
            .push(format!("UPDATE cinder.volumes SET migration_status = 'error' WHERE id = '{}'", volume.id));
        plan.say(Marked, subject(), "its migration was under way: ended as failed");
    }
    match states::of_volume(status, is_worked_on) {
        End::AtRest => true,
        End::Again => {
            set(plan, "volumes", &volume.id, status, "available");
            plan.say(PutRight, subject(), format!("it was {status}: available again"));
            true
        }
        End::Failed { to, why } => {
            set(plan, "volumes", &volume.id, status, to);
            plan.say(Marked, subject(), format!("{why} ({status}): marked {to}"));
            false
        }
        End::Left => false,
        End::Unknown => {
            plan.say(Noted, subject(), format!("its state {status:?} is none that is known: left as it is"));
            false
        }
    }
}

/// The active file, and all below it.
fn contents(volume: &Volume, snapshots: &[&Snapshot], chain: &Chain, plan: &mut Plan) {
    if let Some(why) = &chain.broken {
        return hold_back(volume, why, plan);
    }
    let row = volume.format.as_deref().unwrap_or("raw");
    let lost = snapshots.iter().any(|s| s.status == "available" && !chain.snapshots.contains_key(&s.id));
    match (row, &chain.header, chain.has_info) {
        // The driver's own record says that this is an overlay; called raw, a guest would get the container as its disk.
        ("raw", Some(_), true) => set_format(volume, "qcow2", plan),
        // Nothing that could be taken for a header is in it, so it is raw whatever the row says.
        ("qcow2", None, _) => set_format(volume, "raw", plan),
        // Whoever may write to a raw disk can make it look so.
        ("qcow2", Some(_), false) if lost => {
            let why = "its row tells of snapshots that its files do not have, and its format is not certain";
            return hold_back(volume, why, plan);
        }
        _ => {}
    }
    let size_bytes = match &chain.header {
        Some(header) if row == "qcow2" || chain.has_info => header.size_bytes,
        _ => chain.active_bytes,
    };
    put_size_right(volume, size_bytes, plan);
}

/// An image is raw, and as long as its volume.
fn in_pool(volume: &Volume, image: Option<&PoolImage>, plan: &mut Plan) {
    match image {
        Some(image) => put_size_right(volume, image.size_bytes, plan),
        None => hold_back(volume, "its image is not in the pool", plan),
    }
}

fn hold_back(volume: &Volume, why: &str, plan: &mut Plan) {
    // It may be available again by a statement before this one.
    for from in BTreeSet::from(["available", volume.status.as_str()]) {
        set(plan, "volumes", &volume.id, from, "error");
    }
    plan.say(
        HeldBack,
        format!("volume {}", volume.id),
        format!("{why}: marked error, so that nobody attaches it"),
    );
}

fn put_size_right(volume: &Volume, size_bytes: u64, plan: &mut Plan) {
    let size_gib = size_bytes.div_ceil(GIB);
    if size_gib != volume.size_gib {
        plan.statements
            .push(format!("UPDATE cinder.volumes SET size = {size_gib} WHERE id = '{}'", volume.id));
        plan.say(
            PutRight,
            format!("volume {}", volume.id),
            format!("it has {size_gib} GiB here and {} in its row: the row is put right", volume.size_gib),
        );
    }
}

fn set_format(volume: &Volume, format: &str, plan: &mut Plan) {
    let id = &volume.id;
    let was = volume.format.as_deref().unwrap_or("none");
    plan.statements.push(format!(
        "DELETE FROM cinder.volume_admin_metadata WHERE volume_id = '{id}' AND `key` = 'format'"
    ));
    plan.statements.push(format!(
        "INSERT INTO cinder.volume_admin_metadata (created_at, deleted, volume_id, `key`, value) VALUES (UTC_TIMESTAMP(), 0, '{id}', 'format', '{format}')"
    ));
    plan.say(
        PutRight,
        format!("volume {id}"),
        format!("its file is {format} and its row said {was}: the row is put right"),
    );
}

fn snapshot_state(snapshot: &Snapshot, chain: Option<&Chain>, is_worked_on: bool, plan: &mut Plan) {
    let (status, subject) = (snapshot.status.as_str(), format!("snapshot {}", snapshot.id));
    let (to, line) = match states::of_snapshot(status, is_worked_on) {
        End::AtRest | End::Again if let Some(why) = chain.and_then(|chain| chain.lacks(snapshot)) => {
            ("error", format!("{why}: marked error"))
        }
        End::Again => ("available", format!("it was {status}: available again")),
        End::Failed { to, why } => (to, format!("{why}: marked {to}")),
        End::Unknown => {
            return plan.say(
                Noted,
                subject,
                format!("its state {status:?} is none that is known: left as it is"),
            );
        }
        End::AtRest | End::Left => return,
    };
    set(plan, "snapshots", &snapshot.id, status, to);
    plan.say(if to == "available" { PutRight } else { Marked }, subject, line);
}

fn unknown_snapshots(volume: &Volume, snapshots: &[&Snapshot], chain: &Chain, plan: &mut Plan) {
    for (id, file) in &chain.snapshots {
        if !snapshots.iter().any(|snapshot| snapshot.id == *id) {
            plan.say(
                Noted,
                format!("snapshot {id}"),
                format!("its file {file} is here and volume {} has no row of it: kept", volume.id),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: &str = "11111111-1111-1111-1111-111111111111";
    const S: &str = "22222222-2222-2222-2222-222222222222";
    const T: &str = "33333333-3333-3333-3333-333333333333";

    fn volume(status: &str, format: Option<&str>) -> Volume {
        Volume {
            id: V.into(),
            name_id: V.into(),
            status: status.into(),
            size_gib: 1,
            location: Some("nfs:/export".into()),
            format: format.map(str::to_owned),
            migration: None,
        }
    }

    fn rows(volume: Volume, snapshots: &[(&str, &str)]) -> Rows {
        let snapshots = snapshots.iter().map(|(id, status)| Snapshot {
            id: (*id).into(),
            volume: V.into(),
            status: (*status).into(),
        });
        Rows { volumes: vec![volume], snapshots: snapshots.collect(), workers: BTreeSet::new() }
    }

    fn overlay(backing: &str) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[8..16].copy_from_slice(&128u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
        bytes[24..32].copy_from_slice(&GIB.to_be_bytes());
        bytes[128..128 + backing.len()].copy_from_slice(backing.as_bytes());
        bytes
    }

    /// A share with a raw base of 1 GiB and, where wanted, an overlay and its record.
    fn share(with_overlay: bool, with_info: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let base = format!("volume-{V}");
        std::fs::File::create(dir.path().join(&base)).unwrap().set_len(GIB).unwrap();
        if with_overlay {
            std::fs::write(dir.path().join(format!("{base}.{S}")), overlay(&base)).unwrap();
        }
        if with_info {
            let info = serde_json::json!({"active": format!("{base}.{S}"), S: format!("{base}.{S}")});
            std::fs::write(dir.path().join(format!("{base}.info")), info.to_string()).unwrap();
        }
        dir
    }

    fn planned(rows: &Rows, share: &tempfile::TempDir) -> Plan {
        plan(rows, &Here::Share(share.path().to_owned())).unwrap()
    }

    #[test]
    fn a_volume_that_is_as_its_row_says_is_left_alone() {
        let plan = planned(&rows(volume("available", None), &[]), &share(false, false));
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 0), "{plan:?}");
        let plan =
            planned(&rows(volume("available", Some("qcow2")), &[(S, "available")]), &share(true, true));
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 0), "{plan:?}");
    }

    #[test]
    fn a_row_without_data_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let plan = planned(&rows(volume("available", None), &[]), &dir);
        assert!(plan.statements.iter().any(|s| s.contains("'error'")), "{plan:?}");
        assert!(plan.lines[0].said.contains("is not here"), "{plan:?}");
    }

    #[test]
    fn an_overlay_that_its_row_calls_raw_gets_the_row_put_right() {
        let plan = planned(&rows(volume("available", Some("raw")), &[(S, "available")]), &share(true, true));
        assert!(plan.statements.iter().any(|s| s.contains("'qcow2'")), "{plan:?}");
        // The database is older than the share: it has no row of the snapshot either.
        let plan = planned(&rows(volume("available", Some("raw")), &[]), &share(true, true));
        assert!(plan.lines.iter().any(|l| l.subject.contains(S) && l.said.contains("no row")), "{plan:?}");
    }

    #[test]
    fn an_overlay_without_its_record_is_held_back() {
        let plan =
            planned(&rows(volume("available", Some("qcow2")), &[(S, "available")]), &share(true, false));
        assert!(plan.statements.iter().any(|s| s.contains("volumes SET status = 'error'")), "{plan:?}");
        assert!(plan.lines.iter().any(|l| l.said.contains("not known")), "{plan:?}");
    }

    #[test]
    fn an_overlay_that_a_record_of_another_moment_does_not_know_is_held_back_when_it_holds_data() {
        let dir = share(true, true);
        let (newest, below) = (format!("volume-{V}.{T}"), format!("volume-{V}.{S}"));
        std::fs::write(dir.path().join(&newest), overlay(&below)).unwrap();
        let rows = rows(volume("available", Some("qcow2")), &[(S, "available")]);
        let plan = planned(&rows, &dir);
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 0), "nothing was written to it: {plan:?}");

        let mut written = overlay(&below);
        // One cluster is referred to.
        written[36..40].copy_from_slice(&1u32.to_be_bytes());
        written[40..48].copy_from_slice(&256u64.to_be_bytes());
        written.extend((1u64 << 63 | 0x5_0000).to_be_bytes());
        std::fs::write(dir.path().join(&newest), written).unwrap();
        let plan = planned(&rows, &dir);
        assert!(plan.statements.iter().any(|s| s.contains("volumes SET status = 'error'")), "{plan:?}");
        assert!(plan.lines.iter().any(|l| l.said.contains(&newest)), "{plan:?}");
    }

    #[test]
    fn a_snapshot_that_is_newer_than_the_share_is_marked_and_the_row_says_raw_again() {
        let plan =
            planned(&rows(volume("available", Some("qcow2")), &[(S, "available")]), &share(false, false));
        assert!(plan.statements.iter().any(|s| s.contains("snapshots SET status = 'error'")), "{plan:?}");
        assert!(plan.statements.iter().any(|s| s.contains("'raw'")), "{plan:?}");
    }

    #[test]
    fn a_raw_disk_on_which_a_guest_wrote_a_header_is_still_raw() {
        let dir = share(false, false);
        let path = dir.path().join(format!("volume-{V}"));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &overlay("../../etc/shadow"), 0).unwrap();
        let plan = planned(&rows(volume("available", None), &[]), &dir);
        assert_eq!(plan.statements, Vec::<String>::new());
        // A row that says qcow2 because of a snapshot which the share does not have yet.
        let plan = planned(&rows(volume("available", Some("qcow2")), &[(S, "available")]), &dir);
        assert!(plan.statements.iter().any(|s| s.contains("volumes SET status = 'error'")), "{plan:?}");
    }

    #[test]
    fn what_was_under_way_ends_in_a_stated_state() {
        let dir = share(false, false);
        for (status, to) in [
            ("creating", "'error'"),
            ("downloading", "'error'"),
            ("deleting", "'error_deleting'"),
            ("extending", "'error_extending'"),
            ("managing", "'error_managing'"),
            ("uploading", "'available'"),
            ("unmanaging", "'available'"),
        ] {
            let plan = planned(&rows(volume(status, None), &[(S, "creating")]), &dir);
            assert!(plan.statements[0].contains(to), "{status}: {plan:?}");
            assert!(plan.statements.iter().any(|s| s.contains("snapshots SET status = 'error'")), "{plan:?}");
        }
        let mut worked_on = rows(volume("deleting", None), &[]);
        worked_on.workers.insert(V.to_owned());
        assert_eq!(planned(&worked_on, &dir).statements, Vec::<String>::new(), "the service goes on with it");
        // It would stop at a snapshot in another state.
        let snapshots = rows(volume("deleting", None), &[(S, "deleting")]);
        worked_on.snapshots.clone_from(&snapshots.snapshots);
        assert_eq!(planned(&worked_on, &dir).statements, Vec::<String>::new(), "its snapshots go first");
        let alone = planned(&snapshots, &dir);
        assert!(alone.statements.iter().any(|s| s.contains("snapshots SET status = 'error_deleting'")));
    }

    #[test]
    fn a_snapshot_that_was_only_read_is_available_again_if_its_data_is_here() {
        for status in ["restoring", "backing-up", "unmanaging", "updating"] {
            let rows = rows(volume("available", Some("qcow2")), &[(S, status)]);
            for (here, to) in [(true, "available"), (false, "error")] {
                let plan = planned(&rows, &share(here, here));
                let set = format!("snapshots SET status = '{to}' WHERE id = '{S}' AND status = '{status}'");
                assert!(plan.statements.iter().any(|s| s.contains(&set)), "{status}: {plan:?}");
            }
            // Where nobody looks for data, the state ends all the same.
            let plan = plan(&rows, &Here::Nowhere).unwrap();
            assert!(plan.statements.iter().any(|s| s.contains("'available'")), "{status}: {plan:?}");
        }
    }

    #[test]
    fn a_state_that_nobody_knows_is_told() {
        let plan = planned(&rows(volume("dreaming", None), &[(S, "dreaming")]), &share(false, false));
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 2), "{plan:?}");
    }

    #[test]
    fn a_volume_that_has_grown_gets_its_size() {
        let dir = share(false, false);
        std::fs::File::options()
            .write(true)
            .open(dir.path().join(format!("volume-{V}")))
            .unwrap()
            .set_len(3 * GIB)
            .unwrap();
        let plan = planned(&rows(volume("available", None), &[]), &dir);
        assert!(plan.statements[0].contains("size = 3"), "{plan:?}");
    }

    #[test]
    fn a_volume_of_a_pool_is_as_long_as_its_image_and_has_the_snapshots_that_are_in_it() {
        let mut in_pool = volume("available", None);
        in_pool.location = None;
        let rows = rows(in_pool, &[(S, "available")]);
        let image = PoolImage { size_bytes: GIB, snapshots: BTreeSet::from([format!("snapshot-{S}")]) };
        let planned = |images: Vec<(String, PoolImage)>| {
            plan(&rows, &Here::Pool(images.into_iter().collect())).unwrap()
        };
        let good = planned(vec![(format!("volume-{V}"), image.clone())]);
        assert_eq!((good.statements.len(), good.lines.len()), (0, 0), "{good:?}");
        let other = PoolImage { size_bytes: 2 * GIB, snapshots: BTreeSet::new() };
        let other = planned(vec![(format!("volume-{V}"), other), (format!("volume-{S}"), image)]);
        assert!(other.statements.iter().any(|s| s.contains("size = 2")), "{other:?}");
        assert!(other.statements.iter().any(|s| s.contains("snapshots SET status = 'error'")), "{other:?}");
        assert!(other.lines.iter().any(|l| l.said.contains("kept")), "{other:?}");
        let none = planned(Vec::new());
        assert!(none.statements.iter().any(|s| s.contains("volumes SET status = 'error'")), "{none:?}");
    }

    #[test]
    fn a_volume_of_another_back_end_is_said_not_to_have_been_looked_at() {
        let elsewhere = Volume { location: Some("lvm".into()), ..volume("available", None) };
        let plan = planned(&rows(elsewhere, &[]), &share(false, false));
        assert_eq!(plan.statements, Vec::<String>::new());
        assert!(plan.lines.iter().any(|l| l.subject.contains(V) && l.said.contains("not looked at")));
    }

    #[test]
    fn a_share_that_is_not_there_has_no_data() {
        let here = Here::Share(PathBuf::from("/nonexistent/share"));
        let plan = plan(&rows(volume("available", None), &[]), &here).unwrap();
        assert!(plan.statements.iter().any(|s| s.contains("'error'")), "{plan:?}");
    }

    #[test]
    fn files_that_no_row_knows_are_told_and_kept() {
        let dir = share(true, true);
        let plan = planned(&Rows::default(), &dir);
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 3), "{plan:?}");
    }
}
