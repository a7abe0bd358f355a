//! `farsite store check|compact|gc|stats`: whether the store can be trusted, what is in it, and what goes.

mod check;
mod compact;
mod gc;
mod stats;

use crate::commands::Ended;
use crate::context::Context;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Race its create-only writes, try to tamper with a probe, read all ledgers; with --depth also look at what points need.
    Check(check::Args),
    /// Release the points that the policies' retention lets go, and remove what no point needs any more.
    Gc(gc::Args),
    /// Empty packs of which little is live into new ones, so that collection frees what is dead in them.
    Compact(compact::Args),
    /// Points, packs and bytes of each group; how much of it is garbage.
    Stats(stats::Args),
}

pub async fn run(action: Action, context: &Context) -> Ended {
    match action {
        Action::Check(args) => check::run(args, context).await,
        Action::Gc(args) => gc::run(args, context).await,
        Action::Compact(args) => compact::run(args, context).await,
        Action::Stats(args) => stats::run(args, context).await,
    }
}
