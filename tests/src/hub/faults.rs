//! What goes wrong on command.

use std::time::Duration;

/// What goes wrong from now on, until [`heal`](super::HubStandIn::heal). Several may at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A CONNECT is never answered, as by edgeHub 1.6.0.
    NoConnack,
    /// Messages are kept; their acknowledgements wait for the healing.
    NoPuback,
    /// A message is kept and acknowledged, then the connection breaks.
    PubackThenDrop,
    /// A message is kept, then the connection breaks without an acknowledgement.
    KeepThenDrop,
    /// Messages are acknowledged and lost, as without a route.
    PubackAndLose,
    /// Connections stay open and nothing is read or written; new ones are taken and get no TLS.
    Frozen,
    /// New connections are closed before TLS.
    CloseAtOnce,
    /// CONNACK 5.
    RefuseCredentials,
    /// CONNACK 3.
    Unavailable,
    /// The next so many requests of the twin are refused with this status and change nothing.
    TwinStatus(u16, u32),
    /// Requests of the twin are carried out and never answered.
    NoTwinAnswer,
    /// Changes of desired properties are not sent.
    DropPatch,
    /// So long between an acknowledgement and the next.
    SlowPubacks(Duration),
}

/// What goes wrong with the workload API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadFault {
    /// There is no socket.
    Down,
    /// Each request is answered with this status.
    Status(u16),
    /// Connections are closed without an answer.
    CloseAtOnce,
}

/// How the provisioning service answers instead of assigning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationFault {
    /// The next so many questions are refused with this status.
    Status(u16, u32),
    /// The registration has failed.
    Failed,
    /// The enrolment is disabled.
    Disabled,
    /// The device is taken from its hub.
    Unassigned,
    /// Questions are acknowledged and never answered.
    NoAnswer,
}

/// What is to go wrong now.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) in_force: Vec<Fault>,
    /// The status of the next answers to twin requests, and of how many.
    pub(super) twin_status: Option<(u16, u32)>,
    pub(super) registration: Option<RegistrationFault>,
}

impl Faults {
    pub(super) fn has(&self, fault: &Fault) -> bool {
        self.in_force.contains(fault)
    }

    pub(super) fn slow_pubacks(&self) -> Option<Duration> {
        self.in_force.iter().find_map(|fault| match fault {
            Fault::SlowPubacks(pause) => Some(*pause),
            Fault::NoConnack
            | Fault::NoPuback
            | Fault::PubackThenDrop
            | Fault::KeepThenDrop
            | Fault::PubackAndLose
            | Fault::Frozen
            | Fault::CloseAtOnce
            | Fault::RefuseCredentials
            | Fault::Unavailable
            | Fault::TwinStatus(..)
            | Fault::NoTwinAnswer
            | Fault::DropPatch => None,
        })
    }
}
