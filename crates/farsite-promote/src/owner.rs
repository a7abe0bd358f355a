//! Whose a restored image or volume is. A file in its place comes in; it goes out with the owner of the folder, whose service will
//! read it, and with the mode that it had at its source. What must hold: nobody may read it before who could not read it there.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use farsite_model::ItemKind;
use farsite_sources::MODE;
use farsite_store::manifest::ManifestItem;

/// False: the file stays its restorer's, or as it was made: it could not be given away.
pub(crate) fn hand_over(item: &ManifestItem, place: &Path) -> io::Result<bool> {
    give(place, mode(item.kind, item.details.get(MODE).map(String::as_str)))
}

/// Where the point does not tell: as Glance and Cinder make them (`filesystem_store_file_perm`, `nas_secure_file_permissions`).
fn mode(kind: ItemKind, noted: Option<&str>) -> u32 {
    let usual = match kind {
        ItemKind::Glance => 0o640,
        ItemKind::Cinder => 0o660,
        _ => 0o600,
    };
    noted.and_then(|mode| u32::from_str_radix(mode, 8).ok()).map_or(usual, |mode| mode & 0o777)
}

fn give(place: &Path, mode: u32) -> io::Result<bool> {
    let folder = fs::metadata(place.parent().unwrap_or(Path::new(".")))?;
    let file = fs::symlink_metadata(place)?;
    // First, while it is still one's own. Shares that know no owners refuse in many ways; the contents are there all the same.
    let has_mode = fs::set_permissions(place, Permissions::from_mode(mode)).is_ok();
    let is_theirs = (file.uid(), file.gid()) == (folder.uid(), folder.gid())
        || chown(place, Some(folder.uid()), Some(folder.gid())).is_ok();
    Ok(has_mode && is_theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_given_back_and_who_made_the_folder_owns_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            chown(dir.path(), Some(4711), Some(4712)).unwrap();
        }
        for (kind, noted, expected) in [
            (ItemKind::Glance, None, 0o640),
            (ItemKind::Cinder, Some("666"), 0o666),
            (ItemKind::Cinder, Some("4755"), 0o755),
            (ItemKind::Volume, Some("x"), 0o600),
        ] {
            let place = dir.path().join("a");
            fs::write(&place, b"x").unwrap();
            assert!(give(&place, mode(kind, noted)).unwrap());
            let there = fs::metadata(&place).unwrap();
            assert_eq!(there.mode() & 0o7777, expected, "{kind}");
            if is_root {
                assert_eq!((there.uid(), there.gid()), (4711, 4712));
            }
        }
    }
}
