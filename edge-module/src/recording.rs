//! The journal's path: everything that the sensors say, filtered, encoded, handed to the journal.
//!
//! The broker delivers at least once: after a crash or a reconnect it repeats, with the DUP flag, what was not
//! acknowledged. A repeated message whose readings are already in the journal is dropped here, so that no reading gets a
//! second sequence; readings are recognised by sensor, metric, time and value among the last [`RECENT_READINGS_MAX`].

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::deadband::{Deadband, Verdict};
use edge_core::features::Features;
use rumqttc::Publish;
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::{DeadLetter, MachineId, MetricType, Reading, WaveformBlock};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::warn;

use crate::admin::{Board, Part};
use crate::analysis::Analysis;
use crate::config::Settings;
use crate::intake::{Input, InputTopics, Refusal};
use crate::journal::{Intake, JournalCommand, check_size};
use crate::kafka::now;
use crate::mqtt::source::SessionEvent;
use crate::scoring::{AnomalyScore, Bundle};
use crate::store::{Entry, JournalReader, Lane};
use crate::telemetry;

/// Readings recognised when the broker repeats them.
pub const RECENT_READINGS_MAX: usize = 65_536;
/// Refused input is logged at most this often; each is counted.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Takes messages of the recording session to the journal.
pub struct Recording {
    inputs: InputTopics,
    analysis: Analysis,
    deadband: Deadband,
    vibration: MetricType,
    machine_ids: BTreeSet<MachineId>,
    recent: Recent,
    commands: mpsc::Sender<JournalCommand>,
    room: Arc<Semaphore>,
    room_bytes: usize,
    board: Board,
    refusal_logged: Option<Instant>,
}

/// Hashes of the readings journalled last.
#[derive(Default)]
struct Recent {
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Recent {
    /// Says whether the reading was new.
    fn insert(&mut self, reading: &Reading) -> bool {
        let hash = hash_of(reading);
        if !self.set.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > RECENT_READINGS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
        true
    }

    fn contains(&self, reading: &Reading) -> bool {
        self.set.contains(&hash_of(reading))
    }
}

fn hash_of(reading: &Reading) -> u64 {
    let mut hasher = DefaultHasher::new();
    reading.sensor_id.hash(&mut hasher);
    reading.metric_type.hash(&mut hasher);
    reading.timestamp.hash(&mut hasher);
    reading.value.to_bits().hash(&mut hasher);
    hasher.finish()
}

impl Recording {
    /// A path that knows the last readings of the journal.
    ///
    /// # Errors
    /// The dead band's settings, which were validated before, are refused.
    pub fn new(
        settings: &Settings,
        model: Option<&Bundle>,
        journal: &dyn JournalReader,
        commands: mpsc::Sender<JournalCommand>,
        board: Board,
    ) -> anyhow::Result<Self> {
        let deadband = Deadband::new(settings.deadband_settings())
            .map_err(|faults| anyhow::anyhow!("dead band: {faults:?}"))?;
        let mut recent = Recent::default();
        for stored in journal.tail(Lane::Readings, RECENT_READINGS_MAX) {
            if let Ok(decoded) = codec::decode_reading(&stored.payload, Encoding::Protobuf) {
                recent.insert(&decoded.reading);
            }
        }
        Ok(Self {
            inputs: InputTopics::new(&settings.mqtt),
            analysis: Analysis::new(settings, model),
            deadband,
            vibration: MetricType::new("vibration")?,
            machine_ids: settings.machines.iter().map(|machine| machine.id.clone()).collect(),
            recent,
            commands,
            room: Arc::new(Semaphore::new(settings.journal.queue_bytes)),
            room_bytes: settings.journal.queue_bytes,
            board,
            refusal_logged: None,
        })
    }

    /// Runs until `stop`; what is not acknowledged by then the broker keeps.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<SessionEvent>,
        mut stop: watch::Receiver<bool>,
    ) {
        while !*stop.borrow() {
            let event = tokio::select! {
                biased;
                _ = stop.changed() => continue,
                event = events.recv() => event,
            };
            match event {
                None => return,
                Some(SessionEvent::Connected) => self.board.set(Part::Recording, Ok(())),
                Some(SessionEvent::Disconnected) => {
                    self.board.set(Part::Recording, Err("broker not connected".to_owned()));
                }
                Some(SessionEvent::Written) => {}
                Some(SessionEvent::Message { publish, .. }) => {
                    metrics::counter!(telemetry::MQTT_MESSAGES, "session" => "recording")
                        .increment(1);
                    if !self.hand_over(publish, &mut stop).await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for room in the journal's queue. Says whether the journal is still there.
    async fn hand_over(&mut self, publish: Publish, stop: &mut watch::Receiver<bool>) -> bool {
        let records = self.records_of(&publish);
        let bytes = records.iter().map(|(_, payload)| payload.len()).sum::<usize>();
        let bytes = u32::try_from(bytes.clamp(1, self.room_bytes)).unwrap_or(u32::MAX);
        let permit = tokio::select! {
            permit = Arc::clone(&self.room).acquire_many_owned(bytes) => permit.ok(),
            _ = stop.changed() => return false,
        };
        let intake = Intake { records, publish: Some(publish), permit };
        tokio::select! {
            sent = self.commands.send(JournalCommand::Append(intake)) => sent.is_ok(),
            _ = stop.changed() => false,
        }
    }

    fn records_of(&mut self, publish: &Publish) -> Vec<Entry> {
        let mut records = Vec::new();
        // The broker gives a retained message anew to each session that subscribes.
        let is_repeat = publish.dup || publish.retain;
        match self.inputs.decode(&publish.topic, &publish.payload) {
            Err(refusal) => self.refuse(&refusal, publish, &publish.payload, &mut records),
            Ok(Input::Readings(readings)) => {
                for element in readings {
                    match element.result {
                        Err(error) => {
                            self.refuse(&error.into(), publish, element.raw, &mut records);
                        }
                        Ok(decoded) => {
                            if decoded.unknown_fields > 0 {
                                metrics::counter!(telemetry::INPUT_UNKNOWN_FIELDS)
                                    .increment(u64::from(decoded.unknown_fields));
                            }
                            let mut reading = decoded.reading;
                            self.complete(&mut reading, &publish.topic);
                            self.record(&reading, is_repeat, &mut records);
                        }
                    }
                }
            }
            Ok(Input::Waveform(block)) => self.record_windows(&block, publish, &mut records),
        }
        records
    }

    /// Adds the machine of the topic where the producer left it out.
    fn complete(&self, reading: &mut Reading, topic: &str) {
        // The journal numbers records anew: a foreign identity would clash with its own.
        reading.identity = None;
        if reading.machine_id.is_none() {
            let machine = topic.split('/').nth(1).unwrap_or_default();
            reading.machine_id = self.machine_ids.get(machine).cloned();
        }
    }

    fn record(&mut self, reading: &Reading, is_repeat: bool, records: &mut Vec<Entry>) {
        if is_repeat && self.recent.contains(reading) {
            metrics::counter!(telemetry::INPUT_REDELIVERED).increment(1);
            return;
        }
        metrics::counter!(telemetry::READINGS).increment(1);
        match self.deadband.handle(reading) {
            Verdict::Filter => metrics::counter!(telemetry::READINGS_FILTERED).increment(1),
            Verdict::Send(_) => {
                self.recent.insert(reading);
                let payload = codec::encode_reading(reading, Encoding::Protobuf);
                records.push((Lane::Readings, payload));
            }
        }
    }

    fn record_windows(
        &mut self,
        block: &WaveformBlock,
        publish: &Publish,
        records: &mut Vec<Entry>,
    ) {
        let mut readings = Vec::new();
        let vibration = self.vibration.clone();
        let result = self.analysis.handle_block(block, |window, features, score| {
            let mut reading = Reading::new(
                block.sensor_id.clone(),
                window.first_sample,
                vibration.clone(),
                features.rms,
            );
            reading.machine_id = Some(block.machine_id.clone());
            reading.unit.clone_from(&block.unit);
            reading.features = named(features, score);
            readings.push(reading);
        });
        if let Err(error) = result {
            let refusal = Refusal { reason: error.reason(), detail: error.to_string() };
            self.refuse(&refusal, publish, &publish.payload, records);
        }
        for reading in readings {
            self.record(&reading, publish.dup || publish.retain, records);
        }
    }

    fn refuse(
        &mut self,
        refusal: &Refusal,
        publish: &Publish,
        raw: &[u8],
        records: &mut Vec<Entry>,
    ) {
        metrics::counter!(telemetry::INPUT_REFUSED, "reason" => refusal.reason).increment(1);
        if self.refusal_logged.is_none_or(|logged| logged.elapsed() > REFUSAL_LOG_INTERVAL) {
            self.refusal_logged = Some(Instant::now());
            warn!(
                topic = publish.topic,
                reason = refusal.reason,
                detail = refusal.detail,
                "input refused, kept as dead letter"
            );
        }
        let letter =
            DeadLetter::new(refusal.reason, refusal.detail.clone(), &publish.topic, now(), raw);
        let payload = codec::encode_dead_letter(&letter, Encoding::Protobuf);
        match check_size(&payload) {
            Ok(()) => records.push((Lane::DeadLetters, payload)),
            Err(error) => warn!(%error, "dead letter too large for the journal"),
        }
    }
}

fn named(
    features: &Features,
    score: Option<AnomalyScore>,
) -> std::collections::BTreeMap<String, f64> {
    let mut named: std::collections::BTreeMap<String, f64> =
        features.iter().map(|(name, value)| (name.to_string(), value)).collect();
    if let Some(score) = score {
        named.insert("score".to_owned(), score.value());
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_proto::model::{EventTime, SensorId};

    #[test]
    fn recent_readings_are_recognised_until_they_are_forgotten() {
        let mut recent = Recent::default();
        let vibration = MetricType::new("vibration").expect("valid");
        let at = |micros: i64| {
            Reading::new(
                SensorId::new("s").expect("valid"),
                EventTime::from_micros(micros),
                vibration.clone(),
                1.0,
            )
        };
        assert!(recent.insert(&at(0)));
        assert!(!recent.insert(&at(0)));
        assert!(recent.contains(&at(0)));
        for micros in 1..=i64::try_from(RECENT_READINGS_MAX).expect("small") {
            assert!(recent.insert(&at(micros)));
        }
        assert!(!recent.contains(&at(0)));
        assert_eq!(recent.order.len(), RECENT_READINGS_MAX);
    }
}
