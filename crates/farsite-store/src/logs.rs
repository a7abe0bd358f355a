//! Shipped database logs: immutable, signed, sealed segments of one log timeline. First and last position stand in
//! the name, so that a listing shows a gap or an overlap.
//!
//! Key: `logs/<group>/<timeline>/<sequence:010>.e<epoch>.<file>.<first>-<last>`. Body: one line of JSON
//! ([`SegmentHeader`]), then the sealed bytes (`blob` encoding inside).

mod unbroken;

use bytes::Bytes;
use farsite_model::rpo::CaptureStamp;
use farsite_model::{Epoch, GroupName, ItemId, SiteName, StoreTime};
use serde::{Deserialize, Serialize};

use crate::amendments::LogEnd;
use crate::backend::create_or_recognise;
use crate::blob;
use crate::format::Format;
use crate::hex::Hex;
use crate::keys::{self, Role, Signer};
use crate::manifest::LogPoint;
use crate::read::encoded;
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
    /// When set, only a segment signed by this site's agent is read. Names are not signed: [`list_of_site`] sets it.
    pub site: Option<SiteName>,
}

impl SegmentHeader {
    /// The key of the segment's object: everything that orders it stands in its name.
    pub fn key(&self) -> String {
        format!(
            "{}{:010}.e{}.{}.{:010}-{:010}",
            folder(&self.group, self.timeline),
            self.sequence,
            self.epoch,
            self.file,
            self.first,
            self.last
        )
    }
}

fn folder(group: &GroupName, timeline: TimelineId) -> String {
    format!("logs/{group}/{timeline}/")
}

pub(crate) fn parse_name(key: &str, written: StoreTime) -> Option<SegmentName> {
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
        site: None,
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
    let key = header.key();
    // What could not be read back must not be acknowledged as shipped.
    if bytes.len() > SEGMENT_BYTES || header.first.checked_add(bytes.len() as u64) != Some(header.last) {
        return Err(crate::ledger::Refusal::Other(format!(
            "{key} would hold {} bytes: a segment holds exactly what its positions say, and at most {SEGMENT_BYTES}",
            bytes.len()
        ))
        .into());
    }
    let mut body = serde_json::to_vec(header).expect("a segment header is valid JSON");
    body.push(b'\n');
    body.extend_from_slice(&sealer.seal(BlobKind::LogSegment, &segment_id(header), &blob::encode(bytes, 3)));
    let object = signed::seal(signer, Kind::LogSegment, &store.format().store, &key, &body);
    create_or_recognise(&*store.backend, &key, object).await?.ok_or(StoreError::Conflict { key })
}

/// Binds the sealed bytes to their place in the timeline.
fn segment_id(header: &SegmentHeader) -> [u8; 32] {
    let place =
        format!("{} {} {} {} {}", header.timeline, header.sequence, header.file, header.first, header.last);
    *blake3::hash(place.as_bytes()).as_bytes()
}

/// The unbroken run of segments of a timeline, from its first one: it ends before the first gap, overlap or
/// change of epoch backwards. Where several segments have one sequence (an upload whose answer was lost may land after
/// another one), the longest run counts. `up_to` cuts it at a sequence that an epoch entry accepted.
pub async fn list(
    store: &Store,
    group: &GroupName,
    timeline: &TimelineId,
    up_to: Option<u64>,
) -> Result<Vec<SegmentName>, StoreError> {
    chosen(store, group, timeline, up_to, None).await
}

/// Like [`list`], for a timeline that belongs to `site`: reading refuses a segment that another site's agent signed.
/// Whoever restores or reports uses this one.
pub async fn list_of_site(
    store: &Store,
    group: &GroupName,
    timeline: &TimelineId,
    up_to: Option<u64>,
    site: &SiteName,
) -> Result<Vec<SegmentName>, StoreError> {
    chosen(store, group, timeline, up_to, Some(site)).await
}

async fn chosen(
    store: &Store,
    group: &GroupName,
    timeline: &TimelineId,
    up_to: Option<u64>,
    site: Option<&SiteName>,
) -> Result<Vec<SegmentName>, StoreError> {
    let listed = store.backend.list(&folder(group, *timeline), None).await?;
    let named = listed.into_iter().filter_map(|object| {
        let mut segment = parse_name(&object.key, object.written)?;
        segment.site = site.cloned();
        up_to.is_none_or(|limit| segment.sequence <= limit).then_some(segment)
    });
    let mut levels = unbroken::by_sequence(named);
    let format = store.format();
    for candidates in levels.iter_mut().filter(|candidates| candidates.len() > 1) {
        // Names are not signed: whoever may create objects can put one beside the agent's. Only where names compete are
        // their objects read.
        let mut believed = Vec::with_capacity(candidates.len());
        let mut ended: Vec<(SegmentName, &LogEnd)> = Vec::new();
        for segment in candidates.iter() {
            match believe(store, &format, segment).await {
                Ok((_, _, None)) => believed.push(segment.clone()),
                Ok((_, _, Some(end))) => ended.push((segment.clone(), end)),
                Err(StoreError::Damaged(damage)) => {
                    let why = damage.first().map_or_else(String::new, ToString::to_string);
                    tracing::warn!("one of several log segments with this sequence is not believed: {why}");
                }
                Err(other) => return Err(other),
            }
        }
        // Whoever has a retired key could still add one beside what it shipped before its end. Its end names the one that
        // counts; where it names none there was but one, and which one that was cannot be told any more.
        let several = believed.len() + ended.len() > 1;
        let chosen = ended.iter().find(|(one, end)| end.chosen.contains(&one.key));
        match chosen.or(ended.first().filter(|_| !several)) {
            Some((one, _)) => believed.push(one.clone()),
            None if several && believed.is_empty() => {
                tracing::warn!(
                    "several log segments of a retired key have one sequence: the log ends before it"
                );
                candidates.clear();
            }
            None => {}
        }
        // When none is, all stay: whoever reads one is told what is wrong with it.
        if !believed.is_empty() {
            *candidates = believed;
        }
    }
    Ok(unbroken::longest(&levels))
}

/// The end of a timeline as a site's agent has shipped it, for when its key is retired. `None`: no segment is believed.
pub(crate) async fn end_of_site(
    store: &Store,
    group: &GroupName,
    timeline: &TimelineId,
    site: &SiteName,
) -> Result<Option<LogEnd>, StoreError> {
    let run = list_of_site(store, group, timeline, None, site).await?;
    let Some(last) = run.last() else { return Ok(None) };
    let listed = store.backend.list(&folder(group, *timeline), None).await?;
    let epoch = StoreTime(jiff::Timestamp::UNIX_EPOCH);
    let mut names: std::collections::BTreeMap<u64, u32> = std::collections::BTreeMap::new();
    for segment in listed.iter().filter_map(|object| parse_name(&object.key, epoch)) {
        *names.entry(segment.sequence).or_default() += 1;
    }
    let competing = run.iter().filter(|segment| names.get(&segment.sequence).is_some_and(|n| *n > 1));
    let chosen = competing.map(|segment| segment.key.clone()).collect();
    Ok(Some(LogEnd { last: last.sequence, chosen }))
}

/// `mariadb-bin.000007` is followed by `mariadb-bin.000008`. Of names that carry no number nothing is known.
fn is_next_file(before: &str, after: &str) -> bool {
    let number = |name: &str| {
        let (stem, number) = name.rsplit_once('.')?;
        Some((stem.to_owned(), number.parse::<u64>().ok()?))
    };
    match (number(before), number(after)) {
        (Some((a, before)), Some((b, after))) => a == b && before.checked_add(1) == Some(after),
        _ => true,
    }
}

/// Reads one segment's header, checked, and its sealed bytes.
pub async fn read_header(store: &Store, segment: &SegmentName) -> Result<(SegmentHeader, Bytes), StoreError> {
    let (header, sealed, _) = believe(store, &store.format(), segment).await?;
    Ok((header, sealed))
}

/// The same, and where its signer's shipping ended, when its key was retired.
async fn believe<'f>(
    store: &Store,
    format: &'f Format,
    segment: &SegmentName,
) -> Result<(SegmentHeader, Bytes, Option<&'f LogEnd>), StoreError> {
    let damaged = |why: String| StoreError::Damaged(vec![Damage::new(&segment.key, why)]);
    let object = store.get(&segment.key).await?;
    let (body, role) = signed::open(format, Kind::LogSegment, &segment.key, &object.bytes)
        .map_err(|e| damaged(e.to_string()))?;
    let line = body.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("its header is cut".into()))?;
    let header: SegmentHeader = serde_json::from_slice(&body[..line]).map_err(|e| damaged(e.to_string()))?;
    if role.role != Role::SourceAgent || role.site.as_ref() != Some(&header.site) {
        return Err(damaged(format!("signed by a {} that may not speak for {}", role.role, header.site)));
    }
    if segment.site.as_ref().is_some_and(|site| *site != header.site) {
        return Err(damaged(format!("it is of {}, and the timeline is not", header.site)));
    }
    if header.version != 1 || header.last < header.first || header.key() != segment.key {
        return Err(damaged("its header does not match its name".into()));
    }
    let mut end = None;
    if let Some(retired) = format.retired(&keys::key_id(&role.key)) {
        end = retired.log(header.group.as_str(), &header.timeline.to_string());
        if end.is_none_or(|end| header.sequence > end.last) {
            let (name, number) = (&role.name, retired.said.number);
            return Err(damaged(format!(
                "the key of {name} was retired by amendment {number}, and this lies behind its end"
            )));
        }
    }
    Ok((header, body.slice(line + 1..), end))
}

/// The content key of the segment under this name. `None`: it is gone, or is none.
pub(crate) async fn key_of(store: &Store, key: &str) -> Result<Option<ContentKeyId>, StoreError> {
    let Some(name) = parse_name(key, StoreTime(jiff::Timestamp::UNIX_EPOCH)) else { return Ok(None) };
    match read_header(store, &name).await {
        Ok((header, _)) => Ok(Some(header.content_key)),
        Err(StoreError::Damaged(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The bytes of one segment, opened.
pub async fn read(
    store: &Store,
    opener: &Opener,
    segment: &SegmentName,
) -> Result<(SegmentHeader, Vec<u8>), StoreError> {
    let damaged = |why: &str| StoreError::Damaged(vec![Damage::new(&segment.key, why)]);
    let (header, sealed) = read_header(store, segment).await?;
    let key = opener.content_key(store, header.content_key).await?;
    let plain = key
        .open(BlobKind::LogSegment, &segment_id(&header), &sealed)
        .ok_or_else(|| damaged("it does not open: its bytes were changed"))?;
    match encoded::whole(&plain) {
        Some(bytes) if bytes.len() as u64 == header.last - header.first => Ok((header, bytes)),
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

/// True when replay from `from` up to `to` finds every byte in the segments, which are an unbroken run.
pub fn covers(segments: &[SegmentName], from: &LogPoint, to: &LogPoint) -> bool {
    if from == to {
        return true;
    }
    if from.file == to.file && from.offset > to.offset {
        return false;
    }
    let holds = |s: &SegmentName, at: &LogPoint| s.file == at.file && (s.first..=s.last).contains(&at.offset);
    // A run that begins in the next file does not show that `from.file` ended at `from.offset`: a shipper whose base
    // lies at the very end of a file says so with an empty segment there.
    let Some(begins) = segments.iter().position(|s| holds(s, from)) else { return false };
    segments[begins..].iter().any(|s| holds(s, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u64, file: &str, first: u64, last: u64) -> SegmentName {
        let written = StoreTime(jiff::Timestamp::UNIX_EPOCH);
        let (key, file, epoch) = (String::new(), file.to_owned(), Epoch(1));
        SegmentName { key, sequence, epoch, file, first, last, written, site: None }
    }
    fn at(file: &str, offset: u64) -> LogPoint {
        LogPoint { file: file.into(), offset }
    }

    #[test]
    fn replay_is_covered_only_when_its_beginning_is_there() {
        let run = [segment(0, "bin.000002", 100, 500), segment(1, "bin.000003", 0, 80)];
        assert!(covers(&run, &at("bin.000002", 100), &at("bin.000003", 80)));
        assert!(covers(&run, &at("bin.000002", 300), &at("bin.000002", 400)));
        assert!(
            !covers(&run, &at("bin.000002", 50), &at("bin.000003", 10)),
            "the first 50 bytes are missing"
        );
        assert!(
            !covers(&run, &at("bin.000001", 50), &at("bin.000003", 10)),
            "it begins in the middle of a file"
        );
        assert!(!covers(&run, &at("bin.000002", 100), &at("bin.000003", 81)));
        assert!(!covers(&run, &at("bin.000002", 400), &at("bin.000002", 300)), "backwards");
        let fresh = [segment(0, "bin.000003", 0, 80)];
        for other in ["bin.000001", "bin.000002"] {
            let from = at(other, 500);
            assert!(!covers(&fresh, &from, &at("bin.000003", 80)), "the rest of {other} may be missing");
        }
        let said = [segment(0, "bin.000002", 500, 500), segment(1, "bin.000003", 0, 80)];
        assert!(covers(&said, &at("bin.000002", 500), &at("bin.000003", 80)), "the base lay at a file's end");
        assert!(covers(&[], &at("bin.000001", 5), &at("bin.000001", 5)));
        assert!(!covers(&[], &at("bin.000001", 5), &at("bin.000001", 6)));
    }
}
