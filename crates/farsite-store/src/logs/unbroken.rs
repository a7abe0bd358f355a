//! From the segments that a listing names to the one unbroken run that a replay can use. Several may have the same
//! sequence: the answer to an upload was lost, the agent shipped the stretch again with other bounds, and then the first
//! upload landed after all. The segments behind them tell which one the agent went on from.

use std::collections::BTreeMap;

use super::{SegmentName, is_next_file};

/// Candidates by sequence, from 0 up to the first sequence that nobody has.
pub(super) fn by_sequence(segments: impl IntoIterator<Item = SegmentName>) -> Vec<Vec<SegmentName>> {
    let mut found: BTreeMap<u64, Vec<SegmentName>> = BTreeMap::new();
    for segment in segments.into_iter().filter(|segment| segment.first <= segment.last) {
        found.entry(segment.sequence).or_default().push(segment);
    }
    let unbroken = (0..).zip(found).take_while(|(expected, (sequence, _))| expected == sequence);
    unbroken.map(|(_, (_, candidates))| candidates).collect()
}

/// True when `after` holds the very next byte of the log.
fn follows(before: &SegmentName, after: &SegmentName) -> bool {
    let continues = if after.file == before.file {
        after.first == before.last
    } else {
        after.first == 0 && is_next_file(&before.file, &after.file)
    };
    after.epoch >= before.epoch && continues
}

/// The longest run in which each segment follows the one before. Where several are equally long, the one that stays in
/// its file (nothing can be missing between), and of those the one that holds more.
pub(super) fn longest(levels: &[Vec<SegmentName>]) -> Vec<SegmentName> {
    // Forwards: which candidates can be reached from the beginning.
    let mut reached: Vec<Vec<&SegmentName>> = Vec::with_capacity(levels.len());
    for candidates in levels {
        let here: Vec<&SegmentName> = match reached.last() {
            None => candidates.iter().collect(),
            Some(before) => {
                candidates.iter().filter(|after| before.iter().any(|b| follows(b, after))).collect()
            }
        };
        if here.is_empty() {
            break;
        }
        reached.push(here);
    }
    // Backwards: at each sequence the one that the chosen next one continues.
    let mut run: Vec<SegmentName> = Vec::with_capacity(reached.len());
    for (level, here) in reached.iter().enumerate().rev() {
        let stays = |segment: &SegmentName| {
            level.checked_sub(1).is_some_and(|l| {
                reached[l].iter().any(|before| before.file == segment.file && follows(before, segment))
            })
        };
        let continued = here.iter().filter(|segment| run.last().is_none_or(|next| follows(segment, next)));
        let best =
            continued.max_by_key(|s| (stays(s), s.last - s.first, std::cmp::Reverse(s.written), &s.key));
        run.extend(best.map(|segment| (*segment).clone()));
    }
    run.reverse();
    run
}

#[cfg(test)]
mod tests {
    use farsite_model::{Epoch, StoreTime};

    use super::*;

    fn segment(sequence: u64, epoch: u64, file: &str, first: u64, last: u64) -> SegmentName {
        SegmentName {
            key: format!("{sequence} e{epoch} {file} {first}-{last}"),
            sequence,
            epoch: Epoch(epoch),
            file: file.into(),
            first,
            last,
            written: StoreTime(jiff::Timestamp::UNIX_EPOCH),
            site: None,
        }
    }

    fn run_of(segments: Vec<SegmentName>) -> Vec<(u64, u64, u64)> {
        let run = longest(&by_sequence(segments));
        run.iter().map(|s| (s.sequence, s.first, s.last)).collect()
    }

    #[test]
    fn a_run_ends_before_a_gap_an_overlap_and_an_older_epoch() {
        let one = |next: SegmentName| run_of(vec![segment(0, 2, "b.1", 0, 10), next]).len();
        assert_eq!(one(segment(1, 2, "b.1", 10, 20)), 2);
        assert_eq!(one(segment(1, 3, "b.2", 0, 20)), 2);
        assert_eq!(one(segment(1, 2, "b.1", 11, 20)), 1, "a gap");
        assert_eq!(one(segment(1, 2, "b.1", 9, 20)), 1, "an overlap");
        assert_eq!(one(segment(2, 2, "b.1", 10, 20)), 1, "a missing sequence");
        assert_eq!(one(segment(1, 1, "b.1", 10, 20)), 1, "an older epoch");
        assert_eq!(one(segment(1, 2, "b.3", 0, 20)), 1, "a missing file");
        assert_eq!(one(segment(1, 2, "b.2", 4, 20)), 1, "a file without its start");
        assert_eq!(one(segment(1, 2, "b.1", 10, 5)), 1, "backwards");
        assert_eq!(run_of(vec![segment(1, 1, "b.1", 0, 10)]), [], "nothing without a beginning");
        assert_eq!(run_of(vec![]), []);
    }

    #[test]
    fn of_two_with_one_sequence_the_one_that_is_continued_is_taken() {
        for (end, other) in [(150, 200), (200, 150)] {
            let run = run_of(vec![
                segment(0, 1, "b.1", 0, 100),
                segment(1, 1, "b.1", 100, end),
                segment(1, 1, "b.1", 100, other),
                segment(2, 1, "b.1", end, 300),
            ]);
            assert_eq!(run, [(0, 0, 100), (1, 100, end), (2, end, 300)]);
        }
    }

    #[test]
    fn several_in_a_row_are_told_apart_by_what_comes_last() {
        let run = run_of(vec![
            segment(0, 1, "b.1", 0, 10),
            segment(0, 1, "b.1", 0, 20),
            segment(1, 1, "b.1", 10, 30),
            segment(1, 1, "b.1", 20, 40),
            segment(2, 1, "b.1", 30, 50),
            segment(2, 1, "b.1", 40, 50),
            segment(3, 1, "b.2", 0, 5),
        ]);
        assert_eq!(run.len(), 4);
        let whole = run.windows(2).take(2).all(|pair| pair[0].2 == pair[1].1);
        assert!(whole, "{run:?}");
    }

    #[test]
    fn at_the_end_the_one_that_holds_more_is_taken() {
        let run = run_of(vec![
            segment(0, 1, "b.1", 0, 10),
            segment(1, 1, "b.1", 10, 12),
            segment(1, 1, "b.1", 10, 30),
            segment(1, 1, "b.2", 0, 500),
        ]);
        assert_eq!(run, [(0, 0, 10), (1, 10, 30)], "and it stays in its file");
    }
}
