//! Which way records leave: to Kafka, or to the hub while Kafka cannot be reached.
//!
//! The caller says what it sees and does what [`Switch::poll`] tells:
//!
//! 1. [`Switch::active`] is where records may go now; nothing while one way is being left.
//! 2. [`Step::Leave`]: take back what is in flight on that way, and report [`Switch::handle_settled`] when nothing is any more. Only
//!    then the other way is used, so that no record is on both at the same time.
//! 3. [`Step::Ask`]: see whether Kafka answers, and report it with [`Switch::handle_kafka`].
//!
//! Kafka counts as away when records are owed and none was delivered for `hub_after`. It is left only for a hub that is connected: one
//! that is not would take nothing either. A return to Kafka that delivers nothing makes the wait before the next one twice as long, up
//! to [`RETURN_WAIT_MAX`], so that a broker which answers and takes no records does not hold up the records most of the time.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

/// Longest wait between two attempts to go back to Kafka.
pub const RETURN_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// A way to the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Upstream {
    /// Kafka.
    Kafka,
    /// IoT Edge or IoT Hub.
    Hub,
}

impl Upstream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Kafka, Self::Hub];

    /// The word in settings, labels and pages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Hub => "hub",
        }
    }
}

/// Which ways there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Kafka alone.
    Kafka,
    /// The hub alone.
    Hub,
    /// Kafka, and the hub while it is away.
    KafkaThenHub,
}

/// When one way is left for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Which ways there are.
    pub ways: Ways,
    /// So long nothing was delivered although something is owed: Kafka is away.
    pub hub_after: Duration,
    /// How often Kafka is asked meanwhile; nothing: it is not, and the hub is used to the end of the run.
    pub ask_interval: Option<Duration>,
}

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take back what is in flight there; nothing more may be sent meanwhile.
    Leave(Upstream),
    /// Records go there from now on.
    Use(Upstream),
    /// See whether Kafka answers.
    Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Using(Upstream),
    /// The caller takes back what is in flight.
    Leaving(Upstream),
    /// Nothing is in flight any more: the next step says where to.
    Between(Upstream),
}

/// The way in use.
#[derive(Debug)]
pub struct Switch {
    settings: UpstreamSettings,
    phase: Phase,
    /// Since when Kafka owes a delivery.
    silent_since: Option<Instant>,
    is_hub_connected: bool,
    /// Kafka has delivered since it is in use.
    has_delivered: bool,
    /// When Kafka is asked next.
    ask_at: Option<Instant>,
    /// Whether the caller is asking.
    is_asking: bool,
    return_wait: Duration,
}

impl Switch {
    /// Begins with the first way that there is.
    #[must_use]
    pub fn new(settings: UpstreamSettings) -> Self {
        let first = match settings.ways {
            Ways::Kafka | Ways::KafkaThenHub => Upstream::Kafka,
            Ways::Hub => Upstream::Hub,
        };
        Self {
            settings,
            phase: Phase::Using(first),
            silent_since: None,
            is_hub_connected: false,
            has_delivered: false,
            ask_at: None,
            is_asking: false,
            return_wait: settings.ask_interval.unwrap_or(RETURN_WAIT_MAX),
        }
    }

    /// Where records may be sent now.
    #[must_use]
    pub const fn active(&self) -> Option<Upstream> {
        match self.phase {
            Phase::Using(upstream) => Some(upstream),
            Phase::Leaving(_) | Phase::Between(_) => None,
        }
    }

    /// The way in use, or the one that is being left.
    #[must_use]
    pub const fn shown(&self) -> Upstream {
        match self.phase {
            Phase::Using(upstream) | Phase::Leaving(upstream) | Phase::Between(upstream) => {
                upstream
            }
        }
    }

    /// Takes note whether anything is owed to Kafka. What is not owed cannot be missing.
    pub fn handle_owed(&mut self, is_owed: bool, now: Instant) {
        if !is_owed {
            self.silent_since = None;
        } else if self.silent_since.is_none() {
            self.silent_since = Some(now);
        }
    }

    /// Takes note that Kafka has acknowledged a record.
    pub fn handle_delivered(&mut self, now: Instant) {
        if self.silent_since.is_some() {
            self.silent_since = Some(now);
        }
        if self.phase == Phase::Using(Upstream::Kafka) {
            self.has_delivered = true;
        }
    }

    /// Takes note whether the hub is connected.
    pub const fn handle_hub(&mut self, is_connected: bool) {
        self.is_hub_connected = is_connected;
    }

    /// Takes the answer to [`Step::Ask`].
    pub fn handle_kafka(&mut self, answers: bool, now: Instant) {
        if !std::mem::take(&mut self.is_asking) {
            return;
        }
        if answers && self.phase == Phase::Using(Upstream::Hub) {
            self.phase = Phase::Leaving(Upstream::Hub);
            self.ask_at = None;
        } else {
            self.ask_at = self.settings.ask_interval.map(|interval| now + interval);
        }
    }

    /// Takes note that nothing is in flight any more.
    pub fn handle_settled(&mut self) {
        if let Phase::Leaving(from) = self.phase {
            self.phase = Phase::Between(from);
        }
    }

    /// What is to be done now; to be called until it says nothing. While a way is being left it says so each time.
    pub fn poll(&mut self, now: Instant) -> Option<Step> {
        match self.phase {
            Phase::Using(Upstream::Kafka) if self.is_away(now) => {
                self.phase = Phase::Leaving(Upstream::Kafka);
                Some(Step::Leave(Upstream::Kafka))
            }
            Phase::Using(Upstream::Hub) if !self.is_asking && self.is_time_to_ask(now) => {
                self.is_asking = true;
                Some(Step::Ask)
            }
            Phase::Using(Upstream::Kafka | Upstream::Hub) => None,
            Phase::Leaving(from) => Some(Step::Leave(from)),
            Phase::Between(Upstream::Kafka) => {
                if self.has_delivered {
                    self.return_wait = self.settings.ask_interval.unwrap_or(RETURN_WAIT_MAX);
                }
                self.ask_at = self.settings.ask_interval.map(|_| now + self.return_wait);
                // For the next stay, unless that delivers.
                self.return_wait = (self.return_wait * 2).min(RETURN_WAIT_MAX);
                self.phase = Phase::Using(Upstream::Hub);
                Some(Step::Use(Upstream::Hub))
            }
            Phase::Between(Upstream::Hub) => {
                self.has_delivered = false;
                // What was owed before counts from now on.
                self.silent_since = self.silent_since.map(|_| now);
                self.phase = Phase::Using(Upstream::Kafka);
                Some(Step::Use(Upstream::Kafka))
            }
        }
    }

    /// When to call [`Switch::poll`] again although nothing was reported.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Using(Upstream::Kafka) if self.may_leave_kafka() => {
                self.silent_since.map(|since| since + self.settings.hub_after)
            }
            Phase::Using(Upstream::Hub) if !self.is_asking => self.ask_at,
            Phase::Using(Upstream::Kafka | Upstream::Hub)
            | Phase::Leaving(_)
            | Phase::Between(_) => None,
        }
    }

    /// How long nothing was delivered by Kafka although something is owed.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        self.silent_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn is_away(&self, now: Instant) -> bool {
        self.may_leave_kafka()
            && self.silent_since.is_some()
            && self.silence(now) >= self.settings.hub_after
    }

    fn may_leave_kafka(&self) -> bool {
        self.settings.ways == Ways::KafkaThenHub && self.is_hub_connected
    }

    fn is_time_to_ask(&self, now: Instant) -> bool {
        self.settings.ways == Ways::KafkaThenHub && self.ask_at.is_some_and(|at| at <= now)
    }
}
