//! The MQTT path: one connection for each broker, shared by the machines whose path it is.
//!
//! Topics and payloads: [`super::messages`]. While the broker is away nothing is kept: a stop fails at once (so that the other
//! paths take it), a heartbeat is left out, and when the broker is back the stops that are still open are ordered anew.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use edge_core::interlock::LatchSnapshot;
use rumqttc::{AsyncClient, Publish, QoS};
use shared_proto::model::{DeviceId, MachineId};
use tokio::sync::mpsc;
use tracing::warn;

use super::messages::{Report, Topics};
use super::{Actuator, PathEvent, PathReport, QueueFull, StopOrder};
use crate::config::Settings;
use crate::mqtt::source::{Session, SessionError, SessionEvent, SessionKind};
use crate::telemetry;

/// Publications that may be on their way before heartbeats are left out, for each machine.
const UNWRITTEN_MAX: usize = 16;

/// What a connection is told.
enum Order {
    Stop(StopOrder),
    Withdraw(MachineId),
    Heartbeat(MachineId, u64),
    Show(Box<LatchSnapshot>),
}

/// One machine's path over a broker.
pub struct MqttPath {
    machine_id: MachineId,
    orders: mpsc::Sender<Order>,
}

impl Actuator for MqttPath {
    fn stop(&self, order: StopOrder) -> Result<(), QueueFull> {
        self.orders.try_send(Order::Stop(order)).map_err(|_| QueueFull)
    }

    fn heartbeat(&self, count: u64) -> Result<(), QueueFull> {
        let order = Order::Heartbeat(self.machine_id.clone(), count);
        self.orders.try_send(order).map_err(|_| QueueFull)
    }

    fn withdraw(&self) -> Result<(), QueueFull> {
        self.orders.try_send(Order::Withdraw(self.machine_id.clone())).map_err(|_| QueueFull)
    }
}

/// Where latches are shown: the broker of `[mqtt]`.
pub struct Display {
    name: String,
    orders: mpsc::Sender<Order>,
}

impl Display {
    /// Name of the broker.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Publishes the state of a latch, retained.
    ///
    /// # Errors
    /// The queue is full.
    pub fn show(&self, latch: &LatchSnapshot) -> Result<(), QueueFull> {
        self.orders.try_send(Order::Show(Box::new(latch.clone()))).map_err(|_| QueueFull)
    }
}

struct Broker {
    sender: mpsc::Sender<Order>,
    orders: mpsc::Receiver<Order>,
    routes: BTreeMap<MachineId, usize>,
}

/// Collects who needs which broker, then makes one connection for each.
pub struct Brokers<'a> {
    settings: &'a Settings,
    reports: mpsc::Sender<PathReport>,
    brokers: BTreeMap<(String, u16), Broker>,
}

impl<'a> Brokers<'a> {
    /// The broker of `[mqtt]` and no other.
    pub fn new(settings: &'a Settings, reports: &mpsc::Sender<PathReport>) -> Self {
        let mut this = Self { settings, reports: reports.clone(), brokers: BTreeMap::new() };
        this.broker(None, None);
        this
    }

    fn broker(&mut self, host: Option<&str>, port: Option<u16>) -> (String, &mut Broker) {
        let mqtt = &self.settings.mqtt;
        let key = (host.unwrap_or(&mqtt.host).to_owned(), port.unwrap_or(mqtt.port));
        // Room for what one turn of the loop gives to each machine.
        let per_machine = self.settings.machines.len().saturating_mul(8);
        let length = self.settings.protection.path_queue_length.max(per_machine);
        let name = format!("mqtt {}:{}", key.0, key.1);
        let broker = self.brokers.entry(key).or_insert_with(|| {
            let (sender, orders) = mpsc::channel(length);
            Broker { sender, orders, routes: BTreeMap::new() }
        });
        (name, broker)
    }

    /// One machine's path over this broker, and its name.
    pub fn path(
        &mut self,
        host: Option<&str>,
        port: Option<u16>,
        (machine_id, index): (MachineId, usize),
    ) -> (String, MqttPath) {
        let (name, broker) = self.broker(host, port);
        broker.routes.insert(machine_id.clone(), index);
        let orders = broker.sender.clone();
        (name, MqttPath { machine_id, orders })
    }

    /// The display and the connections.
    ///
    /// # Errors
    /// The password cannot be read.
    pub fn finish(mut self) -> Result<(Display, Vec<Link>), SessionError> {
        let (name, main) = self.broker(None, None);
        let display = Display { name, orders: main.sender.clone() };
        let own = (self.settings.mqtt.host.clone(), self.settings.mqtt.port);
        let links = self
            .brokers
            .into_iter()
            .map(|((host, port), broker)| {
                let is_display = (host.as_str(), port) == (own.0.as_str(), own.1);
                let machines = self.settings.machines.iter().map(|machine| &machine.id);
                let topics = Topics::new(
                    &self.settings.protection,
                    broker.routes.keys(),
                    machines.filter(|_| is_display),
                );
                let session = Session::with_broker(
                    self.settings,
                    SessionKind::Actuator,
                    &host,
                    port,
                    topics.filters(),
                )?;
                Ok(Link {
                    client: session.client(),
                    session: Some(session),
                    device_id: self.settings.device.id.clone(),
                    queue_length: self.settings.protection.path_queue_length,
                    topics,
                    routes: broker.routes,
                    is_display,
                    orders: broker.orders,
                    reports: self.reports.clone(),
                    state: State::default(),
                })
            })
            .collect::<Result<Vec<Link>, SessionError>>()?;
        Ok((display, links))
    }
}

/// The connection to one broker.
pub struct Link {
    session: Option<Session>,
    client: AsyncClient,
    device_id: DeviceId,
    queue_length: usize,
    topics: Topics,
    /// Which path of each machine this is.
    routes: BTreeMap<MachineId, usize>,
    is_display: bool,
    orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<PathReport>,
    state: State,
}

#[derive(Default)]
struct State {
    is_connected: bool,
    is_loss_told: bool,
    /// For each publication of ours that is not on the socket yet, which stop it was.
    unwritten: VecDeque<Option<StopOrder>>,
    /// Stops on the socket without a report of the machine since.
    unanswered: BTreeMap<MachineId, Instant>,
    /// Reports that wait for room.
    outbox: VecDeque<PathReport>,
}

impl Link {
    /// Runs until the orders' sender or the reports' receiver is gone.
    pub async fn run(mut self) {
        let Some(session) = self.session.take() else { return };
        let (sender, events) = mpsc::channel(self.queue_length);
        tokio::select! {
            () = session.run(sender) => {}
            () = self.serve(events) => {}
        }
    }

    async fn serve(&mut self, mut events: mpsc::Receiver<SessionEvent>) {
        let reports = self.reports.clone();
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => self.perform(order),
                    None => return,
                },
                permit = reports.reserve(), if !self.state.outbox.is_empty() => {
                    let Ok(permit) = permit else { return };
                    if let Some(report) = self.state.outbox.pop_front() {
                        permit.send(report);
                    }
                }
                event = events.recv(), if self.state.outbox.is_empty() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
            }
        }
    }

    fn perform(&mut self, order: Order) {
        let is_connected = self.state.is_connected;
        match order {
            Order::Stop(order) if !is_connected => {
                self.fail(order, "broker not connected".to_owned());
            }
            Order::Stop(order) => {
                let Some((topic, payload)) = self.topics.stop(&order) else { return };
                match self.client.try_publish(topic, QoS::AtLeastOnce, false, payload) {
                    Ok(()) => self.state.unwritten.push_back(Some(order)),
                    Err(error) => self.fail(order, error.to_string()),
                }
            }
            // Nothing is kept here.
            Order::Withdraw(machine_id) => {
                self.state.unanswered.remove(&machine_id);
            }
            Order::Heartbeat(..) if !is_connected || self.is_congested() => {}
            Order::Heartbeat(machine_id, count) => {
                let device_id = self.device_id.as_str();
                let message = self.topics.heartbeat(&machine_id, device_id, count);
                let Some((topic, payload)) = message else { return };
                match self.client.try_publish(topic, QoS::AtLeastOnce, false, payload) {
                    Ok(()) => self.state.unwritten.push_back(None),
                    Err(error) => warn!(%machine_id, %error, "heartbeat not queued"),
                }
            }
            Order::Show(_) if !is_connected => {}
            Order::Show(latch) => {
                let Some((topic, payload)) = self.topics.interlock(&latch) else { return };
                match self.client.try_publish(topic, QoS::AtLeastOnce, true, payload) {
                    Ok(()) => self.state.unwritten.push_back(None),
                    Err(error) => {
                        warn!(machine_id = %latch.machine_id, %error, "state of the latch not published");
                    }
                }
            }
        }
    }

    /// A broker that takes nothing must not be sent old signs of life when it wakes up.
    fn is_congested(&self) -> bool {
        self.state.unwritten.len() >= UNWRITTEN_MAX.saturating_mul(self.routes.len().max(1))
    }

    fn fail(&mut self, order: StopOrder, why: String) {
        let event = PathEvent::Failed { trip_id: order.trip_id, why };
        self.tell(&order.machine_id, event);
    }

    fn tell(&mut self, machine_id: &MachineId, event: PathEvent) {
        if let Some(index) = self.routes.get(machine_id) {
            let path = Some((machine_id.clone(), *index));
            self.state.outbox.push_back(PathReport { path, event });
        }
    }

    fn tell_all(&mut self, event: &PathEvent) {
        for machine_id in self.routes.keys().cloned().collect::<Vec<_>>() {
            self.tell(&machine_id, event.clone());
        }
        if self.is_display {
            self.state.outbox.push_back(PathReport { path: None, event: event.clone() });
        }
    }

    fn handle(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Connected => {
                self.state.is_connected = true;
                self.state.is_loss_told = false;
                self.tell_all(&PathEvent::Ready);
            }
            SessionEvent::Disconnected => {
                self.state.is_connected = false;
                self.state.unwritten.clear();
                self.state.unanswered.clear();
                if !std::mem::replace(&mut self.state.is_loss_told, true) {
                    self.tell_all(&PathEvent::Lost("broker not connected".to_owned()));
                }
            }
            SessionEvent::Written => self.handle_written(Instant::now()),
            SessionEvent::Message { publish, received } => self.handle_message(&publish, received),
        }
    }

    /// The oldest publication not yet on the socket has got there.
    fn handle_written(&mut self, at: Instant) {
        let Some(Some(order)) = self.state.unwritten.pop_front() else { return };
        self.state.unanswered.insert(order.machine_id.clone(), at);
        let event = PathEvent::Written { trip_id: order.trip_id, at };
        self.tell(&order.machine_id, event);
    }

    fn handle_message(&mut self, publish: &Publish, received: Instant) {
        match self.topics.parse(&publish.topic, &publish.payload, publish.retain) {
            Ok((machine_id, Report::State(state))) => {
                let is_retained = publish.retain;
                if !is_retained && let Some(written) = self.state.unanswered.remove(&machine_id) {
                    metrics::histogram!(telemetry::ACTUATOR_ROUND_TRIP, "kind" => "mqtt")
                        .record(received.saturating_duration_since(written));
                }
                let event = PathEvent::State { state, asked: received, received, is_retained };
                self.tell(&machine_id, event);
            }
            Ok((machine_id, Report::Reset { operator })) => {
                // Also for a machine that has no path over this broker.
                let index = self.routes.get(&machine_id).copied().unwrap_or(0);
                let path = Some((machine_id, index));
                let event = PathEvent::Reset { operator };
                self.state.outbox.push_back(PathReport { path, event });
            }
            Err(error) => {
                warn!(error = %crate::journal::chain(&error), "report of the machine side ignored");
                metrics::counter!(telemetry::INPUT_REFUSED, "reason" => "machine-report")
                    .increment(1);
            }
        }
    }
}
