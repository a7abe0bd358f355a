//! What this site is of its own before another one is promoted here: how its services log in, which passwords its database takes,
//! of which release its schemas are. The group's places and the runbook's variables come in; sentences go out.
//!
//! What must hold: nothing is changed; what could not be looked at is a note and never a good answer; no password is in a
//! sentence.

mod configured;
pub(crate) mod hosts;
mod passwords;
mod revisions;

use std::path::PathBuf;

use farsite_model::GroupName;
use farsite_model::config::Config;
use farsite_sources::mariadb::account::Door;

pub use configured::{Login, Stated, logins};
pub use passwords::passwords;
pub use revisions::{Compared, compare, of_database, own};

/// What was found; each sentence stands by itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Findings {
    pub good: Vec<String>,
    pub notes: Vec<String>,
    pub problems: Vec<String>,
}

/// Files and folders of a runbook's variable, with a `:` between them.
pub fn paths(variable: &str) -> Vec<PathBuf> {
    variable.split(':').map(str::trim).filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

/// Where the database of this site serves, by its place. In a drill too it is the real one.
pub fn doors(config: &Config, group: &GroupName) -> Vec<Door> {
    let Some(place) = config.places.get(group).and_then(|places| places.mariadb.as_ref()) else {
        return Vec::new();
    };
    let address = place
        .server_args
        .iter()
        .filter_map(|arg| arg.strip_prefix("--bind-address=").or_else(|| arg.strip_prefix("--bind_address=")))
        .find(|address| !matches!(*address, "" | "*" | "0.0.0.0" | "::"))
        .unwrap_or("127.0.0.1");
    let tcp = place.port.map(|port| Door::Tcp { host: address.to_owned(), port });
    [Some(Door::Socket(place.socket.clone())), tcp].into_iter().flatten().collect()
}
