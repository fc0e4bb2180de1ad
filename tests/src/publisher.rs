//! Publishes to an MQTT broker as a sensor does, and knows what the broker has acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use prost::Message as _;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use shared_proto::model::EventTime;
use shared_proto::wire::v1;

use crate::eventually::eventually_true;

/// Messages that may wait for the client's thread.
const QUEUE_LENGTH: usize = 256;
/// Largest packet, either way.
const PACKET_BYTES_MAX: usize = 64 * 1024 * 1024;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Options of a client of tests: clean session, large packets.
#[must_use]
pub fn mqtt_options(port: u16, client_id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(client_id, "127.0.0.1", port);
    options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    options.set_keep_alive(Duration::from_secs(30));
    options
}

/// A sensor gateway's connection to the broker.
pub struct Publisher {
    client: Client,
    published: u64,
    acknowledged: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl Publisher {
    /// Connects to the broker on `port`, and again whenever the connection breaks.
    #[must_use]
    pub fn connect(port: u16, client_id: &str) -> Self {
        let mut options = mqtt_options(port, client_id);
        // The client drops what it has not sent yet when it comes back to a broker that does not know its session.
        options.set_clean_session(false);
        let (client, mut connection) = Client::new(options, QUEUE_LENGTH);
        connection.eventloop.network_options.set_tcp_nodelay(true);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let (counter, stop) = (Arc::clone(&acknowledged), Arc::clone(&stopped));
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::PubAck(_))) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(_) => {}
                    Err(_) if stop.load(Ordering::SeqCst) => return,
                    Err(_) => std::thread::sleep(RECONNECT_PAUSE),
                }
            }
        });
        Self { client, published: 0, acknowledged, stopped }
    }

    /// Hands one message (QoS 1) to the client; waits while its queue is full.
    ///
    /// # Errors
    /// The client's thread has ended.
    pub fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) -> anyhow::Result<()> {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload)?;
        self.published += 1;
        Ok(())
    }

    /// Queues one message that the broker is to keep for those who subscribe later.
    ///
    /// # Errors
    /// The client's thread has ended.
    pub fn publish_retained(
        &mut self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
    ) -> anyhow::Result<()> {
        self.client.publish(topic, QoS::AtLeastOnce, true, payload)?;
        self.published += 1;
        Ok(())
    }

    /// Waits until the broker has acknowledged everything published so far.
    ///
    /// # Errors
    /// It has not at the deadline.
    pub fn wait_acknowledged(&self, deadline: Duration) -> anyhow::Result<()> {
        eventually_true("the broker has acknowledged all messages", deadline, || {
            self.acknowledged.load(Ordering::SeqCst) >= self.published
        })
        .with_context(|| {
            format!("{} of {}", self.acknowledged.load(Ordering::SeqCst), self.published)
        })
    }

    /// Messages handed over so far.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // The connection may be down: it ends with the thread in any case.
        self.client.try_disconnect().ok();
    }
}

/// One reading as a producer of four fields writes it, plus the machine.
#[must_use]
pub fn reading_json(
    machine_id: &str,
    sensor_id: &str,
    metric_type: &str,
    timestamp: EventTime,
    value: f64,
) -> String {
    serde_json::json!({
        "sensor_id": sensor_id,
        "machine_id": machine_id,
        "timestamp": timestamp.to_string(),
        "metric_type": metric_type,
        "value": value,
    })
    .to_string()
}

/// Where a waveform comes from and how it was sampled.
#[derive(Clone, Copy, Debug)]
pub struct WaveformSource<'a> {
    /// Which machine the sensor sits on.
    pub machine_id: &'a str,
    /// Who measured.
    pub sensor_id: &'a str,
    /// Samples per second.
    pub sample_rate_hz: f64,
    /// Unit of the samples.
    pub unit: &'a str,
}

impl WaveformSource<'_> {
    /// Consecutive blocks of `block_samples` (the last one may be shorter) from `first_sample` on, as protobuf.
    #[must_use]
    pub fn blocks(
        &self,
        first_sample: EventTime,
        samples: &[f32],
        block_samples: usize,
    ) -> Vec<Vec<u8>> {
        let micros_per_sample = 1e6 / self.sample_rate_hz;
        samples
            .chunks(block_samples)
            .enumerate()
            .map(|(index, chunk)| {
                let offset = ((index * block_samples) as f64 * micros_per_sample).round() as i64;
                self.block(first_sample.saturating_add_micros(offset), chunk)
            })
            .collect()
    }

    /// One block as protobuf.
    #[must_use]
    pub fn block(&self, first_sample: EventTime, samples: &[f32]) -> Vec<u8> {
        v1::WaveformBlock {
            machine_id: self.machine_id.to_owned(),
            sensor_id: self.sensor_id.to_owned(),
            first_sample_micros: Some(first_sample.micros()),
            sample_rate_hz: self.sample_rate_hz,
            scale: None,
            unit: self.unit.to_owned(),
            samples: Some(v1::waveform_block::Samples::SamplesF32(v1::FloatSamples {
                values: samples.to_vec(),
            })),
            ..v1::WaveformBlock::default()
        }
        .encode_to_vec()
    }
}

/// Calls `send` for each item at a steady pace: item `n` not before `n * interval` after the start.
///
/// # Errors
/// The first error of `send`.
pub fn paced<T>(
    items: impl IntoIterator<Item = T>,
    interval: Duration,
    mut send: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut due = Instant::now();
    for item in items {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        send(item)?;
        due += interval;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_without_a_gap() {
        let source =
            WaveformSource { machine_id: "m", sensor_id: "s", sample_rate_hz: 20_000.0, unit: "V" };
        let blocks = source.blocks(EventTime::from_micros(1_000_000), &[0.5; 5000], 2000);
        let decoded: Vec<_> = blocks
            .iter()
            .map(|block| v1::WaveformBlock::decode(block.as_slice()).unwrap())
            .map(|block| {
                let Some(v1::waveform_block::Samples::SamplesF32(samples)) = block.samples else {
                    panic!("not f32");
                };
                (block.first_sample_micros.unwrap(), samples.values.len())
            })
            .collect();
        assert_eq!(decoded, [(1_000_000, 2000), (1_100_000, 2000), (1_200_000, 1000)]);
    }
}
