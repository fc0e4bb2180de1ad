//! The machine's side of the stop path: takes stop commands and reports standstill, or does not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rumqttc::{Client, Event, Packet, Publish, QoS};
use serde_json::Value;

use crate::eventually::eventually;
use crate::publisher::mqtt_options;

const QUEUE_LENGTH: usize = 64;
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Messages kept of each kind; a test that makes more has another problem.
const KEPT_MAX: usize = 10_000;

/// What the machine does with a stop command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obedience {
    /// Reports `stopping`, spins down for this long, reports `stopped`.
    SpinsDown(Duration),
    /// Goes on and reports nothing.
    Ignores,
    /// Goes on and reports `running`.
    Refuses,
    /// Goes on; what it reports is no JSON, or speaks of the machine `other`, or is an unknown state.
    Babbles,
}

/// A stop command as it arrived.
#[derive(Clone, Debug)]
pub struct ReceivedCommand {
    /// When.
    pub at: Instant,
    /// The JSON object.
    pub payload: Value,
}

#[derive(Debug, Default)]
struct Seen {
    subscribed: bool,
    running: bool,
    stop_announced: bool,
    commands: Vec<ReceivedCommand>,
    interlock: Vec<Value>,
    heartbeats: u64,
    gone: bool,
}

/// A machine on the topics of `[protection]` with their default names.
#[derive(Clone)]
pub struct FakeMachine {
    id: String,
    client: Client,
    seen: Arc<Mutex<Seen>>,
}

impl FakeMachine {
    /// Connects, starts the machine and reports `running`.
    ///
    /// # Errors
    /// The broker does not take the subscriptions within 10 s.
    pub fn start(port: u16, machine_id: &str, obedience: Obedience) -> anyhow::Result<Self> {
        let name = format!("machine-{}", machine_id.replace('/', "-"));
        let (client, mut connection) = Client::new(mqtt_options(port, &name), QUEUE_LENGTH);
        connection.eventloop.network_options.set_tcp_nodelay(true);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let machine = Self { id: machine_id.to_owned(), client, seen };
        let listening = machine.clone();
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => listening.subscribe(),
                    Ok(Event::Incoming(Packet::SubAck(_))) => listening.lock().subscribed = true,
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        listening.take(&publish, obedience);
                    }
                    Ok(_) => {}
                    Err(_) if listening.lock().gone => return,
                    Err(_) => std::thread::sleep(RECONNECT_PAUSE),
                }
            }
        });
        eventually("the machine is subscribed", CONNECT_DEADLINE, || {
            if machine.lock().subscribed { Ok(()) } else { Err("no answer of the broker") }
        })?;
        machine.switch_on()?;
        Ok(machine)
    }

    /// Starts the machine, as its operator does at the machine.
    ///
    /// # Errors
    /// The client's thread has ended.
    pub fn switch_on(&self) -> anyhow::Result<()> {
        {
            let mut seen = self.lock();
            seen.running = true;
            seen.stop_announced = false;
        }
        self.report("running")
    }

    /// Whether the machine turns.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.lock().running
    }

    /// Stop commands so far, in order.
    #[must_use]
    pub fn commands(&self) -> Vec<ReceivedCommand> {
        self.lock().commands.clone()
    }

    /// What the interlock has published about itself, in order; retained messages first.
    #[must_use]
    pub fn interlock_states(&self) -> Vec<Value> {
        self.lock().interlock.clone()
    }

    /// Signs of life so far.
    #[must_use]
    pub fn heartbeats(&self) -> u64 {
        self.lock().heartbeats
    }

    /// Waits for the interlock's newest state to be `state`.
    ///
    /// # Errors
    /// It is another one at the deadline.
    pub fn wait_for_interlock(&self, state: &str, deadline: Duration) -> anyhow::Result<()> {
        let what = format!("interlock of {} is {state}", self.id);
        eventually(&what, deadline, || {
            let states = self.interlock_states();
            let newest = states.last().map_or(&Value::Null, |last| &last["state"]);
            if newest == state { Ok(()) } else { Err(format!("it is {newest}")) }
        })
    }

    /// Asks for a reset, as a person does.
    ///
    /// # Errors
    /// The client's thread has ended.
    pub fn ask_for_reset(&self, operator: &str) -> anyhow::Result<()> {
        let payload = serde_json::json!({ "operator": operator }).to_string();
        self.client.publish(self.topic("reset"), QoS::AtLeastOnce, false, payload)?;
        Ok(())
    }

    fn subscribe(&self) {
        for topic in ["command", "interlock", "heartbeat"] {
            // Room for three: the queue holds more and nothing else is in it yet.
            self.client.try_subscribe(self.topic(topic), QoS::AtLeastOnce).ok();
        }
    }

    fn take(&self, publish: &Publish, obedience: Obedience) {
        let payload = serde_json::from_slice(&publish.payload).unwrap_or(Value::Null);
        let mut seen = self.lock();
        if publish.topic == self.topic("heartbeat") {
            seen.heartbeats += 1;
        } else if publish.topic == self.topic("interlock") {
            keep(&mut seen.interlock, payload);
        } else {
            let stop = payload["command"] == "stop";
            keep(&mut seen.commands, ReceivedCommand { at: Instant::now(), payload });
            match obedience {
                Obedience::SpinsDown(duration) if stop => {
                    let spinning_down = std::mem::replace(&mut seen.stop_announced, true);
                    drop(seen);
                    if !spinning_down {
                        let machine = self.clone();
                        std::thread::spawn(move || machine.spin_down(duration));
                    }
                }
                Obedience::Refuses if stop => {
                    drop(seen);
                    // Full only while the broker is away.
                    self.publish_state(&self.topic("state"), r#"{"state":"running"}"#, false);
                }
                Obedience::Babbles if stop => {
                    drop(seen);
                    self.babble();
                }
                Obedience::SpinsDown(_)
                | Obedience::Ignores
                | Obedience::Refuses
                | Obedience::Babbles => {}
            }
        }
    }

    /// Leaves a report of standstill in the broker, as a careless machine does.
    pub fn retain_standstill(&self) {
        self.publish_state(&self.topic("state"), r#"{"state":"stopped"}"#, true);
    }

    /// Leaves the broker for good.
    pub fn disconnect(&self) {
        self.lock().gone = true;
        // It is gone already: as wanted.
        self.client.try_disconnect().ok();
    }

    fn babble(&self) {
        let own = self.topic("state");
        for payload in
            ["stopped", "{\"state\":\"stopped\"", "{\"state\":\"asleep\"}", "[]", "\0\u{1}"]
        {
            self.publish_state(&own, payload, false);
        }
        self.publish_state("plant/other/state", r#"{"state":"stopped"}"#, false);
    }

    fn publish_state(&self, topic: &str, payload: &str, is_retained: bool) {
        // On the client's own thread: waiting for room would wait for itself.
        self.client.try_publish(topic, QoS::AtLeastOnce, is_retained, payload).ok();
    }

    fn spin_down(&self, duration: Duration) -> anyhow::Result<()> {
        self.report("stopping")?;
        // The time that a rotor takes.
        std::thread::sleep(duration);
        self.lock().running = false;
        self.report("stopped")
    }

    fn report(&self, state: &str) -> anyhow::Result<()> {
        let payload = serde_json::json!({ "state": state }).to_string();
        let topic = self.topic("state");
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).context("the client has ended")
    }

    fn topic(&self, last: &str) -> String {
        format!("plant/{}/{last}", self.id)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep<T>(list: &mut Vec<T>, item: T) {
    if list.len() < KEPT_MAX {
        list.push(item);
    }
}
