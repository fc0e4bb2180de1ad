//! Keeps the link: connects, renews, hands on what the hub desires, and reports.
//!
//! A connection that is gone is made again after a wait that doubles, with jitter; one that was refused gets a new token,
//! since the clock may have been set meanwhile. A token is renewed by connecting anew at about 85 % of its life: only when the
//! new one is there the old connection is left. A connection that is not accepted with all its subscriptions within
//! `connect-timeout`, and one whose acknowledgements stay away, counts as gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::hub::topics::{self, Incoming};
use edge_core::hub::twin::{Twin, TwinEvent, TwinRequest, TwinSettings};
use rumqttc::Publish;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tracing::{debug, error, info, warn};

use super::access::{Access, AccessError, Ticket};
use super::connection::{Closed, Connection, HubEvent};
use super::inputs::{Delivery, InputQueue};
use super::methods::Methods;
use super::report::reported;
use super::sparing::{Sparing, cut};
use super::telemetry::{Downlink, HubMessage};
use crate::admin::{Board, Part};
use crate::config::{Desired, IotHub};
use crate::journal::chain;
use crate::protection::RemoteOrder;
use crate::reload::{DesiredState, ModelWish};
use crate::telemetry;

/// How often the own state is compared with what was reported.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that lived so long was a good one: the next wait is the first again.
const GOOD_LIFE: Duration = Duration::from_secs(30);
/// Longest sleep of the loop.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// A hub acknowledges within milliseconds; one that has not for so long has lost something.
const ACKNOWLEDGEMENT_MAX: Duration = Duration::from_secs(30);
/// Longest name in a line of the log, in characters.
const NAME_CHARACTERS_MAX: usize = 100;
/// A hub takes 32 KiB of reported properties.
const REPORT_BYTES_MAX: usize = 32_000;
/// How long a connection that is to be renewed stays for the acknowledgements of records.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Whom the link concerns.
pub struct Links {
    /// What the hub desires of the settings.
    pub desired: watch::Sender<Option<Desired>>,
    /// What became of that.
    pub outcome: watch::Receiver<Option<DesiredState>>,
    /// The stop path.
    pub orders: mpsc::Sender<RemoteOrder>,
    /// Who reads the settings again.
    pub models: mpsc::Sender<ModelWish>,
    /// Who reads messages to inputs.
    pub inputs: InputQueue,
    /// Records that leave by the hub, and the output that they go to.
    pub telemetry: (Downlink, String),
    /// What is reported.
    pub board: Board,
}

/// The link to one hub.
pub struct Link {
    settings: IotHub,
    access: Arc<Access>,
    links: Links,
    twin: Twin,
    methods: Methods,
    /// Why the newest desired properties could not be read, if that is so.
    unreadable: Option<String>,
    log: Sparing,
    /// State of a small generator, for jitter.
    random: u64,
}

/// Why a connection was left.
enum Left {
    /// The module ends.
    Stopping,
    /// It is over.
    Closed(Closed),
    /// Its token would end; here is the next one.
    Renewed(Box<Ticket>),
}

impl Link {
    /// Knows what the hub desired when the module ended last, if that is in force.
    #[must_use]
    pub fn new(settings: IotHub, access: Access, links: Links, seed: u64) -> Self {
        let twin = TwinSettings {
            report_interval_min: settings.report_interval,
            report_bytes_max: REPORT_BYTES_MAX,
            ..TwinSettings::default()
        };
        Self {
            twin: Twin::new(twin, seed),
            methods: Methods::new(
                links.board.clone(),
                (links.orders.clone(), links.models.clone()),
                settings.remote_reset,
            ),
            settings,
            access: Arc::new(access),
            links,
            unreadable: None,
            log: Sparing::default(),
            random: seed | 1,
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let identity = self.access.identity();
        info!(
            hub = identity.hub_host,
            client_id = identity.client_id(),
            host = self.access.host(),
            "link to a hub"
        );
        let mut wait = self.settings.reconnect_min;
        let mut ticket = None;
        while !*stop.borrow() {
            let started = Instant::now();
            let left = match ticket.take() {
                Some(ticket) => self.keep(ticket, &mut stop).await,
                None => match self.first_ticket(&mut stop).await {
                    Ok(ticket) => self.keep(Box::new(ticket), &mut stop).await,
                    Err(left) => left,
                },
            };
            self.twin.handle_disconnected();
            match left {
                Left::Stopping => return,
                Left::Renewed(next) => ticket = Some(next),
                Left::Closed(closed) => {
                    if started.elapsed() >= GOOD_LIFE {
                        wait = self.settings.reconnect_min;
                    }
                    self.tell_closed(&closed, wait);
                    let pause = self.jittered(wait);
                    drop(
                        tokio::time::timeout(pause, stop.wait_for(|is_stopping| *is_stopping))
                            .await,
                    );
                    wait = (wait * 2).min(self.settings.reconnect_max);
                }
            }
        }
    }

    fn tell_closed(&self, closed: &Closed, wait: Duration) {
        let kind = if closed.is_refused { "refused" } else { "lost" };
        metrics::counter!(telemetry::HUB_DISCONNECTS, "reason" => kind).increment(1);
        metrics::gauge!(telemetry::HUB_CONNECTED).set(0.0);
        let remedy =
            if closed.is_refused { format!("; {}", self.access.remedy()) } else { String::new() };
        warn!(
            reason = closed.reason,
            wait_ms = wait.as_millis() as u64,
            "no link to the hub{remedy}; settings as they are, everything else goes on"
        );
        self.links.board.set(Part::Hub, Err(format!("{}{remedy}", closed.reason)));
    }

    /// What a connection needs, unless the module ends before that is there.
    async fn first_ticket(&mut self, stop: &mut watch::Receiver<bool>) -> Result<Ticket, Left> {
        let before = Arc::clone(&self.access);
        tokio::select! {
            _ = stop.wait_for(|is_stopping| *is_stopping) => Err(Left::Stopping),
            ready = before.ready(&self.settings) => match ready {
                Ok((access, ticket)) => {
                    self.access = access;
                    Ok(ticket)
                }
                Err(error) => {
                    let reason = chain(&error);
                    Err(Left::Closed(Closed { reason, is_refused: false }))
                }
            }
        }
    }

    /// One connection.
    async fn keep(&mut self, ticket: Box<Ticket>, stop: &mut watch::Receiver<bool>) -> Left {
        let opened = Instant::now();
        let mut next: Option<(Box<Ticket>, Instant)> = None;
        let mut connection = Connection::open(*ticket, self.access.identity(), &self.settings);
        let mut renewal = Renewal { at: opened + self.renewal(), ticket: None };
        let mut is_subscribed = false;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let left = loop {
            self.ask(&connection);
            if let Some((ticket, _)) = next.take_if(|(_, since)| self.may_renew(*since)) {
                break Left::Renewed(ticket);
            }
            let now = Instant::now();
            let timeout = self.twin.poll_timeout().unwrap_or(now + TIMEOUT_MAX);
            let deadline = timeout.min(now + TIMEOUT_MAX);
            tokio::select! {
                _ = stop.wait_for(|is_stopping| *is_stopping) => break Left::Stopping,
                event = connection.events.recv() => {
                    is_subscribed |= matches!(event, Some(HubEvent::Subscribed));
                    if let Some(closed) = self.handle(event, &connection) {
                        break Left::Closed(closed);
                    }
                }
                Ok(()) = self.links.outcome.changed() => self.report(),
                message = self.links.telemetry.0.next(), if next.is_none() => {
                    self.send(&connection, message);
                }
                Some((rid, answer)) = self.methods.next() => {
                    self.answer(&connection, &rid, answer.status, answer.body);
                }
                ticket = renewed(&mut renewal.ticket) => match ticket {
                    Ok(ticket) => next = Some((Box::new(ticket), Instant::now())),
                    // The old connection stays until the hub ends it.
                    Err(reason) => {
                        warn!(reason, "the token is not renewed; tried again");
                        renewal.at = Instant::now() + self.jittered(self.settings.reconnect_max);
                    }
                },
                _ = look.tick() => {
                    self.log.look();
                    connection.acknowledge_rest();
                    self.access.watch_certificate(self.settings.certificate_warning);
                    self.report();
                    if let Some(closed) = self.silence(&connection, opened, is_subscribed) {
                        break Left::Closed(closed);
                    }
                    self.renew_if_due(&mut renewal);
                }
                () = sleep_until(deadline.into()) => {}
            }
        };
        for number in connection.close().await {
            self.links.telemetry.0.handle_taken(number);
        }
        self.links.telemetry.0.end();
        if let Left::Closed(closed) = &left {
            self.access.note_closed(closed.is_refused);
        }
        left
    }

    /// Whether the connection may be left for the next: records that are on their way would leave twice.
    fn may_renew(&self, since: Instant) -> bool {
        self.links.telemetry.0.is_settled() || since.elapsed() > SETTLE_MAX
    }

    /// Sends a message of records.
    fn send(&mut self, connection: &Connection, message: HubMessage) {
        let HubMessage { number, properties, payload, .. } = message;
        let (telemetry, output) = &mut self.links.telemetry;
        let properties: Vec<(&str, &str)> =
            properties.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let topic = topics::events(self.access.identity(), &properties, Some(output));
        if let Err(error) = connection.publish_numbered(topic, payload, number) {
            debug!(%error, "records are sent again");
            telemetry.handle_not_sent(number);
        }
    }

    /// What the hub owes for too long.
    fn silence(
        &self,
        connection: &Connection,
        opened: Instant,
        is_subscribed: bool,
    ) -> Option<Closed> {
        let owed = connection.longest_wait().filter(|wait| *wait > ACKNOWLEDGEMENT_MAX);
        let reason = if let Some(wait) = owed {
            format!("the hub has not acknowledged for {} s", wait.as_secs())
        } else if !is_subscribed && opened.elapsed() > self.settings.connect_timeout {
            format!("the hub has not answered within {:?}", self.settings.connect_timeout)
        } else {
            return None;
        };
        Some(Closed { reason, is_refused: false })
    }

    /// Gets the next token while the connection goes on.
    fn renew_if_due(&self, renewal: &mut Renewal) {
        let is_due = self.access.expires() && Instant::now() >= renewal.at;
        if is_due && renewal.ticket.is_none() {
            // Not a second one while the first waits for what is on its way.
            renewal.at = Instant::now() + SETTLE_MAX * 2;
            let (access, life) = (Arc::clone(&self.access), self.settings.token_life);
            renewal.ticket = Some(tokio::spawn(async move { access.ticket(life).await }));
        }
    }

    /// From the connection to its renewal.
    fn renewal(&mut self) -> Duration {
        let share = 0.80 + 0.10 * self.next_random();
        self.settings.token_life.mul_f64(share)
    }

    /// Half of a wait to all of it.
    fn jittered(&mut self, wait: Duration) -> Duration {
        wait.mul_f64(0.5 + 0.5 * self.next_random())
    }

    /// 0 to 1; Marsaglia, "Xorshift RNGs", 2003.
    fn next_random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Sends what the twin wants to know or to tell.
    fn ask(&mut self, connection: &Connection) {
        while let Some(request) = self.twin.poll(Instant::now()) {
            let taken = match request {
                TwinRequest::Get { rid } => connection.publish(topics::get_twin(rid), Vec::new()),
                TwinRequest::Report { rid, body } => {
                    connection.publish(topics::report(rid), body.into_bytes())
                }
            };
            if let Err(error) = taken {
                // Without an answer it is asked again.
                warn!(%error, "the hub is not asked");
            }
        }
    }

    fn report(&mut self) {
        let outcome = self.links.outcome.borrow().clone();
        let now = reported(&self.links.board, outcome.as_ref(), self.unreadable.as_deref());
        if let Some(event) = self.twin.set_reported(now, Instant::now()) {
            self.handle_twin(event);
        }
    }

    /// Gives how the connection ended, if it did.
    fn handle(&mut self, event: Option<HubEvent>, connection: &Connection) -> Option<Closed> {
        match event {
            None => {
                let reason = "the connection's task has ended".to_owned();
                return Some(Closed { reason, is_refused: false });
            }
            Some(HubEvent::Closed(closed)) => return Some(closed),
            Some(HubEvent::Connected) => debug!("the hub has accepted"),
            Some(HubEvent::Taken(number)) => self.links.telemetry.0.handle_taken(number),
            Some(HubEvent::Subscribed) => {
                info!("connected to the hub");
                metrics::counter!(telemetry::HUB_CONNECTS).increment(1);
                metrics::gauge!(telemetry::HUB_CONNECTED).set(1.0);
                self.links.board.set(Part::Hub, Ok(()));
                self.access.note_connected();
                self.access.watch_clock(self.settings.https_port);
                self.report();
                self.twin.handle_connected(Instant::now());
                self.links.telemetry.0.begin();
            }
            Some(HubEvent::Publish(publish, received)) => {
                self.handle_publish(publish, received, connection);
                if connection.is_overrun() {
                    let reason = "the hub sends on and takes no acknowledgement".to_owned();
                    return Some(Closed { reason, is_refused: false });
                }
            }
        }
        None
    }

    fn handle_publish(&mut self, publish: Publish, received: Instant, connection: &Connection) {
        let now = Instant::now();
        let parsed = topics::parse(self.access.identity(), &publish.topic);
        if let Ok(Incoming::Input { name, .. }) = &parsed
            && self.links.inputs.reads(name)
        {
            let (input, client) = (name.clone(), connection.client());
            // Acknowledged when what is in it is durable.
            if !self.links.inputs.offer(Delivery { input, publish, received, client }) {
                self.refuse("input-queue", "more messages to inputs than can be read; sent again");
            }
            return;
        }
        connection.acknowledge(&publish);
        let events = match parsed {
            Ok(Incoming::TwinAnswer { status, rid, .. }) => {
                self.twin.handle_answer(status, &rid, &publish.payload, now)
            }
            Ok(Incoming::DesiredPatch { version }) => {
                self.twin.handle_patch(version, &publish.payload, now)
            }
            Ok(Incoming::Method { name, rid }) => {
                self.call(&name, &rid, &publish.payload, connection);
                Vec::new()
            }
            Ok(Incoming::Input { name, .. }) => {
                self.refuse("input", &format!("a message to input {name}, which nobody reads"));
                Vec::new()
            }
            Ok(Incoming::CloudToDevice { .. }) => {
                let text = "a message of the cloud: use desired properties or methods";
                self.refuse("message", text);
                Vec::new()
            }
            Err(error) => {
                self.refuse("topic", &error.to_string());
                Vec::new()
            }
        };
        for event in events {
            self.handle_twin(event);
        }
    }

    /// Counts what cannot be used, and tells of some.
    fn refuse(&mut self, reason: &'static str, text: &str) {
        metrics::counter!(telemetry::HUB_REFUSED, "reason" => reason).increment(1);
        if self.log.may() {
            warn!(reason, what = cut(text, NAME_CHARACTERS_MAX), "the hub sends what is not used");
        }
    }

    fn call(&mut self, name: &str, rid: &str, payload: &[u8], connection: &Connection) {
        let answer = self.methods.call(name, rid, payload);
        if self.log.may() {
            let status = answer.as_ref().map(|answer| answer.status);
            info!(method = cut(name, NAME_CHARACTERS_MAX), status, "direct method");
        }
        if let Some(answer) = answer {
            self.answer(connection, rid, answer.status, answer.body);
        }
    }

    fn answer(&mut self, connection: &Connection, rid: &str, status: i32, body: Value) {
        let topic = topics::method_answer(rid, status);
        if let Err(error) = connection.publish(topic, body.to_string().into_bytes())
            && self.log.may()
        {
            warn!(%error, "a method is not answered");
        }
    }

    fn handle_twin(&mut self, event: TwinEvent) {
        match event {
            TwinEvent::Desired { version, properties } => {
                info!(version, "desired properties");
                self.unreadable = None;
                self.links.desired.send_replace(Some(Desired { version, properties }));
            }
            TwinEvent::ReportRefused { status, reason } => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "report").increment(1);
                error!(status, reason, "the hub refuses the reported properties");
            }
            TwinEvent::ReportTooLarge { bytes, limit } => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "report").increment(1);
                error!(bytes, limit, "the reported properties are too long");
            }
            TwinEvent::Invalid { what } => {
                self.refuse("twin", &what);
                self.unreadable = Some(what);
            }
        }
    }
}

/// The next token, while the connection goes on.
struct Renewal {
    at: Instant,
    ticket: Option<JoinHandle<Result<Ticket, AccessError>>>,
}

/// The token that is being got; never if none is.
async fn renewed(
    ticket: &mut Option<JoinHandle<Result<Ticket, AccessError>>>,
) -> Result<Ticket, String> {
    let Some(waiting) = ticket else { return std::future::pending().await };
    let result = waiting.await;
    *ticket = None;
    match result {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(panic) => Err(panic.to_string()),
    }
}
