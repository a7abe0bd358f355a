//! Blobs come in, requests go out: neighbours of one pack are fetched with one request, small gaps between them
//! included. What must hold: no request is longer than the limit, and no request fetches more of gaps than of blobs.

use crate::blob::BlobRef;
use crate::pack::PackId;
use crate::seal::SEAL_OVERHEAD;

/// No blob is longer than this: the largest block, its header, its seal, and a codec that makes bytes longer.
pub(crate) const BLOB_BYTES: u64 = 8 << 20;
/// A gap up to this is read and thrown away: that costs less than another request.
const GAP_BYTES: u64 = 256 << 10;

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub pack: PackId,
    pub start: u64,
    pub end: u64,
    pub blobs: Vec<BlobRef>,
}

/// No blob is shorter than its seal or much longer than the largest block: a length is checked before memory is taken.
pub(crate) fn is_possible(blob: &BlobRef) -> bool {
    (SEAL_OVERHEAD as u64..=BLOB_BYTES).contains(&u64::from(blob.at.sealed_bytes()))
}

/// The requests for these blobs, in order of pack and offset. Of blobs that overlap (which no writer makes) each gets
/// a request of its own.
pub(crate) fn requests(mut blobs: Vec<BlobRef>, limit_bytes: u64) -> Vec<Request> {
    blobs.sort_unstable_by_key(|blob| (blob.at.pack, blob.at.offset));
    let mut requests: Vec<Request> = Vec::new();
    let mut gaps = 0;
    for blob in blobs {
        let (start, len) = (u64::from(blob.at.offset), u64::from(blob.at.sealed_bytes()));
        if let Some(last) = requests.last_mut()
            && last.pack == blob.at.pack
            && start >= last.end
            && start + len - last.start <= limit_bytes
        {
            let gap = start - last.end;
            let useful = last.end - last.start - gaps;
            if gap <= GAP_BYTES && gaps + gap <= useful {
                gaps += gap;
                last.end = start + len;
                last.blobs.push(blob);
                continue;
            }
        }
        gaps = 0;
        requests.push(Request { pack: blob.at.pack, start, end: start + len, blobs: vec![blob] });
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Location;
    use crate::hex::Hex;

    fn blob(pack: u8, offset: u32, len: u32) -> BlobRef {
        BlobRef { id: Hex([1; 32]), at: Location { pack: Hex([pack; 16]), key: Hex([0; 16]), offset, len } }
    }
    fn spans(requests: &[Request]) -> Vec<(u8, u64, u64, usize)> {
        requests.iter().map(|r| (r.pack.0[0], r.start, r.end, r.blobs.len())).collect()
    }

    #[test]
    fn neighbours_are_one_request_whatever_their_order() {
        let found = requests(vec![blob(1, 200, 100), blob(2, 0, 50), blob(1, 100, 100)], 1 << 20);
        assert_eq!(spans(&found), [(1, 100, 300, 2), (2, 0, 50, 1)]);
    }

    #[test]
    fn a_small_gap_is_read_through_and_a_large_one_is_not() {
        let mut blobs = vec![blob(1, 0, 100_000), blob(1, 150_000, 100_000)];
        assert_eq!(spans(&requests(blobs.clone(), 1 << 20)), [(1, 0, 250_000, 2)]);
        blobs[1].at.offset = 400_000;
        assert_eq!(requests(blobs, 1 << 20).len(), 2);
    }

    #[test]
    fn a_request_never_fetches_more_of_gaps_than_of_blobs() {
        let blobs: Vec<_> = (0..100).map(|i| blob(1, i * 10_000, 1000)).collect();
        for request in requests(blobs, 1 << 20) {
            let useful: u64 = request.blobs.iter().map(|b| u64::from(b.at.len)).sum();
            assert!(request.end - request.start <= 2 * useful);
        }
    }

    #[test]
    fn a_request_stays_within_its_limit_and_overlapping_blobs_stand_alone() {
        let blobs: Vec<_> = (0..10).map(|i| blob(1, i * 1000, 1000)).collect();
        assert!(requests(blobs, 3000).iter().all(|r| r.end - r.start <= 3000));
        assert_eq!(requests(vec![blob(1, 0, 100), blob(1, 50, 100)], 1 << 20).len(), 2);
    }
}
