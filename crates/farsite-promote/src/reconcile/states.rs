//! How ends what Cinder was doing when its site was lost. The state of a row comes in, what becomes of it goes out.
//!
//! What must hold: nothing stays in a state that only a process of the lost site would have ended; what Cinder's services end
//! themselves when they start is left to them. The states are those of Cinder 29: `cinder/objects/fields.py`, and what its API and
//! managers write besides (`reverting`, `unmanaging`, `error_managing_deleting`).

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nobody was at work on it: its data must be there.
    AtRest,
    /// Its data was only read, or not touched yet: available again, and the data must be there.
    Again,
    /// What its data is by now is not known.
    Failed { to: &'static str, why: &'static str },
    /// An error already; or what is being deleted, with which a service goes on when it starts.
    Left,
    /// No state of Cinder's.
    Unknown,
}

/// `is_worked_on`: Cinder has noted which service deletes it (`workers`), and that one deletes it when it starts.
pub(super) fn of_volume(status: &str, is_worked_on: bool) -> End {
    match status {
        // Rewriting the site ends attachments. A transfer waits for a user, not for a process.
        "available" | "in-use" | "attaching" | "detaching" | "reserved" | "awaiting-transfer" => End::AtRest,
        "uploading" | "backing-up" | "retyping" | "maintenance" | "unmanaging" => End::Again,
        "creating" | "downloading" => End::Failed { to: "error", why: "it was being made" },
        // Who deletes a volume in this state deletes the row alone: the data was there before Cinder was told of it.
        "managing" => End::Failed { to: "error_managing", why: "it was being taken over" },
        "error_managing_deleting" => {
            End::Failed { to: "error_managing", why: "its row was being deleted, and not its data" }
        }
        "extending" => End::Failed { to: "error_extending", why: "it was being extended" },
        "reverting" | "restoring-backup" => {
            End::Failed { to: "error", why: "its contents were being replaced" }
        }
        "deleting" if !is_worked_on => End::Failed { to: "error_deleting", why: "it was being deleted" },
        "deleting" => End::Left,
        _ => error_or_unknown(status),
    }
}

/// `is_worked_on`: a service goes on deleting its volume, and deletes its snapshots first. It stops at one that is in any other
/// state than `deleting`.
pub(super) fn of_snapshot(status: &str, is_worked_on: bool) -> End {
    match status {
        "available" => End::AtRest,
        // While its volume is put back to it, it is read.
        "backing-up" | "restoring" | "unmanaging" | "updating" => End::Again,
        "creating" => End::Failed { to: "error", why: "it was being made" },
        "deleting" if !is_worked_on => End::Failed { to: "error_deleting", why: "it was being deleted" },
        "deleting" => End::Left,
        _ => error_or_unknown(status),
    }
}

fn error_or_unknown(status: &str) -> End {
    if status.starts_with("error") { End::Left } else { End::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `VolumeStatus` and `SnapshotStatus` in cinder/objects/fields.py of Cinder 29, and what its API and managers write besides.
    const VOLUME: [&str; 27] = [
        "creating",
        "available",
        "deleting",
        "error",
        "error_deleting",
        "error_managing",
        "managing",
        "attaching",
        "in-use",
        "detaching",
        "maintenance",
        "restoring-backup",
        "error_restoring",
        "reserved",
        "awaiting-transfer",
        "backing-up",
        "error_backing-up",
        "error_extending",
        "downloading",
        "uploading",
        "retyping",
        "extending",
        "reverting",
        "unmanaging",
        "error_unmanaging",
        "error_managing_deleting",
        "error_attaching",
    ];
    const SNAPSHOT: [&str; 10] = [
        "error",
        "available",
        "creating",
        "deleting",
        "updating",
        "error_deleting",
        "unmanaging",
        "backing-up",
        "restoring",
        "error_unmanaging",
    ];

    #[test]
    fn every_state_of_cinder_ends_in_one_that_a_user_can_end() {
        let rests = |to: &str| matches!(to, "available" | "error") || to.starts_with("error_");
        for (states, of) in [(&VOLUME[..], of_volume as fn(&str, bool) -> End), (&SNAPSHOT, of_snapshot)] {
            for status in states {
                match of(status, false) {
                    End::Failed { to, .. } => assert!(rests(to), "{status} ends as {to}"),
                    End::Left => assert!(status.starts_with("error"), "{status} is left as it is"),
                    End::Unknown => panic!("{status} is not known"),
                    End::AtRest | End::Again => {}
                }
            }
        }
        assert_eq!(of_volume("error_managing_deleting", false), of_volume("error_managing_deleting", true));
        assert_eq!((of_volume("deleting", true), of_snapshot("deleting", true)), (End::Left, End::Left));
        assert_eq!(of_volume("dreaming", false), End::Unknown);
    }
}
