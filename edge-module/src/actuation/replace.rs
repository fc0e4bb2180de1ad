//! Which machines and paths there are: at the start, and when the settings change.
//!
//! Nothing here waits or reads a file: it runs on the thread that judges, between two inputs. A machine whose settings name the
//! same paths as before keeps its connections. Paths of others are made anew: what an old one still reports has a number that
//! nobody knows. A connection that no path needs any more ends with the last sender of its orders.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared_proto::model::MachineId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{
    Actuation, Actuator, Health, Machine, ORDERS_OF_A_TURN_MAX, Path, PathReport, TaskEnd, modbus,
    mqtt,
};
use crate::admin::{Board, QuietBoard};
use crate::config::{self, Settings};
use crate::mqtt::source::SessionError;

/// Machines that the queues have room for which are made with the settings of the start.
#[must_use]
pub fn machines_max(settings: &Settings) -> usize {
    let room = settings.protection.path_queue_length / ORDERS_OF_A_TURN_MAX;
    room.max(settings.machines.len())
}

/// The paths' connections, before they run.
pub struct Connections {
    started: Started,
    reports: mpsc::Receiver<PathReport>,
}

impl Connections {
    /// Starts each in a task of its own and gives what they report. None of them ends by itself.
    pub fn start(self, tasks: &mut JoinSet<TaskEnd>) -> mpsc::Receiver<PathReport> {
        self.started.spawn(tasks);
        self.reports
    }
}

/// Connections that are new.
#[derive(Default)]
struct Started {
    links: Vec<mqtt::Link>,
    devices: Vec<modbus::Device>,
}

impl Started {
    fn spawn(self, tasks: &mut JoinSet<TaskEnd>) {
        for link in self.links {
            tasks.spawn(link.run());
        }
        for device in self.devices {
            tasks.spawn(async move {
                device.run().await;
                // It ends with those who order or listen, and in no other way.
                TaskEnd::Dismissed
            });
        }
    }
}

/// Makes paths.
pub(super) struct Maker {
    /// Of the start. Its machines may be others by now.
    settings: Arc<Settings>,
    brokers: mqtt::Brokers,
    reports: mpsc::Sender<PathReport>,
    next_number: usize,
}

impl Maker {
    pub(super) fn new(
        settings: &Settings,
        reports: mpsc::Sender<PathReport>,
    ) -> Result<Self, SessionError> {
        let settings = Arc::new(settings.clone());
        let brokers = mqtt::Brokers::new(Arc::clone(&settings), &reports)?;
        Ok(Self { settings, brokers, reports, next_number: 0 })
    }

    pub(super) fn display(&mut self) -> mqtt::Display {
        self.brokers.display()
    }

    fn machine(
        &mut self,
        machine_id: &MachineId,
        configured: Vec<config::Actuator>,
        started: &mut Started,
    ) -> Machine {
        let mut machine = Machine::default();
        for actuator in &configured {
            let number = self.next_number;
            self.next_number += 1;
            let (name, handle): (String, Box<dyn Actuator>) = match actuator {
                config::Actuator::Mqtt { host, port } => {
                    let (name, path, address) =
                        self.brokers.path(host.as_deref(), *port, machine_id);
                    machine.routes.push((address, number));
                    (name, Box::new(path))
                }
                config::Actuator::ModbusTcp(settings) => {
                    let path = (machine_id.clone(), number);
                    let (handle, device) =
                        modbus::device(&self.settings, settings.clone(), path, &self.reports);
                    let name = device.name().to_owned();
                    started.devices.push(device);
                    (name, Box::new(handle))
                }
            };
            machine.paths.push(Path::new(number, name, actuator.kind(), handle));
        }
        machine.configured = configured;
        machine
    }

    fn route(&mut self, machines: &BTreeMap<MachineId, Machine>) {
        let mut routes: BTreeMap<mqtt::Address, BTreeMap<MachineId, usize>> = BTreeMap::new();
        for (machine_id, machine) in machines {
            for (address, number) in &machine.routes {
                let routes = routes.entry(address.clone()).or_default();
                routes.insert(machine_id.clone(), *number);
            }
        }
        let machines: Vec<MachineId> = machines.keys().cloned().collect();
        self.brokers.route(routes, &machines);
    }
}

impl Actuation {
    /// The paths of the settings; nothing is connected yet.
    ///
    /// # Errors
    /// A broker's password cannot be read.
    pub fn new(settings: &Settings, board: &Board) -> Result<(Self, Connections), SessionError> {
        let (sender, reports) = mpsc::channel(settings.protection.path_queue_length);
        let mut maker = Maker::new(settings, sender)?;
        let mut this = Self {
            machines: BTreeMap::new(),
            display: maker.display(),
            maker,
            display_health: Health::Starting,
            confirmation_deadline: settings.protection.confirmation_deadline,
            board: QuietBoard::new(board),
            is_health_changed: true,
        };
        let machines =
            settings.machines.iter().map(|machine| (machine.id.clone(), machine.paths()));
        let started = this.exchange(machines.collect());
        Ok((this, Connections { started, reports }))
    }

    /// Takes these machines with their paths in place of those so far. Not for a machine with an open stop, unless its paths
    /// stay as they are.
    pub fn replace(
        &mut self,
        machines: BTreeMap<MachineId, Vec<config::Actuator>>,
        tasks: &mut JoinSet<TaskEnd>,
    ) {
        self.exchange(machines).spawn(tasks);
    }

    fn exchange(&mut self, machines: BTreeMap<MachineId, Vec<config::Actuator>>) -> Started {
        let mut before = std::mem::take(&mut self.machines);
        let mut started = Started::default();
        for (machine_id, configured) in machines {
            let machine = match before.remove(&machine_id) {
                Some(machine) if machine.configured == configured => machine,
                Some(_) | None => self.maker.machine(&machine_id, configured, &mut started),
            };
            self.machines.insert(machine_id, machine);
        }
        self.maker.route(&self.machines);
        self.is_health_changed = true;
        started.links = self.maker.brokers.take_links();
        started
    }
}
