//! What people found of trips becomes the next version of the model: the whole circle, once, with the real programs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use e2e_tests::eventually::eventually;
use e2e_tests::http::post_json;
use e2e_tests::machine::FakeMachine;
use e2e_tests::ports::free_port;
use e2e_tests::process::ChildProcess;
use e2e_tests::publisher::{Publisher, WaveformSource, paced};
use e2e_tests::signal::{MotorProfile, MotorSignal, SAMPLE_RATE_HZ};
use e2e_tests::{edge_module, setup_dir, workspace_root};
use serde_json::{Value, json};
use shared_proto::model::EventTime;

use crate::gateway::{BLOCK_INTERVAL, BLOCK_MICROS, BLOCK_SAMPLES, Gateway, OBEYS};
use crate::plant::{DEADLINE, kafka, now};

const BEFORE: &str = "motor-shape@2.0.0";
const NEXT: &str = "motor-shape@2.0.1";
/// The model's name in the settings.
const SHAPE: &str = "shape";
/// Trips of one machine within ten minutes count once in training: each motor gives one.
const MOTORS: Range<usize> = 1..15;
const BESIDE_FANS: Range<usize> = 1..8;
const WITH_OLD_BEARINGS: Range<usize> = 8..15;
const TRIPS: u64 = (MOTORS.end - MOTORS.start) as u64;
/// A fan hums from 316 Hz to 631 Hz, in these third octaves of the motor's own noise, ...
const FAN_BANDS: Range<usize> = 15..18;
/// ... so many times as loud as they are on the test bench. By [`BEFORE`] that is 1.8 logits or more over the threshold, a ruined
/// bearing 5.5, and a healthy motor 5 below it.
const FAN: f64 = 6.0;
/// Training replays a trip by 3 of 5 windows: two more leave room for what is cut off at its moment.
const VOTES: usize = 5;
const VOTES_OF: usize = 7;
/// Of the model: the votes are enough at the earliest after so many samples, 2.05 s.
const VOTED_SAMPLES: usize = 32_768 + (VOTES - 1) * 2048;
/// Below the threshold of both versions, which is 0.59.
const QUIET_SCORE: f64 = 0.5;
const TOKEN: &str = "a-long-and-secret-token-of-the-cmms";
/// Refusals of one machine are told twice a second at most: whoever saw none asks again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

fn id(number: usize) -> String {
    format!("motor-{number}")
}

fn sensor(number: usize) -> String {
    format!("motor-{number}/bearing")
}

fn bundle() -> PathBuf {
    workspace_root().join("edge-module/model/bundles/motor-shape-v2")
}

/// The line of the settings before.
fn shape_before() -> String {
    format!("{SHAPE} = \"{}\"\n", bundle().display())
}

/// The time after a trip counts from the newest sample that was recorded, and on a busy machine those that voted come later than that:
/// two seconds have them all.
fn machines_toml() -> String {
    let machines: String = MOTORS
        .map(|number| {
            let (id, sensor) = (id(number), sensor(number));
            format!(
                "[[machines]]\nid = \"{id}\"\nvotes = {VOTES}\nof = {VOTES_OF}\n\
                 scored-sensors = [{{ sensor = \"{sensor}\", model = \"{SHAPE}\" }}]\n"
            )
        })
        .collect();
    format!("{machines}[waveforms]\nafter = \"2s\"\n[model.bundles]\n{}", shape_before())
}

/// What a motor's sensor hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sound {
    Healthy,
    Fan,
    Ruined,
}

/// One motor, alone or beside a fan.
struct Motor {
    id: String,
    sensor: String,
    topic: String,
    alone: MotorSignal,
    beside_fan: MotorSignal,
}

impl Motor {
    fn new(number: usize) -> Self {
        let mut with_fan = MotorProfile::healthy_1800_rpm();
        with_fan.noise[FAN_BANDS].iter_mut().for_each(|level| *level *= FAN);
        let (id, seed) = (id(number), number as u64);
        Self {
            topic: format!("plant/{id}/waveform"),
            id,
            sensor: sensor(number),
            alone: MotorSignal::new(MotorProfile::healthy_1800_rpm(), seed),
            beside_fan: MotorSignal::new(with_fan, seed),
        }
    }

    fn block(&mut self, first_sample: EventTime, sound: Sound) -> Vec<u8> {
        let signal = match sound {
            Sound::Healthy | Sound::Ruined => &mut self.alone,
            Sound::Fan => &mut self.beside_fan,
        };
        signal.set_severity(if sound == Sound::Ruined { 1.0 } else { 0.0 });
        let source = WaveformSource {
            machine_id: &self.id,
            sensor_id: &self.sensor,
            sample_rate_hz: SAMPLE_RATE_HZ,
            unit: "V",
        };
        source.block(first_sample, &signal.next_samples(BLOCK_SAMPLES))
    }
}

struct Controls {
    /// In the order of [`MOTORS`].
    sounds: Mutex<Vec<Sound>>,
    is_over: AtomicBool,
}

/// All motors at their own pace, as one thread plays them.
fn play(port: u16, controls: &Controls) -> anyhow::Result<()> {
    let mut publisher = Publisher::connect(port, "accelerometers");
    let mut motors: Vec<Motor> = MOTORS.map(Motor::new).collect();
    // A block is sent when its last sample was taken, so that a trip is told after the samples that led to it.
    let start = now().saturating_sub_micros(BLOCK_MICROS);
    let numbers = (0_i64..).take_while(|_| !controls.is_over.load(Ordering::SeqCst));
    paced(numbers, BLOCK_INTERVAL, |number| {
        let first_sample = start.saturating_add_micros(number * BLOCK_MICROS);
        let sounds = controls.sounds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (motor, sound) in motors.iter_mut().zip(sounds) {
            let block = motor.block(first_sample, sound);
            publisher.publish(&motor.topic, block)?;
        }
        Ok(())
    })?;
    publisher.wait_acknowledged(DEADLINE)
}

/// A hall of motors under one gateway.
struct Hall {
    gateway: Gateway,
    /// In the order of [`MOTORS`].
    machines: Vec<FakeMachine>,
    controls: Arc<Controls>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Hall {
    /// The gateway and the machine sides; no sensor sends yet.
    fn start(name: &str) -> anyhow::Result<Self> {
        let gateway = Gateway::start(name, &machines_toml(), None)?;
        let port = gateway.plant.mosquitto.port();
        // The gateway's own motor is the first.
        let mut machines = vec![gateway.motor.clone()];
        for number in MOTORS.skip(1) {
            machines.push(FakeMachine::start(port, &id(number), OBEYS)?);
        }
        let sounds = Mutex::new(vec![Sound::Healthy; machines.len()]);
        let controls = Arc::new(Controls { sounds, is_over: AtomicBool::new(false) });
        let hall = Self { gateway, machines, controls, thread: None };
        hall.wait_in_force(BEFORE)?;
        Ok(hall)
    }

    /// The sensors begin to send what these motors are set to.
    fn switch_sensors_on(&mut self) {
        let (port, controls) = (self.gateway.plant.mosquitto.port(), Arc::clone(&self.controls));
        self.thread = Some(std::thread::spawn(move || play(port, &controls)));
    }

    fn set(&self, motors: Range<usize>, sound: Sound) {
        let mut sounds = self.controls.sounds.lock().unwrap_or_else(PoisonError::into_inner);
        for number in motors {
            sounds[number - MOTORS.start] = sound;
        }
    }

    fn machine(&self, number: usize) -> &FakeMachine {
        &self.machines[number - MOTORS.start]
    }

    fn wait_in_force(&self, identity: &str) -> anyhow::Result<Value> {
        eventually(&format!("{identity} is in force"), DEADLINE, || {
            let model = self.gateway.status()?["models"][SHAPE].clone();
            ensure!(model["state"] == "in-force" && model["in_force"] == identity, "{model}");
            anyhow::Ok(model)
        })
    }

    /// Trips that this model gave, by motor.
    fn trips(&self, model: &str) -> anyhow::Result<BTreeMap<String, Value>> {
        let events = kafka()?.read_json(&self.gateway.plant.topic("machine-events"))?;
        let mut trips = BTreeMap::new();
        for event in events {
            if event["event_type"] == "trip" && event["model"] == model {
                let motor =
                    event["machine_id"].as_str().context("a trip of no machine")?.to_owned();
                let before = trips.insert(motor, event);
                ensure!(before.is_none(), "it tripped twice: {before:?}");
            }
        }
        Ok(trips)
    }

    /// Waits until these motors stand still, each by the score of this model, and no others by it.
    fn wait_for_trips(
        &self,
        motors: Range<usize>,
        model: &str,
    ) -> anyhow::Result<BTreeMap<String, Value>> {
        for number in motors.clone() {
            self.machine(number).wait_for_interlock("stopped", DEADLINE)?;
            ensure!(!self.machine(number).is_running(), "{} runs", id(number));
        }
        let count = motors.len();
        let trips =
            eventually(&format!("{count} trips by {model} are on Kafka"), DEADLINE, || {
                let trips = self.trips(model)?;
                ensure!(trips.len() >= count, "{:?}", trips.keys());
                anyhow::Ok(trips)
            })?;
        ensure!(trips.len() == count, "others, too: {:?}", trips.keys());
        for number in motors {
            let trip = trips.get(&id(number)).with_context(|| format!("{trips:?}"))?;
            ensure!(trip["cause"] == "score", "{trip}");
        }
        Ok(trips)
    }

    /// A person resets each motor and switches it on. A reset is granted when its windows are healthy again.
    fn reset_all(&self) -> anyhow::Result<()> {
        for number in MOTORS {
            let machine = self.machine(number);
            let mut asked: Option<Instant> = None;
            eventually(&format!("{} is reset", id(number)), DEADLINE, || {
                let states = machine.interlock_states();
                let last = states.last().context("nothing shown")?;
                if last["state"] == "armed" {
                    return Ok(());
                }
                if asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN) {
                    asked = Some(Instant::now());
                    machine.ask_for_reset("Kim")?;
                }
                bail!("{last}")
            })?;
            machine.switch_on()?;
        }
        Ok(())
    }

    /// Scores of windows that began later, by sensor.
    fn scores_since(&self, since: EventTime) -> anyhow::Result<BTreeMap<String, Vec<f64>>> {
        let readings = kafka()?.read_json(&self.gateway.plant.topic("vibration"))?;
        let mut scores: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for reading in readings {
            let text = reading["timestamp"].as_str().context("no timestamp")?;
            if EventTime::parse(text).context("no time")? > since {
                let sensor = reading["sensor_id"].as_str().context("no sensor")?.to_owned();
                // A window that was shed on a busy machine has none.
                scores.entry(sensor).or_default().extend(reading["features"]["score"].as_f64());
            }
        }
        Ok(scores)
    }

    /// The fans hum again, for longer than the votes of a trip take, and no motor beside them stops.
    fn check_fans_are_let_be(&self) -> anyhow::Result<()> {
        let since = now();
        self.set(BESIDE_FANS, Sound::Fan);
        let scores = eventually("windows with the fans are on Kafka", 3 * DEADLINE, || {
            let scores = self.scores_since(since)?;
            for number in BESIDE_FANS {
                let windows = scores.get(&sensor(number)).map_or(0, Vec::len);
                ensure!(windows > VOTES_OF, "{windows} windows of {}", id(number));
            }
            anyhow::Ok(scores)
        })?;
        let is_quiet = scores.values().flatten().all(|score| *score < QUIET_SCORE);
        ensure!(is_quiet, "{scores:?}");
        self.check_fans_stop_nothing()
    }

    fn check_fans_stop_nothing(&self) -> anyhow::Result<()> {
        for number in BESIDE_FANS {
            ensure!(self.machine(number).is_running(), "{} was stopped", id(number));
        }
        Ok(())
    }

    /// The sensors send no more.
    fn end(mut self) -> anyhow::Result<()> {
        self.controls.is_over.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("no sensor has sent")?;
        thread.join().map_err(|_| anyhow!("the sensors' thread has panicked"))?
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        self.controls.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // Sensors that could not publish have failed their test already.
            thread.join().ok();
        }
    }
}

impl Hall {
    /// Lets the aggregator take outcomes, and says on which port.
    fn open_api(&mut self) -> anyhow::Result<u16> {
        let port = free_port()?;
        let plant = &mut self.gateway.plant;
        let tokens = plant.dir.join("tokens");
        std::fs::write(&tokens, format!("cmms:{TOKEN}\n"))?;
        plant.aggregator_settings.environment.extend([
            ("AGGREGATOR__API__LISTEN".to_owned(), format!("127.0.0.1:{port}")),
            ("AGGREGATOR__API__TOKEN_FILE".to_owned(), tokens.display().to_string()),
        ]);
        Ok(port)
    }

    /// Everything that training reads has become rows.
    fn wait_for_lake(&self) -> anyhow::Result<()> {
        let plant = &self.gateway.plant;
        let trips = "SELECT count(*) FROM machine_events WHERE event_type = 'trip'";
        let outcomes = "SELECT count(*) FROM outcomes WHERE reported_by = 'cmms'";
        // Pieces of a trip come in their order, so these are the first ones.
        let waveforms = format!(
            "SELECT count(*) FROM (SELECT trip_id FROM waveforms GROUP BY trip_id \
             HAVING sum(sample_count) >= {VOTED_SAMPLES})"
        );
        for sql in [trips, outcomes, &waveforms] {
            let count = plant.wait_for_count(sql, TRIPS)?;
            ensure!(count == TRIPS, "{sql} gives {count}");
        }
        Ok(())
    }

    /// Where training leaves what it made.
    fn trained(&self) -> PathBuf {
        self.gateway.plant.dir.join("training/out")
    }

    /// The next version from the lake; the report.
    fn train(&self) -> anyhow::Result<Value> {
        let plant = &self.gateway.plant;
        let text = |path: PathBuf| {
            path.into_os_string().into_string().map_err(|path| anyhow!("{path:?} is not UTF-8"))
        };
        let (lake, out) = (text(plant.aggregator_settings.lake.clone())?, text(self.trained())?);
        let (bundle, program) = (text(bundle())?, text(edge_module::program())?);
        let modules = text(workspace_root().join("edge-module/model"))?;
        let mut arguments: Vec<&str> = vec!["-m", "machine_model", "train"];
        arguments.extend(["--lake", &lake, "--model", &bundle]);
        arguments.extend(["--out", &out, "--edge-module", &program]);
        // Nothing is written into the checkout.
        let environment = [("PYTHONPATH", modules.as_str()), ("PYTHONDONTWRITEBYTECODE", "1")];
        let python = setup_dir().join("model-venv/bin/python");
        let dir = plant.dir.join("training");
        let mut training = ChildProcess::start("train", &dir, &python, &arguments, &environment)?;
        let status = training.wait(DEADLINE)?;
        let report = self.trained().join("report.txt");
        ensure!(
            status.code() == Some(0),
            "{status}: {}\n{}",
            training.tail(),
            std::fs::read_to_string(&report).unwrap_or_default()
        );
        Ok(serde_json::from_slice(&std::fs::read(report.with_extension("json"))?)?)
    }

    /// Names the packed file of the report in the settings, and waits until it has come through its shadow time.
    ///
    /// All motors are healthy in that time, so both models decide the same: nothing. With a fan in it the new one would be refused,
    /// since it decides otherwise there, which is what it was made for; a person would then insist with `shadow-time = "0s"`.
    fn put_in_force(&mut self, report: &Value) -> anyhow::Result<()> {
        let written = &report["written"];
        let file = self.trained().join(written["file"].as_str().context("no file")?);
        let sha256 = written["sha256"].as_str().context("no sha256")?;
        let first = "bundle-dir = \"\"\n";
        self.gateway.change(first, &format!("{first}shadow-time = \"2s\"\n"))?;
        let shape =
            format!("{SHAPE} = {{ file = \"{}\", sha256 = \"{sha256}\" }}\n", file.display());
        self.gateway.change(&shape_before(), &shape)?;
        let model = self.wait_in_force(NEXT)?;
        ensure!(model["refusal"].is_null(), "{model}");
        let shadow = model["report"].as_str().context("no shadow time")?;
        ensure!(shadow.contains(" 0 decisions; before 0 of "), "{shadow}");
        self.gateway.wait_for_event("model-changed", &[&format!("{BEFORE} -> {NEXT}")])?;
        Ok(())
    }
}

/// A person has looked at each motor: there was nothing beside the fans, and the old bearings were ruined.
fn tell_outcomes(port: u16, trips: &BTreeMap<String, Value>) -> anyhow::Result<()> {
    for number in MOTORS {
        let motor = id(number);
        let trip = trips.get(&motor).with_context(|| format!("no trip of {motor}"))?;
        let verdict = if BESIDE_FANS.contains(&number) { "false-alarm" } else { "confirmed" };
        let outcome = json!({
            "outcome_id": format!("ticket-{number}"), "verdict": verdict, "machine_id": motor,
            "trip_id": trip["trip_id"], "timestamp": now().to_string(),
        });
        let (status, answer) = post_json(port, "/api/outcomes", TOKEN, &outcome.to_string())?;
        ensure!(status == 202, "{outcome}: {answer}");
    }
    Ok(())
}

/// All labels were used, and the candidate is better where it was judged: by trips that it has not seen.
fn check_report(report: &Value) -> anyhow::Result<()> {
    let (lake, comparison) = (&report["lake"], &report["comparison"]);
    ensure!(lake["left-out"] == json!({}), "{lake}");
    let labels = (&lake["confirmed"], &lake["false-alarms"]);
    ensure!(labels == (&json!(WITH_OLD_BEARINGS.len()), &json!(BESIDE_FANS.len())), "{lake}");
    ensure!(comparison["judged-by"] == "edge-module judge", "{comparison}");
    let of = |model: &str, figure: &str| {
        let count = comparison[model][figure].as_u64();
        count.with_context(|| format!("no {figure} of {model}: {comparison}"))
    };
    let again = "false-alarms-repeated";
    ensure!(of("candidate", again)? < of("current", again)?, "{comparison}");
    let found = "confirmed-found";
    ensure!(of("candidate", found)? >= of("current", found)?, "{comparison}");
    ensure!(of("candidate", found)? > 0, "{comparison}");
    Ok(())
}

#[test]
fn judged_trips_make_a_model_that_lets_harmless_noise_be_and_stops_what_is_ruined()
-> anyhow::Result<()> {
    let mut hall = Hall::start("feedback")?;
    let port = hall.open_api()?;
    let _aggregator = hall.gateway.plant.start_aggregator()?;
    // From their first sample, as after a start: all windows before a trip are then of what tripped.
    hall.set(BESIDE_FANS, Sound::Fan);
    hall.set(WITH_OLD_BEARINGS, Sound::Ruined);
    hall.switch_sensors_on();
    let trips = hall.wait_for_trips(MOTORS, BEFORE)?;

    // The fans are off, the bearings new.
    hall.set(MOTORS, Sound::Healthy);
    tell_outcomes(port, &trips)?;
    hall.reset_all()?;
    hall.wait_for_lake()?;
    let report = hall.train()?;
    check_report(&report)?;

    hall.put_in_force(&report)?;
    hall.check_fans_are_let_be()?;
    hall.set(WITH_OLD_BEARINGS, Sound::Ruined);
    hall.wait_for_trips(WITH_OLD_BEARINGS, NEXT)?;
    hall.check_fans_stop_nothing()?;
    hall.end()
}
