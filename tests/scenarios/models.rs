//! Models that come, are refused and stay over a restart, while the machines that they judge turn.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow, ensure};
use e2e_tests::eventually::{eventually, eventually_true};
use e2e_tests::machine::FakeMachine;
use e2e_tests::publisher::{Publisher, WaveformSource, paced};
use e2e_tests::recordings::{MOTOR_SAMPLE_RATE_HZ, MotorRecording, data_dir, motor_recordings};
use e2e_tests::workspace_root;
use serde_json::Value;
use shared_proto::model::EventTime;

use crate::gateway::{
    BLOCK_INTERVAL, BLOCK_SAMPLES, Gateway, MODEL, MOTOR, OBEYS, SENSOR, Shaking, WINDOW_MICROS,
    copy_bundle, machine_toml, one_motor,
};
use crate::plant::{DEADLINE, kafka, motor_bundle, now, run_dir};

/// The name of the model of `model.bundle-dir`.
const DEFAULT: &str = "default";
const BEFORE: &str = "motor@1.0.0";
const NEXT: &str = "motor@1.0.1";

/// The line of the file.
fn bundle_dir(folder: &Path) -> String {
    format!("bundle-dir = \"{}\"\n", folder.display())
}

impl Gateway {
    /// What `/status` shows of a model.
    fn model(&self, name: &str) -> anyhow::Result<Value> {
        Ok(self.status()?["models"][name].clone())
    }

    fn wait_for_model(
        &self,
        name: &str,
        what: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        eventually(&format!("model {name}: {what}"), DEADLINE, || {
            let model = self.model(name)?;
            ensure!(is_it(&model), "{model}");
            anyhow::Ok(model)
        })
    }

    fn wait_in_force(&self, name: &str, identity: &str) -> anyhow::Result<Value> {
        self.wait_for_model(name, &format!("{identity} is in force"), |model| {
            model["state"] == "in-force" && model["in_force"] == identity
        })
    }

    /// Waits until a candidate is refused for this reason, and checks that the model before is in force as it was.
    fn wait_refused(&self, reason: &str) -> anyhow::Result<Value> {
        let model = self.wait_for_model(DEFAULT, &format!("refused for {reason}"), |model| {
            model["refusal"].as_str().is_some_and(|refusal| refusal.contains(reason))
        })?;
        ensure!(model["state"] == "in-force" && model["in_force"] == BEFORE, "{model}");
        ensure!(model["candidate"].is_null(), "{model}");
        Ok(model)
    }

    /// States of the model with what was in force in each, in the order of time, until `identity` is in force for good.
    fn states_until(&self, identity: &str) -> anyhow::Result<Vec<String>> {
        let (last, mut seen) = (format!("in-force {identity}"), Vec::new());
        eventually(&last, DEADLINE, || {
            let model = self.model(DEFAULT)?;
            let text = |key: &str| model[key].as_str().unwrap_or("none").to_owned();
            let state = format!("{} {}", text("state"), text("in_force"));
            if seen.last() != Some(&state) {
                seen.push(state);
            }
            ensure!(seen.last() == Some(&last), "{seen:?}, {model}");
            Ok(())
        })?;
        Ok(seen)
    }

    /// Starts the module anew, so that the budget is that of the file: the one in the environment would go before it.
    fn restart_with_budget_of_file(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        let environment = &mut self.plant.edge_settings.environment;
        environment.retain(|(name, _)| name != "EDGE__MODEL__LATENCY_BUDGET");
        self.edge = self.plant.start_edge_module()?;
        Ok(())
    }

    /// As [`Self::change`], of the file that [`Self::restart_with_budget_of_file`] has written.
    fn edit(&mut self, from: &str, to: &str) -> anyhow::Result<()> {
        let before = self.status()?["settings"]["version"].clone();
        let text = std::fs::read_to_string(&self.file)?;
        ensure!(text.contains(from), "{from} is not in the file");
        std::fs::write(&self.file, text.replace(from, to))?;
        self.edge.process().signal("HUP")?;
        eventually("another version is in force", DEADLINE, || {
            let settings = &self.status()?["settings"];
            ensure!(settings["version"] != before, "{settings}");
            Ok(())
        })
    }

    /// How often a model of this identity came into force.
    fn times_in_force(&self, identity: &str) -> anyhow::Result<usize> {
        let events = kafka()?.read_json(&self.plant.topic("machine-events"))?;
        let is_it =
            |event: &&Value| event["event_type"] == "model-changed" && event["model"] == identity;
        Ok(events.iter().filter(is_it).count())
    }

    /// The motor's bearing breaks, and the model of this name must stop the motor.
    fn check_stopped_by(&self, shaking: &Shaking, identity: &str) -> anyhow::Result<()> {
        ensure!(self.motor.commands().is_empty(), "stopped while it was healthy");
        shaking.damage();
        let trip = self.wait_for_trip(&self.motor, MOTOR)?;
        ensure!(trip["cause"] == "score" && trip["model"] == identity, "{trip}");
        Ok(())
    }
}

/// A motor that turns, whose windows the model before scores.
fn judged_by_the_model_before(name: &str) -> anyhow::Result<(Gateway, Shaking)> {
    let gateway = Gateway::start(name, &one_motor(), Some(&motor_bundle()))?;
    gateway.wait_in_force(DEFAULT, BEFORE)?;
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    eventually_true("the model before scores", DEADLINE, || {
        gateway.windows_judged().is_ok_and(|windows| windows > 2)
    })?;
    Ok((gateway, shaking))
}

fn unchanged(_: &mut Value) {}

/// Flips one bit in the middle of the model.
fn damage_model(folder: &Path) -> anyhow::Result<()> {
    let mut model = std::fs::read(folder.join(MODEL))?;
    let middle = model.len() / 2;
    *model.get_mut(middle).context("the model is empty")? ^= 1;
    std::fs::write(folder.join(MODEL), model)?;
    Ok(())
}

/// Plays recordings side by side at the pace of the machines, axes X and Z, and says how many windows of the two models that makes.
fn play(
    publisher: &mut Publisher,
    start: EventTime,
    recordings: &[(&str, &MotorRecording)],
) -> anyhow::Result<u64> {
    const WINDOW: usize = 32_768;
    const HOP: usize = 2048;
    let (mut streams, mut windows) = (Vec::new(), 0);
    for (machine, recording) in recordings {
        for (axis, letter) in [(0, "x"), (2, "z")] {
            let sensor = format!("{machine}/{letter}");
            let source = WaveformSource {
                machine_id: machine,
                sensor_id: &sensor,
                sample_rate_hz: MOTOR_SAMPLE_RATE_HZ,
                unit: "V",
            };
            let volts = recording.volts(axis);
            windows += ((volts.len() - WINDOW) / HOP + 1) as u64;
            let topic = format!("plant/{machine}/waveform");
            streams.push((topic, source.blocks(start, &volts, BLOCK_SAMPLES)));
        }
    }
    let blocks = streams.iter().map(|(_, blocks)| blocks.len()).max().unwrap_or_default();
    paced(0..blocks, BLOCK_INTERVAL, |number| {
        for (topic, blocks) in &streams {
            if let Some(block) = blocks.get(number) {
                publisher.publish(topic, block.clone())?;
            }
        }
        Ok(())
    })?;
    publisher.wait_acknowledged(DEADLINE)?;
    Ok(windows)
}

#[test]
fn two_models_judge_two_sensors_of_one_machine_and_either_stops_it() -> anyhow::Result<()> {
    let Some(data) = data_dir()? else { return Ok(()) };
    let recordings = motor_recordings(&data)?;
    let find = |kind: &str| {
        let mut of_kind = recordings.iter().filter(|recording| recording.kind == kind);
        let found = of_kind.find(|recording| (recording.rpm, recording.load_pounds) == (1800, 0));
        found.with_context(|| format!("no recording of {kind}"))
    };
    let healthy = find("healthy")?;
    let (imbalance, bearing) = (find("imbalance_light")?, find("inner_race_light")?);
    let scored = |id: &str| {
        let sensors = format!(
            "{{ sensor = \"{id}/z\", model = \"shape\" }}, {{ sensor = \"{id}/x\", model = \"line\" }}"
        );
        machine_toml(id, &sensors)
    };
    let bundles = workspace_root().join("edge-module/model/bundles");
    let bundles = bundles.display();
    let machines = format!(
        "{}{}[model.bundles]\nshape = \"{bundles}/motor-shape-v2\"\nline = \"{bundles}/motor-line-v1\"\n",
        scored(MOTOR),
        scored("motor-2"),
    );
    let gateway = Gateway::start("two-models", &machines, None)?;
    let second = FakeMachine::start(gateway.plant.mosquitto.port(), "motor-2", OBEYS)?;
    gateway.wait_in_force("shape", "motor-shape@2.0.0")?;
    gateway.wait_in_force("line", "motor-line@1.0.0")?;

    let mut publisher = Publisher::connect(gateway.plant.mosquitto.port(), "accelerometers");
    let windows = play(&mut publisher, now(), &[(MOTOR, healthy), ("motor-2", healthy)])?;
    for reading in gateway.wait_for_windows(windows)? {
        let features = &reading["features"];
        ensure!(features["score"].is_number(), "no score: {reading}");
        // Only the model of axis X looks for a line, only that of axis Z has so many bands.
        let is_x = reading["sensor_id"].as_str().is_some_and(|sensor| sensor.ends_with("/x"));
        ensure!(features["line"].is_number() == is_x, "{reading}");
        ensure!(features["band-15"].is_number() != is_x, "{reading}");
    }
    assert!(gateway.motor.commands().is_empty() && second.commands().is_empty());
    assert!(gateway.motor.is_running() && second.is_running());

    // Behind a gap, so that no window has samples of both recordings.
    let later = now().saturating_add_micros(1_000_000);
    play(&mut publisher, later, &[(MOTOR, imbalance), ("motor-2", bearing)])?;
    let trip = gateway.wait_for_trip(&gateway.motor, MOTOR)?;
    assert_eq!(trip["model"], "motor-line@1.0.0", "{trip}");
    assert_eq!(trip["sensor_id"], "motor-1/x", "{trip}");
    let trip = gateway.wait_for_trip(&second, "motor-2")?;
    assert_eq!(trip["model"], "motor-shape@2.0.0", "{trip}");
    assert_eq!(trip["sensor_id"], "motor-2/z", "{trip}");
    Ok(())
}

#[test]
fn another_bundle_comes_into_force_after_its_shadow_time_without_a_gap() -> anyhow::Result<()> {
    let (mut gateway, shaking) = judged_by_the_model_before("model-switch")?;
    let next = gateway.plant.dir.join("next");
    copy_bundle(&next, "1.0.1", unchanged)?;
    let to = format!("shadow-time = \"3s\"\n{}", bundle_dir(&next));
    gateway.change(&bundle_dir(&motor_bundle()), &to)?;
    let states = gateway.states_until(NEXT)?;
    let at_first = [format!("in-force {BEFORE}"), format!("fetching {BEFORE}")];
    let states: Vec<&String> = states.iter().skip_while(|state| at_first.contains(state)).collect();
    let expected = [("shadow", BEFORE), ("watched", NEXT), ("in-force", NEXT)];
    assert_eq!(states, expected.map(|(state, identity)| format!("{state} {identity}")).each_ref());
    let model = gateway.model(DEFAULT)?;
    assert!(model["refusal"].is_null(), "{model}");
    let report = model["report"].as_str().context("no report")?;
    // Both have scored the same healthy windows, and decided nothing.
    assert!(report.contains(SENSOR) && report.contains(" 0 decisions; before 0 of "), "{report}");
    let change = format!("{BEFORE} -> {NEXT}");
    let event = gateway.wait_for_event("model-changed", &[&change])?;
    assert_eq!(event["model"], NEXT, "{event}");

    gateway.check_stopped_by(&shaking, NEXT)?;
    let mut starts = Vec::new();
    for reading in gateway.wait_for_windows(shaking.end()?)? {
        ensure!(reading["features"]["score"].is_number(), "no score: {reading}");
        let text = reading["timestamp"].as_str().context("no timestamp")?;
        starts.push(EventTime::parse(text).context("no time")?.micros());
    }
    starts.sort_unstable();
    let gap = starts.windows(2).find(|pair| pair[1] - pair[0] != WINDOW_MICROS);
    assert_eq!(gap, None, "a window is missing");
    Ok(())
}

#[test]
fn a_bundle_that_fails_its_self_test_is_refused_and_the_one_before_stays() -> anyhow::Result<()> {
    let mut gateway = Gateway::start("model-self-test", &one_motor(), Some(&motor_bundle()))?;
    gateway.wait_in_force(DEFAULT, BEFORE)?;
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    let next = gateway.plant.dir.join("next");
    copy_bundle(&next, "1.0.1", unchanged)?;
    damage_model(&next)?;
    gateway.change(&bundle_dir(&motor_bundle()), &bundle_dir(&next))?;
    gateway.wait_refused("model.tflite has sha256")?;
    // The same folder with another content, and no word of the settings.
    copy_bundle(&next, "1.0.1", |metadata| {
        metadata["self-test"]["scores"][0]["score"] = 0.25.into();
    })?;
    gateway.wait_refused("recorded 0.25")?;
    for reason in ["model.tflite has sha256", "recorded 0.25"] {
        let event = gateway.wait_for_event("model-refused", &[reason])?;
        assert_eq!((&event["cause"], &event["model"]), (&"self-test".into(), &BEFORE.into()));
    }
    gateway.check_stopped_by(&shaking, BEFORE)?;
    // Put right, it is taken: nothing but the faults was refused.
    copy_bundle(&next, "1.0.1", unchanged)?;
    let model = gateway.wait_for_model(DEFAULT, "in its shadow time", |model| {
        model["state"] == "shadow" && model["candidate"] == NEXT
    })?;
    assert!(model["refusal"].is_null() && model["in_force"] == BEFORE, "{model}");
    shaking.end()?;
    Ok(())
}

/// A threshold below the score of any healthy window, with a self-test that still has both sides of it: its flat window scores
/// 0.0124, which the widest tolerance allows to be recorded as 0.003.
fn lower_threshold(metadata: &mut Value) {
    metadata["threshold"] = 0.004.into();
    metadata["self-test"]["score-tolerance"] = 0.01.into();
    let scores = metadata["self-test"]["scores"].as_array_mut();
    for vector in scores.into_iter().flatten() {
        if vector["label"] == "flat window" {
            vector["score"] = 0.003.into();
        }
    }
}

#[test]
fn a_bundle_that_would_have_decided_otherwise_is_refused_with_the_figures_of_both()
-> anyhow::Result<()> {
    let (mut gateway, shaking) = judged_by_the_model_before("model-otherwise")?;
    let next = gateway.plant.dir.join("next");
    copy_bundle(&next, "1.0.1", lower_threshold)?;
    let to = format!("shadow-time = \"3s\"\n{}", bundle_dir(&next));
    gateway.change(&bundle_dir(&motor_bundle()), &to)?;
    let model = gateway.wait_refused("would have decided")?;
    let refusal = model["refusal"].as_str().context("no refusal")?;
    for words in [NEXT, SENSOR, "decided 0 times", "set model.shadow-time to 0s"] {
        assert!(refusal.contains(words), "{words} is not in {refusal}");
    }
    let report = model["report"].as_str().context("no report")?;
    assert!(report.contains(SENSOR) && report.contains("; before 0 of "), "{report}");
    assert!(!report.contains(" 0 decisions"), "{report}");
    let event = gateway.wait_for_event("model-refused", &["would have decided"])?;
    assert_eq!((&event["cause"], &event["model"]), (&"shadow".into(), &BEFORE.into()), "{event}");
    assert!(gateway.motor.is_running() && gateway.motor.commands().is_empty());

    // A person insists, as the refusal says.
    gateway.change("shadow-time = \"3s\"", "shadow-time = \"0s\"")?;
    let model = gateway.wait_in_force(DEFAULT, NEXT)?;
    assert!(model["refusal"].is_null(), "{model}");
    let trip = gateway.wait_for_trip(&gateway.motor, MOTOR)?;
    assert_eq!((&trip["cause"], &trip["model"]), (&"score".into(), &NEXT.into()), "{trip}");
    shaking.end()?;
    Ok(())
}

#[test]
fn a_model_that_is_too_slow_on_the_stop_path_gives_way_to_the_one_before() -> anyhow::Result<()> {
    let mut gateway = Gateway::start("model-slow", &one_motor(), Some(&motor_bundle()))?;
    gateway.wait_in_force(DEFAULT, BEFORE)?;
    gateway.restart_with_budget_of_file()?;
    gateway.wait_in_force(DEFAULT, BEFORE)?;
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    let next = gateway.plant.dir.join("next");
    copy_bundle(&next, "1.0.1", unchanged)?;
    let quick = "shadow-time = \"5s\"\nlatency-budget = \"5s\"\n";
    let to = format!("{quick}{}", bundle_dir(&next));
    gateway.edit(&bundle_dir(&motor_bundle()), &to)?;
    gateway.wait_for_model(DEFAULT, "under watch", |model| {
        model["state"] == "watched" && model["in_force"] == NEXT
    })?;

    // No model is as quick as that. Those that are in force without a watch stay.
    let slow = "shadow-time = \"10m\"\nlatency-budget = \"1us\"\n";
    gateway.edit(quick, slow)?;
    let model = gateway.wait_refused("model.latency-budget is 1µs")?;
    let refusal = model["refusal"].as_str().context("no refusal")?;
    for words in [NEXT, " us, one in a hundred over ", &format!("returned to {BEFORE}")] {
        assert!(refusal.contains(words), "{words} is not in {refusal}");
    }
    let event = gateway.wait_for_event("model-refused", &["model.latency-budget", NEXT])?;
    assert_eq!((&event["cause"], &event["model"]), (&"latency".into(), &BEFORE.into()), "{event}");

    // Other settings that say nothing of it do not bring it back.
    let beside = format!("{slow}bundles = {{ y = \"{}\" }}\n", motor_bundle().display());
    gateway.edit(slow, &beside)?;
    gateway.wait_for_model("y", "in force", |model| model["in_force"] == BEFORE)?;
    assert_eq!(gateway.model(DEFAULT)?, model);
    assert_eq!(gateway.times_in_force(NEXT)?, 1);
    gateway.check_stopped_by(&shaking, BEFORE)?;
    // Another content of its folder is another bundle.
    copy_bundle(&next, "1.0.2", unchanged)?;
    gateway.wait_for_model(DEFAULT, "in its shadow time", |model| {
        model["state"] == "shadow" && model["candidate"] == "motor@1.0.2"
    })?;
    assert_eq!(gateway.times_in_force(NEXT)?, 1);
    shaking.end()?;
    Ok(())
}

#[test]
fn a_bundle_is_judged_by_windows_and_not_by_the_time_that_a_machine_stands() -> anyhow::Result<()> {
    let mut gateway = Gateway::start("model-unseen", &one_motor(), Some(&motor_bundle()))?;
    gateway.wait_in_force(DEFAULT, BEFORE)?;
    let next = gateway.plant.dir.join("next");
    copy_bundle(&next, "1.0.1", unchanged)?;
    let to = format!("shadow-time = \"500ms\"\n{}", bundle_dir(&next));
    gateway.change(&bundle_dir(&motor_bundle()), &to)?;
    let model = gateway.wait_for_model(DEFAULT, "waits for windows", |model| {
        model["report"].as_str().is_some_and(|report| report.contains("scored 0 windows, 30 are"))
    })?;
    assert_eq!((&model["state"], &model["in_force"]), (&"shadow".into(), &BEFORE.into()));
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    gateway.wait_in_force(DEFAULT, NEXT)?;
    gateway.wait_for_event("model-changed", &[NEXT])?;
    shaking.end()?;
    Ok(())
}

#[test]
fn a_model_that_the_settings_name_no_more_is_out_of_force_and_does_not_come_back()
-> anyhow::Result<()> {
    let mut gateway = Gateway::start("model-gone", &one_motor(), Some(&motor_bundle()))?;
    let (loud, next) = (gateway.plant.dir.join("loud"), gateway.plant.dir.join("next"));
    copy_bundle(&loud, "9.9.9", lower_threshold)?;
    copy_bundle(&next, "1.0.1", unchanged)?;
    let default = format!("shadow-time = \"500ms\"\n{}", bundle_dir(&motor_bundle()));
    let with = |folder: &Path| format!("{default}bundles = {{ x = \"{}\" }}\n", folder.display());
    let kept = gateway.plant.edge_settings.data_dir.join("models-in-force/x");
    gateway.change(&bundle_dir(&motor_bundle()), &with(&loud))?;
    gateway.wait_in_force("x", "motor@9.9.9")?;
    eventually_true("it is kept", DEADLINE, || kept.is_dir())?;
    gateway.change(&with(&loud), &default)?;
    eventually_true("it is forgotten", DEADLINE, || {
        !kept.exists() && gateway.status().is_ok_and(|status| status["models"]["x"].is_null())
    })?;
    gateway.stop()?;
    gateway.restart()?;
    gateway.change(&default, &with(&next))?;
    gateway.change(
        &format!("scored-sensors = [\"{SENSOR}\"]"),
        &format!("scored-sensors = [{{ sensor = \"{SENSOR}\", model = \"x\" }}]"),
    )?;
    gateway.wait_in_force("x", NEXT)?;
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    let judged = gateway.windows_judged()?;
    eventually_true("the healthy motor is judged", DEADLINE, || {
        gateway.windows_judged().is_ok_and(|windows| windows > judged + 20)
    })?;
    assert!(gateway.motor.is_running() && gateway.motor.commands().is_empty());
    gateway.check_stopped_by(&shaking, NEXT)?;
    shaking.end()?;
    Ok(())
}

/// Gives one file over HTTP, goes on from where a client asks, and breaks off in the middle when it was told to.
pub(crate) struct ArchiveServer {
    port: u16,
    served: Arc<Served>,
    thread: JoinHandle<()>,
}

struct Served {
    archive: Vec<u8>,
    /// The header `Range` of each request, empty without one.
    ranges: Mutex<Vec<String>>,
    breaks_off: AtomicBool,
    is_over: AtomicBool,
}

impl ArchiveServer {
    pub(crate) fn start(archive: Vec<u8>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let served = Arc::new(Served {
            archive,
            ranges: Mutex::default(),
            breaks_off: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&served);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.is_over.load(Ordering::SeqCst) {
                    return;
                }
                // A client that breaks off asks again.
                serving.answer(&stream).ok();
            }
        });
        Ok(Self { port, served, thread })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/motor.tar", self.port)
    }

    /// The entry of `model.bundles`.
    fn bundle(&self, sha256: &str) -> String {
        format!("{{ url = \"{}\", sha256 = \"{sha256}\" }}", self.url())
    }

    fn break_off(&self) {
        self.served.breaks_off.store(true, Ordering::SeqCst);
    }

    pub(crate) fn ranges(&self) -> Vec<String> {
        self.served.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn close(self) -> anyhow::Result<()> {
        self.served.is_over.store(true, Ordering::SeqCst);
        let address = (Ipv4Addr::LOCALHOST, self.port);
        // It looks up with the next connection.
        drop(TcpStream::connect(address)?);
        self.thread.join().map_err(|_| anyhow!("the server's thread has panicked"))?;
        ensure!(TcpStream::connect(address).is_err(), "somebody still listens");
        Ok(())
    }
}

impl Served {
    fn answer(&self, stream: &TcpStream) -> anyhow::Result<()> {
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut reader = BufReader::new(stream);
        let (mut range, mut line) = (String::new(), String::new());
        // A line that is empty but for its end.
        while reader.read_line(&mut line)? > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("range:") {
                range = value.trim().to_owned();
            }
            line.clear();
        }
        let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        let from = from.map_or(Ok(0), str::parse::<usize>)?;
        let body = self.archive.get(from..).context("behind the end")?;
        let length = self.archive.len();
        let status = match from {
            0 => "200 OK".to_owned(),
            from => {
                let last = length - 1;
                format!("206 Partial Content\r\nContent-Range: bytes {from}-{last}/{length}")
            }
        };
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).push(range);
        let is_broken = self.breaks_off.swap(false, Ordering::SeqCst);
        let sent = if is_broken { &body[..body.len() / 2] } else { body };
        let announced = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n"
        );
        let mut writer = stream;
        writer.write_all(head.as_bytes())?;
        writer.write_all(sent)?;
        Ok(())
    }
}

/// Makes one file of a bundle, as operators do; gives its sha256.
pub(crate) fn pack(folder: &Path, file: &Path) -> anyhow::Result<String> {
    let program = workspace_root().join("target/setup/model-venv/bin/python");
    let packed = Command::new(&program)
        .args(["-m", "machine_model", "pack"])
        .args([folder, file])
        // Nothing is written into the checkout.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(workspace_root().join("edge-module/model"))
        .output()
        .with_context(|| program.display().to_string())?;
    ensure!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    Ok(String::from_utf8(packed.stdout)?.trim().to_owned())
}

#[test]
fn a_bundle_is_downloaded_with_resume_and_comes_into_force_and_a_restart_begins_with_it()
-> anyhow::Result<()> {
    const NAME: &str = "model-download";
    let dir = run_dir().join(NAME);
    copy_bundle(&dir.join("bundle"), "1.0.1", unchanged)?;
    let archive = dir.join("motor.tar");
    let sha256 = pack(&dir.join("bundle"), &archive)?;
    let server = ArchiveServer::start(std::fs::read(&archive)?)?;
    let half = std::fs::metadata(&archive)?.len() / 2;

    let scored = format!("{{ sensor = \"{SENSOR}\", model = \"motor\" }}");
    let wrong = server.bundle(&"0".repeat(64));
    let machines = format!("{}[model.bundles]\nmotor = {wrong}\n", machine_toml(MOTOR, &scored));
    let mut gateway = Gateway::start(NAME, &machines, None)?;
    let model = gateway.wait_for_model("motor", "refused", |model| {
        let refusal = model["refusal"].as_str();
        refusal.is_some_and(|refusal| refusal.contains(&format!("has sha256 {sha256}")))
    })?;
    assert_eq!((&model["state"], &model["in_force"]), (&"none".into(), &Value::Null), "{model}");
    gateway.wait_for_event("model-refused", &["fetch", &sha256])?;
    let asked = server.ranges().len();

    // The time that it is watched for. Then it is kept.
    gateway.change("[model]\n", "[model]\nshadow-time = \"1s\"\n")?;
    server.break_off();
    gateway.change(&wrong, &server.bundle(&sha256))?;
    let model = gateway.wait_in_force("motor", NEXT)?;
    assert!(model["refusal"].is_null(), "{model}");
    gateway.wait_for_event("model-changed", &[&format!("none -> {NEXT}")])?;
    let ranges = server.ranges();
    let ranges: Vec<&str> = ranges.iter().skip(asked).map(String::as_str).collect();
    assert_eq!(ranges, ["", &format!("bytes={half}-")], "it goes on where it was broken off");

    server.close()?;
    gateway.stop()?;
    gateway.restart()?;
    gateway.wait_in_force("motor", NEXT)?;
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    gateway.check_stopped_by(&shaking, NEXT)?;
    shaking.end()?;
    Ok(())
}

#[test]
fn a_restart_begins_with_the_model_that_was_in_force_when_the_folder_holds_another()
-> anyhow::Result<()> {
    const NAME: &str = "model-restart";
    let folder = run_dir().join(NAME).join("bundle");
    copy_bundle(&folder, "1.0.0", unchanged)?;
    let mut gateway = Gateway::start(NAME, &one_motor(), Some(&folder))?;
    // It is shown when it is kept.
    gateway.wait_in_force(DEFAULT, BEFORE)?;
    gateway.stop()?;

    copy_bundle(&folder, "1.0.1", unchanged)?;
    gateway.restart()?;
    let model = gateway.wait_for_model(DEFAULT, "the other one in its shadow time", |model| {
        model["state"] == "shadow" && model["candidate"] == NEXT
    })?;
    assert_eq!(model["in_force"], BEFORE, "{model}");
    gateway.stop()?;

    damage_model(&folder)?;
    gateway.restart()?;
    gateway.wait_refused("model.tflite has sha256")?;
    let event = gateway.wait_for_event("model-refused", &["model.tflite has sha256"])?;
    assert_eq!(event["cause"], "self-test", "{event}");
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    gateway.check_stopped_by(&shaking, BEFORE)?;
    shaking.end()?;
    Ok(())
}
