//! Glance's rows and the files of its store.

use std::collections::{BTreeMap, BTreeSet};

use super::Gravity::{HeldBack, Marked, Noted, PutRight};
use super::{Plan, is_id};
use crate::sql::quoted;

/// Id, status, size and one location, a row for each, of every image that is not deleted, and of those whose data the scrubber
/// has not removed yet.
pub(crate) const QUESTION: &str = "SELECT i.id, i.status, i.size, l.value, l.id FROM glance.images i LEFT JOIN glance.image_locations l ON l.image_id = i.id AND l.deleted = 0 WHERE i.deleted = 0 OR i.status = 'pending_delete' ORDER BY i.id, l.id";

/// What a restored database says of an image.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) status: String,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) locations: Vec<Location>,
}

/// Where Glance looks for an image's data.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    /// Of its own row.
    number: u64,
    at: String,
}

impl Location {
    /// The scheme alone: an address may hold a password. None where Glance has encrypted it.
    fn scheme(&self) -> Option<&str> {
        self.at.split_once("://").map(|(scheme, _)| scheme)
    }

    fn folder(&self) -> Option<&str> {
        self.at.strip_prefix(IN_FOLDER)?.rsplit_once('/').map(|(folder, _)| folder)
    }
}

impl Row {
    /// The answers to [`QUESTION`]. An image with several locations has several.
    pub(crate) fn gather(answers: Vec<Vec<Option<String>>>) -> Vec<Self> {
        let mut rows: Vec<Self> = Vec::new();
        for answer in answers {
            let mut cells = answer.into_iter();
            let mut next = || cells.next().flatten();
            let (Some(id), Some(status)) = (next(), next()) else { continue };
            let size_bytes = next().and_then(|n| n.parse().ok());
            let (at, number) = (next(), next().and_then(|n| n.parse().ok()));
            let location = at.zip(number).map(|(at, number)| Location { number, at });
            match rows.last_mut().filter(|row| row.id == id) {
                Some(row) => row.locations.extend(location),
                None => {
                    rows.push(Self { id, status, size_bytes, locations: location.into_iter().collect() });
                }
            }
        }
        rows
    }
}

/// How the location of an image begins that lies in a folder, and of one in a Ceph pool.
pub(crate) const IN_FOLDER: &str = "file://";
pub(crate) const IN_POOL: &str = "rbd://";

/// What lies in the store's folder or pool.
pub(crate) struct Here {
    /// With sizes in bytes.
    pub(crate) files: BTreeMap<String, u64>,
    /// How the locations begin of what does.
    pub(crate) scheme: &'static str,
    /// What stands before and behind an image's id in them, where no row tells.
    pub(crate) around: Option<(String, String)>,
    /// Those that are not what their row says by its hash.
    pub(crate) odd: BTreeSet<String>,
    /// Folders that rows name, where nothing of this site's is ([`super::folders`]).
    pub(crate) lost: BTreeSet<String>,
    /// The point's images were read through an API, whatever store they lay in: what is not here, the point does not hold.
    pub(crate) is_of_all_stores: bool,
}

impl Here {
    /// Why an image's data cannot be served from here.
    fn lacks(&self, row: &Row) -> Option<String> {
        match (self.files.get(&row.id), row.size_bytes) {
            (None, _) => Some("it has no data here".to_owned()),
            (Some(is), Some(should)) if *is != should => {
                Some(format!("it has {is} bytes here and should have {should}"))
            }
            _ if self.odd.contains(&row.id) => {
                Some("its bytes are not those that Glance has recorded".to_owned())
            }
            _ => None,
        }
    }

    fn is_of(&self, location: &Location) -> bool {
        location.at.starts_with(self.scheme)
    }

    fn is_lost(&self, location: &Location) -> bool {
        location.folder().is_some_and(|folder| self.lost.contains(folder))
    }

    /// The folders in which Glance looks for an image whose data is here, by its row; none where it looks in no folder.
    pub(crate) fn folders_of<'r>(&self, row: &'r Row) -> Vec<&'r str> {
        let is_here = self.scheme == IN_FOLDER && self.lacks(row).is_none();
        row.locations.iter().filter(|_| is_here).filter_map(Location::folder).collect()
    }

    /// What most locations of images here have before and behind the id: Glance may know the folder by another name than this
    /// host does.
    fn usual(&self, rows: &[Row]) -> Option<(String, String)> {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for row in rows.iter().filter(|row| self.files.contains_key(&row.id)) {
            let here =
                row.locations.iter().filter(|location| self.is_of(location) && !self.is_lost(location));
            for around in here.filter_map(|location| location.at.rsplit_once(row.id.as_str())) {
                *counts.entry(around).or_default() += 1;
            }
        }
        let (most, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        Some((most.0.to_owned(), most.1.to_owned()))
    }
}

/// Where the group has no place for images: what was under way ends all the same.
pub(crate) fn plan_nowhere(rows: &[Row]) -> Plan {
    let mut plan = Plan { looked: rows.len(), ..Plan::default() };
    for row in rows.iter().filter(|row| is_id(&row.id)) {
        end_upload(row, &mut plan);
    }
    plan
}

/// Its upload went down with the site: the user sees that it failed, and may delete it. Glance itself ends none when it starts.
fn end_upload(row: &Row, plan: &mut Plan) -> bool {
    let is_under_way = matches!(row.status.as_str(), "saving" | "importing" | "uploading");
    if is_under_way {
        plan.statements.push(set(row, "killed"));
        let line = format!("its upload was under way ({}): marked killed", row.status);
        plan.say(Marked, format!("image {}", row.id), line);
    }
    is_under_way
}

fn set(row: &Row, status: &str) -> String {
    let (id, from) = (&row.id, &row.status);
    format!("UPDATE glance.images SET status = '{status}' WHERE id = '{id}' AND status = '{from}'")
}

pub(crate) fn plan(rows: &[Row], here: &Here) -> Plan {
    let mut plan = Plan { looked: rows.len(), ..Plan::default() };
    let mut known = BTreeSet::new();
    let usual = here.usual(rows).or_else(|| here.around.clone());
    for row in rows.iter().filter(|row| is_id(&row.id)) {
        known.insert(row.id.as_str());
        let subject = format!("image {}", row.id);
        let has_data = here.files.contains_key(&row.id);
        if end_upload(row, &mut plan) {
            continue;
        }
        match row.status.as_str() {
            // Its store would refuse an upload over what lies there.
            "queued" if has_data => {
                plan.say(Noted, subject, "it waits for an upload, and some data of it is here already: kept");
            }
            "pending_delete" if has_data => {
                plan.say(
                    Noted,
                    subject,
                    "it was deleted, and Glance's scrubber has not removed its data yet: kept",
                );
            }
            "active" | "deactivated" => served(row, here, usual.as_ref(), &mut plan),
            _ => {}
        }
    }
    for name in
        here.files.keys().filter(|name| is_id(name) && name.len() == 36 && !known.contains(name.as_str()))
    {
        plan.say(Noted, format!("image {name}"), "its data is here and Glance has no row of it: kept");
    }
    plan
}

/// An image that Glance serves, or would if it were activated.
fn served(row: &Row, here: &Here, usual: Option<&(String, String)>, plan: &mut Plan) {
    let subject = || format!("image {}", row.id);
    let lacks = here.lacks(row);
    let elsewhere: Vec<&str> = row
        .locations
        .iter()
        .filter(|location| !here.is_of(location))
        .map(|location| location.scheme().unwrap_or("an encrypted location"))
        .collect();
    let is_astray = row.locations.iter().all(|location| !here.is_of(location) || here.is_lost(location));
    if let Some(location) = row.locations.iter().find(|location| here.is_of(location)) {
        match lacks {
            None if is_astray => {
                // Its other rows are right, or this site's own: this one alone names another folder.
                let (before, behind) = usual.map_or(("", ""), |(before, behind)| (before, behind));
                let at = quoted(&format!("{before}{}{behind}", row.id));
                plan.statements.push(format!(
                    "UPDATE glance.image_locations SET value = {at} WHERE id = {} AND image_id = '{}'",
                    location.number, row.id
                ));
                let folder = location.folder().unwrap_or_default();
                let line = format!(
                    "its row names the folder {folder}, which is not here, and its data is: its location is now here too"
                );
                plan.say(PutRight, subject(), line);
            }
            // Served as they are, they would answer a download with no bytes and no error.
            Some(why) if row.status == "active" => {
                plan.statements.push(set(row, "deactivated"));
                plan.say(HeldBack, subject(), format!("{why}: deactivated, so that nobody downloads it"));
            }
            Some(why) => plan.say(HeldBack, subject(), format!("{why}: it is deactivated already")),
            None if elsewhere.is_empty() => {}
            None => {
                let more = elsewhere.join(", ");
                plan.say(
                    Noted,
                    subject(),
                    format!("its data is here; another location of it ({more}) was not looked at"),
                );
            }
        }
        return;
    }
    if let Some(why) = lacks.as_ref().filter(|_| here.is_of_all_stores) {
        let lies = match elsewhere.first() {
            Some(store) => format!("its location is in another store ({store})"),
            None => "it has no location".to_owned(),
        };
        if row.status == "active" {
            plan.statements.push(set(row, "deactivated"));
            plan.say(
                HeldBack,
                subject(),
                format!("{lies}, and {why}: deactivated, so that nobody downloads it"),
            );
        } else {
            plan.say(HeldBack, subject(), format!("{lies}, and {why}: it is deactivated already"));
        }
        return;
    }
    let Some(location) = row.locations.first() else {
        plan.say(Noted, subject(), "it has no location, where nothing was restored to: not looked at");
        return;
    };
    match (lacks, usual) {
        // It was read through an API out of another store: Glance is told where it is now. What it knew of the store it had, it
        // finds out anew.
        (None, Some((before, behind))) if location.scheme().is_some() => {
            let at = quoted(&format!("{before}{}{behind}", row.id));
            plan.statements.push(format!(
                "UPDATE glance.image_locations SET value = {at}, meta_data = '{{}}' WHERE id = {} AND image_id = '{}'",
                location.number, row.id
            ));
            plan.say(
                PutRight,
                subject(),
                format!("it lay in {}://, and its data is here: its location is now here too", elsewhere[0]),
            );
        }
        // Glance does not look here, so nothing wrong is served.
        (Some(why), _) if here.files.contains_key(&row.id) => {
            plan.say(
                HeldBack,
                subject(),
                format!("it lies in {}://, and {why}: its location is left as it was", elsewhere[0]),
            );
        }
        _ => {
            let place = location.scheme().map_or("has a location that is encrypted".to_owned(), |scheme| {
                format!("lies in {scheme}://")
            });
            plan.say(Noted, subject(), format!("it {place}, where nothing was restored to: not looked at"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "11111111-1111-1111-1111-111111111111";
    const B: &str = "22222222-2222-2222-2222-222222222222";

    const C: &str = "33333333-3333-3333-3333-333333333333";

    fn row(id: &str, status: &str, size: u64) -> Row {
        Row {
            id: id.into(),
            status: status.into(),
            size_bytes: Some(size),
            locations: vec![location(&format!("file:///images/{id}"))],
        }
    }

    fn location(at: &str) -> Location {
        Location { number: 7, at: at.into() }
    }

    fn here(files: &[(&str, u64)]) -> Here {
        Here {
            files: files.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
            scheme: IN_FOLDER,
            around: Some(("file:///south/images/".to_owned(), String::new())),
            odd: BTreeSet::new(),
            lost: BTreeSet::new(),
            is_of_all_stores: false,
        }
    }

    #[test]
    fn an_active_image_with_its_bytes_is_left_alone() {
        let plan = plan(&[row(A, "active", 5)], &here(&[(A, 5)]));
        assert_eq!((plan.statements.len(), plan.lines.len(), plan.looked), (0, 0, 1));
    }

    #[test]
    fn an_image_whose_row_names_a_folder_that_is_not_here_is_told_where_its_data_is() {
        let lost = Here { lost: BTreeSet::from(["/north".to_owned()]), ..here(&[(A, 5), (B, 5)]) };
        let astray = Row { locations: vec![location(&format!("file:///north/{A}"))], ..row(A, "active", 5) };
        let found = plan(&[astray.clone(), row(B, "active", 5)], &lost);
        assert_eq!((found.statements.len(), found.lines.len()), (1, 1), "{found:?}");
        // Where the others look, not what this host calls the place.
        assert!(found.statements[0].contains(&format!("value = 'file:///images/{A}' WHERE id = 7")));
        assert!(found.lines[0].said.contains("/north"), "{found:?}");
        // Its data did not come: nothing is told of a folder.
        let found = plan(&[astray], &Here { files: BTreeMap::new(), ..lost });
        assert!(found.statements[0].contains("'deactivated'") && found.statements.len() == 1, "{found:?}");
    }

    #[test]
    fn an_active_image_without_its_bytes_is_not_served() {
        for files in [vec![], vec![(A, 4)]] {
            let plan = plan(&[row(A, "active", 5)], &here(&files));
            assert!(plan.statements[0].contains("'deactivated'"), "{plan:?}");
            assert!(plan.lines[0].subject.contains(A), "{plan:?}");
        }
    }

    #[test]
    fn an_image_whose_bytes_are_not_the_recorded_ones_is_not_served() {
        let here = Here { odd: BTreeSet::from([A.to_owned()]), ..here(&[(A, 5)]) };
        let plan = plan(&[row(A, "active", 5)], &here);
        assert!(
            plan.statements[0].contains("'deactivated'") && plan.lines[0].said.contains("recorded"),
            "{plan:?}"
        );
    }

    #[test]
    fn an_upload_that_was_under_way_does_not_stay_so_for_ever() {
        for status in ["saving", "importing", "uploading"] {
            let plan = plan(&[row(A, status, 0), row(B, "queued", 0)], &here(&[(A, 3)]));
            assert_eq!(plan.statements.len(), 1, "{plan:?}");
            assert!(plan.statements[0].contains("'killed'") && plan.statements[0].contains(A));
            let nowhere = plan_nowhere(&[row(A, status, 0), row(B, "active", 5)]);
            assert_eq!(nowhere.statements, plan.statements, "a group without a place for images");
        }
    }

    #[test]
    fn an_image_that_lies_elsewhere_is_said_not_to_have_been_looked_at() {
        let elsewhere = Row { locations: vec![location("swift://user:key@host/x")], ..row(A, "active", 5) };
        let plan = plan(&[elsewhere], &here(&[]));
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 1));
        assert!(plan.lines[0].said.contains("swift://") && !plan.lines[0].said.contains("key"), "{plan:?}");
    }

    #[test]
    fn an_image_that_the_api_was_to_bring_out_of_another_store_and_that_is_not_here_is_not_served() {
        let elsewhere = Row { locations: vec![location("swift://user:key@host/x")], ..row(A, "active", 5) };
        let nowhere = Row { locations: Vec::new(), ..row(B, "active", 5) };
        let already = Row { id: C.into(), status: "deactivated".into(), ..elsewhere.clone() };
        let short = Here { is_of_all_stores: true, ..here(&[(A, 4)]) };
        for here in [Here { is_of_all_stores: true, ..here(&[]) }, short] {
            let plan = plan(&[elsewhere.clone(), nowhere.clone(), already.clone()], &here);
            assert_eq!((plan.statements.len(), plan.lines.len()), (2, 3), "{plan:?}");
            for (statement, id) in plan.statements.iter().zip([A, B]) {
                assert!(statement.contains("'deactivated'") && statement.contains(id), "{plan:?}");
            }
            assert!(plan.lines[0].said.contains("swift") && !plan.lines[0].said.contains("key"), "{plan:?}");
            assert!(plan.lines[2].said.contains("deactivated already"), "{plan:?}");
        }
    }

    #[test]
    fn data_without_a_row_is_told_and_kept() {
        let plan = plan(&[], &here(&[(A, 5), ("lost+found", 1)]));
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 1));
        assert!(plan.lines[0].said.contains("kept"));
    }

    #[test]
    fn an_image_whose_data_came_out_of_another_store_is_looked_for_here() {
        let elsewhere =
            Row { locations: vec![location("swift+https://user:key@host/x")], ..row(A, "active", 5) };
        let alone = plan(std::slice::from_ref(&elsewhere), &here(&[(A, 5)]));
        assert!(alone.statements[0].contains(&format!("value = 'file:///south/images/{A}'")), "{alone:?}");
        assert!(alone.statements[0].contains("meta_data = '{}' WHERE id = 7"), "{alone:?}");
        assert!(!format!("{:?}", alone.lines).contains("key"), "{alone:?}");
        // Glance may have another name for the folder: its other rows tell.
        let beside = plan(&[elsewhere.clone(), row(B, "active", 5)], &here(&[(A, 5), (B, 5)]));
        assert!(beside.statements[0].contains(&format!("value = 'file:///images/{A}'")), "{beside:?}");
        assert_eq!((beside.statements.len(), beside.lines.len()), (1, 1));
        // In a pool its snapshot stands behind it.
        let around = Some(("rbd://fsid/images/".to_owned(), "/snap".to_owned()));
        let pool = Here { scheme: IN_POOL, around, ..here(&[(A, 5)]) };
        let in_pool = plan(std::slice::from_ref(&elsewhere), &pool);
        assert!(
            in_pool.statements[0].contains(&format!("value = 'rbd://fsid/images/{A}/snap'")),
            "{in_pool:?}"
        );
        // Deactivated as it was.
        let deactivated = Row { status: "deactivated".into(), ..elsewhere.clone() };
        let plan_of_it = plan(&[deactivated], &here(&[(A, 5)]));
        assert_eq!(plan_of_it.statements.len(), 1, "{plan_of_it:?}");
        assert!(plan_of_it.statements[0].contains("image_locations"), "{plan_of_it:?}");
        // What is here is not all of it.
        let short = plan(&[elsewhere], &here(&[(A, 4)]));
        assert_eq!(short.statements.len(), 0, "{short:?}");
        assert!(short.lines[0].said.contains("left as it was"), "{short:?}");
    }

    #[test]
    fn a_deactivated_image_stays_so_and_is_told_of_when_its_data_is_not_here() {
        let good = plan(&[row(A, "deactivated", 5)], &here(&[(A, 5)]));
        assert_eq!((good.statements.len(), good.lines.len()), (0, 0));
        let lost = plan(&[row(A, "deactivated", 5)], &here(&[]));
        assert_eq!((lost.statements.len(), lost.lines.len()), (0, 1));
        assert!(lost.lines[0].said.contains("deactivated already"), "{lost:?}");
    }

    #[test]
    fn an_image_with_several_locations_is_served_when_one_of_them_is_here() {
        let answers = [("rbd://fsid/images/x/snap", "3"), ("file:///images/x", "4")]
            .map(|(at, number)| [A, "active", "5", at, number].map(|cell| Some(cell.to_owned())).to_vec());
        let rows = Row::gather(answers.to_vec());
        assert_eq!((rows.len(), rows[0].locations.len()), (1, 2));
        let good = plan(&rows, &here(&[(A, 5)]));
        assert_eq!((good.statements.len(), good.lines.len(), good.looked), (0, 1, 1), "{good:?}");
        assert!(good.lines[0].said.contains("another location of it (rbd) was not looked at"), "{good:?}");
        let lost = plan(&rows, &here(&[]));
        assert!(lost.statements[0].contains("'deactivated'") && lost.statements.len() == 1, "{lost:?}");
    }

    #[test]
    fn data_of_what_is_deleted_or_not_uploaded_yet_is_told_with_what_it_is_and_kept() {
        let rows = [row(A, "pending_delete", 5), row(B, "queued", 0)];
        let found = plan(&rows, &here(&[(A, 5), (B, 1)]));
        assert_eq!((found.statements.len(), found.lines.len()), (0, 2), "{found:?}");
        assert!(
            found.lines[0].said.contains("scrubber") && found.lines[1].said.contains("waits for an upload")
        );
        let nothing =
            plan(&[row(A, "pending_delete", 5), row(B, "queued", 0), row(C, "killed", 0)], &here(&[]));
        assert_eq!((nothing.statements.len(), nothing.lines.len()), (0, 0));
    }
}
