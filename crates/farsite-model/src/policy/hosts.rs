//! Which host does what of a group whose entries are read on several: one agent coordinates, the others' hosts serve what is
//! local to them. All follows from the policy, so that every agent that reads it comes to the same end.

use super::file::PolicyFile;
use super::{Item, Policy};
use crate::yaml::{Source, YamlError};

impl Policy {
    /// The host whose agent makes the group's points: that of its logged databases, else that of the first entry that names
    /// one. `None` where no entry names a host: any agent that has the policy.
    pub fn coordinator(&self) -> Option<&str> {
        let logged = self.items.iter().filter(|item| item.ships_log());
        logged.chain(&self.items).find_map(Item::on)
    }
}

/// The logs of databases are shipped by the coordinating agent, out of its own host.
pub(super) fn check(source: Source<'_>, file: &PolicyFile) -> Result<(), YamlError> {
    let items = &file.items.value;
    let Some(named) = items.iter().find(|item| item.on().is_some()) else { return Ok(()) };
    let mut logged = items.iter().filter(|item| item.ships_log());
    let Some(first) = logged.next() else { return Ok(()) };
    for item in std::iter::once(first).chain(logged) {
        let id = item.id();
        let Some(host) = item.on() else {
            let message = format!(
                "{id} ships its log, which is done by the agent that coordinates the group, and nothing says on which host that is"
            );
            let hint = format!(
                "say `on: HOST` for it as well: {} says `on: {}`",
                named.id(),
                named.on().unwrap_or_default()
            );
            return Err(source.error(item, message, Some(hint)));
        };
        if let Some(other) = first.on().filter(|other| *other != host) {
            let message = format!(
                "{id} ships its log on host {host}, and {} on {other}: one agent coordinates a group, and ships the logs of its own host",
                first.id()
            );
            let hint = "put one of them into a group of its own".to_owned();
            return Err(source.error(item, message, Some(hint)));
        }
    }
    Ok(())
}
