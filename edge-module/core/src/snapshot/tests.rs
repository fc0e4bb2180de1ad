use proptest::prelude::*;

use super::*;

const RATE: f64 = 1_000.0;
const SCALE: f64 = 0.5;

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn settings() -> SnapshotSettings {
    SnapshotSettings {
        before: Duration::from_secs(2),
        after: Duration::from_secs(1),
        length_max: Duration::from_secs(3),
        patience: Duration::from_secs(5),
        sensor_bytes_max: 1 << 20,
        bytes_max: 1 << 20,
        snapshot_bytes_max: 1 << 20,
        piece_bytes_max: 1_000,
        sensors_max: 8,
    }
}

fn machine(name: &str) -> MachineId {
    MachineId::new(name).expect(name)
}

/// Samples `from..to` of a sensor that counts from 0 at time 0: each value tells its place.
fn block(sensor: &str, from: usize, to: usize) -> WaveformBlock {
    WaveformBlock {
        machine_id: machine("m"),
        sensor_id: SensorId::new(sensor).expect(sensor),
        first_sample: EventTime::from_micros((from * 1_000) as i64),
        sample_rate_hz: RATE,
        unit: Some("V".into()),
        samples: (from..to).map(|index| (index % 30_000) as f32 * SCALE as f32).collect(),
    }
}

/// Feeds samples `from..to` of sensor `s` in blocks of 50.
fn feed(snapshots: &mut Snapshots, from: usize, to: usize) -> Vec<WaveformSnapshot> {
    (from..to)
        .step_by(50)
        .flat_map(|start| {
            snapshots.handle_block(&machine("m"), &block("s", start, start + 50), SCALE)
        })
        .collect()
}

/// First and last sample's place, after checking that the pieces follow each other and are numbered.
fn places(pieces: &[WaveformSnapshot], trip_id: &str, first_piece: u32) -> (i64, i64) {
    let mut next = None;
    for (piece, number) in pieces.iter().zip(first_piece..) {
        assert_eq!((piece.trip_id.as_str(), piece.piece), (trip_id, number));
        assert_eq!(piece.scale, Some(SCALE));
        let start = piece.block.first_sample.micros() / 1_000;
        assert!(next.is_none_or(|next| next == start), "{next:?} then {start}");
        for (index, sample) in piece.block.samples.iter().enumerate() {
            assert_eq!(*sample, ((start as usize + index) % 30_000) as f32 * SCALE as f32);
        }
        next = Some(start + piece.block.samples.len() as i64);
    }
    let first = pieces.first().map_or(0, |piece| piece.block.first_sample.micros() / 1_000);
    (first, next.unwrap_or(first))
}

#[test]
fn a_trip_gives_the_seconds_before_at_once_and_those_after_as_they_come() {
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    let now = start();
    assert!(feed(&mut snapshots, 0, 5_000).is_empty());
    let before = snapshots.handle_trip(&machine("m"), "t1", now);
    assert_eq!(places(&before, "t1", 1), (3_000, 5_000));
    assert!(before.iter().all(|piece| piece.block.samples.len() <= 500));
    assert_eq!(snapshots.poll_timeout(), Some(now + Duration::from_secs(6)));
    let after = feed(&mut snapshots, 5_000, 8_000);
    assert_eq!(places(&after, "t1", before.len() as u32 + 1), (5_000, 6_000));
    assert_eq!(snapshots.poll_timeout(), None);
    assert_eq!(snapshots.counts(), SnapshotCounts::default());
}

#[test]
fn a_machine_without_waveform_sensors_gets_no_snapshot() {
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    feed(&mut snapshots, 0, 1_000);
    assert!(snapshots.handle_trip(&machine("other"), "t1", start()).is_empty());
    assert_eq!(snapshots.open_snapshots(), 0);
}

#[test]
fn a_second_trip_extends_the_open_snapshot_up_to_its_longest() {
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    let now = start();
    feed(&mut snapshots, 0, 5_000);
    assert_eq!(places(&snapshots.handle_trip(&machine("m"), "t1", now), "t1", 1), (3_000, 5_000));
    let mut pieces = feed(&mut snapshots, 5_000, 5_500);
    pieces.extend(snapshots.handle_trip(&machine("m"), "t2", now + Duration::from_millis(500)));
    assert!(snapshots.handle_trip(&machine("m"), "t2", now).is_empty(), "told twice");
    assert_eq!(places(&pieces, "t1", 5), (5_000, 5_500), "what was recorded under the first trip");
    let mut rest = feed(&mut snapshots, 5_500, 6_000);
    for trip in 3..=22 {
        assert_eq!(snapshots.open_snapshots(), 1);
        let at = 6_000 + (trip - 3) * 100;
        rest.extend(snapshots.handle_trip(&machine("m"), &format!("t{trip}"), now));
        rest.extend(feed(&mut snapshots, at, at + 100));
    }
    let samples_of = |trip: &str| {
        let pieces = rest.iter().filter(|piece| piece.trip_id == trip);
        pieces.map(|piece| piece.block.samples.len()).sum::<usize>()
    };
    assert_eq!((samples_of("t2"), samples_of("t3"), samples_of("t22")), (500, 100, 100));
    // Three seconds after the first trip it is closed, although the last one asked for more.
    assert_eq!(rest.iter().map(|piece| piece.block.samples.len()).sum::<usize>(), 2_500);
    assert_eq!(snapshots.open_snapshots(), 0);
    assert!(feed(&mut snapshots, 8_000, 9_000).is_empty());
}

#[test]
fn a_silent_sensor_does_not_keep_a_snapshot_open() {
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    let now = start();
    feed(&mut snapshots, 0, 5_000);
    let before = snapshots.handle_trip(&machine("m"), "t1", now);
    assert!(feed(&mut snapshots, 5_000, 5_200).is_empty(), "not a whole piece yet");
    assert!(snapshots.handle_timeout(now + Duration::from_millis(5_999)).is_empty());
    let rest = snapshots.handle_timeout(now + Duration::from_secs(6));
    assert_eq!(places(&rest, "t1", before.len() as u32 + 1), (5_000, 5_200));
    assert_eq!((snapshots.open_snapshots(), snapshots.close_all().len()), (0, 0));
}

#[test]
fn a_repeated_block_is_kept_once_and_a_clock_that_goes_back_starts_anew() {
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    feed(&mut snapshots, 0, 1_000);
    feed(&mut snapshots, 500, 1_000);
    let once = snapshots.handle_trip(&machine("m"), "t1", start());
    assert_eq!(places(&once, "t1", 1), (0, 1_000));
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    feed(&mut snapshots, 20_000, 21_000);
    feed(&mut snapshots, 0, 500);
    let anew = snapshots.handle_trip(&machine("m"), "t1", start());
    assert_eq!(places(&anew, "t1", 1), (0, 500));
}

#[test]
fn a_gap_or_another_form_begins_another_piece() {
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    feed(&mut snapshots, 0, 100);
    feed(&mut snapshots, 200, 300);
    let mut floats = block("s", 300, 350);
    floats.samples[0] = 0.3;
    assert!(snapshots.handle_block(&machine("m"), &floats, SCALE).is_empty());
    let pieces = snapshots.handle_trip(&machine("m"), "t1", start());
    let found: Vec<_> = pieces
        .iter()
        .map(|piece| (piece.block.first_sample.micros(), piece.block.samples.len(), piece.scale))
        .collect();
    let expected = [(0, 100, Some(SCALE)), (200_000, 100, Some(SCALE)), (300_000, 50, None)];
    assert_eq!(found, expected);
}

#[test]
fn a_snapshot_over_its_bytes_is_cut_and_counted() {
    let mut small = settings();
    small.snapshot_bytes_max = 5_000;
    let mut snapshots = Snapshots::new(small).expect("valid");
    feed(&mut snapshots, 0, 5_000);
    let before = snapshots.handle_trip(&machine("m"), "t1", start());
    assert_eq!(places(&before, "t1", 1), (3_000, 5_000));
    let after = feed(&mut snapshots, 5_000, 7_000);
    assert_eq!(places(&after, "t1", before.len() as u32 + 1), (5_000, 5_500));
    assert_eq!(snapshots.counts().samples_cut, 500);
}

#[test]
fn sensors_share_the_bytes_and_those_beyond_the_limit_are_counted() {
    let mut small = settings();
    (small.bytes_max, small.sensors_max) = (20_000, 4);
    let mut snapshots = Snapshots::new(small).expect("valid");
    for index in 0..100 {
        for sensor in ["a", "b", "c", "d", "e"] {
            let block = block(sensor, index * 50, index * 50 + 50);
            assert!(snapshots.handle_block(&machine("m"), &block, SCALE).is_empty());
            assert!(snapshots.bytes() <= 20_000, "{} bytes", snapshots.bytes());
        }
    }
    assert_eq!((snapshots.sensors(), snapshots.counts().blocks_not_kept), (4, 100));
    let pieces = snapshots.handle_trip(&machine("m"), "t1", start());
    let mut per_sensor = BTreeMap::<_, usize>::new();
    for piece in &pieces {
        *per_sensor.entry(piece.block.sensor_id.clone()).or_default() += piece.block.samples.len();
    }
    // Each has a quarter: 17 runs of 100 bytes and their cost.
    assert_eq!(per_sensor.into_values().collect::<Vec<_>>(), [850; 4]);
    assert!(snapshots.keep_machines(&BTreeSet::new()).is_empty(), "the part before has left");
    assert_eq!((snapshots.sensors(), snapshots.bytes(), snapshots.open_snapshots()), (0, 0, 0));
}

#[test]
fn settings_that_keep_nothing_are_refused() {
    let mut bad = settings();
    (bad.before, bad.bytes_max, bad.piece_bytes_max) = (Duration::ZERO, 0, 3);
    bad.length_max = Duration::ZERO;
    assert_eq!(bad.validate().expect_err("four faults").len(), 4);
    let mut snapshots = Snapshots::new(settings()).expect("valid");
    assert!(snapshots.replace_settings(bad).is_err());
    assert_eq!(snapshots.settings, settings());
}

proptest! {
    /// Against the plain answer: all samples there were, cut by their time.
    #[test]
    fn pieces_hold_exactly_the_samples_around_the_trip(
        lengths in prop::collection::vec(1_usize..400, 1..60),
        trip_after in 0_usize..60,
        before_ms in 1_u64..4_000,
        after_ms in 0_u64..2_000,
        piece_samples in 2_usize..2_000,
    ) {
        let mut all = settings();
        all.before = Duration::from_millis(before_ms);
        all.after = Duration::from_millis(after_ms);
        all.piece_bytes_max = piece_samples * 2;
        let mut snapshots = Snapshots::new(all).expect("valid");
        let (mut place, mut pieces, mut trip_at) = (0, Vec::new(), None);
        for (index, length) in lengths.into_iter().enumerate() {
            if index == trip_after && place > 0 {
                trip_at = Some(place);
                pieces.extend(snapshots.handle_trip(&machine("m"), "t", start()));
            }
            let block = block("s", place, place + length);
            pieces.extend(snapshots.handle_block(&machine("m"), &block, SCALE));
            place += length;
        }
        pieces.extend(snapshots.close_all());
        prop_assert!(pieces.iter().all(|piece| piece.block.samples.len() <= piece_samples));
        match trip_at {
            None => prop_assert!(pieces.is_empty()),
            Some(at) => {
                let from = at.saturating_sub(before_ms as usize) as i64;
                let to = place.min(at + after_ms as usize) as i64;
                prop_assert_eq!(places(&pieces, "t", 1), (from, to));
            }
        }
    }
}
