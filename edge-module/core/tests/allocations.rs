//! The path of an input that changes nothing allocates nothing: counted by the allocator itself.

#![expect(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use edge_core::condition::{
    ConditionSettings, FrozenRule, Measured, MeasuringRange, RateRule, SaturationRule,
};
use edge_core::interlock::{
    ConfirmationSettings, DuringStartup, Interlock, InterlockSettings, LimitRule, Moment, Quantity,
    RuleAction, ScoreVote, SensorRule, Silence, WindowScore,
};
use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn settings(sensor: &SensorId) -> InterlockSettings {
    let limit = |name: &str, quantity, above| LimitRule {
        name: name.to_owned(),
        sensor: sensor.clone(),
        quantity,
        above: Some(above),
        below: None,
        hysteresis: 1.0,
        on_delay: Duration::ZERO,
        off_delay: Duration::ZERO,
        action: RuleAction::Trip,
        during_startup: DuringStartup::Suppress,
    };
    let condition = ConditionSettings {
        range: Some(MeasuringRange { min: -50.0, max: 300.0 }),
        frozen: Some(FrozenRule { after: Duration::from_secs(60), tolerance: 0.0 }),
        saturation: Some(SaturationRule { share: 0.5, full_scale: Some(48.0) }),
        rate: Some(RateRule { hz: 1000.0, tolerance: 1.0 }),
        missing_share_max: Some(0.5),
        clock_drift_max: Some(Duration::from_secs(3600)),
        recovers_after: Duration::from_secs(1),
    };
    InterlockSettings {
        limits: vec![
            limit("hot", Quantity::Value, 100.0),
            limit("zone-d", Quantity::Feature("rms".to_owned()), 10.0),
        ],
        score_vote: Some(ScoreVote {
            sensors: vec![sensor.clone()],
            threshold: None,
            votes: 3,
            of: 5,
            action: RuleAction::Trip,
            during_startup: DuringStartup::Enforce,
        }),
        silence: Some(Silence {
            sensors: vec![sensor.clone()],
            after: Duration::from_secs(5),
            trips: true,
        }),
        sensors: vec![SensorRule { sensor: sensor.clone(), condition, on_fault: RuleAction::Trip }],
        on_fault: RuleAction::Trip,
        startup_suppression: Duration::from_secs(10),
        shelving_max: Duration::from_secs(3600),
        dry_run: false,
        confirmation: ConfirmationSettings { deadline: Duration::from_secs(2), attempts_max: 3 },
        rule_version: String::new(),
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn inputs_that_change_nothing_allocate_nothing() {
    let sensor = SensorId::new("press-1/bearing").expect("a name");
    let machine_id = MachineId::new("press-1").expect("a name");
    let mut now = Moment { instant: Instant::now(), time: EventTime::from_micros(0) };
    let mut interlock =
        Interlock::new(machine_id.clone(), settings(&sensor), now.instant).expect("valid");
    let mut block = WaveformBlock {
        machine_id,
        sensor_id: sensor.clone(),
        first_sample: now.time,
        sample_rate_hz: 1000.0,
        unit: None,
        samples: vec![0.5; 1000],
    };
    let window = WindowScore { logit: -2.2, score: 0.1, threshold: 0.5 };
    let mut run = |value: f64, rms: f64, rounds: u32| {
        let before = COUNT.get();
        let mut actions = 0;
        for round in 0..rounds {
            now.instant += Duration::from_millis(100);
            now.time = now.time.saturating_add_micros(100_000);
            block.first_sample = now.time;
            // Something moves: it is not frozen.
            block.samples[0] = round as f32 / 1000.0;
            let value = value + f64::from(round) / 10_000.0;
            let measured = Measured { taken: Some(now.time), ..value.into() };
            actions += interlock.handle_reading(&sensor, measured, now).len();
            actions += interlock.handle_block(&block, now).len();
            actions += interlock.handle_features(&sensor, |_| Some(rms), now).len();
            actions += interlock.handle_score(&sensor, window, now).len();
        }
        (COUNT.get() - before, actions)
    };
    assert_eq!(run(72.0, 1.0, 1000), (0, 0), "all is well");
    let (allocations, actions) = run(101.0, 1.0, 1);
    assert!(allocations > 0, "it counts");
    assert_eq!(actions, 2, "a stop and its report");
    assert_eq!(run(101.0, 1.0, 10), (0, 0), "past the limit and known");
}
