//! The exports that rows of volumes in files name. Cinder mounts the export that stands in a volume's row, whatever lies in the place: where
//! it was not rewritten, every volume is asked of the lost site's server.
//!
//! What must hold: an export is called wrong only where this host's own mount says another one; what cannot be known is said. One
//! that `rewrite.exports` says is right.

use std::collections::BTreeMap;
use std::path::Path;

use super::volumes::Volume;
use super::{Gravity, Plan};

/// `mounted`: what the place is a mount of, where it is one of NFS.
pub(crate) fn plan(volumes: &[Volume], said: &[String], mounted: Option<&str>) -> Plan {
    let mut plan = Plan::default();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for location in volumes.iter().filter(|volume| volume.is_file()).filter_map(|v| v.location.as_deref()) {
        *counts.entry(location).or_default() += 1;
    }
    for (export, count) in counts {
        if said.iter().any(|said| export.contains(said.as_str())) || mounted == Some(export) {
            continue;
        }
        let next = format!(
            "`rewrite.exports` of farsite.yaml, or `UPDATE cinder.volumes SET provider_location = … WHERE provider_location = '{export}'` before services start; `exports: {{ \"{export}\": \"{export}\" }}` says that it is right"
        );
        let (gravity, line) = match mounted {
            Some(mounted) => (
                Gravity::HeldBack,
                format!(
                    "Cinder will look for {count} volumes there, and their place is {mounted} (which may be another name of it): {next}"
                ),
            ),
            None => (
                Gravity::Noted,
                format!(
                    "Cinder will look for {count} volumes there; that it finds their place so is not known: {next}"
                ),
            ),
        };
        plan.say(gravity, format!("export {export}"), line);
    }
    plan
}

/// The NFS export that a folder lies on, as this host mounted it. Asks the kernel, and never the server.
pub(crate) fn mounted(folder: &Path) -> Option<String> {
    export_of(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, folder)
}

/// `mountinfo`: proc_pid_mountinfo(5). Of several mounts of one point the last one counts.
fn export_of(mountinfo: &str, folder: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, behind) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        let mut behind = behind.split(' ');
        Some((point, behind.next()?, behind.next()?.replace("\\040", " ")))
    });
    let (point, kind, export) =
        mounts.filter(|(point, ..)| folder.starts_with(point)).max_by_key(|(point, ..)| point.len())?;
    (kind.starts_with("nfs") && Path::new(&point) == folder).then_some(export)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 0:20 / / rw - ext4 /dev/vda rw\n31 22 0:41 / /srv/cinder rw shared:1 - nfs4 nfs.south:/cinder rw\n32 22 0:42 / /srv/local\\040disk rw - btrfs /dev/vdb rw\n";

    #[test]
    fn the_place_is_an_export_where_it_is_a_mount_of_one() {
        let of = |folder: &str| export_of(MOUNTS, Path::new(folder));
        assert_eq!(of("/srv/cinder").as_deref(), Some("nfs.south:/cinder"));
        // A folder below it is no export of its own.
        assert_eq!((of("/srv/cinder/below"), of("/srv/local disk"), of("/elsewhere")), (None, None, None));
    }

    #[test]
    fn an_export_that_nobody_thought_of_rewriting_is_listed() {
        let volume = |location: &str| {
            let cells = ["v", "v", "available", "1", location].map(|cell| Some(cell.to_owned()));
            Volume::of(cells.into_iter().chain([None, None]).collect()).unwrap()
        };
        let volumes = [volume("nfs.north:/cinder"), volume("nfs.north:/cinder"), volume("lvm")];
        let wrong = plan(&volumes, &[], Some("nfs.south:/cinder"));
        let [line] = &wrong.lines[..] else { panic!("{wrong:?}") };
        assert_eq!((line.gravity, line.subject.as_str()), (Gravity::HeldBack, "export nfs.north:/cinder"));
        assert!(line.said.contains("2 volumes") && line.said.contains("nfs.south:/cinder"), "{line:?}");
        assert_eq!(plan(&volumes, &[], None).lines[0].gravity, Gravity::Noted);
        assert_eq!(plan(&volumes, &[], Some("nfs.north:/cinder")), Plan::default());
        assert_eq!(plan(&volumes, &["nfs.north:/cinder".to_owned()], None), Plan::default());
    }
}
