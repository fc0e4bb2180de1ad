//! What keeps the module busy: readings or blocks at a steady rate, and backlogs as fast as they are taken.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rumqttc::{Client, Event, Packet, QoS};
use shared_proto::model::EventTime;

use super::world::{PATIENCE, now};
use crate::eventually::eventually_true;
use crate::publisher::{WaveformSource, mqtt_options};

/// Machines under protection.
pub const MACHINES: usize = 20;
/// Sensors of each machine that send the load; each has a limit, so that all of it is judged.
pub const SENSORS_OF_MACHINE: usize = 15;
const SENSORS: usize = MACHINES * SENSORS_OF_MACHINE;
/// Readings in each message of a backlog.
pub const BACKLOG_MESSAGE_READINGS: u64 = 500;

const QUEUE_LENGTH: usize = 1_000;
/// Messages sent and not yet acknowledged by the broker.
const INFLIGHT_MAX: u16 = 1_000;
/// How often what is due is sent.
const STEP: Duration = Duration::from_millis(1);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Scalars or raw vibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JSON readings of a temperature.
    Readings,
    /// Protobuf blocks of samples, 32 bits each.
    Blocks,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Readings => "readings",
            Self::Blocks => "blocks",
        }
    }
}

/// The id of a machine.
#[must_use]
pub fn machine_id(number: usize) -> String {
    format!("press-{number}")
}

/// A client that publishes with QoS 1.
struct Feeder {
    client: Client,
    published: u64,
    acknowledged: Arc<AtomicU64>,
}

impl Feeder {
    fn connect(port: u16, client_id: &str) -> Self {
        let mut options = mqtt_options(port, client_id);
        options.set_inflight(INFLIGHT_MAX);
        let (client, mut connection) = Client::new(options, QUEUE_LENGTH);
        connection.eventloop.network_options.set_tcp_nodelay(true);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&acknowledged);
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::PubAck(_))) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
                    Ok(_) => {}
                    Err(_) => std::thread::sleep(RECONNECT_PAUSE),
                }
            }
        });
        Self { client, published: 0, acknowledged }
    }

    fn publish(&mut self, topic: String, payload: Vec<u8>) -> anyhow::Result<()> {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload)?;
        self.published += 1;
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        eventually_true("the broker has taken all messages", PATIENCE, || {
            self.acknowledged.load(Ordering::SeqCst) >= self.published
        })?;
        self.client.disconnect().context("the client has ended")
    }
}

/// Readings or blocks of all sensors in turn.
struct Signal {
    kind: Kind,
    message_readings: usize,
    block: WaveformShape,
    number: u64,
}

struct WaveformShape {
    samples: Vec<f32>,
    sample_rate_hz: f64,
    began: EventTime,
}

impl Signal {
    fn new(kind: Kind, message_readings: usize, block_samples: usize, rate: f64) -> Self {
        // A tone with an RMS of 0.7, below each limit.
        let samples = (0..block_samples).map(|index| (index as f32 * 0.7).sin()).collect();
        let sample_rate_hz = rate / SENSORS as f64 * block_samples as f64;
        let block = WaveformShape { samples, sample_rate_hz, began: now() };
        Self { kind, message_readings, block, number: 0 }
    }

    /// Readings or blocks in one message.
    const fn per_message(&self) -> u64 {
        match self.kind {
            Kind::Readings => self.message_readings as u64,
            Kind::Blocks => 1,
        }
    }

    fn next_message(&mut self) -> (String, Vec<u8>) {
        match self.kind {
            Kind::Readings => {
                let count = self.message_readings as u64;
                let message = readings_message(self.number, count, now());
                self.number += count;
                message
            }
            Kind::Blocks => {
                let sensor = self.number as usize % SENSORS;
                let turn = self.number / SENSORS as u64;
                self.number += 1;
                (waveform_topic(sensor), self.block.block(sensor, turn))
            }
        }
    }
}

fn waveform_topic(sensor: usize) -> String {
    format!("plant/{}/waveform", machine_id(sensor / SENSORS_OF_MACHINE))
}

impl WaveformShape {
    /// Each block of a sensor begins where the one before ended.
    fn block(&self, sensor: usize, turn: u64) -> Vec<u8> {
        let machine_id = machine_id(sensor / SENSORS_OF_MACHINE);
        let sensor_id = format!("{machine_id}/aux-{}", sensor % SENSORS_OF_MACHINE);
        let source = WaveformSource {
            machine_id: &machine_id,
            sensor_id: &sensor_id,
            sample_rate_hz: self.sample_rate_hz,
            unit: "g",
        };
        let samples_before = turn as f64 * self.samples.len() as f64;
        let micros = (samples_before / self.sample_rate_hz * 1e6).round();
        source.block(self.began.saturating_add_micros(micros as i64), &self.samples)
    }
}

/// `count` readings of consecutive sensors, from number `first` on: one object, or an array of several.
fn readings_message(first: u64, count: u64, at: EventTime) -> (String, Vec<u8>) {
    let timestamp = at.to_string();
    let mut text = String::with_capacity(count as usize * 140);
    for number in first..first + count {
        let sensor = number as usize % SENSORS;
        let machine = machine_id(sensor / SENSORS_OF_MACHINE);
        let value = 20.0 + (number % 10_000) as f64 / 1e3;
        text.push(if number == first { '[' } else { ',' });
        let auxiliary = sensor % SENSORS_OF_MACHINE;
        write!(
            text,
            "{{\"sensor_id\":\"{machine}/aux-{auxiliary}\",\"machine_id\":\"{machine}\",\"timestamp\":\"{timestamp}\",\
             \"metric_type\":\"temperature\",\"value\":{value}}}"
        )
        .expect("writing to a string");
    }
    text.push(']');
    let mut payload = text.into_bytes();
    if count == 1 {
        payload.pop();
        payload.remove(0);
    }
    let machine = machine_id(first as usize % SENSORS / SENSORS_OF_MACHINE);
    (format!("plant/{machine}/readings"), payload)
}

/// Publishes at a steady rate until dropped; what the broker does not take in time is not caught up beyond a second.
pub struct Background {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Background {
    /// Begins.
    #[must_use]
    pub fn start(port: u16, options: &super::Options, kind: Kind) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let published = Arc::new(AtomicU64::new(0));
        let (stopped, count, rate) = (Arc::clone(&stop), Arc::clone(&published), options.rate);
        let mut signal = Signal::new(kind, options.message_readings, options.block_samples, rate);
        let thread = std::thread::spawn(move || {
            let mut feeder = Feeder::connect(port, "background");
            let mut due = 0.0;
            let mut looked = Instant::now();
            while !stopped.load(Ordering::SeqCst) {
                // The pace of the sensors.
                std::thread::sleep(STEP);
                let now = Instant::now();
                due = (due + now.duration_since(looked).as_secs_f64() * rate).min(rate);
                looked = now;
                while due >= signal.per_message() as f64 {
                    due -= signal.per_message() as f64;
                    let (topic, payload) = signal.next_message();
                    feeder.publish(topic, payload)?;
                    count.fetch_add(signal.per_message(), Ordering::Relaxed);
                }
            }
            feeder.finish()
        });
        Self { stop, published, thread: Some(thread) }
    }

    /// Readings or blocks handed to the client so far.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Stops, waits until the broker has everything, and gives the count.
    ///
    /// # Errors
    /// The broker does not take it.
    pub fn end(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("ended twice")?;
        thread.join().map_err(|_| anyhow::anyhow!("the publishing thread panicked"))??;
        Ok(self.published())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Publishes so many readings in arrays of [`BACKLOG_MESSAGE_READINGS`], as fast as the broker takes them; gives the count.
///
/// # Errors
/// The broker does not take them.
pub fn publish_backlog(port: u16, records: u64) -> anyhow::Result<u64> {
    let mut feeder = Feeder::connect(port, "backlog");
    let mut number = 0;
    while number < records {
        let (topic, payload) = readings_message(number, BACKLOG_MESSAGE_READINGS, now());
        feeder.publish(topic, payload)?;
        number += BACKLOG_MESSAGE_READINGS;
    }
    feeder.finish()?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use shared_proto::Encoding;
    use shared_proto::codec;

    use super::*;

    #[test]
    fn messages_are_what_the_module_takes() {
        let (topic, one) = readings_message(17, 1, EventTime::from_micros(0));
        assert_eq!(topic, "plant/press-1/readings");
        let reading = codec::decode_reading(&one, Encoding::Json).unwrap().reading;
        assert_eq!((reading.sensor_id.as_str(), reading.value), ("press-1/aux-2", 20.017));
        let (_, many) = readings_message(0, 500, EventTime::from_micros(0));
        let array: Vec<serde_json::Value> = serde_json::from_slice(&many).unwrap();
        assert_eq!(array.len(), 500);
        assert_eq!(array[499]["value"], 20.499);
    }

    #[test]
    fn blocks_of_a_sensor_follow_each_other() {
        let signal = Signal::new(Kind::Blocks, 1, 64, 10_000.0);
        let decode = |turn| {
            let bytes = signal.block.block(299, turn);
            codec::decode_waveform_block(&bytes, Encoding::Protobuf).unwrap()
        };
        let (first, second) = (decode(0), decode(1));
        assert_eq!(first.sensor_id.as_str(), "press-19/aux-14");
        let micros = second.first_sample.micros_since(first.first_sample);
        let expected = 64.0 / first.sample_rate_hz * 1e6;
        assert!((micros as f64 - expected).abs() <= 1.0, "{micros} instead of {expected}");
    }
}
