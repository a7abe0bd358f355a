//! `farsite points list|show|diff|verify|hold|release|expire`: the recovery points of a store, as its ledgers tell.

mod diff;
mod verify;

use farsite_model::SiteName;
use farsite_model::quantity::ByteSize;
use farsite_replicate::connect;
use farsite_replicate::status::point_status;
use farsite_store::Store;
use farsite_store::ledger::{CommittedPoint, Ledger, PointFlaw, Statement};
use farsite_store::manifest::Manifest;
use farsite_store::signals::Signals;
use jiff::Timestamp;
use serde::Serialize;

use crate::commands::Ended;
use crate::context::{Context, who};
use crate::failure::{DONE, Failure};
use crate::output::{Tone, seconds};
use crate::stores;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Points, newest first, with what is wrong with each.
    List {
        /// This group only.
        group: Option<String>,
        /// Expired ones as well.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        at: At,
    },
    /// One point with its items.
    Show(Named),
    /// Open and re-hash every byte that a point needs; name what is damaged, and the newest point that is not.
    Verify {
        #[command(flatten)]
        named: Named,
        /// Every point of the group.
        #[arg(long)]
        all: bool,
        /// Say in the ledger what was found: such points are no default any more.
        #[arg(long)]
        record: bool,
    },
    /// Keep a point whatever the retention says.
    Hold {
        #[command(flatten)]
        named: Named,
        /// Why it is kept; stands in the ledger.
        #[arg(long)]
        reason: String,
    },
    /// Let the retention decide about a held point again.
    Release(Named),
    /// Let a point go now, whatever the retention says; `farsite store gc` then removes what only it needs. The last whole
    /// point, a held one and the one of an open promotion do not go.
    Expire(Named),
    /// Items that came, went and changed between two points, and by how many bytes.
    Diff(diff::Args),
}

#[derive(Debug, clap::Args)]
pub struct At {
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    pub store: Option<SiteName>,
}

#[derive(Debug, clap::Args)]
pub struct Named {
    /// The start of a point's id, `latest`, `latest-proven` or a time (`2h ago`); with a group before it where that
    /// is not plain.
    #[arg(value_name = "[GROUP] POINT", num_args = 0..=2)]
    pub words: Vec<String>,
    #[command(flatten)]
    pub at: At,
}

impl Named {
    /// Group and point as they were typed; the newest one where no point is named.
    pub fn split(&self) -> (Option<&str>, &str) {
        match self.words.as_slice() {
            [] => (None, "latest"),
            [point] => (None, point),
            [group, point, ..] => (Some(group), point),
        }
    }

    pub async fn find(&self, store: &Store) -> Result<stores::Found, Failure> {
        let (group, point) = self.split();
        // One word may be a group's name: its newest point is meant.
        if group.is_none()
            && let Ok(group) = stores::group(store, Some(point)).await
        {
            return stores::point(store, Some(group.as_str()), "latest").await;
        }
        stores::point(store, group, point).await
    }
}

/// A point as `--json` shows it in lists.
#[derive(Debug, Serialize)]
struct Line {
    group: String,
    #[serde(flatten)]
    point: farsite_model::status::PointStatus,
    exposure_s: f64,
    epoch: u64,
    held: bool,
    /// In words.
    flaws: Vec<String>,
    superseded: bool,
}

pub async fn run(action: Action, context: &Context) -> Ended {
    let config = context.config()?;
    match action {
        Action::List { group, all, at } => {
            let (_, store) = stores::open(&config, at.store.as_ref()).await?;
            list(&store, group.as_deref(), all, context).await
        }
        Action::Show(named) => {
            let (_, store) = stores::open(&config, named.at.store.as_ref()).await?;
            show(&named, &store, context).await
        }
        Action::Verify { named, all, record } => verify::run(&named, all, record, &config, context).await,
        Action::Hold { named, reason } => {
            let (_, store) = stores::open(&config, named.at.store.as_ref()).await?;
            let mut found = named.find(&store).await?;
            let point = found.point;
            let signer = connect::operator(&config)?;
            let hold = |_: &_| Ok(Statement::Hold { point, who: who(), reason: reason.clone() });
            found.ledger.append(&signer, hold).await?;
            said(context, &found, "held: no retention removes it")
        }
        Action::Release(named) => {
            let (_, store) = stores::open(&config, named.at.store.as_ref()).await?;
            let mut found = named.find(&store).await?;
            let point = found.point;
            let signer = connect::operator(&config)?;
            found.ledger.append(&signer, |_| Ok(Statement::Release { point, who: who() })).await?;
            said(context, &found, "released: the retention decides about it")
        }
        Action::Expire(named) => {
            let (_, store) = stores::open(&config, named.at.store.as_ref()).await?;
            expire(&named, &store, &config, context).await
        }
        Action::Diff(args) => diff::run(args, &config, context).await,
    }
}

async fn expire(
    named: &Named,
    store: &Store,
    config: &farsite_model::config::Config,
    context: &Context,
) -> Ended {
    let mut found = named.find(store).await?;
    let point = found.point;
    let group = found.ledger.group().clone();
    if found.committed()?.expired {
        context.out.say(format!("Point {point} of group {group} has expired already."));
        return Ok(DONE);
    }
    let signer = connect::standby_agent(config).or_else(|_| connect::operator(config))?;
    let kept = || {
        Failure::refused(format!("point {point} of group {group} stays; nothing was changed")).hint(
            "the last whole point, the last one without a flaw, a held one (`farsite points release`) and the one of an open promotion do not expire",
        )
    };
    if found.ledger.state().would_expire(&[point]).is_empty() {
        return Err(kept());
    }
    context.confirm(&format!("Let point {point} of group {group} go for good?"))?;
    found.ledger.append(&signer, |_| Ok(Statement::PointExpired { point })).await?;
    // What came before the entry may have made it the last one.
    if !found.committed()?.expired {
        return Err(kept());
    }
    if context.out.json {
        context.out.json(&serde_json::json!({ "group": group, "point": point, "expired": true }));
    } else {
        context.out.line(format!(
            "Point {point} of group {group} has expired: `farsite store gc` removes what only it needs."
        ));
    }
    Ok(DONE)
}

fn said(context: &Context, found: &stores::Found, words: &str) -> Ended {
    let point = found.committed()?;
    if context.out.json {
        context.out.json(
            &serde_json::json!({ "group": found.ledger.group(), "point": point.id(), "held": point.held }),
        );
    } else {
        context.out.line(format!("Point {} of group {} is {words}.", point.id(), found.ledger.group()));
    }
    Ok(DONE)
}

async fn list(store: &Store, group: Option<&str>, all: bool, context: &Context) -> Ended {
    let now = store.now().await?;
    let mut lines = Vec::new();
    for group in stores::groups(store, group).await? {
        let ledger = Ledger::open(store, &group).await?;
        for damage in &ledger.state().damage {
            context.out.warn(&format!("damaged at the store: {damage}"));
        }
        for point in ledger.state().points.iter().rev().filter(|point| all || !point.expired) {
            lines.push(Line {
                group: group.to_string(),
                point: point_status(point),
                exposure_s: point.exposure(now).as_secs_f64(),
                epoch: point.said.epoch.0,
                held: point.held,
                flaws: point.flaws().iter().map(PointFlaw::to_string).collect(),
                superseded: point.superseded,
            });
        }
    }
    if context.out.json {
        context.out.json(&lines);
        return Ok(DONE);
    }
    if lines.is_empty() {
        context.out.line("No recovery point yet.");
        return Ok(DONE);
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            vec![
                line.point.id.short(),
                line.group.clone(),
                format!("{:.0}", line.point.captured.0),
                seconds(line.exposure_s),
                line.point.items.to_string(),
                line.point.weakest.to_string(),
                ByteSize(line.point.changed_bytes).to_string(),
                ByteSize(line.point.shipped_bytes).to_string(),
                notes(line),
            ]
        })
        .collect();
    let header =
        ["point", "group", "captured", "exposure", "items", "consistency", "changed", "shipped", "notes"];
    context.out.table(&header, &rows);
    Ok(DONE)
}

fn notes(line: &Line) -> String {
    let mut notes: Vec<String> = line.flaws.clone();
    if line.point.proven {
        notes.push("proven".into());
    }
    if line.held {
        notes.push("held".into());
    }
    if line.superseded {
        notes.push(format!("of epoch {}, which has ended", line.epoch));
    }
    notes.join("; ")
}

async fn show(named: &Named, store: &Store, context: &Context) -> Ended {
    let found = named.find(store).await?;
    let point = found.committed()?;
    let manifest = Manifest::read(store, found.ledger.group(), point.id(), &point.said.manifest).await?;
    let out = context.out;
    if out.json {
        out.json(&serde_json::json!({
            "point": point_status(point),
            "flaws": point.flaws().iter().map(PointFlaw::to_string).collect::<Vec<_>>(),
            "proven": point.proven,
            "held": point.held,
            "superseded": point.superseded,
            "committed_by": point.by,
            "manifest": manifest,
        }));
        return Ok(DONE);
    }
    head(point, &manifest, context);
    let rows: Vec<Vec<String>> = manifest
        .items
        .iter()
        .map(|item| {
            vec![
                item.id.to_string(),
                ByteSize(item.data.size_bytes).to_string(),
                item.consistency.to_string(),
                age(item.stamp.captured.0),
                item.carried_from.map_or_else(
                    || item.signals.as_ref().map(seen).unwrap_or_default(),
                    |from| format!("of point {}", from.short()),
                ),
            ]
        })
        .collect();
    out.table(&["item", "size", "consistency", "captured", "seen"], &rows);
    for failed in &manifest.failed {
        out.line(format!("{} {}: {}", out.paint(Tone::Bad, "✗"), failed.id, failed.why));
    }
    Ok(DONE)
}

fn head(point: &CommittedPoint, manifest: &Manifest, context: &Context) {
    let out = context.out;
    out.line(format!("{} of group {}", out.paint(Tone::Strong, &point.id().to_string()), manifest.group));
    out.table(
        &[],
        &[
            vec!["  epoch".into(), point.said.epoch.to_string()],
            vec!["  committed".into(), format!("{} by {}", point.committed, point.by)],
            vec!["  stands for".into(), format!("{} at worst, in store time", point.stands_for())],
            vec!["  proven".into(), point.proven.clone().unwrap_or_else(|| "no".into())],
            vec!["  held".into(), if point.held { "yes" } else { "no" }.into()],
            vec![
                "  run".into(),
                format!(
                    "{} read, {} changed, {} shipped",
                    ByteSize(manifest.read_bytes),
                    ByteSize(manifest.changed_bytes),
                    ByteSize(manifest.shipped_bytes)
                ),
            ],
        ],
    );
    for flaw in point.flaws() {
        out.line(format!("{} {flaw}", out.paint(Tone::Warn, "!")));
    }
    out.line("");
}

/// What changed of an item, in the words of its signals.
fn seen(signals: &Signals) -> String {
    if signals.first_copy {
        return "first copy".into();
    }
    let percent = |part: u64, of: u64| match of {
        0 => "0%".to_owned(),
        of => format!("{:.0}%", part as f64 * 100.0 / of as f64),
    };
    let (lost, new) = (signals.lost_blocks(), signals.new_blocks());
    if lost + new == 0 {
        return "unchanged".into();
    }
    format!(
        "{} overwritten or removed, {} of what is new incompressible",
        percent(lost, signals.blocks_before()),
        percent(signals.incompressible_blocks, new)
    )
}

fn age(at: Timestamp) -> String {
    format!("{at:.3}")
}
