//! What a run must remember to go on after a kill: its id, and the epoch that it works in. Packs that were complete are
//! in the resume log beside it.

use std::path::PathBuf;

use farsite_model::{Epoch, RunId};
use farsite_store::hex::Hex;
use farsite_store::ledger::GroupState;
use serde::{Deserialize, Serialize};

use crate::ReplicateError;
use crate::group::Group;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    run: RunId,
    epoch: Epoch,
}

/// The run under way.
pub(crate) struct RunState {
    pub(crate) run: RunId,
    /// A process before this one worked on it.
    pub(crate) resumed: bool,
    note: PathBuf,
    pub(crate) resume_log: PathBuf,
}

impl RunState {
    /// The run that a killed process left, while its pin lives and its epoch is current; else a new one.
    pub(crate) fn begin(group: &Group, state: &GroupState) -> Result<Self, ReplicateError> {
        let note = group.runs().join("current.json");
        let saved: Option<Saved> =
            std::fs::read(&note).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let goes_on = saved.filter(|saved| {
            saved.epoch == state.epoch()
                && state.pins.contains_key(&saved.run)
                && state.points.iter().all(|p| p.said.run != saved.run)
        });
        let resumed = goes_on.is_some();
        let run =
            goes_on.map_or_else(|| RunId::from_random(u64::from_le_bytes(Hex::<8>::random().0)), |s| s.run);
        let resume_log = group.runs().join(format!("{run}.packs"));
        if !resumed {
            // Logs of runs that can go on no more.
            let _ = std::fs::remove_dir_all(group.runs());
            std::fs::create_dir_all(group.runs())
                .map_err(ReplicateError::io(format!("creating {}", group.runs().display())))?;
            let saved = Saved { run, epoch: state.epoch() };
            std::fs::write(&note, serde_json::to_vec(&saved).expect("a run's note is valid JSON"))
                .and_then(|()| std::fs::File::open(&note)?.sync_all())
                .map_err(ReplicateError::io(format!("writing {}", note.display())))?;
        }
        Ok(Self { run, resumed, note, resume_log })
    }

    /// The run has ended: its point exists, or it must not go on.
    pub(crate) fn end(self) {
        let _ = std::fs::remove_file(self.note);
        let _ = std::fs::remove_file(self.resume_log);
    }
}
