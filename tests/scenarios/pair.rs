//! The whole path: a real recording in, the machine stopped, every reading in the lake once, windows counted.

use std::time::Duration;

use e2e_tests::eventually::eventually;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::publisher::{Publisher, WaveformSource, paced, reading_json};
use e2e_tests::recordings::{MOTOR_SAMPLE_RATE_HZ, data_dir, motor_recordings, tell_simulated};
use e2e_tests::signal::{MotorProfile, MotorSignal, SAMPLE_RATE_HZ};

use crate::plant::{DEADLINE, Plant, motor_bundle, now};

const WINDOW_SAMPLES: usize = 2048;
const BLOCK_SAMPLES: usize = 500;
/// One block of 500 samples at 20 kHz.
const BLOCK_INTERVAL: Duration = Duration::from_millis(25);
const SPIN_DOWN: Duration = Duration::from_millis(300);
const MINUTE_MICROS: i64 = 60_000_000;

/// Two seconds of one machine, and whether it is at fault.
struct Signal {
    machine_id: String,
    abnormal: bool,
    volts: Vec<f32>,
}

/// All healthy recordings, and those of a damaged bearing at the same speeds and loads; or the same at 1800 rpm, simulated.
fn signals(scenario: &str) -> anyhow::Result<Vec<Signal>> {
    let Some(dir) = data_dir()? else {
        tell_simulated(scenario);
        let seconds = 2;
        return Ok([0.0, 0.0, 1.0]
            .into_iter()
            .enumerate()
            .map(|(index, severity)| {
                let mut signal =
                    MotorSignal::new(MotorProfile::healthy_1800_rpm(), index as u64 + 1);
                signal.set_severity(severity);
                let volts = signal.next_samples(SAMPLE_RATE_HZ as usize * seconds);
                Signal { machine_id: format!("motor-{index}"), abnormal: severity > 0.0, volts }
            })
            .collect());
    };
    let chosen = motor_recordings(&dir)?
        .into_iter()
        .filter(|recording| matches!(recording.kind.as_str(), "healthy" | "inner_race_heavy"))
        .map(|recording| Signal {
            machine_id: format!("motor-{}", recording.row),
            abnormal: recording.abnormal,
            // The axis that the bundle was trained on.
            volts: recording.volts(2),
        });
    Ok(chosen.collect())
}

fn machines_toml(signals: &[Signal]) -> String {
    signals
        .iter()
        .map(|signal| {
            let id = &signal.machine_id;
            format!(
                "[[machines]]\nid = \"{id}\"\nscored-sensors = [\"{id}/bearing\"]\nvotes = 3\nof = 5\n\n"
            )
        })
        .collect()
}

#[test]
fn a_faulty_motor_is_stopped_and_healthy_ones_are_not_and_every_reading_is_counted_once()
-> anyhow::Result<()> {
    let mut plant = Plant::new("pair")?;
    let signals = signals("pair")?;
    plant.edge_settings.machines = machines_toml(&signals);
    plant.edge_settings.bundle_dir = Some(motor_bundle());
    let port = plant.mosquitto.port();
    let machines: Vec<FakeMachine> = signals
        .iter()
        .map(|signal| FakeMachine::start(port, &signal.machine_id, Obedience::SpinsDown(SPIN_DOWN)))
        .collect::<anyhow::Result<_>>()?;
    let edge = plant.start_edge_module()?;
    let _aggregator = plant.start_aggregator()?;

    let windows = play(port, &signals)?;
    let readings = publish_scalars(port)?;

    for (signal, machine) in signals.iter().zip(&machines) {
        if signal.abnormal {
            eventually("standstill", DEADLINE, || {
                if machine.is_running() { Err("still running") } else { Ok(()) }
            })?;
        }
    }
    plant.check_each_reading_once("motor-%", windows)?;
    plant.check_each_reading_once("press-%", readings)?;
    // Everything that was sent has been judged by now.
    for (signal, machine) in signals.iter().zip(&machines) {
        let commands = machine.commands().len();
        assert_eq!(commands > 0, signal.abnormal, "{}: {commands} stops", signal.machine_id);
        assert_eq!(machine.is_running(), !signal.abnormal, "{}", signal.machine_id);
    }
    check_events(&plant, &signals)?;
    check_windows(&plant)?;
    check_alerts(&plant)?;
    check_tables(&plant)?;
    drop(edge);
    Ok(())
}

/// Plays all signals side by side at the pace of the real machines; says how many windows that makes.
fn play(port: u16, signals: &[Signal]) -> anyhow::Result<u64> {
    let mut publisher = Publisher::connect(port, "accelerometers");
    let start = now();
    let mut streams = Vec::new();
    let mut windows = 0;
    for signal in signals {
        let sensor = format!("{}/bearing", signal.machine_id);
        let source = WaveformSource {
            machine_id: &signal.machine_id,
            sensor_id: &sensor,
            sample_rate_hz: MOTOR_SAMPLE_RATE_HZ,
            unit: "V",
        };
        windows += (signal.volts.len() / WINDOW_SAMPLES) as u64;
        let topic = format!("plant/{}/waveform", signal.machine_id);
        streams.push((topic, source.blocks(start, &signal.volts, BLOCK_SAMPLES)));
    }
    let blocks = streams.iter().map(|(_, blocks)| blocks.len()).max().unwrap_or_default();
    paced(0..blocks, BLOCK_INTERVAL, |index| {
        for (topic, blocks) in &streams {
            if let Some(block) = blocks.get(index) {
                publisher.publish(topic, block.clone())?;
            }
        }
        Ok(())
    })?;
    publisher.wait_acknowledged(DEADLINE)?;
    Ok(windows)
}

/// Two sensors over six minutes of event time, one of them above 100 in every other minute: 4, 5, 6 or 12 times a minute.
fn publish_scalars(port: u16) -> anyhow::Result<u64> {
    let mut publisher = Publisher::connect(port, "scalars");
    let start = now().micros().div_euclid(MINUTE_MICROS) * MINUTE_MICROS - 10 * MINUTE_MICROS;
    let hot_per_minute = [4, 0, 5, 6, 0, 12];
    for (minute, hot) in hot_per_minute.into_iter().enumerate() {
        for tick in 0..30 {
            let micros = start + minute as i64 * MINUTE_MICROS + tick * 2_000_000;
            let timestamp = shared_proto::model::EventTime::from_micros(micros);
            let value = if tick < hot { 101.0 + tick as f64 } else { 80.0 + tick as f64 / 10.0 };
            let hot = reading_json("press-1", "press-1/oil", "temperature", timestamp, value);
            publisher.publish("plant/press-1/readings", hot)?;
            let calm = reading_json("press-2", "press-2/oil", "temperature", timestamp, 60.5);
            let pressure = reading_json("press-2", "press-2/line", "pressure", timestamp, 120.0);
            publisher.publish("plant/press-2/readings", format!("[{calm},{pressure}]"))?;
        }
    }
    publisher.wait_acknowledged(DEADLINE)?;
    Ok(6 * 30 * 3)
}

fn check_events(plant: &Plant, signals: &[Signal]) -> anyhow::Result<()> {
    let faulty = signals.iter().filter(|signal| signal.abnormal).count() as u64;
    let confirmed = "SELECT count(*) FROM machine_events WHERE event_type = 'stop-confirmed'";
    plant.wait_for_count(confirmed, faulty)?;
    let trips = plant.machine_events("trip")?;
    assert_eq!(trips.len() as u64, faulty, "{trips:?}");
    for trip in trips {
        assert_eq!(trip["cause"], "score", "{trip}");
        assert!(trip["model"].as_str().is_some_and(|model| model.starts_with("motor")), "{trip}");
        assert!(trip["command_latency_micros"].as_u64().is_some(), "{trip}");
    }
    assert!(plant.machine_events("stop-not-confirmed")?.is_empty());
    Ok(())
}

/// The windows of the streaming program equal those of a batch count over the rows it kept.
fn check_windows(plant: &Plant) -> anyhow::Result<()> {
    let lake = plant.lake();
    let batch = lake.batch_windows("temperature", 100.0, 5)?;
    assert_eq!(batch.iter().map(|window| window.2).collect::<Vec<_>>(), [6, 12]);
    eventually("the windows equal the batch count", DEADLINE, || {
        let streamed = plant.streamed_windows()?;
        anyhow::ensure!(streamed == batch, "{streamed:?} instead of {batch:?}");
        Ok(())
    })
}

fn check_alerts(plant: &Plant) -> anyhow::Result<()> {
    let fired = |bodies: &[serde_json::Value]| {
        let mut ids: Vec<String> = bodies
            .iter()
            .filter(|body| body.to_string().contains("press-1/oil"))
            .filter_map(|body| body["id"].as_str().map(str::to_owned))
            .collect();
        ids.sort();
        ids.dedup();
        ids.len()
    };
    eventually("an alert for each window, on the topic and the webhook", DEADLINE, || {
        let on_topic = crate::plant::kafka()?.read_json(&plant.topic("alerts"))?;
        let posted: Vec<serde_json::Value> = plant
            .webhook
            .bodies()
            .iter()
            .map(|body| serde_json::from_str(body))
            .collect::<Result<_, _>>()?;
        let found = (fired(&on_topic), fired(&posted));
        anyhow::ensure!(found.0 >= 2 && found.1 >= 2, "{found:?} of 2 alerts");
        Ok(())
    })
}

/// Any reader can read the tables: no feature beyond reader version 1 and writer version 2.
fn check_tables(plant: &Plant) -> anyhow::Result<()> {
    for (table, protocol) in plant.lake().protocols()? {
        assert_eq!((protocol.reader, protocol.writer), (1, 2), "{table}");
    }
    Ok(())
}
