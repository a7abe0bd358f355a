//! `farsite restore … --to rbd:POOL/IMAGE`: one item as a new image of a Ceph pool. It has its name only when it is whole.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use farsite_model::PointId;
use farsite_model::policy::Rbd;
use farsite_model::quantity::ByteSize;
use farsite_replicate::{pool, restore};
use farsite_sources::rbd::{ImageName, Writer};
use farsite_store::manifest::ManifestItem;
use farsite_store::read::{ReadStats, Reader};

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};
use crate::output::Tone;
use crate::progress::Progress;

const SCHEME: &str = "rbd:";

/// The image that DEST names; `None`: it is a path.
pub(super) fn destination(to: &Path) -> Result<Option<ImageName>, Failure> {
    let Some(text) = to.to_str().and_then(|text| text.strip_prefix(SCHEME)) else { return Ok(None) };
    let (names, conf) = match text.split_once('@') {
        Some((names, conf)) => (names, Some(conf.into())),
        None => (text, None),
    };
    let parts: Vec<&str> = names.split('/').collect();
    let (pool, namespace, name) = match parts[..] {
        [pool, name] => (pool, None, name),
        [pool, namespace, name] => (pool, Some(namespace.to_owned()), name),
        _ => ("", None, ""),
    };
    if pool.is_empty() || name.is_empty() || name.starts_with('.') {
        return Err(Failure::usage(format!("rbd:{text} names no image of a pool"))
            .hint("write `rbd:POOL/IMAGE`, or `rbd:POOL/IMAGE@/path/of/ceph.conf`"));
    }
    let rbd = Rbd { pool: pool.to_owned(), namespace, conf, user: None };
    Ok(Some(ImageName { rbd, name: name.to_owned() }))
}

pub(super) async fn run(
    context: &Context,
    reader: &Reader,
    point: PointId,
    item: &ManifestItem,
    image: &ImageName,
) -> Ended {
    let progress = Progress::new();
    progress.says(format!("restoring {} to {image}", item.id));
    let writer = Arc::new(Writer::start(&image.rbd).await.map_err(farsite_replicate::ReplicateError::from)?);
    let there = tokio::task::block_in_place(|| writer.look(&image.name))
        .map_err(Failure::io(format!("looking for {image}")))?;
    if there.is_some() {
        return Err(Failure::refused(format!("{image} exists already; nothing was written"))
            .hint("give another --to; an image of a pool is never written over"));
    }
    let (stats, began) = (ReadStats::default(), std::time::Instant::now());
    let guard = restore::unguarded();
    pool::restore_anew(&writer, &image.name, reader, item, &guard, &stats).await?;
    progress.clear();
    let written = stats.written_bytes.load(Ordering::Relaxed);
    if context.out.json {
        context.out.json(&serde_json::json!({
            "point": point,
            "item": item.id,
            "to": { "pool": image.rbd.pool, "namespace": image.rbd.namespace, "image": image.name },
            "size_bytes": item.data.size_bytes,
            "written_bytes": written,
            "fetched_bytes": stats.fetched_bytes.load(Ordering::Relaxed),
            "unchanged_bytes": stats.unchanged_bytes.load(Ordering::Relaxed),
            "consistency": item.consistency,
            "captured": item.stamp.captured,
            "seconds": began.elapsed().as_secs_f64(),
        }));
    } else {
        let out = context.out;
        out.line(format!(
            "{} {} of point {} is {image}: {} ({} written), {}, captured {}",
            out.paint(Tone::Good, "✓"),
            item.id,
            point.short(),
            ByteSize(item.data.size_bytes),
            ByteSize(written),
            item.consistency,
            item.stamp.captured
        ));
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_pool_is_told_from_a_path() {
        assert!(destination(Path::new("rbd/volumes")).unwrap().is_none());
        let image = destination(Path::new("rbd:volumes/copy@/etc/ceph/b.conf")).unwrap().unwrap();
        assert_eq!((image.rbd.pool.as_str(), image.name.as_str()), ("volumes", "copy"));
        assert_eq!(image.rbd.conf.as_deref(), Some(Path::new("/etc/ceph/b.conf")));
        let image = destination(Path::new("rbd:p/ns/i")).unwrap().unwrap();
        assert_eq!(image.rbd.namespace.as_deref(), Some("ns"));
        for wrong in ["rbd:", "rbd:volumes", "rbd:volumes/", "rbd:a/b/c/d", "rbd:volumes/.farsite-x"] {
            assert!(destination(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
