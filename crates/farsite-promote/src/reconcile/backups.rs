//! Rows of Cinder whose states alone are looked at: backups, and groups of volumes and of snapshots. Cinder's cinder-backup ends
//! what was under way of its own host when it starts, and whether the standby runs one is not known; nobody ever ends a group's.

use super::{Gravity, Plan, is_id};

/// A table, and what a row of it is called.
pub(crate) struct Kind {
    pub(crate) table: &'static str,
    what: &'static str,
    /// Id and state.
    pub(crate) question: &'static str,
}

pub(crate) const KINDS: [Kind; 3] = [
    Kind {
        table: "backups",
        what: "backup",
        question: "SELECT id, status FROM cinder.backups WHERE deleted = 0 AND status IN ('creating', 'restoring', 'deleting') ORDER BY id",
    },
    Kind {
        table: "groups",
        what: "group",
        question: "SELECT id, status FROM cinder.`groups` WHERE deleted = 0 AND status IN ('creating', 'deleting', 'updating') ORDER BY id",
    },
    Kind {
        table: "group_snapshots",
        what: "group snapshot",
        question: "SELECT id, status FROM cinder.group_snapshots WHERE deleted = 0 AND status IN ('creating', 'deleting', 'updating') ORDER BY id",
    },
];

/// `rows`: the answers to the kind's question.
pub(crate) fn plan(kind: &Kind, rows: &[Vec<Option<String>>]) -> Plan {
    let mut plan = Plan { looked: rows.len(), ..Plan::default() };
    for row in rows {
        let [Some(id), Some(status)] = &row[..] else { continue };
        if !is_id(id) {
            continue;
        }
        let subject = format!("{} {id}", kind.what);
        let (to, line) = match (kind.table, status.as_str()) {
            ("backups", "deleting") => ("error_deleting", "it was being deleted: marked error_deleting"),
            // It was only read.
            ("backups", "restoring") => ("available", "a volume was being restored from it: available again"),
            (_, "creating") => ("error", "it was being made: marked error"),
            // Cinder marks it so when this fails, and lets it be deleted again.
            (_, "deleting") => ("error", "it was being deleted: marked error"),
            (_, "updating") => ("error", "its members were being changed: marked error"),
            _ => continue,
        };
        plan.statements.push(format!(
            "UPDATE cinder.`{}` SET status = '{to}' WHERE id = '{id}' AND status = '{status}'",
            kind.table
        ));
        let gravity = if to == "available" { Gravity::PutRight } else { Gravity::Marked };
        plan.say(gravity, subject, line);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "11111111-1111-1111-1111-111111111111";

    #[test]
    fn what_was_under_way_with_backups_and_groups_ends_in_a_stated_state() {
        let [backups, groups, snapshots] = &KINDS;
        let ends = |kind, status: &str| {
            let cells = [Some(A), Some(status)].map(|cell| cell.map(str::to_owned));
            let plan = plan(kind, &[cells.to_vec()]);
            assert_eq!(plan.lines.len(), 1, "{plan:?}");
            plan.statements.concat()
        };
        assert!(ends(backups, "creating").contains("SET status = 'error' WHERE"));
        assert!(ends(backups, "restoring").contains("backups` SET status = 'available' WHERE"));
        assert!(ends(backups, "deleting").contains("'error_deleting'"));
        for status in ["creating", "deleting", "updating"] {
            assert!(ends(groups, status).contains("cinder.`groups` SET status = 'error' WHERE"));
            assert!(ends(snapshots, status).contains("group_snapshots` SET status = 'error' WHERE"));
        }
    }
}
