//! A slow, obvious hub on a bad line: in the end both sides hold the same.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::document::documents;
use super::*;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// An operator changes the desired properties.
    Change(Map<String, Value>),
    /// We want the hub to show something else.
    Want(Map<String, Value>),
    /// The hub takes the oldest request.
    Process(Outcome),
    /// A message of the hub arrives, whichever; perhaps again later.
    Arrive { which: prop::sample::Index, stays: bool },
    /// A message of the hub is lost.
    Lose(prop::sample::Index),
    /// Time passes.
    Wait(u64),
    /// The connection is lost.
    Disconnect { keeps_requests: bool },
    /// The connection is there; perhaps the hub made the device anew meanwhile.
    Connect { anew: Option<Map<String, Value>> },
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Answered,
    AnswerLost,
    RequestLost,
    Throttled,
    FailedBefore,
    FailedAfter,
}

#[derive(Clone, Debug)]
enum Message {
    Answer { status: u16, rid: u64, body: String },
    Patch { version: u64, body: String },
}

struct World {
    twin: Twin,
    now: Instant,
    is_connected: bool,
    desired: Map<String, Value>,
    version: u64,
    reported: Map<String, Value>,
    to_hub: VecDeque<TwinRequest>,
    to_twin: Vec<Message>,
    /// Whether a change was lost that nothing has told of since.
    lost_change: bool,
    wanted: Option<Map<String, Value>>,
    /// What one knows who heeds the events alone.
    told: Option<(Map<String, Value>, u64)>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            twin: Twin::new(TwinSettings::default(), seed),
            now: start(),
            is_connected: false,
            desired: Map::new(),
            version: 1,
            reported: map(json!({"a": 1, "left": {"over": true}})),
            to_hub: VecDeque::new(),
            to_twin: Vec::new(),
            lost_change: false,
            wanted: None,
            told: None,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change(patch) => self.change(&patch),
            Step::Want(wanted) => {
                assert_eq!(self.twin.set_reported(wanted.clone(), self.now), None);
                self.wanted = Some(without_nulls(&wanted));
            }
            Step::Process(outcome) => self.process(outcome),
            Step::Arrive { which, stays } => {
                if !self.to_twin.is_empty() {
                    let at = which.index(self.to_twin.len());
                    let message = self.to_twin[at].clone();
                    if !stays {
                        self.to_twin.remove(at);
                    }
                    self.arrive(message);
                }
            }
            Step::Lose(which) => {
                if !self.to_twin.is_empty() {
                    let lost = self.to_twin.remove(which.index(self.to_twin.len()));
                    self.lost_change |= matches!(lost, Message::Patch { .. });
                }
            }
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds),
            Step::Disconnect { keeps_requests } => self.disconnect(keeps_requests),
            Step::Connect { anew } => self.connect(anew),
        }
        self.poll();
    }

    fn change(&mut self, patch: &Map<String, Value>) {
        merge(&mut self.desired, patch);
        self.version += 1;
        if self.is_connected {
            let mut body = patch.clone();
            body.insert("$version".to_owned(), json!(self.version));
            let body = Value::Object(body).to_string();
            self.to_twin.push(Message::Patch { version: self.version, body });
        }
    }

    fn process(&mut self, outcome: Outcome) {
        // What was sent before the loss of a connection may arrive with the next one, not without one.
        if !self.is_connected {
            return;
        }
        let Some(request) = self.to_hub.pop_front() else { return };
        let failed = match outcome {
            Outcome::RequestLost => return,
            Outcome::Throttled => Some(429),
            Outcome::FailedBefore | Outcome::FailedAfter => Some(500),
            Outcome::Answered | Outcome::AnswerLost => None,
        };
        let is_done = failed.is_none() || matches!(outcome, Outcome::FailedAfter);
        let (rid, status, body) = match request {
            TwinRequest::Get { rid } => (rid, 200, self.whole()),
            TwinRequest::Report { rid, body } => {
                let patch = serde_json::from_str(&body).expect("an object");
                if is_done {
                    merge(&mut self.reported, &patch);
                }
                (rid, 204, String::new())
            }
        };
        if !matches!(outcome, Outcome::AnswerLost) {
            self.to_twin.push(Message::Answer { status: failed.unwrap_or(status), rid, body });
        }
    }

    fn whole(&self) -> String {
        let (mut desired, mut reported) = (self.desired.clone(), self.reported.clone());
        desired.insert("$version".to_owned(), json!(self.version));
        reported.insert("$version".to_owned(), json!(3));
        json!({"desired": desired, "reported": reported}).to_string()
    }

    fn arrive(&mut self, message: Message) {
        let events = match message {
            Message::Answer { status, rid, body } => {
                self.twin.handle_answer(status, &rid.to_string(), body.as_bytes(), self.now)
            }
            Message::Patch { version, body } => {
                self.twin.handle_patch(version, body.as_bytes(), self.now)
            }
        };
        for event in events {
            match event {
                TwinEvent::Desired { version, properties } => {
                    self.told = Some((properties, version));
                }
                TwinEvent::ReportRefused { .. }
                | TwinEvent::ReportTooLarge { .. }
                | TwinEvent::Invalid { .. } => panic!("{event:?}"),
            }
        }
    }

    fn disconnect(&mut self, keeps_requests: bool) {
        self.twin.handle_disconnected();
        self.is_connected = false;
        self.to_twin.clear();
        if !keeps_requests {
            self.to_hub.clear();
        }
    }

    fn connect(&mut self, anew: Option<Map<String, Value>>) {
        if self.is_connected {
            return;
        }
        if let Some(desired) = anew {
            (self.desired, self.version, self.reported) = (desired, 1, Map::new());
        }
        self.lost_change = false;
        self.is_connected = true;
        self.twin.handle_connected(self.now);
    }

    fn poll(&mut self) {
        for _ in 0..3 {
            let Some(request) = self.twin.poll(self.now) else {
                assert!(self.twin.poll_timeout().is_none_or(|at| at > self.now), "would spin");
                return;
            };
            self.to_hub.push_back(request);
        }
        panic!("more than one request of a kind");
    }

    /// Everything arrives and is answered until nothing is left to do.
    fn settle(&mut self) {
        self.step(Step::Connect { anew: None });
        for _ in 0..1000 {
            if !self.to_hub.is_empty() {
                self.process(Outcome::Answered);
            } else if !self.to_twin.is_empty() {
                let message = self.to_twin.remove(0);
                self.arrive(message);
            } else if self.lost_change {
                // Only the change after it can tell.
                self.lost_change = false;
                self.change(&Map::new());
            } else if let Some(at) = self.twin.poll_timeout() {
                self.now = at;
            } else {
                return;
            }
            self.poll();
        }
        panic!("never quiet");
    }
}

fn steps() -> impl Strategy<Value = Step> {
    let outcomes = prop_oneof![
        6 => Just(Outcome::Answered),
        1 => Just(Outcome::AnswerLost),
        1 => Just(Outcome::RequestLost),
        1 => Just(Outcome::Throttled),
        1 => Just(Outcome::FailedBefore),
        1 => Just(Outcome::FailedAfter),
    ];
    prop_oneof![
        4 => documents(true).prop_map(Step::Change),
        3 => documents(true).prop_map(Step::Want),
        8 => outcomes.prop_map(Step::Process),
        8 => (any::<prop::sample::Index>(), prop::bool::weighted(0.2))
            .prop_map(|(which, stays)| Step::Arrive { which, stays }),
        1 => any::<prop::sample::Index>().prop_map(Step::Lose),
        3 => prop::sample::select(vec![1, 5, 31, 400]).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(|keeps_requests| Step::Disconnect { keeps_requests }),
        3 => prop::option::weighted(0.2, documents(false)).prop_map(|anew| Step::Connect { anew }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_sides_hold_the_same_in_the_end(
        seed in any::<u64>(),
        steps in prop::collection::vec(steps(), 0..80),
    ) {
        let mut world = World::new(seed);
        for step in steps {
            world.step(step);
        }
        world.settle();
        let (desired, version) = world.twin.desired().expect("known");
        prop_assert_eq!((desired, version), (&world.desired, world.version));
        prop_assert_eq!(world.told, Some((world.desired, world.version)));
        if let Some(wanted) = world.wanted {
            prop_assert_eq!(world.reported, wanted);
        }
    }
}
