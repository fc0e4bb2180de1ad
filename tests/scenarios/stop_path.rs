//! A stop reaches the machine: over several paths, whatever one of them does, and while another sensor floods.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::modbus_machine::{ModbusMachine, Mode};
use e2e_tests::mosquitto::{Mosquitto, Persistence};
use e2e_tests::publisher::{Publisher, WaveformSource, reading_json};
use serde_json::Value;

use crate::plant::{DEADLINE, Plant, kafka, now};

mod hub;

const MQTT: &str = "[[machines.actuators]]\nkind = \"mqtt\"\n";
/// What a flood may leave in the broker and the journal, two thirds of it in blocks, one in arrays; `FLOOD_MEGABYTES` changes it.
const FLOOD_MEGABYTES: u64 = 300;
/// In one session with the flood a stop of another machine took seconds; in its own it takes milliseconds, on a busy machine more.
const FLOODED_STOP_MAX: Duration = Duration::from_secs(1);
const OBEYS: Obedience = Obedience::SpinsDown(Duration::ZERO);

pub(crate) fn modbus_path(port: u16) -> String {
    format!(
        "[[machines.actuators]]\nkind = \"modbus-tcp\"\nhost = \"127.0.0.1\"\nport = {port}\nstop-coil = 0\n\
         standstill-input = 0\nheartbeat-register = 0\npoll-interval = \"20ms\"\nresponse-timeout = \"200ms\"\n"
    )
}

fn machine_toml(id: &str, paths: &str) -> String {
    format!(
        "[[machines]]\nid = \"{id}\"\n[[machines.limits]]\nname = \"oil-hot\"\nsensor = \"{id}/oil\"\n\
         quantity = \"value\"\nabove = 120.0\n{paths}"
    )
}

/// A gateway with the machine press-1, these paths to it and this time to stand still.
struct Bench {
    plant: Plant,
    edge: EdgeModule,
}

impl Bench {
    fn start(mut plant: Plant, machines: &str, deadline: &str) -> anyhow::Result<Self> {
        plant.edge_settings.machines = machines.to_owned();
        let settings = [
            ("EDGE__PROTECTION__CONFIRMATION_DEADLINE", deadline),
            ("EDGE__PROTECTION__HEARTBEAT_INTERVAL", "50ms"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        plant.edge_settings.environment.extend(settings);
        let edge = plant.start_edge_module()?;
        Ok(Self { plant, edge })
    }

    fn overheat(&self, machine_id: &str) -> anyhow::Result<Publisher> {
        let mut publisher = Publisher::connect(self.plant.mosquitto.port(), "sensors");
        let sensor = format!("{machine_id}/oil");
        let hot = reading_json(machine_id, &sensor, "temperature", now(), 121.0);
        publisher.publish(&format!("plant/{machine_id}/readings"), hot)?;
        Ok(publisher)
    }

    fn events(&self) -> anyhow::Result<Vec<Value>> {
        kafka()?.read_json(&self.plant.topic("machine-events"))
    }

    /// Waits for an event of this type that has all the words in it.
    fn wait_for_event(&self, event_type: &str, words: &[&str]) -> anyhow::Result<Value> {
        eventually(&format!("{event_type} with {words:?} is on Kafka"), DEADLINE, || {
            let events = self.events()?;
            let has_all = |event: &&Value| {
                let text = event.to_string();
                event["event_type"] == event_type && words.iter().all(|word| text.contains(word))
            };
            let found = events.iter().find(has_all).cloned();
            found.with_context(|| format!("{events:?}"))
        })
    }

    fn wait_for_page(&self, status: u16, words: &[&str]) -> anyhow::Result<()> {
        eventually(&format!("/readyz {status} {words:?}"), DEADLINE, || {
            let (found, body) = self.edge.get("/readyz")?;
            ensure!(found == status && words.iter().all(|word| body.contains(word)), "{body}");
            Ok(())
        })
    }

    fn metric(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        Ok(http::metric(&self.edge.metrics()?, name, label).unwrap_or(0.0))
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) -> anyhow::Result<()> {
    e2e_tests::eventually::eventually_true(what, DEADLINE, condition)
}

#[test]
fn a_stop_that_the_first_path_does_not_confirm_takes_all_paths() -> anyhow::Result<()> {
    let plant = Plant::new("second-path")?;
    let modbus = ModbusMachine::start(&plant.dir.join("modbus"), Mode::Obeys)?;
    let deaf = FakeMachine::start(plant.mosquitto.port(), "press-1", Obedience::Ignores)?;
    let paths = format!("{MQTT}{}", modbus_path(modbus.port()));
    let bench = Bench::start(plant, &machine_toml("press-1", &paths), "400ms")?;
    let started = Instant::now();
    let _publisher = bench.overheat("press-1")?;
    wait_until("the coil is released", || modbus.stops() > 0)?;
    assert!(started.elapsed() >= Duration::from_millis(400), "before the deadline");
    let attempts: Vec<Value> =
        deaf.commands().iter().map(|command| command.payload["attempt"].clone()).collect();
    assert_eq!(attempts[0], 1, "the first stop takes the first path");
    bench.wait_for_event("trip", &["ordered by mqtt", "command_latency_micros"])?;
    bench.wait_for_event("stop-not-confirmed", &["no-read-back"])?;
    bench.wait_for_event("stop-confirmed", &["confirmed by modbus-tcp"])?;
    assert!(bench.metric("actuator_commands_total", "modbus-tcp")? >= 1.0);
    assert!(bench.metric("actuator_round_trip_seconds_count", "modbus-tcp")? >= 1.0);
    Ok(())
}

#[test]
fn modbus_alone_stops_confirms_beats_and_stops_again_what_moves() -> anyhow::Result<()> {
    let plant = Plant::new("modbus-alone")?;
    let modbus = ModbusMachine::start(&plant.dir.join("modbus"), Mode::Obeys)?;
    let listener = FakeMachine::start(plant.mosquitto.port(), "press-1", Obedience::Ignores)?;
    let machines = machine_toml("press-1", &modbus_path(modbus.port()));
    let bench = Bench::start(plant, &machines, "5s")?;
    wait_until("signs of life", || modbus.heartbeats().len() >= 5)?;
    assert!(modbus.heartbeats().windows(2).all(|pair| pair[0] < pair[1]), "a rising count");
    assert_eq!(modbus.stops(), 0);
    let _publisher = bench.overheat("press-1")?;
    bench.wait_for_event("stop-confirmed", &["confirmed by modbus-tcp"])?;
    bench.wait_for_event("trip", &["ordered by modbus-tcp", "command_latency_micros"])?;
    assert_eq!((modbus.stops(), listener.commands().len()), (1, 0));
    listener.wait_for_interlock("stopped", DEADLINE)?;

    modbus.set_mode(Mode::Restarts)?;
    wait_until("stopped again", || modbus.stops() >= 2)?;
    eventually("the movement is on Kafka", DEADLINE, || {
        let text = serde_json::to_string(&bench.events()?)?;
        ensure!(text.contains("moved-while-tripped"), "{text}");
        Ok(())
    })
}

#[test]
fn a_first_path_that_hangs_resets_or_is_gone_brings_in_the_second_at_once() -> anyhow::Result<()> {
    for (name, mode) in
        [("hangs", Some(Mode::Hangs)), ("resets", Some(Mode::Resets)), ("gone", None)]
    {
        let plant = Plant::new(&format!("modbus-{name}"))?;
        let mut modbus = ModbusMachine::start(&plant.dir.join("modbus"), Mode::Obeys)?;
        let machine = FakeMachine::start(plant.mosquitto.port(), "press-1", OBEYS)?;
        let paths = format!("{}{MQTT}", modbus_path(modbus.port()));
        // Far away: only the failure of the path may bring in the second.
        let bench = Bench::start(plant, &machine_toml("press-1", &paths), "60s")?;
        match mode {
            Some(mode) => modbus.set_mode(mode)?,
            None => modbus.kill()?,
        }
        let started = Instant::now();
        let _publisher = bench.overheat("press-1")?;
        wait_until("standstill", || !machine.is_running())?;
        println!("{name}: stopped over the second path after {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(30), "{name}");
        bench.wait_for_event("stop-confirmed", &["confirmed by mqtt"])?;
        bench.wait_for_page(503, &["machine press-1 path modbus-tcp 127.0.0.1"])?;
        assert!(bench.metric("actuator_failures_total", "modbus-tcp")? >= 1.0, "{name}");
        assert!(machine.heartbeats() > 0, "{name}");
    }
    Ok(())
}

#[test]
fn a_machine_that_refuses_on_all_paths_is_ordered_again_on_all_and_reported() -> anyhow::Result<()>
{
    let plant = Plant::new("refuses")?;
    let modbus = ModbusMachine::start(&plant.dir.join("modbus"), Mode::Refuses)?;
    let machine = FakeMachine::start(plant.mosquitto.port(), "press-1", Obedience::Refuses)?;
    let paths = format!("{MQTT}{}", modbus_path(modbus.port()));
    let bench = Bench::start(plant, &machine_toml("press-1", &paths), "200ms")?;
    let _publisher = bench.overheat("press-1")?;
    wait_until("ordered on both, again and again", || {
        machine.commands().len() >= 5 && modbus.stops() >= 4
    })?;
    bench.wait_for_event("stop-not-confirmed", &["escalated true"])?;
    assert!(bench.metric("interlock_stops_not_confirmed_total", "")? >= 1.0);
    machine.wait_for_interlock("stop-not-confirmed", DEADLINE)?;
    let is_confirmed = |event: &Value| event["event_type"] == "stop-confirmed";
    assert!(!bench.events()?.iter().any(is_confirmed));
    Ok(())
}

#[test]
fn a_late_answer_confirms_and_a_wrong_one_or_none_does_not() -> anyhow::Result<()> {
    let plant = Plant::new("answers")?;
    let port = plant.mosquitto.port();
    let late_by = Obedience::SpinsDown(Duration::from_millis(700));
    let late = FakeMachine::start(port, "late", late_by)?;
    let babbler = FakeMachine::start(port, "babbler", Obedience::Babbles)?;
    babbler.retain_standstill();
    let gone = FakeMachine::start(port, "gone", OBEYS)?;
    let other = FakeMachine::start(port, "other", OBEYS)?;
    let machines: String =
        ["late", "babbler", "gone", "other"].map(|id| machine_toml(id, "")).concat();
    let bench = Bench::start(plant, &machines, "300ms")?;
    gone.disconnect();
    let publishers =
        ["late", "babbler", "gone"].map(|id| bench.overheat(id)).into_iter().collect::<Vec<_>>();
    for id in ["late", "babbler", "gone"] {
        let machine = format!("\"machine_id\":\"{id}\"");
        bench.wait_for_event("stop-not-confirmed", &[&machine, "no-read-back"])?;
    }
    bench.wait_for_event("stop-confirmed", &["\"machine_id\":\"late\""])?;
    for id in ["babbler", "gone"] {
        let machine = format!("\"machine_id\":\"{id}\"");
        bench.wait_for_event("stop-not-confirmed", &[&machine, "escalated true"])?;
    }
    assert!(!late.is_running());
    assert!(late.commands().len() >= 2, "late is ordered again");
    assert!(babbler.commands().len() >= 5);
    assert_eq!(other.commands().len(), 0, "nobody else is stopped");
    let confirmed: Vec<Value> = bench
        .events()?
        .into_iter()
        .filter(|event| event["event_type"] == "stop-confirmed" && event["machine_id"] != "late")
        .collect();
    assert!(confirmed.is_empty(), "{confirmed:?}");
    assert!(bench.metric("input_refused_total", "machine-report")? >= 5.0);
    drop(publishers);
    Ok(())
}

#[test]
fn a_second_broker_takes_the_stop_when_the_first_is_gone() -> anyhow::Result<()> {
    let plant = Plant::new("second-broker")?;
    let second = Mosquitto::start(&plant.dir.join("mosquitto-2"), Persistence::Off)?;
    let machine = FakeMachine::start(second.port(), "press-1", OBEYS)?;
    let paths = format!("{MQTT}{MQTT}port = {}\n", second.port());
    let machines = machine_toml("press-1", &paths)
        .replace("id = \"press-1\"\n[[", "id = \"press-1\"\ntrip-on-silence = \"2s\"\n[[");
    let port = plant.mosquitto.port();
    let mut bench = Bench::start(plant, &machines, "60s")?;
    assert_eq!(machine.commands().len(), 0);
    bench.plant.mosquitto.kill()?;
    wait_until("standstill", || !machine.is_running())?;
    let name = format!("confirmed by mqtt 127.0.0.1:{}", second.port());
    bench.wait_for_event("stop-confirmed", &[&name])?;
    bench.wait_for_event("trip", &["silence", "ordered by mqtt"])?;
    bench.wait_for_page(503, &[&format!("machine press-1 path mqtt 127.0.0.1:{port}")])
}

#[test]
fn every_machine_is_heard_again_when_the_broker_is_back() -> anyhow::Result<()> {
    const MACHINES: [&str; 3] = ["one", "two", "three"];
    let plant = Plant::new("broker-back")?;
    let port = plant.mosquitto.port();
    let machines = MACHINES.map(|id| machine_toml(id, "")).concat();
    let mut bench = Bench::start(plant, &machines, "5s")?;
    // Three for readings and three for waveforms.
    let connected = bench.metric("mqtt_disconnects_total", "protection")?;
    bench.plant.mosquitto.kill()?;
    bench.wait_for_page(503, &["protection: ", "broker"])?;
    bench.plant.mosquitto.restart()?;
    bench.wait_for_page(200, &["protection: ok"])?;
    assert!(bench.metric("mqtt_disconnects_total", "protection")? >= connected + 6.0);
    for id in MACHINES {
        let machine = FakeMachine::start(port, id, OBEYS)?;
        let _publisher = bench.overheat(id)?;
        wait_until("standstill", || !machine.is_running())?;
    }
    Ok(())
}

#[test]
fn a_sensor_on_the_topic_of_nobody_is_told_and_does_not_stop_its_machine() -> anyhow::Result<()> {
    let plant = Plant::new("astray")?;
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, "press-1", OBEYS)?;
    let bench = Bench::start(plant, &machine_toml("press-1", ""), "5s")?;
    let mut publisher = Publisher::connect(port, "sensors");
    let hot = reading_json("press-1", "press-1/oil", "temperature", now(), 121.0);
    publisher.publish("plant/elsewhere/readings", hot)?;
    eventually("it is told", DEADLINE, || {
        let astray = bench.metric("input_astray_total", "")?;
        ensure!(astray == 1.0, "{astray}");
        Ok(())
    })?;
    eventually("it is recorded", DEADLINE, || {
        let readings = kafka()?.read_json(&bench.plant.topic("temperature"))?;
        ensure!(readings.len() == 1, "{readings:?}");
        Ok(())
    })?;
    assert_eq!(bench.metric("interlock_trips_total", "")?, 0.0);
    assert_eq!(machine.commands().len(), 0);
    let _publisher = bench.overheat("press-1")?;
    wait_until("standstill", || !machine.is_running())
}

/// Floods for a while from connections of their own: blocks of one sensor, and arrays of another of 1 MB each.
fn flood(port: u16, is_over: &AtomicBool) -> anyhow::Result<[u64; 2]> {
    let megabytes = std::env::var("FLOOD_MEGABYTES");
    let megabytes = megabytes.map_or(Ok(FLOOD_MEGABYTES), |text| text.parse())?;
    let (blocks_max, arrays_max) = (megabytes * 2 / 3 * 1_000_000 / 8_192, megabytes / 3);
    std::thread::scope(|scope| {
        let blocks = scope.spawn(move || {
            let mut publisher = Publisher::connect(port, "flood-blocks");
            let source = WaveformSource {
                machine_id: "loud",
                sensor_id: "loud/bearing",
                sample_rate_hz: 20_480.0,
                unit: "g",
            };
            let samples: Vec<f32> = (0_u16..2048).map(|n| f32::from(n % 7) * 0.01).collect();
            let mut at = now();
            while !is_over.load(Ordering::SeqCst) && publisher.published() < blocks_max {
                publisher.publish("plant/loud/waveform", source.block(at, &samples))?;
                at = at.saturating_add_micros(100_000);
            }
            Ok::<u64, anyhow::Error>(publisher.published())
        });
        let arrays = scope.spawn(move || {
            let mut publisher = Publisher::connect(port, "flood-arrays");
            let element = reading_json("loud", "loud/oil", "temperature", now(), 20.0);
            let count = 1_000_000 / (element.len() + 1);
            let array = format!("[{}]", vec![element; count].join(","));
            while !is_over.load(Ordering::SeqCst) && publisher.published() < arrays_max {
                publisher.publish("plant/loud/readings", array.clone())?;
                publisher.wait_acknowledged(DEADLINE)?;
            }
            Ok::<u64, anyhow::Error>(publisher.published())
        });
        let blocks = blocks.join().map_err(|_| anyhow::anyhow!("the flood of blocks broke"))??;
        let arrays = arrays.join().map_err(|_| anyhow::anyhow!("the flood of arrays broke"))??;
        Ok([blocks, arrays])
    })
}

#[test]
fn a_flood_of_one_machine_loses_no_stop_of_another() -> anyhow::Result<()> {
    const ROUNDS: usize = 40;
    let mut plant = Plant::new("flood")?;
    // A broker that writes all it owes to disk each second stands still meanwhile: its stalls are not what is measured here.
    plant.mosquitto = Mosquitto::start(&plant.dir.join("mosquitto-memory"), Persistence::Off)?;
    let port = plant.mosquitto.port();
    plant.edge_settings.mqtt_port = port;
    let machine = FakeMachine::start(port, "quiet", OBEYS)?;
    let loud_limit = "[[machines.limits]]\nname = \"zone-d\"\nsensor = \"loud/bearing\"\nquantity = \"rms\"\nabove = 50.0\n";
    let machines = machine_toml("quiet", "") + &machine_toml("loud", "") + loud_limit;
    let bench = Bench::start(plant, &machines, "20s")?;
    let is_over = AtomicBool::new(false);
    let mut latencies = Vec::new();
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(port, &is_over));
        let rounds = stop_again_and_again(&bench, &machine, ROUNDS, || !flooding.is_finished());
        // The loud machine's own violation comes last, behind everything that it has sent.
        is_over.store(true, Ordering::SeqCst);
        let [blocks, arrays] =
            flooding.join().map_err(|_| anyhow::anyhow!("the flood broke"))??;
        println!("flood: {blocks} blocks of 8 KiB, {arrays} arrays of 1 MB");
        latencies = rounds?;
        anyhow::Ok(())
    })?;
    let trips = bench.metric("interlock_trips_total", "limit")?;
    assert_eq!(trips, ROUNDS as f64, "each violation of the quiet machine has tripped, no other");
    let _publisher = bench.overheat("loud")?;
    bench.wait_for_event("trip", &["\"machine_id\":\"loud\"", "oil-hot"])?;
    for (is_flooding, when) in [(true, "while it floods"), (false, "after it")] {
        let mut times: Vec<Duration> = latencies
            .iter()
            .filter(|(was, _)| *was == is_flooding)
            .map(|(_, time)| *time)
            .collect();
        times.sort();
        let Some(most) = times.last() else { continue };
        println!(
            "published to command received, {when}: p50 {:?}, p99 {:?}, most {most:?} of {} stops",
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            times.len(),
        );
        assert!(
            *most < FLOODED_STOP_MAX,
            "a stop of the quiet machine waited for the loud one: {most:?}"
        );
    }
    println!(
        "{} messages judged by their limits alone; last sample received to command written: {:.1} ms on average",
        bench.metric("protection_shed_messages_total", "")?,
        bench.metric("stop_command_latency_seconds_sum", "")? * 1000.0 / (ROUNDS + 1) as f64,
    );
    Ok(())
}

/// Overheats the quiet machine, waits for its stop, cools it down, resets; gives the time of each from publishing to command,
/// and whether the flood lasted still.
fn stop_again_and_again(
    bench: &Bench,
    machine: &FakeMachine,
    rounds: usize,
    is_flooding: impl Fn() -> bool,
) -> anyhow::Result<Vec<(bool, Duration)>> {
    let mut publisher = Publisher::connect(bench.plant.mosquitto.port(), "quiet-sensors");
    let mut send = |value: f64| {
        let reading = reading_json("quiet", "quiet/oil", "temperature", now(), value);
        publisher.publish("plant/quiet/readings", reading)
    };
    let mut latencies = Vec::new();
    for round in 0..rounds {
        let started = Instant::now();
        send(121.0)?;
        wait_until("the stop", || machine.commands().len() > round)?;
        let received = machine.commands()[round].at;
        latencies.push((is_flooding(), received.saturating_duration_since(started)));
        machine.wait_for_interlock("stopped", DEADLINE)?;
        send(20.0)?;
        eventually("the reset", DEADLINE, || {
            machine.ask_for_reset("Kim")?;
            machine.wait_for_interlock("armed", Duration::from_millis(500))
        })?;
        machine.switch_on()?;
    }
    Ok(latencies)
}
