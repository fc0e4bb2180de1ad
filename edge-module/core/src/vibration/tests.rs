use proptest::prelude::*;
use shared_proto::model::{MachineId, SensorId};

use super::*;

const RATE_HZ: f64 = 20_000.0;
const SAMPLE_MICROS: i64 = 50;

fn shape(window_samples: usize, hop_samples: usize) -> WindowShape {
    WindowShape { window_samples, hop_samples, gap_tolerance_samples: 2.0 }
}

fn block(first_micros: i64, sample_rate_hz: f64, samples: Vec<f32>) -> WaveformBlock {
    WaveformBlock {
        machine_id: MachineId::new("press-1").unwrap(),
        sensor_id: SensorId::new("press-1/bearing").unwrap(),
        first_sample: EventTime::from_micros(first_micros),
        sample_rate_hz,
        unit: None,
        samples,
    }
}

fn counted(first: usize, count: usize) -> Vec<f32> {
    (first..first + count).map(|value| value as f32).collect()
}

fn run(shape: WindowShape, blocks: &[WaveformBlock]) -> (Vec<Window>, WindowAssembler) {
    let mut assembler = WindowAssembler::new(shape).unwrap();
    let mut windows = Vec::new();
    for block in blocks {
        windows.extend(assembler.handle_block(block));
    }
    (windows, assembler)
}

fn starts_and_ends(windows: &[Window]) -> Vec<(i64, f32, f32)> {
    windows
        .iter()
        .map(|window| {
            (window.first_sample.micros(), window.samples[0], *window.samples.last().unwrap())
        })
        .collect()
}

#[test]
fn block_larger_than_several_windows_gives_them_all() {
    let (windows, assembler) = run(shape(4, 4), &[block(0, RATE_HZ, counted(0, 10))]);
    assert_eq!(starts_and_ends(&windows), [(0, 0.0, 3.0), (200, 4.0, 7.0)]);
    assert_eq!(assembler.pending_samples(), 2);
    assert_eq!(assembler.discarded(), Discarded::default());
}

#[test]
fn hop_below_window_overlaps_across_blocks() {
    let blocks = [block(0, RATE_HZ, counted(0, 3)), block(150, RATE_HZ, counted(3, 3))];
    let (windows, _) = run(shape(4, 1), &blocks);
    assert_eq!(starts_and_ends(&windows), [(0, 0.0, 3.0), (50, 1.0, 4.0), (100, 2.0, 5.0)]);
}

#[test]
fn hop_above_window_leaves_out_without_calling_it_discarded() {
    let blocks = [block(0, RATE_HZ, counted(0, 6)), block(300, RATE_HZ, counted(6, 6))];
    let (windows, assembler) = run(shape(2, 5), &blocks);
    assert_eq!(starts_and_ends(&windows), [(0, 0.0, 1.0), (250, 5.0, 6.0), (500, 10.0, 11.0)]);
    assert_eq!(assembler.discarded().samples(), 0);
}

#[test]
fn gap_is_never_glued_over_and_its_samples_are_counted() {
    let check = |second_start: i64, expected_windows: usize, expected_lost: u64| {
        let blocks =
            [block(0, RATE_HZ, counted(0, 6)), block(second_start, RATE_HZ, counted(6, 6))];
        let (windows, assembler) = run(shape(4, 4), &blocks);
        assert_eq!(windows.len(), expected_windows, "second block at {second_start}");
        assert_eq!(assembler.discarded().gap_samples, expected_lost, "at {second_start}");
        assert_eq!(assembler.discarded().samples(), expected_lost, "at {second_start}");
    };
    check(300, 3, 0); // on time
    check(300 + 2 * SAMPLE_MICROS + 1, 3, 0); // at the tolerance and the rounding
    check(300 + 2 * SAMPLE_MICROS + 2, 2, 2); // above it
}

#[test]
fn overlap_and_rate_change_start_new_windows() {
    let overlap = [block(0, RATE_HZ, counted(0, 6)), block(150, RATE_HZ, counted(6, 4))];
    let (windows, assembler) = run(shape(4, 4), &overlap);
    assert_eq!(starts_and_ends(&windows), [(0, 0.0, 3.0), (150, 6.0, 9.0)]);
    assert_eq!(assembler.discarded().overlap_samples, 2);

    let change = [block(0, RATE_HZ, counted(0, 6)), block(300, 10_000.0, counted(6, 4))];
    let (windows, assembler) = run(shape(4, 4), &change);
    assert_eq!(starts_and_ends(&windows), [(0, 0.0, 3.0), (300, 6.0, 9.0)]);
    assert_eq!(windows[1].sample_rate_hz, 10_000.0);
    assert_eq!(assembler.discarded().rate_change_samples, 2);
    assert_eq!(assembler.discarded().runs_ended, 1);
}

#[test]
fn exact_repeat_of_a_block_is_ignored_but_a_stuck_clock_is_not_taken_for_one() {
    let same = block(0, RATE_HZ, counted(0, 6));
    let (windows, assembler) =
        run(shape(4, 4), &[same.clone(), same, block(300, RATE_HZ, counted(6, 6))]);
    assert_eq!(starts_and_ends(&windows).len(), 3);
    assert_eq!(assembler.discarded().overlap_samples, 6);

    let stuck: Vec<_> = (0..3).map(|i| block(0, RATE_HZ, counted(i * 4, 4))).collect();
    assert_eq!(run(shape(4, 4), &stuck).0.len(), 3);
}

#[test]
fn slow_clock_drift_is_no_gap() {
    // 0.4 sample periods per block of 100: far beyond the tolerance after 1,000 blocks.
    let blocks: Vec<_> = (0..1_000)
        .map(|index| block(index * 5_020, RATE_HZ, counted(index as usize, 100)))
        .collect();
    let (windows, assembler) = run(shape(100, 100), &blocks);
    assert_eq!(windows.len(), 1_000);
    assert_eq!(windows[999].first_sample.micros(), 999 * 5_020);
    assert_eq!(assembler.discarded(), Discarded::default());
}

#[test]
fn windows_not_taken_are_lost_and_the_next_block_continues() {
    let mut assembler = WindowAssembler::new(shape(4, 4)).unwrap();
    drop(assembler.handle_block(&block(0, RATE_HZ, counted(0, 6))));
    let next = block(300, RATE_HZ, counted(6, 2));
    let windows: Vec<_> = assembler.handle_block(&next).collect();
    assert_eq!(starts_and_ends(&windows), [(200, 4.0, 7.0)]);
}

#[test]
fn shapes_that_cannot_work_are_refused() {
    let check = |window_samples, hop_samples, gap_tolerance_samples, expected: &str| {
        let shape = WindowShape { window_samples, hop_samples, gap_tolerance_samples };
        let error = WindowAssembler::new(shape).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    };
    check(0, 1, 0.0, "window-samples is 0, a window needs at least one sample");
    check(1, 0, 0.0, "hop-samples is 0, windows would never move on");
    check(1, 1, -0.5, "gap-tolerance-samples is -0.5, it must be finite and not negative");
    check(1, 1, f64::NAN, "gap-tolerance-samples is NaN, it must be finite and not negative");
}

/// One step of a sensor's life, as the generator draws it.
#[derive(Clone, Debug)]
struct Step {
    off_micros: i64,
    rate_changes: bool,
    repeats: bool,
    sample_count: usize,
}

fn step() -> impl Strategy<Value = Step> {
    let off = prop_oneof![6 => -2..=2i64, 1 => 1_000..5_000i64, 1 => -5_000..-1_000i64];
    (off, prop::bool::weighted(0.05), prop::bool::weighted(0.1), 1..40usize).prop_map(
        |(off_samples, rate_changes, repeats, sample_count)| Step {
            off_micros: off_samples * SAMPLE_MICROS,
            rate_changes,
            repeats,
            sample_count,
        },
    )
}

fn blocks_of(steps: &[Step]) -> Vec<WaveformBlock> {
    let mut blocks: Vec<WaveformBlock> = Vec::new();
    let (mut time, mut rate, mut value) = (1_000_000_i64, RATE_HZ, 0_usize);
    for step in steps {
        if step.repeats
            && let Some(last) = blocks.last().cloned()
        {
            blocks.push(last);
            continue;
        }
        if step.rate_changes {
            rate = if rate == RATE_HZ { 10_000.0 } else { RATE_HZ };
        }
        time += step.off_micros;
        blocks.push(block(time, rate, counted(value, step.sample_count)));
        value += step.sample_count;
        time += (step.sample_count as f64 / rate * 1e6).round() as i64;
    }
    blocks
}

/// The obvious way: drop repeats, split the blocks into runs, write each run's samples with their times one
/// after the other, chop.
fn slow_windows(shape: WindowShape, blocks: &[WaveformBlock]) -> (Vec<Window>, u64) {
    let mut blocks = blocks.to_vec();
    let before = blocks.iter().map(|block| block.samples.len() as u64).sum::<u64>();
    blocks.dedup();
    let mut lost = before - blocks.iter().map(|block| block.samples.len() as u64).sum::<u64>();
    let mut runs: Vec<Vec<&WaveformBlock>> = Vec::new();
    for block in &blocks {
        let continues = runs.last().and_then(|run| run.last()).is_some_and(|last| {
            let seconds = last.samples.len() as f64 / last.sample_rate_hz;
            let expected = last.first_sample.micros() as f64 + (seconds * 1e6).round();
            let off = (block.first_sample.micros() as f64 - expected).abs();
            last.sample_rate_hz == block.sample_rate_hz
                && off <= shape.gap_tolerance_samples / block.sample_rate_hz * 1e6 + 1.0
        });
        if continues {
            runs.last_mut().unwrap().push(block);
        } else {
            runs.push(vec![block]);
        }
    }
    let mut windows = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let rate = run[0].sample_rate_hz;
        let samples: Vec<(i64, f32)> = run
            .iter()
            .flat_map(|block| {
                block.samples.iter().enumerate().map(move |(place, sample)| {
                    let offset = (place as f64 / rate * 1e6).round() as i64;
                    (block.first_sample.micros() + offset, *sample)
                })
            })
            .collect();
        let mut done = 0;
        let mut start = 0;
        while start + shape.window_samples <= samples.len() {
            let part = &samples[start..start + shape.window_samples];
            windows.push(Window {
                first_sample: EventTime::from_micros(part[0].0),
                sample_rate_hz: rate,
                samples: part.iter().map(|(_, sample)| *sample).collect(),
            });
            done = start + shape.window_samples;
            start += shape.hop_samples;
        }
        if number + 1 < runs.len() {
            lost += samples.len().saturating_sub(done.max(start)) as u64;
        }
    }
    (windows, lost)
}

proptest! {
    #[test]
    fn windows_equal_those_of_concatenate_then_chop(
        steps in prop::collection::vec(step(), 1..60),
        window_samples in 1..50usize,
        hop_samples in 1..80usize,
    ) {
        let shape = shape(window_samples, hop_samples);
        let blocks = blocks_of(&steps);
        let (expected, expected_lost) = slow_windows(shape, &blocks);
        let (windows, assembler) = run(shape, &blocks);
        prop_assert_eq!(windows, expected);
        prop_assert_eq!(assembler.discarded().samples(), expected_lost);
        prop_assert!(assembler.pending_samples() < window_samples);
        prop_assert!(assembler.anchors.len() <= window_samples + 1);
    }
}
