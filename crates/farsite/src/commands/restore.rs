//! `farsite restore POINT ITEM --to DEST`: one item out of a point into a file, a folder or a block device. Nothing
//! that stands there is overwritten unless that is said.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use farsite_model::nearest::did_you_mean;
use farsite_model::quantity::ByteSize;
use farsite_model::time::parse_moment;
use farsite_model::{ItemId, ItemKind};
use farsite_replicate::restore::Compared;
use farsite_replicate::{connect, restore};
use farsite_store::Store;
use farsite_store::manifest::{Manifest, ManifestItem};
use farsite_store::map::MapRoot;
use farsite_store::read::ReadStats;
use jiff::Timestamp;

use super::points::Named;
use super::restore_image;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};
use crate::output::Tone;
use crate::progress::Progress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The start of a point's id, `latest`, `latest-proven` or a time.
    pub point: String,
    /// An item of it as `farsite points show` names it: `cinder/volume-1`, `mariadb/main`, or the name alone.
    pub item: String,
    /// A file, a folder (for files and databases), a block device, or a new image of a Ceph pool:
    /// `rbd:POOL/IMAGE`, or `rbd:POOL/NAMESPACE/IMAGE`, with `@/path/of/ceph.conf` behind it where that is another one.
    #[arg(long, value_name = "DEST")]
    pub to: PathBuf,
    /// For a database with a shipped log: replay it up to this time (ISO 8601, `2h ago`).
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// The group, where the point's name is not plain without it.
    #[arg(long)]
    pub group: Option<String>,
    /// Write over what stands at DEST.
    #[arg(long)]
    pub force: bool,
    /// DEST is an older copy of the item (a file or block device): write only what differs, into it. An interrupted one
    /// is gone on with by running it again.
    #[arg(long, conflicts_with_all = ["force", "at"])]
    pub in_place: bool,
    /// With --in-place: DEST holds the item as it is in this point, and nobody has written to it since. Then it is not
    /// read, only the difference of the two points is written. Without it DEST is read and compared.
    #[arg(long, value_name = "POINT", requires = "in_place")]
    pub holds: Option<String>,
    #[command(flatten)]
    pub store: super::points::At,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let (site, store) = stores::open(&config, args.store.store.as_ref()).await?;
    let named = Named {
        words: args.group.iter().chain(std::iter::once(&args.point)).cloned().collect(),
        at: super::points::At { store: args.store.store.clone() },
    };
    let found = named.find(&store).await?;
    let point = found.committed()?;
    let manifest = Manifest::read(&store, found.ledger.group(), point.id(), &point.said.manifest).await?;
    let item = item(&manifest, &args.item)?;
    let until = match &args.at {
        None => None,
        Some(text) => {
            Some(parse_moment(text, Timestamp::now()).map_err(|error| Failure::usage(error.to_string()))?)
        }
    };
    if until.is_some() && item.log.is_none() {
        return Err(Failure::usage(format!("{} has no shipped log, so --at cannot be met", item.id))
            .hint("leave --at away, and choose the point by a time instead"));
    }
    if let Some(image) = restore_image::destination(&args.to)? {
        if args.in_place || args.force || item.log.is_some() || item.directory.is_some() {
            return Err(Failure::usage(format!("{image} can only be a new image of a volume or an image"))
                .hint("leave --force and --in-place away, or give a file or folder"));
        }
        let reader = connect::reader(&config, &site, &store).await?;
        context.pins.hold(&config, &store, found.ledger.group(), &[point.id()]).await;
        return restore_image::run(context, &reader, point.id(), item, &image).await;
    }
    let to = std::path::absolute(&args.to)
        .map_err(Failure::io(format!("making {} absolute", args.to.display())))?;
    may_write(&to, item, &args)?;
    let known = match &args.holds {
        Some(text) => Some(known(&store, &args, text, item).await?),
        None => None,
    };
    let reader = connect::reader(&config, &site, &store).await?;
    context.pins.hold(&config, &store, found.ledger.group(), &[point.id()]).await;
    for flaw in point.flaws() {
        context.out.warn(&format!("point {} is {flaw}", point.id().short()));
    }

    let progress = Progress::new();
    progress.says(format!("restoring {} to {}", item.id, to.display()));
    let stats = ReadStats::default();
    let began = std::time::Instant::now();
    let compared = if args.in_place {
        let guard = restore::unguarded();
        let compared = restore::over(&reader, item, point.id(), &to, known.as_ref(), &guard, &stats).await?;
        if known.is_some() && compared == Compared::Contents {
            context.out.warn(&format!(
                "{} was compared by reading all of it: it is a device, has another size, or an earlier restore into it was interrupted",
                to.display()
            ));
        }
        Some(compared)
    } else {
        restore::item(&reader, item, &to, &restore::unguarded(), &stats).await?;
        None
    };
    if item.log.is_some() {
        progress.says(format!("replaying the log of {}", item.id));
        if let Err(failure) =
            super::restore_log::replay(&reader, found.ledger.group(), item, &to, until).await
        {
            // The folder was missing or empty before: half a database is left to nobody.
            let _ = std::fs::remove_dir_all(&to);
            return Err(failure);
        }
    }
    progress.clear();
    let written = stats.written_bytes.load(Ordering::Relaxed);
    if context.out.json {
        context.out.json(&serde_json::json!({
            "point": point.id(),
            "item": item.id,
            "to": to,
            "size_bytes": item.data.size_bytes,
            "written_bytes": written,
            "fetched_bytes": stats.fetched_bytes.load(Ordering::Relaxed),
            "in_place": args.in_place,
            "compared": compared.map(|compared| match compared {
                Compared::Maps => "maps",
                Compared::Contents => "contents",
            }),
            "unchanged_bytes": stats.unchanged_bytes.load(Ordering::Relaxed),
            "punched_bytes": stats.punched_bytes.load(Ordering::Relaxed),
            "consistency": item.consistency,
            "captured": item.stamp.captured,
            "log_until": until,
            "seconds": began.elapsed().as_secs_f64(),
        }));
    } else {
        let out = context.out;
        out.line(format!(
            "{} {} of point {} is at {}: {} ({} written, the rest {}), {}, captured {}",
            out.paint(Tone::Good, "✓"),
            item.id,
            point.id().short(),
            to.display(),
            ByteSize(item.data.size_bytes),
            ByteSize(written),
            if args.in_place { "stood there already" } else { "are holes" },
            item.consistency,
            item.stamp.captured
        ));
    }
    Ok(DONE)
}

/// The block map of what DEST is said to hold.
async fn known(store: &Store, args: &Args, text: &str, item: &ManifestItem) -> Result<MapRoot, Failure> {
    let named = Named {
        words: args.group.iter().cloned().chain(std::iter::once(text.to_owned())).collect(),
        at: super::points::At { store: args.store.store.clone() },
    };
    let found = named.find(store).await?;
    let point = found.committed()?;
    let manifest = Manifest::read(store, found.ledger.group(), point.id(), &point.said.manifest).await?;
    manifest.item(&item.id).map(|item| item.data.clone()).ok_or_else(|| {
        Failure::usage(format!("point {} has no item {}", point.id().short(), item.id))
            .hint("leave --holds away: DEST is then read and compared")
    })
}

pub(super) fn item<'m>(manifest: &'m Manifest, text: &str) -> Result<&'m ManifestItem, Failure> {
    if let Some(item) = manifest.item(&ItemId::parse(text)) {
        return Ok(item);
    }
    let named: Vec<&ManifestItem> = manifest.items.iter().filter(|item| item.id.name() == text).collect();
    let started: Vec<&ManifestItem> = manifest
        .items
        .iter()
        .filter(|item| item.id.as_str().starts_with(text) || item.id.name().starts_with(text))
        .collect();
    match (named.as_slice(), started.as_slice()) {
        ([only], _) | ([], [only]) => Ok(only),
        ([], []) => {
            let near =
                did_you_mean(text, manifest.items.iter().flat_map(|item| [item.id.as_str(), item.id.name()]));
            Err(Failure::usage(format!("point {} has no item {text}{near}", manifest.point.short()))
                .hint("`farsite points show` lists the items of a point"))
        }
        (many, others) => {
            let many = if many.is_empty() { others } else { many };
            let ids: Vec<&str> = many.iter().take(5).map(|item| item.id.as_str()).collect();
            Err(Failure::usage(format!("{text} may be any of {}; type more of it", ids.join(", "))))
        }
    }
}

/// What stands at the destination is not overwritten by mistake.
fn may_write(to: &std::path::Path, item: &ManifestItem, args: &Args) -> Result<(), Failure> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(there) = std::fs::symlink_metadata(to) else {
        return if args.in_place {
            Err(Failure::usage(format!("{} is not there, so nothing can be written into it", to.display()))
                .hint("leave --in-place away"))
        } else {
            Ok(())
        };
    };
    if args.in_place {
        let plain = there.is_file() || there.file_type().is_block_device();
        return if plain && item.directory.is_none() {
            Ok(())
        } else {
            Err(Failure::usage(format!(
                "--in-place is for one file or block device; {} or {} is neither",
                to.display(),
                item.id
            ))
            .hint("restore it into an empty folder"))
        };
    }
    let refuse = |what: &str| {
        Err(Failure::refused(format!("{} {what}; nothing was written", to.display()))
            .hint("give another --to, or --force to write over it"))
    };
    let tree = item.directory.is_some();
    if there.file_type().is_block_device() {
        return if args.force { Ok(()) } else { refuse("is a block device and would be overwritten") };
    }
    if there.is_dir() {
        if !tree {
            return refuse("is a folder, and this item is one file");
        }
        let empty =
            std::fs::read_dir(to).map_err(Failure::io(format!("listing {}", to.display())))?.next().is_none();
        // A database's folder is one instance: it is never mixed with another.
        let database = item.kind == ItemKind::Mariadb;
        return if empty || (args.force && !database) { Ok(()) } else { refuse("is not empty") };
    }
    if tree {
        return refuse("is a file, and this item is a folder of files");
    }
    if args.force { Ok(()) } else { refuse("exists already") }
}
