//! A machine is learnt while it turns: by whose threshold it is judged then, what refuses it, and what explains the trip that follows.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use e2e_tests::edge_module::program;
use e2e_tests::eventually::{eventually, eventually_true};
use e2e_tests::http::metric;
use e2e_tests::machine::FakeMachine;
use e2e_tests::publisher::{Publisher, paced, reading_json};
use e2e_tests::signal::{MotorProfile, MotorSignal};
use e2e_tests::workspace_root;
use serde_json::{Value, json};
use shared_proto::model::EventTime;

use crate::gateway::{
    BLOCK_INTERVAL, BLOCK_SAMPLES, Gateway, MOTOR, OBEYS, SENSOR, SOURCE, Shaking, one_motor,
};
use crate::plant::{DEADLINE, kafka, now};

/// Of `motor-line-v1` and `motor-shape-v2`.
const WINDOW_SAMPLES: usize = 32_768;
const HOP_SAMPLES: usize = 2048;
/// After so many windows none has samples of before, and the votes are of the windows since.
const WINDOWS_PASSED: u64 = (WINDOW_SAMPLES / HOP_SAMPLES) as u64 + 9;
const LINE: &str = "motor-line@1.0.0";
/// By `motor-line-v1` the motor of the test bench has logits from -3.9 to -3.3, and each factor of 2 adds 3. Its own threshold is at 0.
const LOUD: f32 = 3.1623;
/// Far above what was learnt of a loud motor: that ends at 1.7, and the margin is 2.2.
const WORSE: f32 = 10.0;
/// The motor stands still: what its sensor measures is noise.
const STILL: f32 = 0.01;
/// Votes do not stop the motor before it is learnt. Its limits would.
const VOTES_TELL: &str = "score-action = \"alarm\"\n";
const VOTES: &str = "votes = 3\n";
/// Runs that take seconds.
const LEARNING: &str = "[learning]\nwindows-min = 10\nsettle = \"0s\"\n";
/// Refusals of one machine are told twice a second at most: whoever saw none asks again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

fn bundle(name: &str) -> PathBuf {
    workspace_root().join("edge-module/model/bundles").join(name)
}

/// A gateway with a motor that turns, and a person beside it.
struct Bench {
    gateway: Gateway,
    shaking: Shaking,
    person: Publisher,
    /// Tells the speed, from when it is known.
    drive: Option<Drive>,
}

/// A drive that tells its speed again and again, as they do.
struct Drive {
    /// An `f64`.
    rpm_bits: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

const SPEED_INTERVAL: Duration = Duration::from_millis(200);

impl Drive {
    fn start(port: u16, rpm: f64) -> Self {
        let rpm_bits = Arc::new(AtomicU64::new(rpm.to_bits()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (speed, end) = (Arc::clone(&rpm_bits), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let mut publisher = Publisher::connect(port, "drive");
            let ticks = std::iter::repeat(()).take_while(|()| !end.load(Ordering::SeqCst));
            paced(ticks, SPEED_INTERVAL, |()| {
                let rpm = f64::from_bits(speed.load(Ordering::SeqCst));
                let reading = reading_json(MOTOR, "motor-1/speed", "speed", now(), rpm);
                publisher.publish(&format!("plant/{MOTOR}/readings"), reading)
            })
        });
        Self { rpm_bits, is_over, thread: Some(thread) }
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A drive that could not publish has failed its test already.
            thread.join().ok();
        }
    }
}

impl Bench {
    /// `machine` has more keys of the motor, `more` what stands behind them in the file.
    fn start(name: &str, model: &str, machine: &str, more: &str) -> anyhow::Result<Self> {
        let machines = format!("{}{machine}{more}{LEARNING}", one_motor());
        let gateway = Gateway::start(name, &machines, Some(&bundle(model)))?;
        let port = gateway.plant.mosquitto.port();
        let (shaking, person) = (Shaking::start(port), Publisher::connect(port, "person"));
        Ok(Self { gateway, shaking, person, drive: None })
    }

    fn ask(&mut self, machine: &str, request: &Value) -> anyhow::Result<()> {
        self.person.publish(&format!("plant/{machine}/learn"), request.to_string())
    }

    /// Asks for learning, and waits until it is refused with all the words in the reason.
    fn ask_in_vain(
        &mut self,
        (machine, id): (&FakeMachine, &str),
        request: &Value,
        words: &[&str],
    ) -> anyhow::Result<Value> {
        let mut asked: Option<Instant> = None;
        eventually(&format!("{request} is refused for {words:?}"), DEADLINE, || {
            if asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN) {
                asked = Some(Instant::now());
                self.ask(id, request)?;
            }
            refusal(machine, words)
        })
    }

    /// Lets the motor be learnt, and gives the event that tells of it.
    fn learn(&mut self, operator: &str, duration: &str, within: &str) -> anyhow::Result<Value> {
        let request = json!({ "operator": operator, "for": duration, "within": within });
        self.ask(MOTOR, &request)?;
        self.gateway.wait_for_event("learning-started", &[operator])?;
        let duration_seconds: f64 = duration.trim_end_matches('s').parse()?;
        eventually("learning is shown", DEADLINE, || {
            let states = self.gateway.motor.interlock_states();
            let shown = states.iter().rfind(|state| state["learning"]["operator"] == operator);
            let shown = shown.with_context(|| format!("not shown: {states:?}"))?;
            ensure!(shown["learning"]["wanted"]["seconds"] == duration_seconds, "{shown}");
            Ok(())
        })?;
        let event = self.gateway.wait_for_event("baseline-learnt", &[operator])?;
        ensure!(event["operator"] == operator && event["machine_id"] == MOTOR, "{event}");
        let status = self.status()?;
        ensure!(status["learning"].is_null(), "{status}");
        eventually("the end is shown", DEADLINE, || {
            let states = self.gateway.motor.interlock_states();
            let last = states.last().context("nothing shown")?;
            ensure!(last["learning"].is_null(), "{last}");
            ensure!(last["learnt_at"] == status["baseline"]["learnt_at"], "{last}, {status}");
            Ok(())
        })?;
        Ok(event)
    }

    /// What `/status` shows of the motor.
    fn status(&self) -> anyhow::Result<Value> {
        let status = self.gateway.status()?;
        let machines = status["machines"].as_array().context("no machines")?;
        let found = machines.iter().find(|machine| machine["machine_id"] == MOTOR);
        found.cloned().with_context(|| format!("{status}"))
    }

    fn threshold(&self, condition: &str) -> anyhow::Result<Option<f64>> {
        Ok(self.status()?["baseline"]["conditions"][condition][SENSOR]["threshold_logit"].as_f64())
    }

    /// Waits until so many windows more were judged on the stop path.
    fn pass(&self, windows: u64) -> anyhow::Result<()> {
        let until = self.gateway.windows_judged()? + windows;
        eventually("windows pass", DEADLINE, || {
            let judged = self.gateway.windows_judged()?;
            ensure!(judged >= until, "{judged} of {until}");
            Ok(())
        })
    }

    /// The motor shakes otherwise, and no window has samples of before any more.
    fn shake(&self, gain: f32) -> anyhow::Result<()> {
        self.shaking.set_gain(gain);
        self.pass(WINDOWS_PASSED)
    }

    /// Waits for an alarm of the motor, or for none.
    fn wait_for_alarm(&self, is_there: bool) -> anyhow::Result<()> {
        eventually(&format!("an alarm of the score is there: {is_there}"), DEADLINE, || {
            let status = self.status()?;
            if status["alarms"].is_array() != is_there {
                let scores = self.scores_since(EventTime::from_micros(0))?;
                let last = &scores[scores.len().saturating_sub(10)..];
                bail!("{status}, last scores {last:?}");
            }
            Ok(())
        })
    }

    /// Waits for many windows that begin from now on, of which none may be abnormal.
    fn check_nothing_abnormal(&self) -> anyhow::Result<()> {
        let since = now();
        let scores = eventually("windows are on Kafka", DEADLINE, || {
            let scores = self.scores_since(since)?;
            ensure!(scores.len() as u64 > WINDOWS_PASSED, "{scores:?}");
            anyhow::Ok(scores)
        })?;
        ensure!(scores.iter().all(|score| *score < 0.5), "{scores:?}");
        let status = self.status()?;
        ensure!(status["state"] == "armed" && self.gateway.motor.is_running(), "{status}");
        Ok(())
    }

    fn scores_since(&self, since: EventTime) -> anyhow::Result<Vec<f64>> {
        let readings = kafka()?.read_json(&self.gateway.plant.topic("vibration"))?;
        let mut scores = Vec::new();
        for reading in readings.iter().filter(|reading| reading["sensor_id"] == SENSOR) {
            let text = reading["timestamp"].as_str().context("no timestamp")?;
            if EventTime::parse(text).context("no time")? > since {
                let score = reading["features"]["score"].as_f64();
                scores.push(score.with_context(|| format!("no score: {reading}"))?);
            }
        }
        Ok(scores)
    }

    /// Another command of the program, with the settings of the one that runs.
    fn command(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(program());
        command.args(arguments).arg("--config").arg(&self.gateway.file);
        Ok(command.output()?)
    }

    /// Waits for a trip whose id is not among those.
    fn wait_for_trip_beside(&self, known: &[&Value]) -> anyhow::Result<Value> {
        self.gateway.motor.wait_for_interlock("stopped", DEADLINE)?;
        eventually("another trip is on Kafka", DEADLINE, || {
            let events = kafka()?.read_json(&self.gateway.plant.topic("machine-events"))?;
            let is_other = |event: &&Value| {
                event["event_type"] == "trip" && !known.contains(&&event["trip_id"])
            };
            events.iter().find(is_other).cloned().with_context(|| format!("{events:?}"))
        })
    }

    fn reset(&self) -> anyhow::Result<()> {
        eventually("the interlock is reset", DEADLINE, || {
            self.gateway.motor.ask_for_reset("Kim")?;
            let status = self.status()?;
            ensure!(status["state"] == "armed", "{status}");
            Ok(())
        })?;
        self.gateway.motor.switch_on()
    }
}

/// The last refusal that is shown of a machine, if it is of learning and has all the words in its reason.
fn refusal(machine: &FakeMachine, words: &[&str]) -> anyhow::Result<Value> {
    let shown = machine.interlock_states().last().map_or(Value::Null, |it| it["refused"].clone());
    let reason = shown["reason"].as_str().unwrap_or_default();
    let is_it = shown["request"] == "learn" && words.iter().all(|word| reason.contains(word));
    ensure!(is_it, "{shown}");
    Ok(shown)
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A model of a level calls each louder machine abnormal, and votes in force stop it before it can be learnt.
#[test]
fn a_machine_that_is_louder_than_the_training_rig_is_learnt_and_then_judged_by_its_own_threshold()
-> anyhow::Result<()> {
    let mut bench = Bench::start("louder", "motor-line-v1", "", "")?;
    bench.shaking.set_gain(LOUD);
    let trip = bench.gateway.wait_for_trip(&bench.gateway.motor, MOTOR)?;
    assert_eq!((&trip["cause"], &trip["model"]), (&"score".into(), &LINE.into()), "{trip}");
    bench.shaking.set_gain(STILL);
    let motor = bench.gateway.motor.clone();
    let request = json!({ "operator": "Kim", "for": "2s" });
    bench.ask_in_vain((&motor, MOTOR), &request, &["the machine is tripped", "reset it"])?;

    bench.gateway.change(VOTES, &format!("{VOTES_TELL}{VOTES}"))?;
    bench.reset()?;
    bench.shake(LOUD)?;
    bench.wait_for_alarm(true)?;
    let event = bench.learn("Kim", "2s", "30s")?;
    let detail = event["detail"].as_str().context("no detail")?;
    assert!(detail.contains(&format!("any, {SENSOR}: ")) && detail.contains("threshold"));
    let threshold = bench.threshold("any")?.context("nothing was learnt")?;
    // The highest healthy logit and the bundle's margin.
    assert!((2.5..4.5).contains(&threshold), "{threshold}");
    let refused = motor.interlock_states().last().map(|state| state["refused"].clone());
    assert_eq!(refused, Some(Value::Null), "a request that is granted takes a refusal away");

    bench.wait_for_alarm(false)?;
    bench.gateway.change(VOTES_TELL, "")?;
    bench.check_nothing_abnormal()?;
    let shown = bench.command(&["baseline", MOTOR])?;
    let (table, errors) = (text_of(&shown.stdout), text_of(&shown.stderr));
    assert!(shown.status.success(), "{table}{errors}");
    let logit = format!("threshold {threshold:.2}");
    let of_settings = "learnt with the model of the settings";
    for words in ["learnt at", "for Kim", "condition any", SENSOR, LINE, of_settings, &logit] {
        assert!(table.contains(words), "{words} is not in {table}");
    }

    let baseline = bench.status()?["baseline"].clone();
    bench.gateway.stop()?;
    bench.gateway.restart()?;
    assert_eq!(bench.status()?["baseline"], baseline, "another one after the restart");
    bench.check_nothing_abnormal()?;
    bench.shaking.set_gain(WORSE);
    let worse = bench.wait_for_trip_beside(&[&trip["trip_id"]])?;
    assert_eq!((&worse["cause"], &worse["model"]), (&"score".into(), &LINE.into()), "{worse}");
    let drivers = contributions(&worse)?;
    assert_eq!(drivers.first().map(|(name, _)| name.as_str()), Some("line"), "{worse}");
    bench.shaking.end()?;
    Ok(())
}

const OIL: &str = "[[machines.limits]]\nname = \"oil-hot\"\nsensor = \"motor-1/oil\"\nquantity = \"value\"\n\
                   above = 120.0\naction = \"alarm\"\n";
/// Only a limit protects it.
const PUMP: &str = "pump-1";
const PUMP_TOML: &str = "[[machines]]\nid = \"pump-1\"\n[[machines.limits]]\nname = \"pump-hot\"\nsensor = \"pump-1/oil\"\n\
                         quantity = \"value\"\nabove = 120.0\n";

impl Bench {
    fn measure(&mut self, sensor: &str, metric_type: &str, value: f64) -> anyhow::Result<()> {
        let reading = reading_json(MOTOR, sensor, metric_type, now(), value);
        self.person.publish(&format!("plant/{MOTOR}/readings"), reading)
    }

    /// From now on the drive tells this speed.
    fn turn(&mut self, rpm: f64) {
        let port = self.gateway.plant.mosquitto.port();
        let drive = self.drive.get_or_insert_with(|| Drive::start(port, rpm));
        drive.rpm_bits.store(rpm.to_bits(), Ordering::SeqCst);
    }

    /// A request that the broker kept was asked by nobody now.
    fn leave_request_in_broker(&mut self, operator: &str) -> anyhow::Result<()> {
        self.gateway.stop()?;
        let request = json!({ "operator": operator, "for": "1s" }).to_string();
        self.person.publish_retained(&format!("plant/{MOTOR}/learn"), request)?;
        self.person.wait_acknowledged(DEADLINE)?;
        self.gateway.restart()?;
        eventually("the request in the broker is ignored", DEADLINE, || {
            let metrics = self.gateway.edge.metrics()?;
            let ignored = metric(&metrics, "input_refused_total", "reason=\"machine-report\"");
            ensure!(ignored.is_some_and(|count| count >= 1.0), "{ignored:?}");
            Ok(())
        })?;
        let status = self.status()?;
        ensure!(status["learning"].is_null() && status["baseline"].is_null(), "{status}");
        Ok(())
    }

    /// Waits until the motor is being learnt, as `/status` shows it.
    fn wait_for_learning(&self) -> anyhow::Result<()> {
        eventually("the motor is being learnt", DEADLINE, || {
            let status = self.status()?;
            let windows = &status["learning"]["conditions"]["any"]["windows"];
            ensure!(windows.as_u64().is_some_and(|windows| windows > 0), "{status}");
            Ok(())
        })
    }
}

#[test]
fn requests_that_cannot_be_granted_are_refused_with_what_to_do() -> anyhow::Result<()> {
    let mut bench = Bench::start("learn-requests", "motor-line-v1", "", PUMP_TOML)?;
    let (motor, port) = (bench.gateway.motor.clone(), bench.gateway.plant.mosquitto.port());
    let pump = FakeMachine::start(port, PUMP, OBEYS)?;
    bench.leave_request_in_broker("Ghost")?;

    let ten_minutes = json!({ "operator": "Kim", "for": "10m" });
    let model_missing = ["no sensor of this machine is scored", "set scored-sensors"];
    bench.ask_in_vain((&pump, PUMP), &ten_minutes, &model_missing)?;
    let of_motor = (&motor, MOTOR);
    let end = json!({ "operator": "Kim", "for": "0s" });
    let refused = bench.ask_in_vain(of_motor, &end, &["nothing is being learnt"])?;
    assert_eq!(refused["operator"], "Kim", "{refused}");
    let nobody = json!({ "for": "10m" });
    let refused = bench.ask_in_vain(of_motor, &nobody, &["expected {\"operator\""])?;
    assert_eq!(refused["operator"], "", "{refused}");
    let nameless = json!({ "operator": " ", "for": "10m" });
    bench.ask_in_vain(of_motor, &nameless, &["operator is empty"])?;
    let mistaken = json!({ "operator": "Kim", "for": "10m", "replaces": true });
    bench.ask_in_vain(of_motor, &mistaken, &["expected {\"operator\"", "replaces"])?;

    bench.ask(MOTOR, &ten_minutes)?;
    bench.wait_for_learning()?;
    let second = json!({ "operator": "Lee", "for": "1s" });
    let refused = bench.ask_in_vain(of_motor, &second, &["learnt already", "\"for\":\"0s\""])?;
    assert_eq!(refused["operator"], "Lee", "{refused}");
    bench.ask(MOTOR, &end)?;
    let event = bench.gateway.wait_for_event("learning-refused", &["cancelled"])?;
    assert_eq!((&event["cause"], &event["operator"]), (&"cancelled".into(), &"Kim".into()));
    let status = bench.status()?;
    assert!(status["learning"].is_null() && status["baseline"].is_null(), "{status}");

    // Of a flood one a second is taken: it must delay no stop and push no event out.
    let began = Instant::now();
    for _ in 0..200 {
        bench.ask(MOTOR, &ten_minutes)?;
        bench.ask(MOTOR, &end)?;
    }
    // Comes after all of them.
    bench.ask_in_vain(of_motor, &ten_minutes, &["learnt already"])?;

    let events = kafka()?.read_json(&bench.gateway.plant.topic("machine-events"))?;
    let of_others: Vec<_> = events
        .iter()
        .filter(|event| event["operator"] == "Ghost" || event["operator"] == "Lee")
        .collect();
    // Told as refused, and nothing else.
    let is_refusal =
        |event: &&&Value| event["event_type"] == "learning-refused" && event["cause"] == "request";
    assert_eq!(of_others.iter().filter(is_refusal).count(), of_others.len(), "{of_others:?}");
    assert!(of_others.iter().any(|event| event["operator"] == "Lee"), "{of_others:?}");
    let started = events.iter().filter(|event| event["event_type"] == "learning-started");
    let (started, seconds) = (started.count(), began.elapsed().as_secs() as usize);
    assert!((1..=2 + seconds).contains(&started), "{started} in {seconds} s: {events:?}");
    bench.shaking.end()?;
    Ok(())
}

#[test]
fn learning_is_refused_when_a_limit_is_violated_and_the_baseline_before_stays() -> anyhow::Result<()>
{
    let mut bench = Bench::start("learn-violated", "motor-line-v1", "", OIL)?;
    let motor = bench.gateway.motor.clone();
    bench.measure("motor-1/oil", "temperature", 60.0)?;
    bench.pass(WINDOWS_PASSED)?;
    bench.learn("Kim", "1s", "30s")?;
    let baseline = bench.status()?["baseline"].clone();
    assert_eq!(baseline["operator"], "Kim", "{baseline}");

    bench.ask(MOTOR, &json!({ "operator": "Lee", "for": "10m" }))?;
    bench.wait_for_learning()?;
    bench.measure("motor-1/oil", "temperature", 121.0)?;
    let event = bench.gateway.wait_for_event("learning-refused", &["Lee"])?;
    assert_eq!(event["cause"], "violation", "{event}");
    let detail = event["detail"].as_str().context("no detail")?;
    assert!(detail.contains("oil-hot was violated") && detail.contains("learn again"), "{detail}");
    let refused = eventually("the refusal is retained", DEADLINE, || {
        refusal(&motor, &["oil-hot was violated", "remove the cause"])
    })?;
    assert_eq!((&refused["operator"], &refused["reason"]), (&"Lee".into(), &event["detail"]));
    // Whoever subscribes later sees it, too.
    let port = bench.gateway.plant.mosquitto.port();
    motor.disconnect();
    let later = FakeMachine::start(port, MOTOR, OBEYS)?;
    eventually("the refusal is retained", DEADLINE, || refusal(&later, &["oil-hot was violated"]))?;
    let status = bench.status()?;
    assert!(status["learning"].is_null() && status["baseline"] == baseline, "{status}");

    let request = json!({ "operator": "Lee", "for": "1s" });
    let words = ["rule oil-hot is violated", "remove the cause first"];
    bench.ask_in_vain((&later, MOTOR), &request, &words)?;
    let status = bench.status()?;
    assert!(status["learning"].is_null() && status["baseline"] == baseline, "{status}");
    bench.measure("motor-1/oil", "temperature", 60.0)?;
    bench.gateway.wait_for_event("alarm-cleared", &["oil-hot"])?;
    bench.gateway.motor = later;
    bench.learn("Mia", "1s", "30s")?;
    assert_eq!(bench.status()?["baseline"]["operator"], "Mia");
    let motor = &bench.gateway.motor;
    assert!(motor.is_running() && motor.commands().is_empty(), "stopped by an alarm");
    bench.shaking.end()?;
    Ok(())
}

const CONDITIONS: &str = "score-action = \"alarm\"\nconditions-stale-after = \"10m\"\n\
                          [[machines.conditions]]\nname = \"slow\"\n\
                          ranges = [{ sensor = \"motor-1/speed\", max = 1000.0 }]\n\
                          [[machines.conditions]]\nname = \"fast\"\n\
                          ranges = [{ sensor = \"motor-1/speed\", min = 1000.0, max = 2000.0 }]\n";
const SLOW_RPM: f64 = 600.0;
const FAST_RPM: f64 = 1500.0;
/// In no condition.
const UNKNOWN_RPM: f64 = 3000.0;
/// Logits from -0.9 to -0.3: too much for a motor that was learnt at the level of the test bench.
const TWICE: f32 = 2.0;
/// Logits from 0.4 to 1.0: usual for a motor that was learnt at [`TWICE`].
const MORE_THAN_TWICE: f32 = 2.7;

#[test]
fn each_operating_condition_has_its_own_threshold() -> anyhow::Result<()> {
    let mut bench = Bench::start("conditions", "motor-line-v1", CONDITIONS, "")?;
    bench.turn(SLOW_RPM);
    bench.pass(WINDOWS_PASSED)?;
    // Nothing comes of the other condition, so the run lasts as long as it may.
    let event = bench.learn("Slow shift", "2s", "4s")?;
    let detail = event["detail"].as_str().context("no detail")?;
    assert!(detail.contains(&format!("slow, {SENSOR}: ")), "{detail}");
    assert!(detail.contains(&format!("fast, {SENSOR}: too little, 0 windows")), "{detail}");
    let slow = bench.threshold("slow")?.context("slow was not learnt")?;
    assert_eq!(bench.threshold("fast")?, None);
    bench.shake(TWICE)?;
    bench.wait_for_alarm(true)?;

    bench.turn(FAST_RPM);
    bench.learn("Fast shift", "2s", "4s")?;
    let fast = bench.threshold("fast")?.context("fast was not learnt")?;
    assert_eq!(bench.threshold("slow")?, Some(slow), "learnt before, and kept");
    assert!(slow < -0.9 && fast > slow + 1.0, "{slow}, {fast}");
    bench.wait_for_alarm(false)?;

    bench.shake(MORE_THAN_TWICE)?;
    bench.pass(WINDOWS_PASSED)?;
    bench.wait_for_alarm(false)?;
    bench.turn(SLOW_RPM);
    bench.wait_for_alarm(true)?;
    // The bundle's own threshold says nothing of this machine's level: the highest one learnt holds.
    bench.turn(UNKNOWN_RPM);
    bench.wait_for_alarm(false)?;
    bench.shake(WORSE)?;
    bench.wait_for_alarm(true)?;
    assert!(bench.gateway.motor.is_running() && bench.gateway.motor.commands().is_empty());
    bench.shaking.end()?;
    Ok(())
}

/// By `motor-shape-v2` logits from -1.6 to -1.0: below its own threshold at 0.4, above that of a motor that was learnt, at -2 or lower.
const BEGINNING: f64 = 0.35;

#[test]
fn a_model_of_a_shape_has_its_own_threshold_where_nothing_was_learnt() -> anyhow::Result<()> {
    let mut bench = Bench::start("conditions-shape", "motor-shape-v2", CONDITIONS, "")?;
    bench.turn(SLOW_RPM);
    bench.pass(WINDOWS_PASSED)?;
    bench.learn("Kim", "2s", "4s")?;
    let slow = bench.threshold("slow")?.context("slow was not learnt")?;
    assert!(slow < -1.7, "{slow}");
    bench.shaking.set_severity(BEGINNING);
    bench.wait_for_alarm(true)?;
    for rpm in [FAST_RPM, UNKNOWN_RPM] {
        bench.turn(rpm);
        bench.wait_for_alarm(false)?;
        bench.turn(SLOW_RPM);
        bench.wait_for_alarm(true)?;
    }
    bench.shaking.end()?;
    Ok(())
}

/// The bearing of the simulated motor, whose outer race the damage is in.
const BEARING: &str = "shaft-rpm = 1800.0\n[[machines.bearings]]\nname = \"drive end\"\nrolling-elements = 8\n\
                       element-diameter = 2.371\npitch-diameter = 10.0\n";
const EXIT_USAGE: i32 = 64;

/// What an event says of the features that drove its score, in the order of the event.
fn contributions(event: &Value) -> anyhow::Result<Vec<(String, f64)>> {
    let text = event["contributions"].as_str().with_context(|| format!("{event}"))?;
    let pair = |pair: &str| {
        let (name, logit) = pair.split_once('=').with_context(|| text.to_owned())?;
        Ok((name.to_owned(), logit.parse()?))
    };
    text.split(',').map(pair).collect()
}

#[test]
fn a_trip_by_a_score_is_explained() -> anyhow::Result<()> {
    let bench = Bench::start("explained", "motor-shape-v2", BEARING, "")?;
    bench.pass(WINDOWS_PASSED)?;
    let nothing = bench.command(&["explain", "latest"])?;
    assert_eq!(nothing.status.code(), Some(EXIT_USAGE), "{}", text_of(&nothing.stdout));
    assert!(text_of(&nothing.stderr).contains("no trip is explained"));
    bench.shaking.damage();
    let trip = bench.gateway.wait_for_trip(&bench.gateway.motor, MOTOR)?;
    let trip_id = trip["trip_id"].as_str().context("no id")?;
    let drivers = contributions(&trip)?;
    assert!(drivers.len() > 1 && drivers.is_sorted_by(|(_, one), (_, next)| one >= next), "{trip}");
    assert!(drivers[0].1 > 0.0, "{trip}");
    for (name, _) in &drivers {
        let band = name.strip_prefix("band-").and_then(|band| band.parse::<u32>().ok());
        assert!(band.is_some_and(|band| band < 16), "{name} is no feature of this bundle");
    }

    let picture = bench.gateway.plant.dir.join("trip.svg");
    let file = picture.to_str().context("no text")?;
    let latest = eventually("the trip is explained", DEADLINE, || {
        let output = bench.command(&["explain", "latest", "--out", file])?;
        ensure!(output.status.success(), "{}", text_of(&output.stderr));
        anyhow::Ok(text_of(&output.stdout))
    })?;
    let (first, _) = drivers.first().context("no driver")?;
    for words in [trip_id, MOTOR, SENSOR, "motor-shape@2.0.0", "shaft at 30.00 Hz", first] {
        assert!(latest.contains(words), "{words} is not in {latest}");
    }
    // It is the window that tripped, and no later one of the damaged bearing.
    let score = trip["score"].as_f64().context("no score")?;
    assert!(latest.contains(&format!("score {score:.4}, threshold ")), "{score}, {latest}");
    // The windows before the damage were seen, so what grew is known.
    assert!(latest.contains("compared with ") && latest.contains(" Hz: "), "{latest}");
    let svg = std::fs::read_to_string(&picture)?;
    assert!(svg.starts_with("<svg") || svg.starts_with("<?xml"), "{svg}");
    assert!(svg.trim_end().ends_with("</svg>"), "{svg}");
    for words in [first, "drive end", "BPFO", "shaft"] {
        assert!(svg.contains(words), "{words} is not in the picture");
    }

    // Of its sixteen bands.
    assert!(latest.contains("  and 6 more, of less or against it: --all shows them"), "{latest}");
    let all = text_of(&bench.command(&["explain", trip_id, "--all"])?.stdout);
    assert!(all.lines().count() == latest.lines().count() + 5 && !all.contains("--all"), "{all}");
    let by_id = bench.command(&["explain", trip_id])?;
    assert!(by_id.status.success(), "{}", text_of(&by_id.stderr));
    assert_eq!(text_of(&by_id.stdout), latest);
    let unknown = bench.command(&["explain", "no-such-trip"])?;
    assert_eq!(unknown.status.code(), Some(EXIT_USAGE));
    let errors = text_of(&unknown.stderr);
    assert!(errors.contains("no-such-trip") && errors.contains(trip_id), "{errors}");
    bench.shaking.end()?;
    Ok(())
}

/// Wider than any change of this signal: a vote alone is news.
const DEADBAND: &str = "[deadband]\npercent = 1000.0\nscore = 1.0\nheartbeat = \"1h\"\n";
const PHASE_BLOCKS: usize = 120;
/// Each begins behind a gap, so that no window has samples of two.
const PHASE_MICROS: i64 = 10_000_000;

#[test]
fn a_window_that_votes_is_sent_also_when_the_dead_band_would_hold_it_back() -> anyhow::Result<()> {
    const PHASE_WINDOWS: u64 =
        ((PHASE_BLOCKS * BLOCK_SAMPLES - WINDOW_SAMPLES) / HOP_SAMPLES + 1) as u64;
    let machines = format!("{}score-action = \"alarm\"\n{DEADBAND}", one_motor());
    let gateway = Gateway::start("dead-band-votes", &machines, Some(&bundle("motor-line-v1")))?;
    let mut publisher = Publisher::connect(gateway.plant.mosquitto.port(), "accelerometer");
    let mut signal = MotorSignal::new(MotorProfile::healthy_1800_rpm(), 1);
    let (topic, begin) = (format!("plant/{MOTOR}/waveform"), now());
    for (phase, gain) in [(0, 1.0), (1, LOUD), (2, 1.0)] {
        let start = begin.saturating_add_micros(phase * PHASE_MICROS);
        let samples = signal.next_samples(PHASE_BLOCKS * BLOCK_SAMPLES);
        let samples: Vec<f32> = samples.iter().map(|sample| sample * gain).collect();
        let blocks = SOURCE.blocks(start, &samples, BLOCK_SAMPLES);
        paced(blocks, BLOCK_INTERVAL, |block| publisher.publish(&topic, block))?;
    }
    publisher.wait_acknowledged(DEADLINE)?;
    // Of each quiet phase the first window: there was none before, or it is the first that need not be sent.
    let held_back = 2 * (PHASE_WINDOWS - 1);
    eventually("all others are held back", DEADLINE, || {
        let held = metric(&gateway.edge.metrics()?, "readings_filtered_total", "");
        ensure!(held == Some(held_back as f64), "{held:?} instead of {held_back}");
        Ok(())
    })?;
    let sent = PHASE_WINDOWS + 2;
    let readings = eventually("what votes is on Kafka", DEADLINE, || {
        let readings = kafka()?.read_json(&gateway.plant.topic("vibration"))?;
        ensure!(readings.len() as u64 >= sent, "{} of {sent}", readings.len());
        anyhow::Ok(readings)
    })?;
    assert_eq!(readings.len() as u64, sent, "{readings:?}");
    let votes = readings.iter().filter(|reading| {
        let score = reading["features"]["score"].as_f64();
        score.is_some_and(|score| score >= 0.5)
    });
    assert_eq!(votes.count() as u64, PHASE_WINDOWS, "{readings:?}");
    eventually_true("people are told", DEADLINE, || {
        gateway.wait_for_event("alarm-cleared", &["score"]).is_ok()
    })?;
    assert!(gateway.motor.is_running() && gateway.motor.commands().is_empty());
    Ok(())
}
