//! What a promotion puts into a place, and what it moved aside for it: a small list beside the files, to which a line is
//! added before each change and after it.
//!
//! What must hold: nothing that was there before is ever deleted, and of what the promotion made only a drill's; undo takes away
//! what this promotion made and nothing else; after a kill at any instant both going on and undoing find out where they are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use farsite_model::{ItemKind, PromotionId};
use farsite_store::manifest::ManifestItem;
use serde::{Deserialize, Serialize};

/// One thing that was put into a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub item: String,
    /// Names the version; a completed one of another version is not this one.
    pub root: String,
    /// Something stood there before; it stands at `aside` now, or still in its place when the move did not happen.
    pub existed: bool,
    pub aside: PathBuf,
    /// The place held the very same contents: it was left as it was.
    pub kept: bool,
    pub done: bool,
    /// It was hydrated, and proved untouched when it was taken: block by block what came out of the store authenticated.
    #[serde(default)]
    pub hydrated: bool,
    /// It is what the point holds, and not what the service has recorded of it: it was so at its source already.
    #[serde(default)]
    pub odd: bool,
}

/// The list of one kind of items, of one promotion.
pub(crate) struct Stamps {
    path: PathBuf,
    list: BTreeMap<PathBuf, Stamp>,
    /// The last line was cut off by a crash: the next one begins on a line of its own.
    torn: bool,
}

/// A line of the list; without a stamp the place is given back.
#[derive(Serialize, Deserialize)]
struct Line {
    place: PathBuf,
    stamp: Option<Stamp>,
}

/// Names a version of an item.
pub(crate) fn root_of(item: &ManifestItem) -> String {
    let root = item.data.root.map_or_else(|| "zeros".to_owned(), |root| root.id.to_string());
    let directory =
        item.directory.as_ref().and_then(|d| d.root).map(|root| root.id.to_string()).unwrap_or_default();
    format!("{root}/{}/{directory}", item.data.size_bytes)
}

pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl Stamps {
    /// The list beside what is restored: `<folder>/.farsite-restored-<kind>-<promotion>`, a JSON object a line.
    pub(crate) fn open(folder: &Path, kind: ItemKind, promotion: PromotionId) -> io::Result<Self> {
        let path = folder.join(format!(".farsite-restored-{kind}-{promotion}"));
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let torn = !text.is_empty() && !text.ends_with('\n');
        let mut list = BTreeMap::new();
        for line in text.split_inclusive('\n') {
            match serde_json::from_str::<Line>(line) {
                Ok(Line { place, stamp: Some(stamp) }) => drop(list.insert(place, stamp)),
                Ok(Line { place, stamp: None }) => drop(list.remove(&place)),
                // A line that a crash cut off was never acted on, and neither is an empty one.
                Err(_) => {}
            }
        }
        Ok(Self { path, list, torn })
    }

    pub(crate) fn get(&self, place: &Path) -> Option<&Stamp> {
        self.list.get(place)
    }

    /// All that this promotion put here, or began to.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        self.list.keys().cloned().collect()
    }

    /// Durable when this returns.
    fn note(&mut self, place: &Path, stamp: Option<Stamp>) -> io::Result<()> {
        let mut line = if self.torn { vec![b'\n'] } else { Vec::new() };
        let said = Line { place: place.to_owned(), stamp: stamp.clone() };
        line.extend(serde_json::to_vec(&said).map_err(io::Error::other)?);
        line.push(b'\n');
        let is_new = !exists(&self.path);
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent)?;
        }
        self.torn = true;
        let mut file = fs::File::options().append(true).create(true).open(&self.path)?;
        file.write_all(&line)?;
        file.sync_all()?;
        if is_new {
            sync_parent(&self.path)?;
        }
        self.torn = false;
        match stamp {
            Some(stamp) => drop(self.list.insert(place.to_owned(), stamp)),
            None => drop(self.list.remove(place)),
        }
        Ok(())
    }

    /// Makes `place` this promotion's own: what stands there goes to `aside`. What stands there afterwards, if anything,
    /// is an earlier attempt's.
    pub(crate) fn make_room(&mut self, place: &Path, item: &str, root: &str, aside: &Path) -> io::Result<()> {
        let stamp = match self.get(place) {
            None => Stamp {
                item: item.to_owned(),
                root: root.to_owned(),
                existed: exists(place),
                aside: aside.to_owned(),
                kept: false,
                done: false,
                hydrated: false,
                odd: false,
            },
            // Another version than before (a point that was chosen later), or another attempt.
            Some(stamp) => Stamp {
                root: root.to_owned(),
                kept: false,
                done: false,
                hydrated: false,
                odd: false,
                ..stamp.clone()
            },
        };
        if self.get(place) != Some(&stamp) {
            self.note(place, Some(stamp.clone()))?;
        }
        if stamp.existed && !exists(&stamp.aside) && exists(place) {
            if let Some(parent) = stamp.aside.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::rename(place, &stamp.aside)?;
            sync_parent(place)?;
            sync_parent(&stamp.aside)?;
        }
        Ok(())
    }

    /// The place holds this very version already: it is left alone, now and by undo.
    pub(crate) fn keep(&mut self, place: &Path, item: &str, root: &str, aside: &Path) -> io::Result<()> {
        let stamp = Stamp {
            item: item.to_owned(),
            root: root.to_owned(),
            existed: true,
            aside: aside.to_owned(),
            kept: true,
            done: true,
            hydrated: false,
            odd: false,
        };
        self.note(place, Some(stamp))
    }

    pub(crate) fn done(&mut self, place: &Path) -> io::Result<()> {
        match self.get(place).cloned() {
            Some(stamp) => self.note(place, Some(Stamp { done: true, ..stamp })),
            None => Ok(()),
        }
    }

    /// The same of what a hydrated copy became.
    pub(crate) fn done_hydrated(&mut self, place: &Path) -> io::Result<()> {
        match self.get(place).cloned() {
            Some(stamp) => self.note(place, Some(Stamp { done: true, hydrated: true, ..stamp })),
            None => Ok(()),
        }
    }

    /// Not what its service has recorded of it.
    pub(crate) fn mark_odd(&mut self, place: &Path) -> io::Result<()> {
        match self.get(place).cloned() {
            Some(stamp) if !stamp.odd => self.note(place, Some(Stamp { odd: true, ..stamp })),
            _ => Ok(()),
        }
    }

    /// The places of all such.
    pub(crate) fn odd(&self) -> impl Iterator<Item = &Path> {
        self.list.iter().filter(|(_, stamp)| stamp.odd).map(|(place, _)| place.as_path())
    }

    pub(crate) fn was_hydrated(&self, place: &Path, root: &str) -> bool {
        self.get(place).is_some_and(|s| s.done && s.hydrated && s.root == root)
    }

    pub(crate) fn is_done(&self, place: &Path, root: &str) -> bool {
        self.get(place).is_some_and(|s| s.done && s.root == root)
    }

    /// What was moved aside for `place`, as long as it lies there.
    pub(crate) fn moved_aside(&self, place: &Path) -> Option<PathBuf> {
        self.get(place).filter(|s| s.existed && !s.kept && exists(&s.aside)).map(|s| s.aside.clone())
    }

    /// Gives the place back: what stood there before returns. What this promotion made there is removed when `discard`
    /// says so (a drill's) or when it was not complete; otherwise it is kept, and its new path returned.
    pub(crate) fn give_back(&mut self, place: &Path, discard: bool) -> io::Result<Option<PathBuf>> {
        let Some(stamp) = self.list.get(place).cloned() else { return Ok(None) };
        let mut undone = None;
        if !stamp.kept {
            let moved = stamp.existed && exists(&stamp.aside);
            // Without a move the place still holds what stood there before.
            if (moved || !stamp.existed) && exists(place) {
                if discard || !stamp.done {
                    remove(place)?;
                } else {
                    let to = undone_path(&stamp.aside);
                    if let Some(parent) = to.parent() {
                        fs::create_dir_all(parent)?;
                    }
                    fs::rename(place, &to)?;
                    sync_parent(&to)?;
                    undone = Some(to);
                }
            }
            remove(&partial(place))?;
            if moved {
                fs::rename(&stamp.aside, place)?;
                sync_parent(place)?;
            }
            if let Some(folder) = stamp.aside.parent().filter(|folder| Some(*folder) != place.parent()) {
                // Only an empty folder goes.
                let _ = fs::remove_dir(folder);
            }
        }
        self.note(place, None)?;
        Ok(undone)
    }

    /// Removes the list itself, once nothing is left to give back.
    pub(crate) fn forget(self) -> io::Result<()> {
        if self.list.is_empty() { remove(&self.path) } else { Ok(()) }
    }
}

/// Where a restore writes before it names its file.
fn partial(place: &Path) -> PathBuf {
    let name = place.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    place.with_file_name(format!(".{name}.farsite-partial"))
}

/// `….before-<promotion>…` → `….undone-<promotion>…`; numbered when a promotion is undone more than once.
fn undone_path(aside: &Path) -> PathBuf {
    let text = aside.display().to_string();
    let at = text.rfind(".before-").unwrap_or(text.len());
    let base = format!("{}{}", &text[..at], text[at..].replacen(".before-", ".undone-", 1));
    let mut path = PathBuf::from(&base);
    let mut again = 1;
    while exists(&path) {
        again += 1;
        path = PathBuf::from(format!("{base}.{again}"));
    }
    path
}

/// Removes a file, a link or a whole folder; what is not there is removed already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// `cloud.db` → `cloud.db.before-<promotion>`.
pub(crate) fn beside(place: &Path, promotion: PromotionId) -> PathBuf {
    let name = place.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    place.with_file_name(format!("{name}.before-{promotion}"))
}

/// `images/4f…` → `images/.before-<promotion>/4f…`.
pub(crate) fn in_folder(place: &Path, promotion: PromotionId) -> PathBuf {
    let name = place.file_name().map(ToOwned::to_owned).unwrap_or_default();
    place.with_file_name(format!(".before-{promotion}")).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u64 = 7;

    fn open(dir: &Path) -> Stamps {
        Stamps::open(dir, ItemKind::Glance, PromotionId::from_random(ID)).unwrap()
    }

    #[test]
    fn what_was_there_before_comes_back_wherever_the_work_was_killed() {
        // Killed behind: the note, the move, the new contents, the second note.
        for killed_behind in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().join("image");
            fs::write(&place, "old").unwrap();
            let aside = in_folder(&place, PromotionId::from_random(ID));
            let mut stamps = open(dir.path());
            if killed_behind == 0 {
                let (item, root) = ("glance/image".to_owned(), "r".to_owned());
                let stamp = Stamp {
                    item,
                    root,
                    existed: true,
                    aside,
                    kept: false,
                    done: false,
                    hydrated: false,
                    odd: false,
                };
                stamps.note(&place, Some(stamp)).unwrap();
            } else {
                stamps.make_room(&place, "glance/image", "r", &aside).unwrap();
                if killed_behind > 1 {
                    fs::write(&place, "new").unwrap();
                }
                if killed_behind > 2 {
                    stamps.done(&place).unwrap();
                }
            }
            let mut again = open(dir.path());
            assert_eq!(again.is_done(&place, "r"), killed_behind > 2);
            assert_eq!(again.give_back(&place, true).unwrap(), None);
            again.forget().unwrap();
            assert_eq!(fs::read_to_string(&place).unwrap(), "old", "killed behind {killed_behind}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn what_a_real_promotion_completed_is_kept_when_it_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("cloud.db");
        fs::write(&place, "old").unwrap();
        for round in 1..3 {
            let mut stamps = open(dir.path());
            stamps.make_room(&place, "i", "r", &beside(&place, PromotionId::from_random(ID))).unwrap();
            fs::write(&place, format!("users' work {round}")).unwrap();
            stamps.done(&place).unwrap();
            let kept = stamps.give_back(&place, false).unwrap().unwrap();
            stamps.forget().unwrap();
            assert_eq!(fs::read_to_string(&place).unwrap(), "old");
            assert_eq!(fs::read_to_string(&kept).unwrap(), format!("users' work {round}"));
            assert!(kept.display().to_string().contains("cloud.db.undone-"), "{}", kept.display());
        }
    }

    #[test]
    fn a_second_attempt_does_not_move_the_first_ones_work_over_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("image");
        fs::write(&place, "old").unwrap();
        let aside = in_folder(&place, PromotionId::from_random(ID));
        open(dir.path()).make_room(&place, "i", "r", &aside).unwrap();
        fs::write(&place, "half").unwrap();
        open(dir.path()).make_room(&place, "i", "r", &aside).unwrap();
        assert_eq!(fs::read_to_string(&aside).unwrap(), "old");
        assert_eq!(fs::read_to_string(&place).unwrap(), "half", "a restore replaces it by a rename");
    }

    #[test]
    fn a_list_whose_last_line_was_cut_off_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        open(dir.path()).make_room(&one, "i", "r", &dir.path().join("aside")).unwrap();
        let path = open(dir.path()).path;
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{}", &whole[..20])).unwrap();
        let mut stamps = open(dir.path());
        stamps.make_room(&two, "i", "r", &dir.path().join("aside2")).unwrap();
        assert_eq!(open(dir.path()).places(), [one, two]);
    }

    #[test]
    fn a_promotion_does_not_believe_anothers_stamps() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("image");
        let mut stamps = open(dir.path());
        stamps.make_room(&place, "i", "r", &dir.path().join("aside")).unwrap();
        fs::write(&place, "new").unwrap();
        stamps.done(&place).unwrap();
        let other = Stamps::open(dir.path(), ItemKind::Glance, PromotionId::from_random(ID + 1)).unwrap();
        assert!(!other.is_done(&place, "r"));
    }
}
