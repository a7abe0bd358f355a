//! The actions that need nothing but this machine and its network; one file each.

mod command;
mod http_check;
mod notify;
mod person_confirms;
mod service;
mod tcp_check;
mod tied;
mod wait;

pub use command::{Tail, run_command};

use crate::action::Registry;

pub(crate) fn register(registry: &mut Registry) {
    registry.add(command::Command);
    registry.add(service::Service);
    registry.add(http_check::HttpCheck);
    registry.add(tcp_check::TcpCheck);
    registry.add(wait::Wait);
    registry.add(person_confirms::PersonConfirms);
    registry.add(notify::Notify);
}
