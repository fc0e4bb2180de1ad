//! The MQTT path: one connection for each broker, shared by the machines whose path it is.
//!
//! Topics and payloads: [`super::messages`]. While the broker is away nothing is kept: a stop fails at once (so that the other
//! paths take it), a heartbeat is left out, and when the broker is back the stops that are still open are ordered anew.
//!
//! Which machines a broker is a path to may change while it is connected: what is new is subscribed to, what is gone no more, and
//! the retained latch of a machine that is gone is taken back, with the next connection at the latest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use rumqttc::{AsyncClient, Publish, QoS};
use shared_proto::model::{DeviceId, MachineId};
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::messages::{Report, ShownLatch, Topics};
use super::{Actuator, PathEvent, PathReport, QueueFull, StopOrder, TaskEnd};
use crate::config::Settings;
use crate::mqtt::source::{
    Credentials, Filters, Session, SessionError, SessionEvent, SessionKind, check_refused,
};
use crate::telemetry;

/// Publications that may be on their way before heartbeats are left out, for each machine.
const UNWRITTEN_MAX: usize = 16;

/// What a connection is told.
enum Order {
    Stop(StopOrder),
    Withdraw(MachineId),
    Heartbeat(MachineId, u64),
    Show(Box<ShownLatch>),
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
    pub fn show(&self, shown: ShownLatch) -> Result<(), QueueFull> {
        self.orders.try_send(Order::Show(Box::new(shown))).map_err(|_| QueueFull)
    }
}

/// Host and port of a broker.
pub type Address = (String, u16);

/// Whose path a broker is.
#[derive(Clone, Default, PartialEq, Eq)]
struct Table {
    topics: Topics,
    /// The number of that path of each machine.
    routes: BTreeMap<MachineId, usize>,
}

struct Broker {
    orders: mpsc::Sender<Order>,
    table: watch::Sender<Table>,
}

/// The brokers that are a path to machines, and the one of `[mqtt]`. Each has one connection, made when a first machine needs
/// it and ended when none does.
pub struct Brokers {
    /// Of the start. Its machines may be others by now.
    settings: Arc<Settings>,
    credentials: Credentials,
    reports: mpsc::Sender<PathReport>,
    queue_length: usize,
    brokers: BTreeMap<Address, Broker>,
    /// Not started yet.
    links: Vec<Link>,
}

impl Brokers {
    /// The broker of `[mqtt]` and no other.
    ///
    /// # Errors
    /// The password cannot be read.
    pub fn new(
        settings: Arc<Settings>,
        reports: &mpsc::Sender<PathReport>,
    ) -> Result<Self, SessionError> {
        let credentials = Credentials::read(&settings.mqtt)?;
        let queue_length = super::machines_max(&settings) * super::ORDERS_OF_A_TURN_MAX;
        let (reports, brokers, links) = (reports.clone(), BTreeMap::new(), Vec::new());
        let mut this = Self { settings, credentials, reports, queue_length, brokers, links };
        this.broker(&this.display_address());
        Ok(this)
    }

    fn display_address(&self) -> Address {
        (self.settings.mqtt.host.clone(), self.settings.mqtt.port)
    }

    /// The sender of orders, of a connection that is made if there is none.
    fn broker(&mut self, address: &Address) -> mpsc::Sender<Order> {
        if let Some(broker) = self.brokers.get(address) {
            return broker.orders.clone();
        }
        let (orders, receiver) = mpsc::channel(self.queue_length);
        let (table, changes) = watch::channel(Table::default());
        let (host, port) = (address.0.as_str(), address.1);
        let session = Session::with_broker(
            &self.settings,
            SessionKind::Actuator,
            self.settings.client_id(SessionKind::Actuator.as_str()),
            (host, port),
            &self.credentials,
            Vec::new(),
        );
        self.links.push(Link {
            client: session.client(),
            filters: session.filters(),
            session: Some(session),
            device_id: self.settings.device.id.clone(),
            queue_length: self.settings.protection.path_queue_length,
            is_display: *address == self.display_address(),
            changes,
            table: Table::default(),
            orders: receiver,
            reports: self.reports.clone(),
            state: State::default(),
        });
        self.brokers.insert(address.clone(), Broker { orders: orders.clone(), table });
        orders
    }

    /// One machine's path over a broker, its name, and the broker. It leads nowhere until [`Self::route`].
    pub fn path(
        &mut self,
        host: Option<&str>,
        port: Option<u16>,
        machine_id: &MachineId,
    ) -> (String, MqttPath, Address) {
        let mqtt = &self.settings.mqtt;
        let address = (host.unwrap_or(&mqtt.host).to_owned(), port.unwrap_or(mqtt.port));
        let orders = self.broker(&address);
        (name(&address), MqttPath { machine_id: machine_id.clone(), orders }, address)
    }

    /// Where latches are shown.
    pub fn display(&mut self) -> Display {
        let address = self.display_address();
        Display { name: name(&address), orders: self.broker(&address) }
    }

    /// Says which machines' path each broker is, and which number that path has; `machines` are all. A broker that is nobody's
    /// path any more is left.
    pub fn route(
        &mut self,
        mut routes: BTreeMap<Address, BTreeMap<MachineId, usize>>,
        machines: &[MachineId],
    ) {
        let display = self.display_address();
        self.brokers.retain(|address, _| routes.contains_key(address) || *address == display);
        for (address, broker) in &self.brokers {
            let routes = routes.remove(address).unwrap_or_default();
            let shown = machines.iter().filter(|_| *address == display);
            let topics = Topics::new(&self.settings.protection, routes.keys(), shown);
            broker.table.send_replace(Table { topics, routes });
        }
    }

    /// Connections that are to be started.
    pub fn take_links(&mut self) -> Vec<Link> {
        std::mem::take(&mut self.links)
    }
}

fn name((host, port): &Address) -> String {
    format!("mqtt {host}:{port}")
}

/// The connection to one broker.
pub struct Link {
    session: Option<Session>,
    client: AsyncClient,
    filters: Filters,
    device_id: DeviceId,
    queue_length: usize,
    is_display: bool,
    changes: watch::Receiver<Table>,
    table: Table,
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
    /// Topics of latches whose retained state is to be taken back.
    taken_back: Vec<String>,
    /// Machines whose reports the broker withholds.
    deaf: BTreeSet<MachineId>,
    /// It withholds requests of people.
    is_refused: bool,
}

impl Link {
    /// Runs until the orders' sender or the reports' receiver is gone.
    pub async fn run(mut self) -> TaskEnd {
        let Some(session) = self.session.take() else { return TaskEnd::Unexpected };
        let (sender, events) = mpsc::channel(self.queue_length);
        self.table = self.changes.borrow_and_update().clone();
        self.filters.replace(self.wanted());
        tokio::select! {
            () = session.run(sender) => TaskEnd::Unexpected,
            end = self.serve(events) => end,
        }
    }

    async fn serve(&mut self, mut events: mpsc::Receiver<SessionEvent>) -> TaskEnd {
        let reports = self.reports.clone();
        loop {
            tokio::select! {
                biased;
                // Before the orders to machines that it names.
                Ok(()) = self.changes.changed() => self.change(),
                order = self.orders.recv() => match order {
                    Some(order) => self.perform(order),
                    None => return TaskEnd::Dismissed,
                },
                permit = reports.reserve(), if !self.state.outbox.is_empty() => {
                    let Ok(permit) = permit else { return TaskEnd::Unexpected };
                    if let Some(report) = self.state.outbox.pop_front() {
                        permit.send(report);
                    }
                }
                event = events.recv(), if self.state.outbox.is_empty() => match event {
                    Some(event) => self.handle(event),
                    None => return TaskEnd::Unexpected,
                },
            }
        }
    }

    fn wanted(&self) -> Vec<String> {
        self.table.topics.filters().into_iter().map(str::to_owned).collect()
    }

    /// Takes other machines.
    fn change(&mut self) {
        let table = self.changes.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.table, table);
        self.filters.exchange(&self.client, self.wanted());
        let latches = self.table.topics.latches();
        let taken_back = &mut self.state.taken_back;
        if self.is_display {
            let gone = before.topics.latches();
            taken_back.extend(gone.difference(&latches).map(|topic| (*topic).to_owned()));
        }
        taken_back.retain(|topic| !latches.contains(topic.as_str()));
        self.take_back();
        self.state.unanswered.retain(|machine_id, _| self.table.routes.contains_key(machine_id));
        let added = |(id, number): &(&MachineId, &usize)| before.routes.get(*id) != Some(*number);
        let added = self.table.routes.iter().filter(added).map(|(id, _)| id.clone());
        for machine_id in added.collect::<Vec<_>>() {
            if self.state.is_connected {
                self.tell(&machine_id, PathEvent::Ready);
            } else if self.state.is_loss_told {
                self.tell(&machine_id, PathEvent::Lost("broker not connected".to_owned()));
            }
        }
    }

    fn take_back(&mut self) {
        if !self.state.is_connected {
            return;
        }
        for topic in std::mem::take(&mut self.state.taken_back) {
            match self.client.try_publish(&topic, QoS::AtLeastOnce, true, Vec::new()) {
                Ok(()) => self.state.unwritten.push_back(None),
                Err(error) => {
                    warn!(topic, %error, "retained state of a latch stays until the next connection");
                    self.state.taken_back.push(topic);
                }
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
                let Some((topic, payload)) = self.table.topics.stop(&order) else { return };
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
                let message = self.table.topics.heartbeat(&machine_id, device_id, count);
                let Some((topic, payload)) = message else { return };
                match self.client.try_publish(topic, QoS::AtLeastOnce, false, payload) {
                    Ok(()) => self.state.unwritten.push_back(None),
                    Err(error) => warn!(%machine_id, %error, "heartbeat not queued"),
                }
            }
            Order::Show(_) if !is_connected => {}
            Order::Show(shown) => {
                let Some((topic, payload)) = self.table.topics.interlock(&shown) else { return };
                match self.client.try_publish(topic, QoS::AtLeastOnce, true, payload) {
                    Ok(()) => self.state.unwritten.push_back(None),
                    Err(error) => {
                        warn!(machine_id = %shown.latch.machine_id, %error, "state of the latch not published");
                    }
                }
            }
        }
    }

    /// A broker that takes nothing must not be sent old signs of life when it wakes up.
    fn is_congested(&self) -> bool {
        self.state.unwritten.len() >= UNWRITTEN_MAX.saturating_mul(self.table.routes.len().max(1))
    }

    fn fail(&mut self, order: StopOrder, why: String) {
        let event = PathEvent::Failed { trip_id: order.trip_id, why };
        self.tell(&order.machine_id, event);
    }

    fn tell(&mut self, machine_id: &MachineId, event: PathEvent) {
        if let Some(number) = self.table.routes.get(machine_id) {
            let path = Some((machine_id.clone(), *number));
            self.state.outbox.push_back(PathReport { path, event });
        }
    }

    /// What a person asks for, also of a machine that has no path over this broker.
    fn tell_asked(&mut self, machine_id: MachineId, event: PathEvent) {
        let number = self.table.routes.get(&machine_id).copied().unwrap_or_default();
        self.state.outbox.push_back(PathReport { path: Some((machine_id, number)), event });
    }

    fn tell_all(&mut self, event: &PathEvent) {
        for machine_id in self.table.routes.keys().cloned().collect::<Vec<_>>() {
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
                self.state.deaf.clear();
                self.state.is_refused = false;
                self.take_back();
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
            SessionEvent::Subscribed { refused } => self.handle_refused(&refused),
            SessionEvent::Written => self.handle_written(Instant::now()),
            SessionEvent::Message { publish, received, .. } => {
                self.handle_message(&publish, received)
            }
        }
    }

    /// Stops can be ordered all the same; whether the machine stands is not heard.
    fn handle_refused(&mut self, refused: &[String]) {
        let mut of_people = Vec::new();
        let mut deaf = BTreeSet::new();
        for filter in refused {
            match self.table.topics.confirmed_on(filter).cloned() {
                Some(machine_id) => {
                    if let Err(why) = check_refused(std::slice::from_ref(filter)) {
                        self.tell(&machine_id, PathEvent::Faulty(why));
                    }
                    deaf.insert(machine_id);
                }
                None => of_people.push(filter.clone()),
            }
        }
        for machine_id in std::mem::replace(&mut self.state.deaf, deaf.clone()) {
            if !deaf.contains(&machine_id) {
                self.tell(&machine_id, PathEvent::Ready);
            }
        }
        let was_refused = std::mem::replace(&mut self.state.is_refused, !of_people.is_empty());
        let event = match check_refused(&of_people) {
            Err(why) => PathEvent::Faulty(why),
            Ok(()) if was_refused => PathEvent::Ready,
            Ok(()) => return,
        };
        self.state.outbox.push_back(PathReport { path: None, event });
    }

    /// The oldest publication not yet on the socket has got there.
    fn handle_written(&mut self, at: Instant) {
        let Some(Some(order)) = self.state.unwritten.pop_front() else { return };
        self.state.unanswered.insert(order.machine_id.clone(), at);
        let event = PathEvent::Written { trip_id: order.trip_id, at };
        self.tell(&order.machine_id, event);
    }

    fn handle_message(&mut self, publish: &Publish, received: Instant) {
        match self.table.topics.parse(&publish.topic, &publish.payload, publish.retain) {
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
                self.tell_asked(machine_id, PathEvent::Reset { operator });
            }
            Ok((machine_id, Report::Shelve(request))) => {
                self.tell_asked(machine_id, PathEvent::Shelve { request, received });
            }
            Ok((machine_id, Report::Learn(order))) => {
                self.tell_asked(machine_id, PathEvent::Learn(order));
            }
            Err(error) => {
                let reason = crate::journal::chain(&error);
                metrics::counter!(telemetry::INPUT_REFUSED, "reason" => "machine-report")
                    .increment(1);
                let asked = self.table.topics.asked_on(&publish.topic);
                match asked.map(|(machine_id, request)| (machine_id.clone(), request)) {
                    // What the broker kept from before was asked by nobody now.
                    Some((machine_id, request)) if !publish.retain => {
                        self.tell_asked(machine_id, PathEvent::Unclear { request, reason });
                    }
                    Some(_) | None => warn!(reason, "report of the machine side ignored"),
                }
            }
        }
    }
}
