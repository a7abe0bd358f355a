//! `farsite demo`: two sites on this machine, real data under continuous writes, a disaster in which everything of north
//! dies, the real failover at south, and a comparison of what south has with what north had promised to its users.
//! Nothing has to be set up; neither root nor a network is needed, and nothing is left behind unless it is asked for.

mod acknowledged;
pub mod api;
mod compare;
mod configs;
mod database;
mod figures;
mod freeze;
mod layout;
mod north;
mod page;
mod play;
mod processes;
mod recovery;
mod seeded;
mod stage;
pub mod store;
pub mod writer;

use std::path::PathBuf;

use database::Kind;
use layout::Layout;
use stage::Stage;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// North's database: MariaDB where it is installed, else SQLite.
    #[arg(long, value_enum, default_value_t = Database::Auto)]
    database: Database,
    /// South's replica store: an S3 server in this process, or a folder.
    #[arg(long, value_enum, default_value_t = StoreKind::S3)]
    store: StoreKind,
    /// The same seed writes the same data and lets disaster strike at the same moment.
    #[arg(long)]
    seed: Option<u64>,
    /// How many recovery points there are before the disaster, at least.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    points: u64,
    /// Leave both sites as they are in the end, to play with.
    #[arg(long)]
    keep: bool,
    /// End what a kept demo left running, and remove its folder.
    #[arg(long, value_name = "DIR", exclusive = true)]
    remove: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Database {
    Auto,
    Mariadb,
    Sqlite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StoreKind {
    S3,
    Folder,
}

impl StoreKind {
    fn words(self) -> &'static str {
        match self {
            Self::S3 => "S3",
            Self::Folder => "folder",
        }
    }
}

/// The choice of a database, and why, for people.
fn choose(database: Database) -> Result<(Kind, &'static str), Failure> {
    let installed = north::mariadb_is_installed();
    match database {
        Database::Mariadb if !installed => {
            Err(Failure::usage("mariadbd, mariadb-install-db or mariadb-backup is not installed")
                .hint("apt-get install mariadb-server mariadb-backup, or use --database sqlite"))
        }
        Database::Mariadb => Ok((Kind::Mariadb, "")),
        Database::Auto if installed => Ok((Kind::Mariadb, " (it is installed)")),
        Database::Auto => Ok((Kind::Sqlite, " (MariaDB is not installed)")),
        Database::Sqlite => Ok((Kind::Sqlite, "")),
    }
}

pub async fn run(args: Args, context: &Context) -> Ended {
    if let Some(folder) = &args.remove {
        return remove(folder, context);
    }
    let (kind, why) = choose(args.database)?;
    let seed = args.seed.unwrap_or_else(|| acknowledged::now_ms() % 1_000_000);
    let mut stage = Stage::set(kind, seed)?;
    let order = play::Order { kind, why, store: args.store, seed, points: args.points as usize };
    let played = tokio::select! {
        played = play::play(&stage.layout, &order, context) => played,
        () = context.cancel.cancelled() => Err(Failure::interrupted("interrupted")),
    };
    let played = match played {
        Ok(played) => played,
        Err(failure) => {
            if args.keep {
                stage.keep();
                return Err(failure.hint(format!(
                    "everything is kept in {0}; `farsite demo --remove {0}` removes it",
                    stage.layout.root.display()
                )));
            }
            return Err(failure.hint("run it with --keep to look at the logs of what it started"));
        }
    };
    if context.out.json {
        context.out.json(&played.figures);
    } else {
        played.figures.show(context);
    }
    let code = if played.figures.failures.is_empty() { DONE } else { FAILED };
    if args.keep {
        stage.keep();
        played.leave(&stage.layout, context)?;
    }
    Ok(code)
}

fn remove(folder: &std::path::Path, context: &Context) -> Ended {
    let folder =
        std::fs::canonicalize(folder).map_err(Failure::io(format!("finding {}", folder.display())))?;
    let layout = Layout::new(&folder);
    if !layout.is_a_demo() {
        return Err(Failure::usage(format!(
            "{} is no folder of a demo; nothing was removed",
            folder.display()
        )));
    }
    stage::clear(&layout).map_err(Failure::io(format!("removing {}", folder.display())))?;
    context.out.say(format!("{} is gone, with all that ran there", folder.display()));
    Ok(DONE)
}
