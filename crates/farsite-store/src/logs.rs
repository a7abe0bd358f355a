//! Shipped database logs: immutable, signed, sealed segments of one log timeline. First and last position stand in
//! the name, so that a listing shows a gap or an overlap.
//!
//! Key: `logs/<group>/<timeline>/<sequence:010>.e<epoch>.<file>.<first>-<last>`. Body: one line of JSON
//! ([`SegmentHeader`]), then the sealed bytes (`blob` encoding inside).

use bytes::Bytes;
use farsite_model::rpo::CaptureStamp;
use farsite_model::{Epoch, GroupName, ItemId, SiteName, StoreTime};
use serde::{Deserialize, Serialize};

use crate::backend::create_or_recognise;
use crate::blob::{self, Decoded};
use crate::hex::Hex;
use crate::keys::{Role, Signer};
use crate::manifest::LogPoint;
use crate::seal::{BlobKind, ContentKeyId, Opener, Sealer};
use crate::signed::{self, Kind};
use crate::{Damage, Store, StoreError};

/// One unbroken history of a database's log.
pub type TimelineId = Hex<8>;

/// Largest raw segment; longer stretches ship as several.
pub const SEGMENT_BYTES: usize = 4 << 20;

/// First line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    pub version: u32,
    pub group: GroupName,
    pub site: SiteName,
    pub item: ItemId,
    pub epoch: Epoch,
    pub timeline: TimelineId,
    pub sequence: u64,
    /// The log file; the segment holds its bytes `first..last`.
    pub file: String,
    pub first: u64,
    pub last: u64,
    /// Set when everything up to `last` of `file` covers the database up to this source time: read before the
    /// server was asked for its position.
    pub covers: Option<CaptureStamp>,
    pub content_key: ContentKeyId,
}

/// A segment as its name tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentName {
    pub key: String,
    pub sequence: u64,
    pub epoch: Epoch,
    pub file: String,
    pub first: u64,
    pub last: u64,
    pub written: StoreTime,
}

fn folder(group: &GroupName, timeline: &TimelineId) -> String {
    format!("logs/{group}/{timeline}/")
}

fn parse_name(key: &str, written: StoreTime) -> Option<SegmentName> {
    let name = key.rsplit('/').next()?;
    let (sequence, rest) = name.split_once(".e")?;
    let (epoch, rest) = rest.split_once('.')?;
    let (file, range) = rest.rsplit_once('.')?;
    let (first, last) = range.split_once('-')?;
    Some(SegmentName {
        key: key.to_owned(),
        sequence: sequence.parse().ok()?,
        epoch: Epoch(epoch.parse().ok()?),
        file: file.to_owned(),
        first: first.parse().ok()?,
        last: last.parse().ok()?,
        written,
    })
}

/// Writes one segment.
pub async fn write(
    store: &Store,
    signer: &Signer,
    sealer: &Sealer,
    header: &SegmentHeader,
    bytes: &[u8],
) -> Result<StoreTime, StoreError> {
    let key = format!(
        "{}{:010}.e{}.{}.{:010}-{:010}",
        folder(&header.group, &header.timeline),
        header.sequence,
        header.epoch,
        header.file,
        header.first,
        header.last
    );
    let mut body = serde_json::to_vec(header).expect("a segment header is valid JSON");
    body.push(b'\n');
    body.extend_from_slice(&sealer.seal(BlobKind::LogSegment, &segment_id(header), &blob::encode(bytes, 3)));
    let object = signed::seal(signer, Kind::LogSegment, &store.format.store, &key, &body);
    create_or_recognise(&*store.backend, &key, object).await?.ok_or(StoreError::Conflict { key })
}

/// Binds the sealed bytes to their place in the timeline.
fn segment_id(header: &SegmentHeader) -> [u8; 32] {
    let place = format!("{} {} {} {} {}", header.timeline, header.sequence, header.file, header.first, header.last);
    *blake3::hash(place.as_bytes()).as_bytes()
}

/// The unbroken run of segments of a timeline, from its first one: it ends before the first gap, overlap or
/// change of epoch backwards. `up_to` cuts it at a sequence that an epoch entry accepted.
pub async fn list(
    store: &Store,
    group: &GroupName,
    timeline: &TimelineId,
    up_to: Option<u64>,
) -> Result<Vec<SegmentName>, StoreError> {
    let listed = store.backend.list(&folder(group, timeline), None).await?;
    let mut run: Vec<SegmentName> = Vec::with_capacity(listed.len());
    for object in listed {
        let Some(segment) = parse_name(&object.key, object.written) else { continue };
        let follows = match run.last() {
            None => segment.sequence == 0,
            Some(before) => {
                segment.sequence == before.sequence + 1
                    && segment.epoch >= before.epoch
                    && (segment.file != before.file || segment.first == before.last)
            }
        };
        if !follows || up_to.is_some_and(|limit| segment.sequence > limit) {
            break;
        }
        run.push(segment);
    }
    Ok(run)
}

/// Reads one segment's header, checked, and its sealed bytes.
pub async fn read_header(store: &Store, segment: &SegmentName) -> Result<(SegmentHeader, Bytes), StoreError> {
    let damaged = |why: String| StoreError::Damaged(vec![Damage::new(&segment.key, why)]);
    let object = store.get(&segment.key).await?;
    let (body, role) =
        signed::open(&store.format, Kind::LogSegment, &segment.key, &object.bytes).map_err(|e| damaged(e.to_string()))?;
    let line = body.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("its header is cut".into()))?;
    let header: SegmentHeader = serde_json::from_slice(&body[..line]).map_err(|e| damaged(e.to_string()))?;
    if role.role != Role::SourceAgent || role.site.as_ref() != Some(&header.site) {
        return Err(damaged(format!("signed by a {} that may not speak for {}", role.role, header.site)));
    }
    if header.version != 1 || header.sequence != segment.sequence || header.last != segment.last {
        return Err(damaged("its header does not match its name".into()));
    }
    Ok((header, body.slice(line + 1..)))
}

/// The bytes of one segment, opened.
pub async fn read(store: &Store, opener: &Opener, segment: &SegmentName) -> Result<(SegmentHeader, Vec<u8>), StoreError> {
    let damaged = |why: &str| StoreError::Damaged(vec![Damage::new(&segment.key, why)]);
    let (header, sealed) = read_header(store, segment).await?;
    let key = opener.content_key(store, header.content_key).await?;
    let plain = key
        .open(BlobKind::LogSegment, &segment_id(&header), &sealed)
        .ok_or_else(|| damaged("it does not open: its bytes were changed"))?;
    match blob::decode(&plain) {
        Some(Decoded::Whole(bytes)) if bytes.len() as u64 == header.last - header.first => Ok((header, bytes)),
        _ => Err(damaged("it opens, but its length is wrong")),
    }
}

/// The newest moment that a timeline covers: the last segment that says so, looked for from the end.
pub async fn newest_cover(
    store: &Store,
    segments: &[SegmentName],
) -> Result<Option<(SegmentHeader, StoreTime)>, StoreError> {
    for segment in segments.iter().rev() {
        let (header, _) = read_header(store, segment).await?;
        if header.covers.is_some() {
            return Ok(Some((header, segment.written)));
        }
    }
    Ok(None)
}

/// True when replay from `from` up to `to` finds every byte in the segments.
pub fn covers(segments: &[SegmentName], from: &LogPoint, to: &LogPoint) -> bool {
    from == to
        || (segments.first().is_some_and(|s| s.file != from.file || s.first <= from.offset)
            && segments.iter().any(|s| s.file == to.file && s.last >= to.offset))
}
