//! `farsite points diff A B`: which items came, went and changed between two points, and by how many bytes, told by their
//! block maps. Needs the identity, because block maps are sealed.

use farsite_model::config::Config;
use farsite_model::quantity::ByteSize;
use farsite_model::{ItemId, PointId};
use farsite_replicate::connect;
use farsite_store::Store;
use farsite_store::manifest::{Manifest, ManifestItem};
use farsite_store::read::Reader;
use serde::Serialize;

use super::At;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The older point: the start of its id, `latest`, `latest-proven` or a time.
    from: String,
    /// The newer one.
    to: String,
    /// The group, where that is not plain.
    #[arg(long)]
    group: Option<String>,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Change {
    Added,
    Removed,
    Changed,
    Same,
}

#[derive(Debug, Serialize)]
struct Line {
    item: ItemId,
    change: Change,
    size_bytes: u64,
    /// Bytes of blocks that differ; of an item that came or went, its size.
    changed_bytes: u64,
    /// False: the two were stored with other block sizes, so `changed_bytes` is the most that it can be.
    exact: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    from: PointId,
    to: PointId,
    changed_bytes: u64,
    items: Vec<Line>,
}

pub async fn run(args: Args, config: &Config, context: &Context) -> Ended {
    let (site, store) = stores::open(config, args.at.store.as_ref()).await?;
    let reader = connect::reader(config, &site, &store).await?;
    let old = manifest(&store, &args, &args.from).await?;
    let new = manifest(&store, &args, &args.to).await?;
    let mut items = Vec::new();
    for item in &old.items {
        items.push(match new.item(&item.id) {
            Some(now) => changed(&reader, item, now).await?,
            None => line(item, Change::Removed),
        });
    }
    items.extend(new.items.iter().filter(|i| old.item(&i.id).is_none()).map(|i| line(i, Change::Added)));
    items.sort_by(|a, b| a.item.cmp(&b.item));
    let changed_bytes = items.iter().map(|line| line.changed_bytes).sum();
    let report = Report { from: old.point, to: new.point, changed_bytes, items };
    let out = context.out;
    if out.json {
        out.json(&report);
        return Ok(DONE);
    }
    let rows: Vec<Vec<String>> = report
        .items
        .iter()
        .filter(|line| line.change != Change::Same)
        .map(|line| {
            let (mark, word) = match line.change {
                Change::Added => ("+", "added"),
                Change::Removed => ("-", "removed"),
                Change::Changed | Change::Same => ("~", "changed"),
            };
            let most = if line.exact { "" } else { "at most " };
            vec![
                format!("{mark} {}", line.item),
                word.to_owned(),
                format!("{most}{}", ByteSize(line.changed_bytes)),
                format!("of {}", ByteSize(line.size_bytes)),
            ]
        })
        .collect();
    if rows.is_empty() {
        out.line(format!("Points {} and {} hold the same.", report.from.short(), report.to.short()));
    } else {
        out.table(&["item", "", "changed", "size"], &rows);
    }
    Ok(DONE)
}

async fn manifest(store: &Store, args: &Args, point: &str) -> Result<Manifest, Failure> {
    let found = stores::point(store, args.group.as_deref(), point).await?;
    let committed = found.committed()?;
    Ok(Manifest::read(store, found.ledger.group(), committed.id(), &committed.said.manifest).await?)
}

fn line(item: &ManifestItem, change: Change) -> Line {
    let size_bytes = item.data.size_bytes;
    Line { item: item.id.clone(), change, size_bytes, changed_bytes: size_bytes, exact: true }
}

async fn changed(reader: &Reader, old: &ManifestItem, new: &ManifestItem) -> Result<Line, Failure> {
    let (mut bytes, exact) = reader.changed_bytes(&old.data, &new.data).await?;
    if let (Some(old), Some(new)) = (&old.directory, &new.directory) {
        bytes += reader.changed_bytes(old, new).await?.0;
    }
    let same = bytes == 0 && old.data.size_bytes == new.data.size_bytes;
    let change = if same { Change::Same } else { Change::Changed };
    Ok(Line { changed_bytes: bytes, exact, ..line(new, change) })
}
