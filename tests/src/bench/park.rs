//! The machine side: twenty machines that trip, stop, are reset and start again.
//!
//! One connection carries what the sensors and machines say, another what they are told, each with a thread of its own,
//! so that a command's arrival is stamped by a thread that does nothing else.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rumqttc::{Client, Connection, Event, Packet, Publish, QoS, SubscribeFilter};
use serde_json::{Value, json};

use super::load::{Kind, MACHINES, SENSORS_OF_MACHINE, machine_id};
use super::world::now;
use crate::publisher::{WaveformSource, mqtt_options, reading_json};

const QUEUE_LENGTH: usize = 10_000;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const ARMED_DEADLINE: Duration = Duration::from_secs(60);
/// A stop that takes longer is none.
const STOP_DEADLINE: Duration = Duration::from_secs(120);
/// A reset overtakes the good reading when they take different ways: it is refused, and asked for again.
const RESET_INTERVAL: Duration = Duration::from_millis(100);
const LIMIT: f64 = 120.0;
/// The window of the module's default settings.
const WINDOW_SAMPLES: usize = 2048;
const WINDOW_RATE_HZ: f64 = 25_600.0;

/// `[[machines]]` for the module: a limit on each sensor that sends load, and one on the sensor that trips.
#[must_use]
pub fn settings(kind: Kind) -> String {
    let quantity = match kind {
        Kind::Readings => "value",
        Kind::Blocks => "rms",
    };
    let mut text = String::new();
    for number in 0..MACHINES {
        let machine = machine_id(number);
        text += &format!("[[machines]]\nid = \"{machine}\"\n");
        let auxiliary = (0..SENSORS_OF_MACHINE).map(|sensor| format!("aux-{sensor}"));
        for sensor in auxiliary.chain(["stop".to_owned()]) {
            text += &format!(
                "[[machines.limits]]\nname = \"{sensor}\"\nsensor = \"{machine}/{sensor}\"\n\
                 quantity = \"{quantity}\"\nabove = {LIMIT:.1}\n"
            );
        }
    }
    text
}

/// A stop that arrived.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The trip's name.
    pub trip_id: String,
    /// From handing the reading or block to our client to our client's reading the command.
    pub latency: Duration,
}

enum Heard {
    Subscribed,
    Command { machine: usize, trip_id: String, at: Instant },
    Interlock { machine: usize, state: String },
}

#[derive(Clone, Copy, Debug)]
enum Progress {
    Unknown,
    Armed { next: Instant },
    Violated { published: Instant },
    Stopping,
    Resetting { asked: Instant },
}

/// All machines.
pub struct Park {
    kind: Kind,
    client: Client,
    heard: Receiver<Heard>,
    machines: Vec<Progress>,
    interval: Duration,
    measured: u64,
}

impl Park {
    /// Connects, switches all machines on and waits until all are armed.
    ///
    /// # Errors
    /// The broker or the module does not answer.
    pub fn start(port: u16, kind: Kind, stops_per_second: f64) -> anyhow::Result<Self> {
        let (told, heard) = sync_channel(QUEUE_LENGTH);
        let (listener, connection) = connect(port, "machines-in");
        std::thread::spawn(move || listen(&listener, connection, &told));
        let (client, mut connection) = connect(port, "machines-out");
        std::thread::spawn(move || {
            for event in connection.iter() {
                if event.is_err() {
                    std::thread::sleep(RECONNECT_PAUSE);
                }
            }
        });
        let interval = Duration::from_secs_f64(MACHINES as f64 / stops_per_second);
        let machines = vec![Progress::Unknown; MACHINES];
        let mut park = Self { kind, client, heard, machines, interval, measured: 0 };
        park.switch_on()?;
        Ok(park)
    }

    /// Readings or blocks published so far.
    #[must_use]
    pub const fn measured(&self) -> u64 {
        self.measured
    }

    fn switch_on(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.machines.iter().any(|machine| matches!(machine, Progress::Unknown)) {
            ensure!(began.elapsed() < ARMED_DEADLINE, "not all machines are armed");
            match self.heard.recv_timeout(RESET_INTERVAL) {
                Ok(Heard::Subscribed) => {
                    for machine in 0..MACHINES {
                        self.report(machine, "running")?;
                    }
                }
                Ok(Heard::Interlock { machine, state }) if state == "armed" => {
                    let next = Instant::now();
                    self.machines[machine] = Progress::Armed { next };
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the listening thread has ended"),
            }
        }
        Ok(())
    }

    /// Stops machines until there are `count` stops, or `go_on` says no before one begins. Ends with all machines armed.
    ///
    /// # Errors
    /// A stop does not arrive within two minutes, or a machine cannot be reset.
    pub fn run(
        &mut self,
        count: usize,
        mut go_on: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Vec<Stop>> {
        let mut stops = Vec::with_capacity(count);
        let (mut begun, mut may_begin) = (0, true);
        // Spread over the interval, so that stops do not come in volleys.
        let first = Instant::now();
        for (number, machine) in self.machines.iter_mut().enumerate() {
            let share = number as f64 / MACHINES as f64;
            *machine = Progress::Armed { next: first + self.interval.mul_f64(share) };
        }
        loop {
            if may_begin && begun < count {
                may_begin = go_on()?;
            }
            let is_over = !may_begin || begun == count;
            let is_resting = |machine: &Progress| matches!(machine, Progress::Armed { .. });
            if is_over && self.machines.iter().all(is_resting) {
                return Ok(stops);
            }
            let room = if is_over { 0 } else { count - begun };
            begun += self.act(room)?;
            match self.heard.recv_timeout(Duration::from_millis(2)) {
                Ok(heard) => self.hear(heard, &mut stops)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the listening thread has ended"),
            }
        }
    }

    /// Does what is due; gives how many machines were violated, at most `room`.
    fn act(&mut self, room: usize) -> anyhow::Result<usize> {
        let mut begun = 0;
        for machine in 0..MACHINES {
            match self.machines[machine] {
                Progress::Armed { next } if begun < room && Instant::now() >= next => {
                    let published = self.measure(machine, LIMIT * 2.0)?;
                    self.machines[machine] = Progress::Violated { published };
                    begun += 1;
                }
                Progress::Violated { published } => {
                    ensure!(
                        published.elapsed() < STOP_DEADLINE,
                        "{}: no stop",
                        machine_id(machine)
                    );
                }
                Progress::Resetting { asked } if asked.elapsed() >= RESET_INTERVAL => {
                    self.ask_for_reset(machine)?;
                }
                Progress::Unknown
                | Progress::Armed { .. }
                | Progress::Stopping
                | Progress::Resetting { .. } => {}
            }
        }
        Ok(begun)
    }

    fn hear(&mut self, heard: Heard, stops: &mut Vec<Stop>) -> anyhow::Result<()> {
        match heard {
            // A connection that broke would spoil the figures.
            Heard::Subscribed => bail!("the machines' connection broke"),
            Heard::Command { machine, trip_id, at } => {
                if let Progress::Violated { published } = self.machines[machine] {
                    let latency = at.saturating_duration_since(published);
                    stops.push(Stop { trip_id, latency });
                    self.machines[machine] = Progress::Stopping;
                }
                // Also for a repeated command.
                self.report(machine, "stopped")?;
                self.measure(machine, 1.0)?;
            }
            Heard::Interlock { machine, state } => match (self.machines[machine], state.as_str()) {
                (Progress::Stopping, "stopped") => self.ask_for_reset(machine)?,
                (Progress::Resetting { .. }, "armed") => {
                    self.report(machine, "running")?;
                    let next = Instant::now() + self.interval;
                    self.machines[machine] = Progress::Armed { next };
                }
                _ => {}
            },
        }
        Ok(())
    }

    /// Publishes a reading, or a block of one window with this RMS; gives when.
    fn measure(&mut self, machine: usize, value: f64) -> anyhow::Result<Instant> {
        let machine = machine_id(machine);
        let sensor = format!("{machine}/stop");
        let (topic, payload) = match self.kind {
            Kind::Readings => {
                let reading = reading_json(&machine, &sensor, "temperature", now(), value);
                ("readings", reading.into_bytes())
            }
            Kind::Blocks => {
                let source = WaveformSource {
                    machine_id: &machine,
                    sensor_id: &sensor,
                    sample_rate_hz: WINDOW_RATE_HZ,
                    unit: "g",
                };
                let peak = value as f32 * std::f32::consts::SQRT_2;
                let tone = |index: usize| (index as f32 * 0.7).sin() * peak;
                let samples: Vec<f32> = (0..WINDOW_SAMPLES).map(tone).collect();
                ("waveform", source.block(now(), &samples))
            }
        };
        self.measured += 1;
        let published = Instant::now();
        self.client.publish(
            format!("plant/{machine}/{topic}"),
            QoS::AtLeastOnce,
            false,
            payload,
        )?;
        Ok(published)
    }

    fn report(&self, machine: usize, state: &str) -> anyhow::Result<()> {
        self.say(machine, "state", &json!({ "state": state }))
    }

    fn ask_for_reset(&mut self, machine: usize) -> anyhow::Result<()> {
        self.machines[machine] = Progress::Resetting { asked: Instant::now() };
        self.say(machine, "reset", &json!({ "operator": "bench" }))
    }

    fn say(&self, machine: usize, topic: &str, payload: &Value) -> anyhow::Result<()> {
        let topic = format!("plant/{}/{topic}", machine_id(machine));
        Ok(self.client.publish(topic, QoS::AtLeastOnce, false, payload.to_string())?)
    }
}

fn connect(port: u16, client_id: &str) -> (Client, Connection) {
    let (client, mut connection) = Client::new(mqtt_options(port, client_id), QUEUE_LENGTH);
    connection.eventloop.network_options.set_tcp_nodelay(true);
    (client, connection)
}

/// Until the park is gone.
fn listen(client: &Client, mut connection: Connection, told: &SyncSender<Heard>) {
    for event in connection.iter() {
        let heard = match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                let filters = ["plant/+/command", "plant/+/interlock"];
                let filters =
                    filters.map(|filter| SubscribeFilter::new(filter.into(), QoS::AtLeastOnce));
                // Room for one: nothing else is in the queue.
                client.try_subscribe_many(filters).ok();
                None
            }
            Ok(Event::Incoming(Packet::SubAck(_))) => Some(Heard::Subscribed),
            Ok(Event::Incoming(Packet::Publish(publish))) => understand(&publish),
            Ok(_) => None,
            Err(_) => {
                std::thread::sleep(RECONNECT_PAUSE);
                None
            }
        };
        if let Some(heard) = heard
            && told.send(heard).is_err()
        {
            return;
        }
    }
}

fn understand(publish: &Publish) -> Option<Heard> {
    let at = Instant::now();
    let mut parts = publish.topic.split('/').skip(1);
    let machine = parts.next()?.strip_prefix("press-")?.parse().ok()?;
    let payload: Value = serde_json::from_slice(&publish.payload).ok()?;
    match parts.next()? {
        "command" => {
            let trip_id = payload["trip_id"].as_str()?.to_owned();
            Some(Heard::Command { machine, trip_id, at })
        }
        "interlock" => {
            Some(Heard::Interlock { machine, state: payload["state"].as_str()?.to_owned() })
        }
        _ => None,
    }
}
