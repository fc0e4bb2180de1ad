//! Each fault with numbers of real sensors: at, below and above its limit.

use shared_proto::model::{MachineId, MetricType, SensorId};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// 2026-03-01T08:15:30Z.
const CALENDAR: EventTime = EventTime::from_micros(1_772_352_930_000_000);

struct Bench {
    condition: Condition,
    now: Moment,
}

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn start() -> Instant {
    Instant::now()
}

impl Bench {
    fn new(settings: ConditionSettings) -> Self {
        let mut faults = Vec::new();
        settings.validate(&mut faults);
        assert_eq!(faults, vec![]);
        let now = Moment { instant: start(), time: CALENDAR };
        Self { condition: Condition::new(settings), now }
    }

    fn step(&mut self, by: Duration) {
        self.now.instant += by;
        let micros = i64::try_from(by.as_micros()).expect("short");
        self.now.time = self.now.time.saturating_add_micros(micros);
    }

    fn value(&mut self, measured: impl Into<Measured>) -> String {
        let mut changes = Vec::new();
        self.condition.handle_value(measured.into(), self.now, &mut changes);
        text(&changes)
    }

    /// A block whose last sample is taken now.
    fn block(&mut self, rate_hz: f64, samples: Vec<f32>) -> String {
        let micros = samples.len() as f64 / rate_hz * 1e6;
        let block = WaveformBlock {
            machine_id: MachineId::new("press-1").expect("a name"),
            sensor_id: SensorId::new("press-1/bearing").expect("a name"),
            first_sample: self.now.time.saturating_sub_micros(micros as i64),
            sample_rate_hz: rate_hz,
            unit: None,
            samples,
        };
        let mut changes = Vec::new();
        self.condition.handle_block(&block, self.now, &mut changes);
        text(&changes)
    }
}

/// `+out-of-range -frozen`: what came and what went.
fn text(changes: &[FaultChange]) -> String {
    let word = |change: &FaultChange| {
        let sign = if change.is_present { '+' } else { '-' };
        format!("{sign}{}", change.kind.as_str())
    };
    changes.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn pt100() -> ConditionSettings {
    // A PT100 of class A is good to 300 °C; an open one reads 1254 °C, a shorted one -242 °C.
    let range = Some(MeasuringRange { min: -50.0, max: 300.0 });
    ConditionSettings { range, recovers_after: SECOND, ..ConditionSettings::default() }
}

#[test]
fn open_and_shorted_thermometers_are_out_of_range() {
    for (value, expected) in [
        (72.5, ""),
        (300.0, ""),
        (300.1, "+out-of-range"),
        (1254.0, "+out-of-range"),
        (-50.0, ""),
        (-50.1, "+out-of-range"),
        (-242.0, "+out-of-range"),
        (f64::NAN, "+value-not-finite"),
        (f64::INFINITY, "+value-not-finite"),
        (f64::NEG_INFINITY, "+value-not-finite"),
    ] {
        let mut bench = Bench::new(pt100());
        assert_eq!(bench.value(value), expected, "{value}");
        assert_eq!(bench.condition.is_usable(), expected.is_empty(), "{value}");
    }
}

#[test]
fn loose_contact_is_one_fault_until_it_holds() {
    let mut bench = Bench::new(pt100());
    assert_eq!(bench.value(1254.0), "+out-of-range");
    for _ in 0..20 {
        bench.step(SECOND / 2);
        assert_eq!(bench.value(72.0), "", "not yet");
        bench.step(SECOND / 2);
        assert_eq!(bench.value(1254.0), "", "reported once");
    }
    bench.step(SECOND);
    assert_eq!(bench.value(72.0), "", "the first good value begins the time");
    bench.step(SECOND - Duration::from_nanos(1));
    assert_eq!(bench.value(72.0), "");
    assert_eq!(bench.value(f64::NAN), "+value-not-finite", "says nothing about the range");
    bench.step(Duration::from_nanos(1));
    assert_eq!(bench.value(72.0), "-out-of-range");
    bench.step(SECOND);
    assert_eq!(bench.value(72.0), "-value-not-finite");
    assert!(bench.condition.is_usable());
}

#[test]
fn reading_of_bad_quality_is_a_fault_whatever_its_value() {
    let mut reading = Reading::new(
        SensorId::new("t").expect("a name"),
        CALENDAR,
        MetricType::new("temperature").expect("a name"),
        72.0,
    );
    for (quality, expected) in [
        (None, ""),
        (Some(Quality::Good), ""),
        (Some(Quality::Uncertain), ""),
        (Some(Quality::Bad), "+bad-quality"),
    ] {
        reading.quality = quality;
        assert_eq!(Bench::new(pt100()).value(&reading), expected, "{quality:?}");
    }
    reading.value = 1254.0;
    assert_eq!(Bench::new(pt100()).value(&reading), "+bad-quality", "its value says nothing");
}

#[test]
fn value_that_stays_is_frozen_when_its_time_is_up() {
    let frozen = Some(FrozenRule { after: SECOND * 60, tolerance: 0.05 });
    let settings = ConditionSettings { frozen, ..ConditionSettings::default() };
    let mut bench = Bench::new(settings);
    // A 12-bit converter flips its last digit: that is no movement.
    for second in 0..60 {
        assert_eq!(bench.value(40.0 + 0.05 * f64::from(second % 2)), "", "{second}");
        bench.step(SECOND);
    }
    assert_eq!(bench.value(40.0), "+frozen");
    assert!(!bench.condition.is_usable());
    bench.step(SECOND);
    assert_eq!(bench.value(40.06), "-frozen");
    // It creeps: each step is small, all together are not.
    for step in 0..300 {
        bench.step(SECOND);
        assert_eq!(bench.value(40.06 + 0.01 * f64::from(step)), "", "{step}");
    }
}

#[test]
fn flat_line_of_a_vibration_sensor_is_frozen_and_not_saturated() {
    let frozen = Some(FrozenRule { after: SECOND * 5, tolerance: 0.0 });
    let saturation = Some(SaturationRule { share: 0.01, full_scale: None });
    let settings = ConditionSettings { frozen, saturation, ..ConditionSettings::default() };
    let mut bench = Bench::new(settings);
    for _ in 0..5 {
        assert_eq!(bench.block(1000.0, vec![0.9; 1000]), "");
        bench.step(SECOND);
    }
    assert_eq!(bench.block(1000.0, vec![0.9; 1000]), "+frozen");
    bench.step(SECOND);
    let sine = (0..1000_u16).map(|sample| f32::sin(f32::from(sample))).collect();
    assert_eq!(bench.block(1000.0, sine), "-frozen");
}

#[test]
fn clipped_block_is_saturated_from_its_share_on() {
    // 25 g of amplitude against the 48.1 g where a 50 g accelerometer stands still.
    let block = |clipped: usize| -> Vec<f32> {
        let sine = (0..1000_u16).map(|sample| 25.0 * f32::sin(f32::from(sample)));
        let ends = [48.1_f32, -48.1].into_iter().cycle().take(clipped);
        sine.skip(clipped).chain(ends).collect()
    };
    for full_scale in [Some(48.0), None] {
        let saturation = Some(SaturationRule { share: 0.02, full_scale });
        let settings = ConditionSettings { saturation, ..ConditionSettings::default() };
        for (clipped, expected) in [(0, ""), (18, ""), (20, "+saturated"), (900, "+saturated")] {
            let mut bench = Bench::new(settings);
            assert_eq!(bench.block(1000.0, block(clipped)), expected, "{clipped} {full_scale:?}");
        }
    }
}

#[test]
fn sample_out_of_range_or_not_finite_is_a_fault_of_the_block() {
    let range = Some(MeasuringRange { min: -50.0, max: 50.0 });
    let settings = ConditionSettings { range, ..ConditionSettings::default() };
    for (sample, expected) in [
        (50.0, ""),
        (50.1, "+out-of-range"),
        (-50.1, "+out-of-range"),
        (f32::NAN, "+value-not-finite"),
        (f32::INFINITY, "+value-not-finite"),
    ] {
        let mut samples = vec![0.5; 100];
        samples[50] = sample;
        assert_eq!(Bench::new(settings).block(100.0, samples), expected, "{sample}");
    }
}

#[test]
fn rate_of_blocks_is_the_one_that_they_declare() {
    let rate = Some(RateRule { hz: 25_600.0, tolerance: 0.05 });
    let settings = ConditionSettings { rate, ..ConditionSettings::default() };
    for (hz, expected) in [
        (25_600.0, ""),
        (26_880.0, ""),
        (26_881.0, "+wrong-rate"),
        (24_320.0, ""),
        (24_319.0, "+wrong-rate"),
        (12_800.0, "+wrong-rate"),
    ] {
        assert_eq!(Bench::new(settings).block(hz, vec![0.1; 64]), expected, "{hz}");
    }
}

#[test]
fn rate_of_readings_is_counted_over_a_minute() {
    let check = |distance_ms: u64, expected: &str| {
        let rate = Some(RateRule { hz: 1.0, tolerance: 0.05 });
        let missing_share_max = Some(0.2);
        let settings =
            ConditionSettings { rate, missing_share_max, ..ConditionSettings::default() };
        let mut bench = Bench::new(settings);
        let mut seen = String::new();
        for _ in 0..120_000 / distance_ms {
            seen.push_str(&bench.value(40.0));
            bench.step(Duration::from_millis(distance_ms));
        }
        assert_eq!(seen, expected, "{distance_ms} ms");
    };
    check(1000, "");
    check(960, "");
    check(500, "+wrong-rate");
    check(1040, "");
    check(1200, "+wrong-rate");
    check(2000, "+wrong-rate +samples-missing");
}

#[test]
fn missing_blocks_are_counted_over_a_minute_and_forgiven_after_a_clean_one() {
    let settings =
        ConditionSettings { missing_share_max: Some(0.05), ..ConditionSettings::default() };
    let mut bench = Bench::new(settings);
    let second = |bench: &mut Bench, is_lost: bool| {
        bench.step(SECOND);
        if is_lost { String::new() } else { bench.block(100.0, vec![0.1; 100]) }
    };
    let mut seen = String::new();
    for number in 0..62 {
        seen.push_str(&second(&mut bench, [10, 20, 30].contains(&number)));
    }
    assert_eq!(seen, "", "3 of 60 are 5 percent");
    for number in 0..10 {
        seen.push_str(&second(&mut bench, [1, 3, 5, 7].contains(&number)));
    }
    assert_eq!(seen, "+samples-missing", "4 are known before the minute is over");
    assert!(bench.condition.is_usable(), "a value is still a measurement");
    seen.clear();
    for _ in 0..60 {
        seen.push_str(&second(&mut bench, false));
    }
    assert_eq!(seen, "", "that minute had them");
    for _ in 0..60 {
        seen.push_str(&second(&mut bench, false));
    }
    assert_eq!(seen, "-samples-missing");
}

#[test]
fn clock_off_by_more_than_allowed_is_a_fault_either_way_but_history_is_none() {
    let settings =
        ConditionSettings { clock_drift_max: Some(SECOND * 30), ..ConditionSettings::default() };
    for (micros, expected) in [
        (0, ""),
        (30_000_000, ""),
        (-30_000_000, ""),
        (30_000_001, "+clock-drift"),
        (-30_000_001, "+clock-drift"),
        (-i64::MAX / 2, "+clock-drift"),
    ] {
        let mut bench = Bench::new(settings);
        let taken = Some(CALENDAR.saturating_add_micros(micros));
        assert_eq!(bench.value(Measured { taken, ..40.0.into() }), expected, "{micros}");
        assert!(bench.condition.is_usable(), "a wrong clock must not cost the limits");
    }
    let mut reading = Reading::new(
        SensorId::new("t").expect("a name"),
        CALENDAR.saturating_sub_micros(3_600_000_000),
        MetricType::new("temperature").expect("a name"),
        40.0,
    );
    reading.historical = true;
    assert_eq!(Bench::new(settings).value(&reading), "");
    reading.historical = false;
    assert_eq!(Bench::new(settings).value(&reading), "+clock-drift");
}

#[test]
fn settings_that_cannot_be_judged_are_named() {
    let bad = ConditionSettings {
        range: Some(MeasuringRange { min: 1.0, max: 1.0 }),
        frozen: Some(FrozenRule { after: Duration::ZERO, tolerance: -1.0 }),
        saturation: Some(SaturationRule { share: 1.1, full_scale: Some(0.0) }),
        rate: Some(RateRule { hz: 0.0, tolerance: f64::NAN }),
        missing_share_max: Some(1.0),
        clock_drift_max: Some(Duration::ZERO),
        recovers_after: WAIT_MAX * 2,
    };
    let mut faults = Vec::new();
    bad.validate(&mut faults);
    assert_eq!(faults.len(), 10, "{faults:#?}");
    faults.clear();
    ConditionSettings::default().validate(&mut faults);
    assert_eq!(faults, vec![]);
}
