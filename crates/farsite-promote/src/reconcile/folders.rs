//! The folders that Glance's rows name. The data of an image may be here while Glance looks for it somewhere else: its rows still name
//! the lost site's folder, because nobody thought of rewriting it. A folder is right that is the place's, that is there on this host,
//! or that `rewrite.paths` says (Glance in a container may know the place by a name that this host does not have).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::images::{Here, Row};

/// Those that rows name for images whose data is here, and that are not right. Asks the file system.
pub(crate) fn lost(rows: &[Row], here: &Here, right: &[PathBuf]) -> BTreeSet<String> {
    let mut named: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in rows {
        for folder in here.folders_of(row) {
            named.entry(folder).or_default().push(&row.id);
        }
    }
    // A folder that only exists may be what the service's package made.
    let is_right = |folder: &Path, images: &[&str]| {
        right.iter().any(|known| folder.starts_with(known))
            || images.iter().any(|id| folder.join(id).is_file())
    };
    let lost = named.into_iter().filter(|(folder, images)| !is_right(Path::new(folder), images));
    lost.map(|(folder, _)| folder.to_owned()).collect()
}

/// Why nothing can be put right: most images are looked for where nothing is, so which of the names is right is not known.
pub(crate) fn too_many(rows: &[Row], here: &Here, place: &Path) -> Option<String> {
    let mut astray: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all = 0;
    for row in rows {
        let folders = here.folders_of(row);
        all += usize::from(!folders.is_empty());
        if folders.iter().all(|folder| here.lost.contains(*folder))
            && let Some(folder) = folders.first()
        {
            *astray.entry(folder).or_default() += 1;
        }
    }
    if astray.is_empty() || 2 * astray.values().sum::<usize>() < all {
        return None;
    }
    let named: Vec<String> = astray.iter().map(|(folder, count)| format!("{folder} ({count})")).collect();
    let (folder, place) = (astray.keys().next()?, place.display());
    Some(format!(
        "Glance's rows name a folder that is neither the place {place} nor there, for images whose data is here: {}, of {all}\n  hint: no row of them is changed yet. Where it is the lost site's folder: `rewrite: {{ paths: {{ {folder}: {place} }} }}` in farsite.yaml (then `farsite promotion cancel` and promote again, because `--resume` does not rewrite again), or put the rows right in the restored database, which serves (then `--resume`). Where this site's Glance knows the place by that name: say so with `paths: {{ {folder}: {folder} }}`, and `--resume`",
        named.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::images::IN_FOLDER;

    fn row(n: usize, folder: &str) -> Row {
        let id = format!("11111111-1111-1111-1111-{n:012}");
        let cells = [&id, "active", "5", &format!("file://{folder}/{id}"), "7"];
        Row::gather(vec![cells.map(|cell| Some(cell.to_owned())).to_vec()]).remove(0)
    }

    fn here(rows: &[Row]) -> Here {
        Here {
            files: rows.iter().map(|row| (row.id.clone(), 5)).collect(),
            scheme: IN_FOLDER,
            around: None,
            odd: BTreeSet::new(),
            lost: BTreeSet::new(),
            is_of_all_stores: false,
        }
    }

    #[test]
    fn images_that_glance_would_look_for_at_the_lost_site_stop_the_promotion_unless_they_are_a_few() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().to_str().unwrap();
        let right = [PathBuf::from("/place/images")];
        let of = |folders: &[&str]| {
            let rows: Vec<Row> = folders.iter().enumerate().map(|(n, folder)| row(n, folder)).collect();
            let mut here = here(&rows);
            here.lost = lost(&rows, &here, &right);
            (here.lost.clone(), too_many(&rows, &here, &right[0]))
        };
        let (lost, why) = of(&["/north/images", "/north/images", "/place/images"]);
        assert_eq!(lost, BTreeSet::from(["/north/images".to_owned()]));
        let why = why.unwrap();
        for word in
            ["/north/images (2), of 3", "paths: { /north/images: /place/images }", "--resume", "cancel"]
        {
            assert!(why.contains(word), "{why}");
        }
        // One of many is put right.
        assert_eq!(of(&["/north/images", "/place/images", "/place/images"]).1, None);
        // The place, a folder below it, and one on this host that has the image: being there is not enough.
        assert!(of(&["/place/images", there, there]).1.is_some());
        std::fs::write(dir.path().join(row(2, there).id), b"x").unwrap();
        assert_eq!(of(&["/place/images", "/place/images/a", there]), (BTreeSet::new(), None));
    }
}
