//! The sessions that bring sensors to the stop path.
//!
//! A broker delivers to one session in the order in which it received: behind a flood everything else of the same session is
//! late. A topic filter with `{machine}` in it therefore brings each machine in a session of its own, and its waveforms in
//! another than its readings, as long as there are no more than `protection.sessions-max`; beyond that they share. Filters
//! without `{machine}` have one session for all of them. What the sessions have read waits in a short queue each, and these are
//! emptied in turn: a session that floods fills its own queue and then its own socket.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use rumqttc::{AsyncClient, Publish};
use shared_proto::model::MachineId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::source::{
    Credentials, Filters, Session, SessionError, SessionEvent, SessionKind, check_refused,
};
use crate::actuation::TaskEnd;
use crate::config::Settings;
use crate::intake::{InputKind, InputTopics};

/// Messages that were read from a session's socket and wait to be taken in. What floods waits in its socket instead.
const QUEUE_LENGTH: usize = 16;

/// What the sessions tell.
#[derive(Debug)]
pub enum SensorEvent {
    /// All sessions are connected, or how many are not.
    Health(Result<(), String>),
    /// A message of a sensor.
    Message {
        /// The message.
        publish: Publish,
        /// When it was read from the socket.
        received: Instant,
    },
}

/// Whose messages come together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// Filters without `{machine}`.
    Common,
    /// Of one machine.
    Machine(MachineId, InputKind),
}

struct Line {
    client: AsyncClient,
    filters: Filters,
    groups: BTreeSet<Group>,
    events: mpsc::Receiver<SessionEvent>,
    is_running: bool,
    is_connected: bool,
    /// Filters that the broker refuses.
    refused: Vec<String>,
}

/// All sessions of the stop path's sensors.
pub struct SensorSessions {
    /// Of the start. Its machines may be others by now.
    settings: Arc<Settings>,
    topics: InputTopics,
    credentials: Credentials,
    lines: Vec<Line>,
    /// Not running yet.
    prepared: Vec<(Session, mpsc::Sender<SessionEvent>)>,
    /// Whose turn it is.
    next: usize,
}

impl SensorSessions {
    /// Sessions for the machines of the settings; nothing is connected yet.
    ///
    /// # Errors
    /// The password cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, SessionError> {
        let mut this = Self {
            settings: Arc::new(settings.clone()),
            topics: InputTopics::new(&settings.mqtt),
            credentials: Credentials::read(&settings.mqtt)?,
            lines: Vec::new(),
            prepared: Vec::new(),
            next: 0,
        };
        this.assign(settings.machines.iter().map(|machine| &machine.id));
        Ok(this)
    }

    /// Starts what is not running yet. None of the tasks ends by itself.
    pub fn start(&mut self, tasks: &mut JoinSet<TaskEnd>) {
        self.lines.iter_mut().for_each(|line| line.is_running = true);
        for (session, events) in self.prepared.drain(..) {
            tasks.spawn(async move {
                session.run(events).await;
                TaskEnd::Unexpected
            });
        }
    }

    /// Listens to these machines in place of those so far. Who stays keeps its session.
    pub fn replace<'a>(
        &mut self,
        machines: impl Iterator<Item = &'a MachineId>,
        tasks: &mut JoinSet<TaskEnd>,
    ) {
        self.assign(machines);
        self.start(tasks);
    }

    fn assign<'a>(&mut self, machines: impl Iterator<Item = &'a MachineId>) {
        let mut wanted = self.wanted(machines);
        for line in &mut self.lines {
            line.groups.retain(|group| wanted.remove(group));
        }
        for group in wanted {
            self.line_for_one_more().groups.insert(group);
        }
        for line in &self.lines {
            let filters = line.groups.iter().flat_map(|group| match group {
                Group::Common => self.topics.common_filters(),
                Group::Machine(machine_id, kind) => self.topics.machine_filters(machine_id, *kind),
            });
            match line.is_running {
                true => line.filters.exchange(&line.client, filters.collect()),
                false => drop(line.filters.replace(filters.collect())),
            }
        }
    }

    fn wanted<'a>(&self, machines: impl Iterator<Item = &'a MachineId>) -> BTreeSet<Group> {
        let mut groups = BTreeSet::new();
        if !self.topics.common_filters().is_empty() {
            groups.insert(Group::Common);
        }
        for machine_id in machines {
            for kind in [InputKind::Readings, InputKind::Waveform] {
                if !self.topics.machine_filters(machine_id, kind).is_empty() {
                    groups.insert(Group::Machine(machine_id.clone(), kind));
                }
            }
        }
        groups
    }

    /// An empty session, a new one, or the one that the fewest share.
    fn line_for_one_more(&mut self) -> &mut Line {
        let found = self.lines.iter().enumerate().min_by_key(|(_, line)| line.groups.len());
        let index = match found {
            Some((index, line)) if line.groups.is_empty() => index,
            Some((index, _)) if self.lines.len() >= self.settings.protection.sessions_max => index,
            Some(_) | None => {
                let line = self.prepare();
                self.lines.push(line);
                self.lines.len() - 1
            }
        };
        &mut self.lines[index]
    }

    fn prepare(&mut self) -> Line {
        let kind = SessionKind::Protection;
        let client_id = match self.lines.len() {
            0 => self.settings.client_id(kind.as_str()),
            more => self.settings.client_id(&format!("{}-{}", kind.as_str(), more + 1)),
        };
        let address = (self.settings.mqtt.host.as_str(), self.settings.mqtt.port);
        let session = Session::with_broker(
            &self.settings,
            kind,
            client_id,
            address,
            &self.credentials,
            Vec::new(),
        );
        let (sender, events) = mpsc::channel(QUEUE_LENGTH);
        let line = Line {
            client: session.client(),
            filters: session.filters(),
            groups: BTreeSet::new(),
            events,
            is_running: false,
            is_connected: false,
            refused: Vec::new(),
        };
        self.prepared.push((session, sender));
        line
    }

    /// Waits for the next event. Can be cancelled without losing one.
    pub async fn recv(&mut self) -> SensorEvent {
        loop {
            let (index, event) = poll_fn(|context| {
                for offset in 0..self.lines.len() {
                    let index = (self.next + offset) % self.lines.len();
                    // A session that ends is noticed by who watches the tasks.
                    if let Poll::Ready(Some(event)) = self.lines[index].events.poll_recv(context) {
                        return Poll::Ready((index, event));
                    }
                }
                Poll::Pending
            })
            .await;
            if let Some(event) = self.take(index, event) {
                return event;
            }
        }
    }

    /// The next event, if there is one.
    pub fn try_recv(&mut self) -> Option<SensorEvent> {
        let mut offset = 0;
        while offset < self.lines.len() {
            let index = (self.next + offset) % self.lines.len();
            match self.lines[index].events.try_recv() {
                Ok(event) => {
                    if let Some(event) = self.take(index, event) {
                        return Some(event);
                    }
                    offset = 0;
                }
                Err(_) => offset += 1,
            }
        }
        None
    }

    fn take(&mut self, index: usize, event: SessionEvent) -> Option<SensorEvent> {
        self.next = index + 1;
        match event {
            SessionEvent::Message { publish, received, .. } => {
                Some(SensorEvent::Message { publish, received })
            }
            SessionEvent::Connected => {
                self.lines[index].is_connected = true;
                self.lines[index].refused.clear();
                Some(SensorEvent::Health(self.health()))
            }
            SessionEvent::Subscribed { refused } => {
                self.lines[index].refused = refused;
                Some(SensorEvent::Health(self.health()))
            }
            SessionEvent::Disconnected => {
                self.lines[index].is_connected = false;
                Some(SensorEvent::Health(self.health()))
            }
            SessionEvent::Written => None,
        }
    }

    /// Whether all sessions are connected and have what they subscribe to.
    ///
    /// # Errors
    /// Some are not, or the broker refuses something.
    pub fn health(&self) -> Result<(), String> {
        let sessions = self.lines.len();
        match self.lines.iter().filter(|line| line.is_connected).count() {
            connected if connected == sessions => {
                let refused = self.lines.iter().flat_map(|line| line.refused.clone());
                check_refused(&refused.collect::<Vec<_>>())
            }
            0 => Err("broker not connected".to_owned()),
            connected => Err(format!("{connected} of {sessions} broker sessions are connected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn sessions(topics: &str, sessions_max: usize, machines: &[&str]) -> SensorSessions {
        let machines = machines.iter().map(|id| format!("[[machines]]\nid = \"{id}\"\n"));
        let text = format!(
            "[mqtt]\n{topics}\n[protection]\nsessions-max = {sessions_max}\n{}",
            machines.collect::<String>()
        );
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("edge.toml");
        std::fs::write(&file, text).expect("writing");
        let settings = Settings::load(Some(&file)).expect("valid settings");
        SensorSessions::new(&settings).expect("no password is read")
    }

    fn filters(sessions: &SensorSessions) -> Vec<Vec<String>> {
        let mut filters: Vec<_> = sessions.lines.iter().map(|line| line.filters.get()).collect();
        filters.iter_mut().for_each(|filters| filters.sort());
        filters
    }

    #[test]
    fn each_machine_has_its_readings_and_its_waveforms_in_sessions_of_their_own() {
        let sessions = sessions("", 32, &["a", "b"]);
        let expected = [
            ["plant/a/readings"],
            ["plant/a/waveform"],
            ["plant/b/readings"],
            ["plant/b/waveform"],
        ];
        assert_eq!(filters(&sessions), expected);
    }

    #[test]
    fn sessions_are_shared_when_there_are_not_enough() {
        let sessions = sessions("", 3, &["a", "b"]);
        let expected: [&[&str]; 3] = [
            &["plant/a/readings", "plant/b/waveform"],
            &["plant/a/waveform"],
            &["plant/b/readings"],
        ];
        assert_eq!(filters(&sessions), expected);
    }

    #[test]
    fn filters_without_a_machine_share_one_session() {
        let topics = "reading-topics = [\"plant/+/readings\", \"hall/#\"]";
        let sessions = sessions(topics, 32, &["a"]);
        let expected: [&[&str]; 2] = [&["hall/#", "plant/+/readings"], &["plant/a/waveform"]];
        assert_eq!(filters(&sessions), expected);
    }

    #[tokio::test]
    async fn machines_come_and_go_and_who_stays_keeps_its_session() {
        let mut sessions = sessions("", 32, &["a", "b"]);
        let mut tasks = JoinSet::new();
        let ids: Vec<MachineId> =
            ["b", "c", "d"].map(|id| MachineId::new(id).expect("valid")).into();
        sessions.replace(ids.iter(), &mut tasks);
        let expected = [
            ["plant/c/readings"],
            ["plant/c/waveform"],
            ["plant/b/readings"],
            ["plant/b/waveform"],
            ["plant/d/readings"],
            ["plant/d/waveform"],
        ];
        assert_eq!(filters(&sessions), expected);
        assert_eq!(tasks.len(), 6);
    }

    #[tokio::test]
    async fn a_session_that_floods_waits_for_its_turn() {
        let mut sessions = sessions("", 32, &["a", "b"]);
        let senders: Vec<_> = sessions.prepared.drain(..).map(|(_, sender)| sender).collect();
        let message = |topic: &str| SessionEvent::Message {
            publish: Publish::new(topic, rumqttc::QoS::AtLeastOnce, ""),
            received: Instant::now(),
            receipt: None,
        };
        while senders[1].try_send(message("loud")).is_ok() {}
        senders[2].try_send(message("quiet")).expect("room");
        let mut topics = Vec::new();
        while let Some(SensorEvent::Message { publish, .. }) = sessions.try_recv() {
            topics.push(publish.topic);
        }
        assert_eq!(topics.len(), QUEUE_LENGTH + 1);
        assert_eq!(topics[1], "quiet", "second, not behind the flood");
        senders[3].try_send(message("later")).expect("room");
        let event = sessions.recv().await;
        assert!(matches!(event, SensorEvent::Message { publish, .. } if publish.topic == "later"));
    }

    #[test]
    fn health_names_how_many_sessions_are_connected() {
        let mut sessions = sessions("", 32, &["a"]);
        let mut health = |index, event| match sessions.take(index, event) {
            Some(SensorEvent::Health(health)) => health,
            Some(SensorEvent::Message { .. }) | None => panic!("no health"),
        };
        let half = Err("1 of 2 broker sessions are connected".to_owned());
        assert_eq!(health(1, SessionEvent::Connected), half);
        assert_eq!(health(0, SessionEvent::Connected), Ok(()));
        let refused = vec!["plant/a/readings".to_owned()];
        let why = health(0, SessionEvent::Subscribed { refused }).expect_err("one is refused");
        assert!(why.contains("plant/a/readings") && why.contains("access list"), "{why}");
        assert_eq!(health(0, SessionEvent::Connected), Ok(()), "until it is refused again");
        assert_eq!(health(1, SessionEvent::Disconnected), half);
        let none = Err("broker not connected".to_owned());
        assert_eq!(health(0, SessionEvent::Disconnected), none);
    }
}
