//! The live figures: what the machines, the edge module and the aggregator say about themselves, four times a second,
//! and the alerts as they arrive.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_core::interlock::MachineState;
use serde_json::Value;

use super::machine::Machine;
use super::narrator::{Line, Narrator, Tone, gauge};
use super::plant::Plant;
use crate::http::{self, Webhook};

const PERIOD: Duration = Duration::from_millis(250);

/// Counters of the edge module.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EdgeFigures {
    /// Readings taken in.
    pub readings: u64,
    /// Readings held back by the dead band.
    pub filtered: u64,
    /// Records in the journal so far.
    pub journalled: u64,
    /// Records acknowledged by Kafka.
    pub delivered: u64,
    /// Records journalled and not delivered.
    pub owed: u64,
    /// Samples that no window could take.
    pub samples_discarded: u64,
}

/// Asks the edge module.
///
/// # Errors
/// It does not answer.
pub fn edge_figures(port: u16) -> anyhow::Result<EdgeFigures> {
    let text = http::get(port, "/metrics")?.1;
    let number = |name: &str| http::metric(&text, name, "").unwrap_or(0.0).max(0.0) as u64;
    Ok(EdgeFigures {
        readings: number("readings_total"),
        filtered: number("readings_filtered_total"),
        journalled: number("journal_records_total"),
        delivered: number("kafka_delivered_records_total"),
        owed: number("outbox_records"),
        samples_discarded: number("vibration_samples_discarded_total"),
    })
}

/// What a webhook body says.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedAlert {
    /// When it arrived.
    pub at: Instant,
    /// Its idempotency key.
    pub id: String,
    /// The sensor.
    pub sensor: String,
    /// First microsecond of the window, RFC 3339.
    pub window_start: String,
    /// For people.
    pub description: String,
}

fn read_alert(body: &str, at: Instant) -> ReceivedAlert {
    // What is missing shows as an empty text, and fails the comparison at the end.
    let event: Value = serde_json::from_str(body).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let context = &event["data"]["data"]["alertContext"];
    ReceivedAlert {
        at,
        id: text(&event["id"]),
        sensor: text(&context["sensorId"]),
        window_start: text(&context["windowStart"]),
        description: text(&event["data"]["data"]["essentials"]["description"]),
    }
}

/// Where the figures come from.
pub struct Sources {
    /// The machines.
    pub plant: Arc<Plant>,
    /// The edge module's metrics.
    pub edge_port: u16,
    /// The aggregator's metrics.
    pub cloud_port: u16,
    /// Where alerts arrive.
    pub webhook: Webhook,
    /// Whether the network is cut.
    pub is_cut: Arc<AtomicBool>,
}

/// The thread that shows them; ends with this value.
pub struct Figures {
    ended: Arc<AtomicBool>,
    alerts: Arc<Mutex<Vec<ReceivedAlert>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Figures {
    /// Starts showing.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(narrator: Arc<Narrator>, sources: Sources) -> anyhow::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let alerts = Arc::new(Mutex::new(Vec::new()));
        let (watching, kept) = (Arc::clone(&ended), Arc::clone(&alerts));
        let show = move || {
            while !watching.load(Ordering::SeqCst) {
                take_alerts(&narrator, &sources.webhook, &kept);
                if narrator.is_live() {
                    show(&narrator, &sources);
                }
                std::thread::sleep(PERIOD);
            }
        };
        let thread = std::thread::Builder::new().name("figures".to_owned()).spawn(show)?;
        Ok(Self { ended, alerts, thread: Some(thread) })
    }

    /// All alerts so far.
    #[must_use]
    pub fn alerts(&self) -> Vec<ReceivedAlert> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic over there has been printed by the panic hook.
            thread.join().ok();
        }
    }
}

fn take_alerts(narrator: &Narrator, webhook: &Webhook, kept: &Mutex<Vec<ReceivedAlert>>) {
    let bodies = webhook.bodies();
    let mut alerts = kept.lock().unwrap_or_else(PoisonError::into_inner);
    for body in &bodies[alerts.len()..] {
        let alert = read_alert(body, Instant::now());
        narrator
            .event(Tone::Alarm, &format!("MESSAGE TO THE MAINTENANCE TEAM  {}", alert.description));
        alerts.push(alert);
    }
}

fn show(narrator: &Narrator, sources: &Sources) {
    sources.plant.look(|machines| {
        for (place, machine) in machines.iter().enumerate() {
            narrator.figure(Line::Machine(place), machine_line(machine));
        }
    });
    let edge = edge_figures(sources.edge_port).map_or_else(
        |_| "   edge module       does not answer".to_owned(),
        |edge| {
            format!(
                "   edge module       taken in {:>6}   held back {:>5}   journalled {:>6}   \
                 delivered {:>6}",
                edge.readings, edge.filtered, edge.journalled, edge.delivered
            ) + &match edge.owed {
                0 => String::new(),
                owed => format!("   \x1b[33mowed {owed}\x1b[0m"),
            }
        },
    );
    narrator.figure(Line::Edge, edge);
    narrator.figure(
        Line::Network,
        if sources.is_cut.load(Ordering::SeqCst) {
            "   network           \x1b[1;31m──────╳ cut ╳──────\x1b[0m".to_owned()
        } else {
            "   network           \x1b[32m─────── up ────────\x1b[0m".to_owned()
        },
    );
    let cloud = http::get(sources.cloud_port, "/metrics").map_or_else(
        |_| "   cloud aggregator  does not answer".to_owned(),
        |(_, text)| {
            let number =
                |name: &str, label: &str| http::metric(&text, name, label).unwrap_or(0.0) as u64;
            format!(
                "   cloud aggregator  counted  {:>6}   anomalies {:>5}   duplicates {:>6}   \
                 alerts    {:>6}",
                number("aggregator_records_total", "counted"),
                number("aggregator_rows_total", "anomalies"),
                number("aggregator_records_total", "duplicate"),
                number("aggregator_alerts_total", ""),
            )
        },
    );
    narrator.figure(Line::Cloud, cloud);
}

fn machine_line(machine: &Machine) -> String {
    let (temperature, pressure) = machine.last_readings();
    let state = match machine.state() {
        MachineState::Running => "\x1b[32mrunning \x1b[0m",
        MachineState::Stopping => "\x1b[33mstopping\x1b[0m",
        MachineState::Stopped => "\x1b[31mstopped \x1b[0m",
    };
    let latch = match machine.interlock() {
        "armed" => "\x1b[32marmed  \x1b[0m",
        "" => "       ",
        _ => "\x1b[1;31mtripped\x1b[0m",
    };
    let hot = if temperature > super::configuration::HOT_ABOVE { "\x1b[31m" } else { "" };
    format!(
        "   {:<8} {state} {latch}  vibration {} {:6.1} m{}   {hot}{temperature:6.1} °C\x1b[0m  \
         {pressure:5.2} bar",
        machine.name(),
        gauge(machine.rms() / 0.06, 12),
        machine.rms() * 1e3,
        machine.unit(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alert_is_read_from_its_cloud_event() {
        let at = Instant::now();
        let body = r#"{"id":"a1","data":{"data":{"essentials":{"description":"hot"},
            "alertContext":{"sensorId":"pump-2/temperature","windowStart":"2026-03-01T00:00:00Z"}}}}"#;
        let alert = read_alert(body, at);
        assert_eq!((alert.id.as_str(), alert.sensor.as_str()), ("a1", "pump-2/temperature"));
        assert_eq!(alert.description, "hot");
        assert_eq!(read_alert("no JSON", at).id, "");
    }
}
