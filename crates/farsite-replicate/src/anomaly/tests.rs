use super::*;

const ITEM_BLOCKS: u64 = 16_384;

/// Numbers that follow from a seed (splitmix64).
struct Random(u64);
impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.draw() % (to - from).max(1)
    }
}

fn minutes(n: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_mins(n)
}

/// `overwritten` and so on in blocks; `incompressible` and `entropy` of what is new.
fn change(overwritten: u64, cleared: u64, added: u64, incompressible: f64, entropy: u32) -> Signals {
    Signals {
        data_blocks: ITEM_BLOCKS - cleared + added,
        overwritten_blocks: overwritten,
        cleared_blocks: cleared,
        added_blocks: added,
        incompressible_blocks: ((overwritten + added) as f64 * incompressible) as u64,
        entropy_millibits: entropy,
        ..Signals::default()
    }
}

fn first() -> Signals {
    Signals { first_copy: true, ..change(0, 0, ITEM_BLOCKS, 0.06, 4900) }
}

/// An item and what was judged of it.
struct Life {
    earlier: Vec<Earlier>,
    words: Vec<(i64, String)>,
}
impl Life {
    fn begins_with(signals: Signals) -> Self {
        Self { earlier: vec![Earlier { at: minutes(0), signals, suspicious: false }], words: Vec::new() }
    }
    fn goes_on(&mut self, at: i64, signals: Signals) -> bool {
        let said = judge(&signals, minutes(at), &self.earlier);
        if signals.new_blocks() + signals.cleared_blocks >= LEAST_BLOCKS {
            self.earlier.push(Earlier { at: minutes(at), signals, suspicious: !said.is_empty() });
        }
        let is_odd = !said.is_empty();
        self.words.extend(said.into_iter().map(|words| (at, words)));
        is_odd
    }
}

#[test]
fn an_encrypted_volume_is_suspicious_from_the_first_point_after_its_first_copy() {
    let mut life = Life::begins_with(first());
    assert!(life.goes_on(15, change(ITEM_BLOCKS / 4, 0, 0, 0.97, 7930)));
    assert!(life.words[0].1.contains("as if it were encrypted"), "{:?}", life.words);
    assert!(life.words[0].1.starts_with("25% of it was overwritten"), "{:?}", life.words);
    // It goes on for hours: what was seen an hour ago is no excuse.
    for quarter in 2..12 {
        assert!(life.goes_on(quarter * 15, change(ITEM_BLOCKS / 8, 0, 0, 0.97, 7930)));
    }
    // Copies beside the files, which are removed afterwards.
    let mut life = Life::begins_with(first());
    assert!(life.goes_on(15, change(100, ITEM_BLOCKS / 3, ITEM_BLOCKS / 3, 0.97, 7930)));
}

#[test]
fn a_first_copy_and_small_changes_are_never_suspicious() {
    let odd = Signals { first_copy: true, ..change(0, 0, ITEM_BLOCKS, 1.0, 7950) };
    assert!(judge(&odd, minutes(0), &[]).is_empty());
    let mut life = Life::begins_with(first());
    for n in 1..100 {
        assert!(!life.goes_on(n * 15, change(15, 0, 0, 1.0, 7950)), "15 blocks are no sign of anything");
        assert!(
            !life.goes_on(n * 15 + 1, change(ITEM_BLOCKS / 11, 0, 0, 1.0, 7950)),
            "an archive on old ground"
        );
        assert!(!life.goes_on(n * 15 + 2, change(0, 0, ITEM_BLOCKS, 1.0, 7950)), "an archive on new ground");
    }
}

#[test]
fn what_an_item_always_does_is_not_unusual() {
    // All of it is compressed data, and all of it is replaced every time.
    let mut life = Life::begins_with(Signals { first_copy: true, ..change(0, 0, ITEM_BLOCKS, 0.99, 7950) });
    let odd = (1..200).filter(|n| life.goes_on(n * 15, change(ITEM_BLOCKS, 0, 0, 0.99, 7950))).count();
    assert_eq!(odd, 0, "{:?}", life.words);
    // A dump at night is new on the first two nights, and then it is what happens at night.
    let mut life = Life::begins_with(first());
    let mut odd_nights = Vec::new();
    for night in 0..20 {
        for quarter in 1..96 {
            assert!(!life.goes_on(night * 1440 + quarter * 15, change(30, 0, 5, 0.1, 5000)));
        }
        if life.goes_on(night * 1440 + 1440, change(ITEM_BLOCKS * 9 / 10, 0, 0, 0.98, 7940)) {
            odd_nights.push(night);
        }
    }
    assert_eq!(odd_nights, [0, 1]);
    // And still an attack in the morning is seen, for it is another item's.
    let mut life = Life::begins_with(first());
    assert!(life.goes_on(20 * 1440, change(ITEM_BLOCKS * 9 / 10, 0, 0, 0.98, 7940)));
}

#[test]
fn a_loss_of_data_or_of_files_is_told() {
    let mut life = Life::begins_with(first());
    assert!(life.goes_on(15, change(0, ITEM_BLOCKS * 3 / 4, 0, 0.0, 0)));
    assert!(life.words[0].1.contains("mass delete: 75% of its data is gone"), "{:?}", life.words);
    let renamed = Signals { files_before: 200, files_gone: 190, ..change(20, 0, 20, 0.1, 5000) };
    assert!(life.goes_on(30, renamed));
    assert!(life.words[1].1.contains("190 of 200 files"), "{:?}", life.words);
    let few = Signals { files_before: 4, files_gone: 4, ..change(1, 0, 1, 0.1, 5000) };
    assert!(!life.goes_on(45, few));
}

#[test]
fn much_more_change_than_ever_is_told_and_a_long_pause_excuses_it() {
    let usual = |n: u64| change(ITEM_BLOCKS / 100 + n % 7, 0, 0, 0.1, 5000);
    let mut life = Life::begins_with(first());
    for n in 1..20 {
        assert!(!life.goes_on(n * 15, usual(n as u64)));
    }
    let mut after_a_weekend = Life { earlier: life.earlier.clone(), words: Vec::new() };
    assert!(
        life.goes_on(20 * 15, change(ITEM_BLOCKS * 6 / 10, 0, 0, 0.1, 5000)),
        "text over text, much of it"
    );
    assert!(life.words[0].1.contains("60% of it was overwritten (1% is usual)"), "{:?}", life.words);
    assert!(!after_a_weekend.goes_on(19 * 15 + 3 * 1440, change(ITEM_BLOCKS * 6 / 10, 0, 0, 0.1, 5000)));
}

/// A week of a mixed volume with a point every quarter of an hour: writes of a database, logs that rotate, an update of the
/// system, archives that are put on it and taken away again.
#[test]
fn a_normal_week_of_many_volumes_is_not_suspicious() {
    const VOLUMES: u64 = 200;
    let mut odd = Vec::new();
    let mut points = 0;
    for volume in 0..VOLUMES {
        let mut random = Random(volume);
        let busy = random.between(5, 800);
        let entropy = random.between(4000, 6800) as u32;
        let packed = random.between(2, 40) as f64 / 100.0;
        let mut life =
            Life::begins_with(Signals { first_copy: true, ..change(0, 0, ITEM_BLOCKS, packed, entropy) });
        for point in 1..672 {
            let around = |random: &mut Random, n: u64| random.between(n / 3, n * 2);
            let wobble = entropy + random.between(0, 300) as u32;
            let mut now = change(
                around(&mut random, busy),
                around(&mut random, busy / 10),
                around(&mut random, busy / 8),
                packed * random.between(50, 150) as f64 / 100.0,
                wobble,
            );
            // Logs are rotated and compressed at midnight.
            if point % 96 == 0 {
                now = change(busy, busy, busy, 0.6, 7200);
            }
            // An archive of up to a third of the volume on free ground, or of a twelfth on ground that was used before.
            match point {
                200 => now = change(busy, 0, ITEM_BLOCKS / random.between(3, 10), 0.98, 7930),
                400 => now = change(ITEM_BLOCKS / 12, 0, busy, 0.95, 7900),
                // It is taken away.
                430 => now = change(busy, ITEM_BLOCKS / 12, busy, packed, wobble),
                // The system is updated.
                500 => now = change(ITEM_BLOCKS / 8, busy, ITEM_BLOCKS / 20, 0.35, 6400),
                // The agent was away for a day.
                600 => now = change((busy * 20).min(ITEM_BLOCKS / 3), busy, busy, packed, wobble),
                _ => {}
            }
            if (600..696).contains(&point) && point != 600 {
                continue;
            }
            points += 1;
            if life.goes_on(point * 15, now) {
                odd.push((volume, point));
            }
        }
        assert!(
            life.goes_on(700 * 15, change(ITEM_BLOCKS / 5, 0, 0, 0.97, 7930)),
            "volume {volume} ({packed}, {entropy}) was encrypted"
        );
    }
    println!("{} of {points} points of {VOLUMES} volumes were called suspicious", odd.len());
    assert_eq!(odd, []);
}
