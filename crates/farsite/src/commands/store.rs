//! `farsite store check|compact|gc|keys|repair|stats`: whether the store can be trusted, what is in it, what goes, and who can open it.

mod check;
mod compact;
mod gc;
mod keys;
mod repair;
mod stats;

use crate::commands::Ended;
use crate::context::Context;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Race its create-only writes, try to tamper with a probe, read all ledgers; with --depth also look at what points need.
    Check(check::Args),
    /// Release the points that the policies' retention lets go, and remove what no point needs any more.
    Gc(gc::Args),
    /// Who can open the store and who may sign in it; add, remove, retire, wrap again.
    #[command(subcommand)]
    Keys(keys::Action),
    /// Empty packs of which little is live into new ones, so that collection frees what is dead in them.
    Compact(compact::Args),
    /// Note what is damaged, so that the source sends it again, and mend points from what lies in the store once more.
    Repair(repair::Args),
    /// Points, packs and bytes of each group; how much of it is garbage.
    Stats(stats::Args),
}

pub async fn run(action: Action, context: &Context) -> Ended {
    match action {
        Action::Check(args) => check::run(args, context).await,
        Action::Gc(args) => gc::run(args, context).await,
        Action::Keys(action) => keys::run(action, context).await,
        Action::Compact(args) => compact::run(args, context).await,
        Action::Repair(args) => repair::run(args, context).await,
        Action::Stats(args) => stats::run(args, context).await,
    }
}
