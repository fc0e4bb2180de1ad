//! Ways to stop a machine, behind one trait, and who gets which order.
//!
//! A machine has paths in the order of its settings ([`mqtt`]: the command topic of a broker; [`modbus`]: a coil). Each path
//! has a connection task and a bounded queue of its own on the protection thread's runtime; an order is put into that queue and
//! nobody waits, so that a path that hangs delays no other and not the judging.
//!
//! - A first stop takes the first path. When that one is not ready, refuses the order, fails to write it or loses its connection
//!   before standstill is confirmed, all other paths take the stop at once, without waiting for the deadline: a path that is
//!   known to fail is no reason to let a machine turn for another deadline.
//! - A stop that was not confirmed by its deadline takes all paths.
//! - A path that comes back while a stop is open is ordered again.
//! - Any path's report of standstill confirms, if it was asked for after the order. Standstill that one path confirmed is taken
//!   back by "running" of a path that had itself seen standstill, or, once, of one that still has not after the deadline: two
//!   paths that contradict each other are a machine of which nobody knows that it stands still.
//! - Other machines and paths may be put in place while the rest goes on (module `replace`).
//! - What is still queued on a path when the stop is confirmed is withdrawn: it must not stop the machine after its reset.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use edge_core::interlock::{MachineState, ShelveRequest, StopReach};
use shared_proto::model::MachineId;
use tracing::{debug, error, info, warn};

use crate::admin::{Part, QuietBoard};
use crate::config;
use crate::telemetry;
use messages::{LearnOrder, ShownLatch};

pub mod messages;
pub mod modbus;
pub mod mqtt;
mod replace;
#[cfg(test)]
mod tests;

pub use replace::{Connections, machines_max};

/// Paths that the page names when they are not ready; the rest is counted.
const SHOWN_MAX: usize = 8;
/// Orders that one turn of the judging loop may give to a machine.
const ORDERS_OF_A_TURN_MAX: usize = 8;

/// How a task of the stop path has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// Nobody needs it any more.
    Dismissed,
    /// Without this one machines are not protected.
    Unexpected,
}

/// A stop as a path is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOrder {
    /// Which machine.
    pub machine_id: MachineId,
    /// Name of the trip.
    pub trip_id: String,
    /// 1 for the first, higher when it was not confirmed.
    pub attempt: u32,
}

/// An order that a path did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its queue is full: raise protection.path-queue-length, or look why it hangs")]
pub struct QueueFull;

/// One path to one machine. No call waits; what comes of it is told by [`PathReport`]s.
pub trait Actuator: Send {
    /// Orders a stop. A path that is not connected reports the failure, or does it when it comes back.
    ///
    /// # Errors
    /// The queue is full.
    fn stop(&self, order: StopOrder) -> Result<(), QueueFull>;

    /// Gives a sign of life, if this path has one and is connected.
    ///
    /// # Errors
    /// The queue is full.
    fn heartbeat(&self, count: u64) -> Result<(), QueueFull>;

    /// Forgets a stop that is not written yet.
    ///
    /// # Errors
    /// The queue is full.
    fn withdraw(&self) -> Result<(), QueueFull>;
}

/// What a path tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// It is connected and answers.
    Ready,
    /// It is not, for this reason.
    Lost(String),
    /// It is connected and refuses what it is asked for.
    Faulty(String),
    /// A stop is on its socket.
    Written {
        /// Which trip.
        trip_id: String,
        /// When.
        at: Instant,
    },
    /// A stop could not be written, or was refused.
    Failed {
        /// Which trip.
        trip_id: String,
        /// Why.
        why: String,
    },
    /// The machine's state was read.
    State {
        /// What it does.
        state: MachineState,
        /// Not older than this.
        asked: Instant,
        /// When we had it.
        received: Instant,
        /// It had lain in a broker: no answer to anything.
        is_retained: bool,
    },
    /// A person asks for a reset.
    Reset {
        /// Who.
        operator: String,
    },
    /// A person takes a rule out of force, or puts it in force again.
    Shelve {
        /// Who, which, for how long and why.
        request: ShelveRequest,
        /// When we had it.
        received: Instant,
    },
    /// A person lets the machine be learnt, or ends that.
    Learn(LearnOrder),
    /// A person asks for something that cannot be understood.
    Unclear {
        /// `reset`, `shelve` or `learn`.
        request: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// An event of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathReport {
    /// The machine and the number of its path; none: the connection to the broker of `[mqtt]` itself.
    pub path: Option<(MachineId, usize)>,
    /// What it tells.
    pub event: PathEvent,
}

/// What the interlocks have to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A stop is on the socket of the path with this name.
    Written {
        /// Which machine.
        machine_id: MachineId,
        /// When.
        at: Instant,
        /// Name of the path.
        path: String,
    },
    /// The machine side reports.
    State {
        /// Which machine.
        machine_id: MachineId,
        /// What it does.
        state: MachineState,
        /// When we had it.
        received: Instant,
        /// Name of the path.
        path: String,
    },
    /// A person asks for a reset.
    Reset {
        /// Which machine.
        machine_id: MachineId,
        /// Who.
        operator: String,
    },
    /// A person takes a rule out of force, or puts it in force again.
    Shelve {
        /// Which machine.
        machine_id: MachineId,
        /// Who, which rule, for how long and why.
        request: ShelveRequest,
        /// When we had it.
        received: Instant,
    },
    /// A person lets the machine be learnt, or ends that.
    Learn {
        /// Which machine.
        machine_id: MachineId,
        /// Who, and how.
        order: LearnOrder,
    },
    /// A person asks for something that cannot be understood.
    Unclear {
        /// Which machine.
        machine_id: MachineId,
        /// `reset`, `shelve` or `learn`.
        request: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker is back: the latches are to be shown again.
    ShowLatches,
}

#[derive(Debug, PartialEq, Eq)]
enum Health {
    Starting,
    Ready,
    Faulty(String),
    Lost(String),
}

impl Health {
    /// Why a first stop must not rely on it; `None` when it may.
    fn obstacle(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Starting => Some("starting"),
            Self::Faulty(why) | Self::Lost(why) => Some(why),
        }
    }
}

struct Path {
    /// Its name in reports; none of a machine is given twice.
    number: usize,
    name: String,
    kind: &'static str,
    actuator: Box<dyn Actuator>,
    health: Health,
    /// It was given the open stop, in its latest attempt.
    is_ordered: bool,
    /// It has reported standstill since the order.
    is_standing: bool,
    /// It has contradicted the confirmation of another path once.
    has_contradicted: bool,
}

struct OpenStop {
    trip_id: String,
    attempt: u32,
    ordered_at: Instant,
}

#[derive(Default)]
struct Machine {
    configured: Vec<config::Actuator>,
    paths: Vec<Path>,
    /// The brokers among them, and the number of each path.
    routes: Vec<(mqtt::Address, usize)>,
    open: Option<OpenStop>,
    confirmed_at: Option<Instant>,
}

/// All paths of all machines.
pub struct Actuation {
    machines: BTreeMap<MachineId, Machine>,
    maker: replace::Maker,
    display: mqtt::Display,
    display_health: Health,
    confirmation_deadline: Duration,
    board: QuietBoard,
    is_health_changed: bool,
}

impl Actuation {
    /// Orders a stop on the first path or on all, and on all when the first cannot be relied on.
    pub fn stop(&mut self, machine_id: &MachineId, trip_id: &str, attempt: u32, reach: StopReach) {
        let Some(machine) = self.machines.get_mut(machine_id) else { return };
        let (trip_id, ordered_at) = (trip_id.to_owned(), Instant::now());
        machine.open = Some(OpenStop { trip_id, attempt, ordered_at });
        machine.confirmed_at = None;
        for path in &mut machine.paths {
            (path.is_ordered, path.is_standing, path.has_contradicted) = (false, false, false);
        }
        let is_first_enough = match reach {
            StopReach::All => false,
            StopReach::First => machine.order(machine_id, 0),
        };
        if !is_first_enough {
            machine.order_rest(machine_id);
        }
    }

    /// Standstill is confirmed: nothing more is to be ordered.
    pub fn confirmed(&mut self, machine_id: &MachineId) {
        let Some(machine) = self.machines.get_mut(machine_id) else { return };
        machine.open = None;
        machine.confirmed_at = Some(Instant::now());
        machine.withdraw(machine_id);
    }

    /// The latch is cleared: what the machine does is its operator's business.
    pub fn released(&mut self, machine_id: &MachineId) {
        let Some(machine) = self.machines.get_mut(machine_id) else { return };
        machine.open = None;
        machine.confirmed_at = None;
        machine.withdraw(machine_id);
    }

    /// Gives a sign of life on every path. To be called by the loop that judges and by nothing else: when it hangs, the signs
    /// must stay away.
    pub fn heartbeat(&mut self, count: u64) {
        for (machine_id, machine) in &self.machines {
            for path in &machine.paths {
                if let Err(error) = path.actuator.heartbeat(count) {
                    warn!(%machine_id, path = path.name, %error, "heartbeat not queued");
                }
            }
        }
    }

    /// Shows the state of a latch, retained, on the broker of `[mqtt]`.
    ///
    /// # Errors
    /// The queue is full.
    pub fn show(&self, shown: ShownLatch) -> Result<(), QueueFull> {
        self.display.show(shown)
    }

    /// Takes what a path tells and answers with what the interlocks have to know.
    pub fn handle(&mut self, report: PathReport) -> Option<Told> {
        let Some((machine_id, number)) = report.path else {
            return self.handle_display(report.event);
        };
        let machine = self.machines.get_mut(&machine_id)?;
        let index = match machine.index_of(number) {
            Some(index) => index,
            // What a person asks for need not come over a path.
            None if report.event.is_asked() => 0,
            None => return None,
        };
        let path = machine.paths.get_mut(index)?;
        match report.event {
            PathEvent::Ready => self.handle_health(&machine_id, index, Health::Ready),
            PathEvent::Lost(why) => self.handle_health(&machine_id, index, Health::Lost(why)),
            PathEvent::Faulty(why) => self.handle_health(&machine_id, index, Health::Faulty(why)),
            PathEvent::Written { trip_id, at } => {
                let path = path.name.clone();
                let is_open = machine.open.as_ref().is_some_and(|open| open.trip_id == trip_id);
                return is_open.then_some(Told::Written { machine_id, at, path });
            }
            PathEvent::Failed { trip_id, why } => {
                if path.health == Health::Starting {
                    info!(%machine_id, path = path.name, trip_id, why, "stop is ordered again when this path is there");
                } else {
                    error!(%machine_id, path = path.name, trip_id, why, "stop not delivered");
                    path.count_failure("delivery");
                }
                if machine.open.as_ref().is_some_and(|open| open.trip_id == trip_id) {
                    machine.order_rest(&machine_id);
                }
            }
            PathEvent::State { state, asked, received, is_retained } => {
                let deadline = self.confirmation_deadline;
                let path = path.name.clone();
                return machine
                    .believes(index, state, asked, is_retained, deadline)
                    .then_some(Told::State { machine_id, state, received, path });
            }
            PathEvent::Reset { operator } => return Some(Told::Reset { machine_id, operator }),
            PathEvent::Shelve { request, received } => {
                return Some(Told::Shelve { machine_id, request, received });
            }
            PathEvent::Learn(order) => return Some(Told::Learn { machine_id, order }),
            PathEvent::Unclear { request, reason } => {
                return Some(Told::Unclear { machine_id, request, reason });
            }
        }
        None
    }

    /// Notes how a path stands and orders what that calls for.
    fn handle_health(&mut self, machine_id: &MachineId, index: usize, health: Health) {
        let Some(machine) = self.machines.get_mut(machine_id) else { return };
        let Some(path) = machine.paths.get_mut(index) else { return };
        match health.obstacle() {
            None => info!(%machine_id, path = path.name, "path to the machine is ready"),
            Some(why) => {
                warn!(%machine_id, path = path.name, why, "path to the machine is not ready");
            }
        }
        let is_ready = health == Health::Ready;
        let is_lost = matches!(health, Health::Lost(_));
        // One that only refused something keeps what it was told.
        let is_back = is_ready && !matches!(path.health, Health::Faulty(_));
        path.health = health;
        self.is_health_changed = true;
        let is_ordered = path.is_ordered;
        if machine.open.is_none() {
            return;
        }
        if is_back {
            machine.order(machine_id, index);
        } else if is_lost && is_ordered {
            // Nobody knows what became of the order. It is given here again when the path is back.
            machine.order_rest(machine_id);
        }
    }

    fn handle_display(&mut self, event: PathEvent) -> Option<Told> {
        match event {
            PathEvent::Ready => {
                self.display_health = Health::Ready;
                self.is_health_changed = true;
                Some(Told::ShowLatches)
            }
            PathEvent::Lost(why) | PathEvent::Faulty(why) => {
                self.display_health = Health::Lost(why);
                self.is_health_changed = true;
                None
            }
            PathEvent::Written { .. }
            | PathEvent::Failed { .. }
            | PathEvent::State { .. }
            | PathEvent::Reset { .. }
            | PathEvent::Shelve { .. }
            | PathEvent::Learn(_)
            | PathEvent::Unclear { .. } => None,
        }
    }

    /// Brings the page up to date if something has changed.
    pub fn show_health(&mut self) {
        if !std::mem::replace(&mut self.is_health_changed, false) {
            self.board.hand_over();
            return;
        }
        let mut obstacles = Vec::new();
        if let Some(why) = self.display_health.obstacle() {
            obstacles.push(format!("{}: {why}", self.display.name()));
        }
        for (machine_id, machine) in &self.machines {
            for path in &machine.paths {
                if let Some(why) = path.health.obstacle() {
                    obstacles.push(format!("machine {machine_id} path {}: {why}", path.name));
                }
            }
        }
        let more = obstacles.len().saturating_sub(SHOWN_MAX);
        obstacles.truncate(SHOWN_MAX);
        if more > 0 {
            obstacles.push(format!("and {more} more"));
        }
        let state = if obstacles.is_empty() { Ok(()) } else { Err(obstacles.join("; ")) };
        self.board.set(Part::Actuator, state);
    }
}

impl PathEvent {
    /// Whether a person asks for something.
    const fn is_asked(&self) -> bool {
        match self {
            Self::Reset { .. } | Self::Shelve { .. } | Self::Learn(_) | Self::Unclear { .. } => {
                true
            }
            Self::Ready
            | Self::Lost(_)
            | Self::Faulty(_)
            | Self::Written { .. }
            | Self::Failed { .. }
            | Self::State { .. } => false,
        }
    }
}

impl Path {
    const fn new(
        number: usize,
        name: String,
        kind: &'static str,
        actuator: Box<dyn Actuator>,
    ) -> Self {
        Self {
            number,
            name,
            kind,
            actuator,
            health: Health::Starting,
            is_ordered: false,
            is_standing: false,
            has_contradicted: false,
        }
    }

    fn count_failure(&self, reason: &'static str) {
        metrics::counter!(telemetry::ACTUATOR_FAILURES, "kind" => self.kind, "reason" => reason)
            .increment(1);
    }

    /// Orders the stop; answers whether this path can be relied on.
    fn order(&mut self, order: StopOrder) -> bool {
        let (machine_id, trip_id) = (order.machine_id.clone(), order.trip_id.clone());
        let attempt = order.attempt;
        metrics::counter!(telemetry::ACTUATOR_COMMANDS, "kind" => self.kind).increment(1);
        self.is_ordered = true;
        if let Err(error) = self.actuator.stop(order) {
            error!(%machine_id, path = self.name, trip_id, attempt, %error, "stop not queued");
            self.count_failure("queue-full");
            return false;
        }
        let obstacle = self.health.obstacle();
        if self.health == Health::Starting {
            info!(%machine_id, path = self.name, trip_id, attempt, "stop ordered on a path that is starting");
        } else if let Some(why) = obstacle {
            error!(%machine_id, path = self.name, trip_id, attempt, why, "stop ordered on a path that is not ready");
            self.count_failure("not-ready");
        }
        obstacle.is_none()
    }
}

impl Machine {
    fn index_of(&self, number: usize) -> Option<usize> {
        self.paths.iter().position(|path| path.number == number)
    }

    /// Orders the open stop on one path; answers whether it can be relied on.
    fn order(&mut self, machine_id: &MachineId, index: usize) -> bool {
        let (Some(open), Some(path)) = (&self.open, self.paths.get_mut(index)) else {
            return false;
        };
        let (trip_id, attempt) = (open.trip_id.clone(), open.attempt);
        path.order(StopOrder { machine_id: machine_id.clone(), trip_id, attempt })
    }

    /// Orders the open stop on each path that has not got it yet.
    fn order_rest(&mut self, machine_id: &MachineId) {
        for index in 0..self.paths.len() {
            if !self.paths[index].is_ordered {
                self.order(machine_id, index);
            }
        }
    }

    fn withdraw(&self, machine_id: &MachineId) {
        for path in &self.paths {
            if let Err(error) = path.actuator.withdraw() {
                warn!(%machine_id, path = path.name, %error, "stop not withdrawn");
            }
        }
    }

    /// Whether the interlock is to hear this report; see the module's description.
    fn believes(
        &mut self,
        index: usize,
        state: MachineState,
        asked: Instant,
        is_retained: bool,
        deadline: Duration,
    ) -> bool {
        let Some(path) = self.paths.get_mut(index) else { return false };
        match state {
            MachineState::Stopped => {
                let is_older = self.open.as_ref().is_some_and(|open| asked < open.ordered_at);
                if is_retained || is_older {
                    debug!(path = path.name, is_retained, "old report of standstill ignored");
                    return false;
                }
                path.is_standing = true;
                true
            }
            MachineState::Running | MachineState::Stopping => {
                let was_standing = std::mem::replace(&mut path.is_standing, false);
                let Some(confirmed_at) = self.confirmed_at else { return true };
                if was_standing {
                    return true;
                }
                let is_late = asked.saturating_duration_since(confirmed_at) >= deadline;
                is_late && !std::mem::replace(&mut path.has_contradicted, true)
            }
        }
    }
}
