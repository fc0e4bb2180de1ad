//! Keeps the link: connects, renews, hands on what the hub desires, and reports.
//!
//! A connection that is gone is made again after a wait that doubles, with jitter; one that was refused gets a new token,
//! since the clock may have been set meanwhile. A token is renewed by connecting anew at about 85 % of its life: only when the
//! new one is there the old connection is left. No answer to a connection counts as gone after `connect-timeout`.

use std::time::{Duration, Instant};

use edge_core::hub::topics::{self, Incoming};
use edge_core::hub::twin::{Twin, TwinEvent, TwinRequest, TwinSettings};
use rumqttc::Publish;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{debug, error, info, warn};

use super::access::{Access, Ticket};
use super::connection::{Closed, Connection, HubEvent};
use super::methods::Methods;
use super::report::{DesiredState, reported};
use crate::admin::{Board, Part};
use crate::config::{Desired, IotHub};
use crate::journal::chain;
use crate::reload::DesiredChange;
use crate::telemetry;

/// How often the own state is compared with what was reported.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that lived so long was a good one: the next wait is the first again.
const GOOD_LIFE: Duration = Duration::from_secs(30);
/// Longest sleep of the loop.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// A hub takes 32 KiB of reported properties.
const REPORT_BYTES_MAX: usize = 32_000;

/// Whom the link concerns.
pub struct Links {
    /// Settings.
    pub desired: mpsc::Sender<DesiredChange>,
    /// What is reported.
    pub board: Board,
}

/// The link to one hub.
pub struct Link {
    settings: IotHub,
    access: Access,
    links: Links,
    twin: Twin,
    methods: Methods,
    /// What became of the newest desired properties.
    desired: Option<DesiredState>,
    /// Desired properties that are being put in force.
    applying: Option<(u64, oneshot::Receiver<Result<(), String>>)>,
    /// The newest that came meanwhile.
    next: Option<Desired>,
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
            methods: Methods::new(links.board.clone()),
            settings,
            access,
            links,
            desired: None,
            applying: None,
            next: None,
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
                None => match self.access.ticket(self.settings.token_life).await {
                    Ok(ticket) => self.keep(Box::new(ticket), &mut stop).await,
                    Err(error) => Left::Closed(Closed { reason: chain(&error), is_refused: false }),
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
        let remedy = if closed.is_refused {
            "; check the clock, the key, and that the device or module exists and is enabled"
        } else {
            ""
        };
        warn!(
            reason = closed.reason,
            wait_ms = wait.as_millis() as u64,
            "no link to the hub{remedy}; settings as they are, everything else goes on"
        );
        self.links.board.set(Part::Hub, Err(format!("{}{remedy}", closed.reason)));
    }

    /// One connection.
    async fn keep(&mut self, ticket: Box<Ticket>, stop: &mut watch::Receiver<bool>) -> Left {
        let mut connection = Connection::open(*ticket, self.access.identity(), &self.settings);
        let mut renew_at = Instant::now() + self.renewal();
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let left = loop {
            self.ask(&connection);
            let now = Instant::now();
            let timeout = self.twin.poll_timeout().unwrap_or(now + TIMEOUT_MAX);
            let deadline = timeout.min(now + TIMEOUT_MAX).min(renew_at.max(now));
            tokio::select! {
                _ = stop.wait_for(|is_stopping| *is_stopping) => break Left::Stopping,
                event = connection.events.recv() => {
                    if let Some(closed) = self.handle(event, &connection) {
                        break Left::Closed(closed);
                    }
                }
                result = applied(&mut self.applying) => self.handle_applied(result),
                Some((rid, answer)) = self.methods.next() => {
                    self.answer(&connection, &rid, answer.status, answer.body);
                }
                _ = look.tick() => self.report(),
                () = sleep_until(deadline.into()) => {}
            }
            if self.access.expires() && Instant::now() >= renew_at {
                match self.access.ticket(self.settings.token_life).await {
                    Ok(ticket) => break Left::Renewed(Box::new(ticket)),
                    // The old connection stays until the hub ends it.
                    Err(error) => {
                        warn!(reason = chain(&error), "the token is not renewed; tried again");
                        renew_at = Instant::now() + self.jittered(self.settings.reconnect_max);
                    }
                }
            }
        };
        connection.close().await;
        left
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
        let now = reported(&self.links.board, self.desired.as_ref());
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
            Some(HubEvent::Subscribed) => {
                info!("connected to the hub");
                metrics::counter!(telemetry::HUB_CONNECTS).increment(1);
                metrics::gauge!(telemetry::HUB_CONNECTED).set(1.0);
                self.links.board.set(Part::Hub, Ok(()));
                self.report();
                self.twin.handle_connected(Instant::now());
            }
            Some(HubEvent::Publish(publish)) => self.handle_publish(&publish, connection),
        }
        None
    }

    fn handle_publish(&mut self, publish: &Publish, connection: &Connection) {
        let now = Instant::now();
        let events = match topics::parse(self.access.identity(), &publish.topic) {
            Ok(Incoming::TwinAnswer { status, rid, .. }) => {
                self.twin.handle_answer(status, &rid, &publish.payload, now)
            }
            Ok(Incoming::DesiredPatch { version }) => {
                self.twin.handle_patch(version, &publish.payload, now)
            }
            Ok(Incoming::Method { name, rid }) => {
                if let Some(answer) = self.methods.call(&name, &rid, &publish.payload) {
                    self.answer(connection, &rid, answer.status, answer.body);
                }
                Vec::new()
            }
            Ok(Incoming::Input { name, .. }) => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "input").increment(1);
                warn!(name, "a message to an input that nobody reads");
                Vec::new()
            }
            Ok(Incoming::CloudToDevice { .. }) => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "message").increment(1);
                warn!(
                    "a message of the cloud that nobody reads: use desired properties or methods"
                );
                Vec::new()
            }
            Err(error) => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "topic").increment(1);
                warn!(%error, "a message of the hub is not understood");
                Vec::new()
            }
        };
        for event in events {
            self.handle_twin(event);
        }
    }

    fn answer(&self, connection: &Connection, rid: &str, status: i32, body: Value) {
        let topic = topics::method_answer(rid, status);
        if let Err(error) = connection.publish(topic, body.to_string().into_bytes()) {
            warn!(%error, rid, "a method is not answered");
        }
    }

    fn handle_twin(&mut self, event: TwinEvent) {
        match event {
            TwinEvent::Desired { version, properties } => self.apply(version, properties),
            TwinEvent::ReportRefused { status, reason } => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "report").increment(1);
                error!(status, reason, "the hub refuses the reported properties");
            }
            TwinEvent::ReportTooLarge { bytes, limit } => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "report").increment(1);
                error!(bytes, limit, "the reported properties are too long");
            }
            TwinEvent::Invalid { what } => {
                metrics::counter!(telemetry::HUB_REFUSED, "reason" => "twin").increment(1);
                warn!(what, "the hub sends what is no twin");
            }
        }
    }

    /// One version at a time; of those that come meanwhile only the newest counts.
    fn apply(&mut self, version: u64, properties: Map<String, Value>) {
        let desired = Desired { version, properties };
        if self.applying.is_some() {
            self.next = Some(desired);
            return;
        }
        info!(version, "desired properties");
        let (answer, answered) = oneshot::channel();
        self.applying = Some((version, answered));
        if let Err(error) = self.links.desired.try_send(DesiredChange { desired, answer }) {
            // Its answer never comes: that is an answer, too.
            warn!(%error, "settings take no desired properties");
        }
    }

    fn handle_applied(&mut self, (version, result): (u64, Result<(), String>)) {
        self.applying = None;
        self.desired = Some(DesiredState { version, result });
        self.report();
        if let Some(next) = self.next.take() {
            self.apply(next.version, next.properties);
        }
    }
}

/// What became of the desired properties that are being put in force; never if there are none.
async fn applied(
    applying: &mut Option<(u64, oneshot::Receiver<Result<(), String>>)>,
) -> (u64, Result<(), String>) {
    match applying {
        None => std::future::pending().await,
        Some((version, answered)) => {
            let gone = || Err("settings cannot be changed now; they are as before".to_owned());
            (*version, answered.await.unwrap_or_else(|_| gone()))
        }
    }
}
