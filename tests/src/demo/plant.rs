//! Three machines with their sensors and the controls that obey a stop: what the edge module sees of a plant.
//!
//! Sensors publish on a thread of their own, in step with the clock: a block of samples for each machine, and with
//! every fourth block a temperature and a pressure. The machine side listens to commands on another thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use edge_core::interlock::MachineState;
use rumqttc::{Client, Connection, Event, MqttOptions, Packet, QoS};
use serde::Deserialize;
use shared_proto::Encoding;
use shared_proto::codec::{encode_reading, encode_waveform_block};
use shared_proto::model::{EventTime, MachineId, MetricType, Reading, SensorId};

use super::machine::{Machine, MachineName};

/// Samples of one block.
pub const BLOCK_SAMPLES: usize = 1_024;
/// A temperature and a pressure come with every so many blocks.
const BLOCKS_PER_READING: u64 = 4;
/// MQTT messages that may wait to be sent; beyond it the sensors wait.
const MQTT_QUEUE_LENGTH: usize = 256;
const MQTT_PACKET_BYTES_MAX: usize = 1 << 20;
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// The slowest sensor may lag so much before it skips to the present.
const LAG_MAX: Duration = Duration::from_secs(2);

/// What the plant has made, for comparison with what arrived.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Scalar readings.
    pub readings: u64,
    /// Raw samples of each vibration sensor.
    pub samples: BTreeMap<String, u64>,
    /// Sensor and event time (microseconds) of temperatures above the counting threshold.
    pub hot: Vec<(String, i64)>,
    /// From publishing what trips to the stop command at the machine: all drills so far.
    pub drill_latencies: Vec<Duration>,
}

struct State {
    machines: Vec<Machine>,
    tally: Tally,
    hot_above: f64,
    /// When the value that must trip was published, for each machine.
    drills: BTreeMap<MachineName, Instant>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    ended: AtomicBool,
    silent: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running plant; its threads end with it.
pub struct Plant {
    shared: Arc<Shared>,
    controls: Client,
    sensors: Client,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Deserialize)]
struct Command {
    command: String,
}

#[derive(Deserialize)]
struct InterlockState {
    state: String,
}

impl Plant {
    /// Connects the machines and starts their sensors. Temperatures above `hot_above` are kept in the tally.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(mqtt_port: u16, machines: Vec<Machine>, hot_above: f64) -> anyhow::Result<Self> {
        // A connection for each side, as in a plant. One for both would hold up commands: they would wait behind
        // the acknowledgements of samples, which the kernel does not confirm at once.
        let (controls, controls_connection) = connect("demo-machine-controls", mqtt_port);
        let (sensors, sensors_connection) = connect("demo-sensors", mqtt_port);
        let block_rate = machines.first().context("a plant needs a machine")?.sample_rate_hz();
        let state = State { machines, tally: Tally::default(), hot_above, drills: BTreeMap::new() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        });
        let (listening, answers) = (Arc::clone(&shared), controls.clone());
        let (measuring, values) = (Arc::clone(&shared), sensors.clone());
        let keeping = Arc::clone(&shared);
        let block_time = Duration::from_secs_f64(BLOCK_SAMPLES as f64 / block_rate);
        let threads = vec![
            std::thread::Builder::new()
                .name("controls".to_owned())
                .spawn(move || obey(&listening, &answers, controls_connection))?,
            std::thread::Builder::new()
                .name("sensor-connection".to_owned())
                .spawn(move || keep_connected(&keeping, sensors_connection))?,
            std::thread::Builder::new()
                .name("sensors".to_owned())
                .spawn(move || measure(&measuring, &values, block_time))?,
        ];
        Ok(Self { shared, controls, sensors, threads })
    }

    /// Changes a machine.
    ///
    /// # Errors
    /// No machine of that name.
    pub fn change(
        &self,
        name: MachineName,
        change: impl FnOnce(&mut Machine),
    ) -> anyhow::Result<()> {
        let mut state = self.shared.lock();
        change(machine_mut(&mut state.machines, name)?);
        Ok(())
    }

    /// Asks for the reset of a machine's latch, as a person at the panel does.
    ///
    /// # Errors
    /// The MQTT client has ended.
    pub fn reset(&self, name: MachineName) -> anyhow::Result<()> {
        let topic = format!("plant/{name}/reset");
        Ok(self.controls.publish(topic, QoS::AtLeastOnce, false, r#"{"operator":"demo"}"#)?)
    }

    /// Publishes one pressure beyond its limit and takes the time until the stop command is here.
    ///
    /// # Errors
    /// As [`Self::measure_pressure`].
    pub fn drill(&self, name: MachineName, pressure: f64) -> anyhow::Result<()> {
        self.shared.lock().drills.insert(name, Instant::now());
        self.measure_pressure(name, pressure)
    }

    /// Publishes one pressure out of turn.
    ///
    /// # Errors
    /// The MQTT client has ended, or the name is not one that a record may carry.
    pub fn measure_pressure(&self, name: MachineName, pressure: f64) -> anyhow::Result<()> {
        let payload = reading(name, "pressure", pressure, "bar", now())?;
        self.shared.lock().tally.readings += 1;
        let topic = format!("plant/{name}/readings");
        Ok(self.sensors.publish(topic, QoS::AtLeastOnce, false, payload)?)
    }

    /// Waits until a condition on a machine holds; says whether it did before the deadline.
    ///
    /// # Errors
    /// No machine of that name.
    pub fn wait_for(
        &self,
        name: MachineName,
        deadline: Duration,
        condition: impl Fn(&Machine) -> bool,
    ) -> anyhow::Result<bool> {
        let end = Instant::now() + deadline;
        let mut state = self.shared.lock();
        loop {
            if condition(machine_mut(&mut state.machines, name)?) {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Looks at all machines.
    pub fn look<T>(&self, look: impl FnOnce(&[Machine]) -> T) -> T {
        look(&self.shared.lock().machines)
    }

    /// What has been made so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.shared.lock().tally.clone()
    }

    /// Switches all sensors off; the controls go on.
    pub fn silence(&self) {
        self.shared.silent.store(true, Ordering::SeqCst);
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // A client that has ended needs no farewell.
        self.controls.disconnect().ok();
        self.sensors.disconnect().ok();
        for thread in self.threads.drain(..) {
            // A panic over there has been printed by the panic hook.
            thread.join().ok();
        }
    }
}

fn connect(name: &str, port: u16) -> (Client, Connection) {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_max_packet_size(MQTT_PACKET_BYTES_MAX, MQTT_PACKET_BYTES_MAX);
    let (client, mut connection) = Client::new(options, MQTT_QUEUE_LENGTH);
    connection.eventloop.network_options.set_tcp_nodelay(true);
    (client, connection)
}

fn machine_mut(machines: &mut [Machine], name: MachineName) -> anyhow::Result<&mut Machine> {
    let mut found = machines.iter_mut();
    found.find(|machine| machine.name() == name).with_context(|| format!("no machine {name}"))
}

/// Wall clock as event time.
pub fn now() -> EventTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn reading(
    machine: MachineName,
    metric: &str,
    value: f64,
    unit: &str,
    time: EventTime,
) -> anyhow::Result<Vec<u8>> {
    let sensor = SensorId::new(&format!("{machine}/{metric}"))?;
    let mut reading = Reading::new(sensor, time, MetricType::new(metric)?, value);
    reading.machine_id = Some(MachineId::new(machine)?);
    reading.unit = Some(Arc::from(unit));
    Ok(encode_reading(&reading, Encoding::Json))
}

/// The sensors: a block a turn, in step with the clock.
fn measure(shared: &Shared, client: &Client, block_time: Duration) {
    let block_micros = i64::try_from(block_time.as_micros()).unwrap_or(i64::MAX);
    let (mut first_sample, mut due) = (now(), Instant::now());
    for block in 1_u64.. {
        due += block_time;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if due.elapsed() > LAG_MAX {
            // The computer slept: what it missed was never measured.
            (first_sample, due) = (now(), Instant::now());
        }
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let messages = turn(shared, first_sample, block, block_time);
        first_sample = first_sample.saturating_add_micros(block_micros);
        let sent = messages.and_then(|messages| {
            for (topic, retain, payload) in messages {
                client.publish(topic, QoS::AtLeastOnce, retain, payload)?;
            }
            Ok(())
        });
        if sent.is_err() {
            // The client has ended, and with it the plant.
            return;
        }
    }
}

type Message = (String, bool, Vec<u8>);

/// Moves all machines on by one block and gives what their sensors say.
fn turn(
    shared: &Shared,
    first_sample: EventTime,
    block: u64,
    block_time: Duration,
) -> anyhow::Result<Vec<Message>> {
    let mut messages = Vec::new();
    let silent = shared.silent.load(Ordering::SeqCst);
    let mut guard = shared.lock();
    let State { machines, tally, hot_above, .. } = &mut *guard;
    for machine in machines {
        let name = machine.name();
        if let Some(state) = machine.advance(block_time) {
            messages.push(state_message(name, state));
        }
        if silent {
            continue;
        }
        let samples = machine.next_block(first_sample, BLOCK_SAMPLES)?;
        *tally.samples.entry(samples.sensor_id.to_string()).or_default() += BLOCK_SAMPLES as u64;
        let encoded = encode_waveform_block(&samples);
        messages.push((format!("plant/{name}/waveform"), false, encoded));
        if block.is_multiple_of(BLOCKS_PER_READING) {
            let seconds = block_time.as_secs_f64() * BLOCKS_PER_READING as f64;
            let (temperature, pressure) = machine.next_readings(seconds);
            let time = now();
            let topic = format!("plant/{name}/readings");
            messages.push((
                topic.clone(),
                false,
                reading(name, "temperature", temperature, "Cel", time)?,
            ));
            messages.push((topic, false, reading(name, "pressure", pressure, "bar", time)?));
            tally.readings += 2;
            if temperature > *hot_above {
                tally.hot.push((format!("{name}/temperature"), time.micros()));
            }
        }
    }
    drop(guard);
    shared.changed.notify_all();
    Ok(messages)
}

fn state_message(name: MachineName, state: MachineState) -> Message {
    let payload = format!(r#"{{"state":"{}"}}"#, state.as_str());
    (format!("plant/{name}/state"), true, payload.into_bytes())
}

/// Sends what the sensors hand over and connects again when the broker was away.
fn keep_connected(shared: &Shared, mut connection: Connection) {
    for event in connection.iter() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        if event.is_err() {
            std::thread::sleep(RECONNECT_PAUSE);
        }
    }
}

/// The machine side: takes commands and reports its state.
fn obey(shared: &Shared, client: &Client, mut connection: Connection) {
    for event in connection.iter() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) => greet(shared, client),
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                handle_publish(shared, client, &publish.topic, &publish.payload);
            }
            Ok(_) => {}
            // The broker is away: the next turn connects again.
            Err(_) => std::thread::sleep(RECONNECT_PAUSE),
        }
    }
}

/// Subscribes and says where each machine stands. The queue has room: this is the thread that empties it.
fn greet(shared: &Shared, client: &Client) {
    for topic in ["plant/+/command", "plant/+/interlock"] {
        client.try_subscribe(topic, QoS::AtLeastOnce).ok();
    }
    for machine in &shared.lock().machines {
        let (topic, retain, payload) = state_message(machine.name(), machine.state());
        client.try_publish(topic, QoS::AtLeastOnce, retain, payload).ok();
    }
}

fn handle_publish(shared: &Shared, client: &Client, topic: &str, payload: &[u8]) {
    let mut parts = topic.split('/').skip(1);
    let (Some(name), Some(what)) = (parts.next(), parts.next()) else { return };
    let mut guard = shared.lock();
    let State { machines, tally, drills, .. } = &mut *guard;
    let Some(machine) = machines.iter_mut().find(|machine| machine.name() == name) else { return };
    match what {
        "command" if is_stop(payload) => {
            if let Some(published) = drills.remove(machine.name()) {
                tally.drill_latencies.push(published.elapsed());
            }
            machine.stop();
            let (topic, retain, payload) = state_message(machine.name(), machine.state());
            // A full queue loses this report; the command is repeated until one gets through.
            client.try_publish(topic, QoS::AtLeastOnce, retain, payload).ok();
        }
        "interlock" => {
            if let Ok(read) = serde_json::from_slice::<InterlockState>(payload) {
                machine.note_interlock(&read.state);
            }
        }
        _ => {}
    }
    drop(guard);
    shared.changed.notify_all();
}

fn is_stop(payload: &[u8]) -> bool {
    serde_json::from_slice(payload).is_ok_and(|read: Command| read.command == "stop")
}
