//! Glance's rows and the files of its store.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, is_id};

/// Id, status, size and location of every image that is not deleted.
pub(crate) const QUESTION: &str = "SELECT i.id, i.status, i.size, l.value FROM glance.images i LEFT JOIN glance.image_locations l ON l.image_id = i.id AND l.deleted = 0 WHERE i.deleted = 0 ORDER BY i.id";

/// What a restored database says of an image.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) status: String,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) location: Option<String>,
}

impl Row {
    pub(crate) fn of(cells: Vec<Option<String>>) -> Option<Self> {
        let mut cells = cells.into_iter();
        let mut next = || cells.next().flatten();
        let (id, status) = (next()?, next()?);
        Some(Self { id, status, size_bytes: next().and_then(|n| n.parse().ok()), location: next() })
    }
}

/// How the location of an image begins that lies in a folder, and of one in a Ceph pool.
pub(crate) const IN_FOLDER: &str = "file://";
pub(crate) const IN_POOL: &str = "rbd://";

/// `files`: what lies in the store's folder or pool, with sizes in bytes; `scheme`: how the locations begin of what does; `odd`: those
/// of them that are not what their row says by its hash.
pub(crate) fn plan(
    rows: &[Row],
    files: &BTreeMap<String, u64>,
    scheme: &str,
    odd: &BTreeSet<String>,
) -> Plan {
    let mut plan = Plan { looked: rows.len(), ..Plan::default() };
    let mut known = BTreeSet::new();
    for row in rows.iter().filter(|row| is_id(&row.id)) {
        known.insert(row.id.as_str());
        let subject = format!("image {}", row.id);
        let mut set = |status: &str, from: &str| {
            plan.statements.push(format!(
                "UPDATE glance.images SET status = '{status}' WHERE id = '{}' AND status = '{from}'",
                row.id
            ));
        };
        match row.status.as_str() {
            // Its upload went down with the site: the user sees that it failed, and may delete it.
            "saving" | "importing" | "uploading" => {
                set("killed", &row.status);
                plan.say(subject, format!("its upload was under way ({}): marked killed", row.status));
            }
            // Served as they are, they would answer a download with no bytes and no error.
            "active" if row.location.as_ref().is_some_and(|at| at.starts_with(scheme)) => {
                let why = match (files.get(&row.id), row.size_bytes) {
                    (None, _) => "it has no data here".to_owned(),
                    (Some(is), Some(should)) if *is != should => {
                        format!("it has {is} bytes here and should have {should}")
                    }
                    _ if odd.contains(&row.id) => {
                        "its bytes are not those that Glance has recorded".to_owned()
                    }
                    _ => continue,
                };
                set("deactivated", "active");
                plan.say(subject, format!("{why}: deactivated, so that nobody downloads it"));
            }
            // The scheme alone: an address may hold a password.
            "active" => {
                let scheme =
                    row.location.as_deref().and_then(|at| at.split_once("://")).map(|(scheme, _)| scheme);
                let where_ =
                    scheme.map_or("has no location".to_owned(), |scheme| format!("lies in {scheme}://"));
                plan.say(subject, format!("it {where_}, where nothing was restored to: not looked at"));
            }
            _ => {}
        }
    }
    for name in files.keys().filter(|name| is_id(name) && name.len() == 36 && !known.contains(name.as_str()))
    {
        plan.say(format!("image {name}"), "its data is here and Glance has no row of it: kept");
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "11111111-1111-1111-1111-111111111111";
    const B: &str = "22222222-2222-2222-2222-222222222222";

    fn row(id: &str, status: &str, size: u64) -> Row {
        Row {
            id: id.into(),
            status: status.into(),
            size_bytes: Some(size),
            location: Some(format!("file:///images/{id}")),
        }
    }

    #[test]
    fn an_active_image_with_its_bytes_is_left_alone() {
        let files = BTreeMap::from([(A.to_owned(), 5)]);
        let plan = plan(&[row(A, "active", 5)], &files, IN_FOLDER, &BTreeSet::new());
        assert_eq!((plan.statements.len(), plan.lines.len(), plan.looked), (0, 0, 1));
    }

    #[test]
    fn an_active_image_without_its_bytes_is_not_served() {
        for files in [BTreeMap::new(), BTreeMap::from([(A.to_owned(), 4)])] {
            let plan = plan(&[row(A, "active", 5)], &files, IN_FOLDER, &BTreeSet::new());
            assert!(plan.statements[0].contains("'deactivated'"), "{plan:?}");
            assert!(plan.lines[0].0.contains(A), "{plan:?}");
        }
    }

    #[test]
    fn an_image_whose_bytes_are_not_the_recorded_ones_is_not_served() {
        let (files, odd) = (BTreeMap::from([(A.to_owned(), 5)]), BTreeSet::from([A.to_owned()]));
        let plan = plan(&[row(A, "active", 5)], &files, IN_FOLDER, &odd);
        assert!(
            plan.statements[0].contains("'deactivated'") && plan.lines[0].1.contains("recorded"),
            "{plan:?}"
        );
    }

    #[test]
    fn an_upload_that_was_under_way_does_not_stay_so_for_ever() {
        let plan =
            plan(&[row(A, "saving", 0), row(B, "queued", 0)], &BTreeMap::new(), IN_FOLDER, &BTreeSet::new());
        assert_eq!(plan.statements.len(), 1, "{plan:?}");
        assert!(plan.statements[0].contains("'killed'") && plan.statements[0].contains(A));
    }

    #[test]
    fn an_image_that_lies_elsewhere_is_said_not_to_have_been_looked_at() {
        let elsewhere = Row { location: Some("swift://user:key@host/x".into()), ..row(A, "active", 5) };
        let plan = plan(&[elsewhere], &BTreeMap::new(), IN_FOLDER, &BTreeSet::new());
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 1));
        assert!(plan.lines[0].1.contains("swift://") && !plan.lines[0].1.contains("key"), "{plan:?}");
    }

    #[test]
    fn data_without_a_row_is_told_and_kept() {
        let plan = plan(
            &[],
            &BTreeMap::from([(A.to_owned(), 5), ("lost+found".to_owned(), 1)]),
            IN_FOLDER,
            &BTreeSet::new(),
        );
        assert_eq!((plan.statements.len(), plan.lines.len()), (0, 1));
        assert!(plan.lines[0].1.contains("kept"));
    }
}
