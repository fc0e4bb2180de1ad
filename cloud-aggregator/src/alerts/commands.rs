//! `cloud-aggregator alerts list`, `test` and `replay`: what people were told, and whether it reaches them.
//!
//! `list` reads the table `alerts`. `test` and `replay` send what they send by the same way as a running aggregator, with the same
//! URLs, secrets and headers, but without its patience: `test` tries once, `replay` leaves a target alone that fails
//! three times in a row. No text that they print holds a URL or the value of a header.
//!
//! A replay writes nothing down: the CloudEvent keeps its id, by which receivers know it again, so that a second replay is harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aggregator_core::{AlertEvent, AlertState, ProcessingTime};
use shared_proto::model::{EventTime, MachineId};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cli::{AlertsReplay, LetterFilter};
use crate::config::{self, Audience, Settings, Target};
use crate::dead_letters::{Letter, LettersError, Selection, read_letters};
use crate::sink::alert::{AlertCloudEvent, AlertType, Channel, Delivery, Outcome, delivery};
use crate::sink::alert_topic::AlertTopic;
use crate::sink::delta::LakeError;
use crate::sink::webhook::{CircuitState, TargetHealth, Webhook};
use crate::source::kafka::client_config;
use crate::telemetry;

mod list;

pub use list::list;

/// Reasons of dead letters that are alerts.
pub const REASONS: [&str; 2] = [UNDELIVERED, OVERFLOW];
const UNDELIVERED: &str = "alert-undelivered";
const OVERFLOW: &str = "alert-overflow";
/// `source` of dead letters that are alerts.
const LETTER_SOURCE: &str = "alerts";
/// Rule, machine and begin of the id of the event that `test` sends.
const TEST: &str = "test";
/// The least severe: whoever is called out by severity is not.
const TEST_SEVERITY: u8 = 4;
const TEST_DETAIL: &str =
    "this is a test by `cloud-aggregator alerts test`, there is nothing to be done";
/// Most letters of one replay: their bytes are held in memory.
const LETTERS_MAX: usize = 10_000;
/// Letters of one kind that are named one by one.
const NAMED_MAX: usize = 20;
/// Attempts of one event in a replay, if the target's settings have no fewer; as many failures in a row end it for the target.
const ATTEMPTS_MAX: u32 = 3;
/// Silence after which Kafka is not waited for any longer: it is the time in which its client gives a record up.
const TOPIC_PATIENCE: Duration = Duration::from_secs(30);
/// Nothing that is sent by hand is too old.
const NO_DEADLINE: Duration = Duration::from_secs(3_650 * 86_400);

/// The command line asks for something that cannot be (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// A target does not take an event (`EX_UNAVAILABLE`).
const EXIT_UNAVAILABLE: u8 = 69;
/// The storage cannot be read (`EX_IOERR`).
const EXIT_STORAGE: u8 = 74;

/// Why a command about alerts fails.
#[derive(Debug, thiserror::Error)]
pub enum AlertsError {
    /// The storage refuses.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// There is no table.
    #[error("{location} has no table alerts: check lake.location")]
    NoTable {
        /// Where it was looked for.
        location: String,
    },
    /// A text that is no moment.
    #[error(
        "--since {text:?} is no moment: write 2026-03-01T08:15:30Z, 2026-03-01, or how long ago, such as 2h"
    )]
    When {
        /// The text.
        text: String,
    },
    /// The settings do not have this target.
    #[error("alerts do not go to {name:?}: they go to {known}")]
    NoTarget {
        /// The name.
        name: String,
        /// Names that there are.
        known: String,
    },
    /// The settings have no target.
    #[error("alerts go nowhere: set alerts.topic or alerts.targets")]
    Nowhere,
    /// The test has not arrived.
    #[error("{name} did not take the event {id}, after {took:.3?}: {why}")]
    NotTaken {
        /// Name of the target.
        name: String,
        /// Id of the event.
        id: String,
        /// Until that was known.
        took: Duration,
        /// Why; never a URL or a secret.
        why: String,
    },
    /// Dead letters cannot be read.
    #[error(transparent)]
    Letters(#[from] LettersError),
    /// More letters than one replay takes.
    #[error("more than {LETTERS_MAX} alerts are selected: narrow the selection, or set --limit")]
    TooMany,
    /// Neither `--yes` nor `--dry-run`.
    #[error(
        "{count} events would be sent: --yes sends them, --dry-run names each of them and sends none"
    )]
    NotConfirmed {
        /// How many.
        count: usize,
    },
    /// Nobody takes the output.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

impl AlertsError {
    /// What the program ends with. Of letters others know better, and say so.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Lake(_) | Self::NoTable { .. } | Self::Letters(_) => EXIT_STORAGE,
            Self::When { .. }
            | Self::NoTarget { .. }
            | Self::Nowhere
            | Self::TooMany
            | Self::NotConfirmed { .. } => EXIT_USAGE,
            Self::NotTaken { .. } => EXIT_UNAVAILABLE,
            Self::Output(_) => 1,
        }
    }
}

/// Channels of the settings; the topic has no target.
type Channels = BTreeMap<Channel, Option<Target>>;

fn channels_of(settings: &config::Alerts) -> Result<Channels, AlertsError> {
    let topic = (!settings.topic.is_empty()).then_some((Channel::Topic, None));
    let targets = settings.all_targets().into_iter();
    let targets =
        targets.map(|target| (Channel::Target(target.name.as_str().into()), Some(target)));
    let channels: Channels = topic.into_iter().chain(targets).collect();
    if channels.is_empty() { Err(AlertsError::Nowhere) } else { Ok(channels) }
}

fn channel_named(channels: &Channels, name: &str) -> Result<Channel, AlertsError> {
    let found = channels.keys().find(|channel| channel.as_str() == name).cloned();
    found.ok_or_else(|| {
        let known = channels.keys().map(Channel::as_str).collect::<Vec<_>>().join(", ");
        AlertsError::NoTarget { name: name.to_owned(), known }
    })
}

/// One channel that is open, with what it answers. It closes when this is dropped.
struct Line {
    sender: mpsc::Sender<Delivery>,
    outcomes: mpsc::Receiver<Outcome>,
    task: JoinHandle<()>,
    /// Set: how the target stands. Not set: it is the topic, which never gives up by itself.
    health: Option<TargetHealth>,
    /// The topic was waited for in vain.
    is_silent: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// Opens a channel that gives an event up after so many attempts.
    fn open(settings: &Settings, target: Option<&Target>, attempts: u32) -> Result<Self, String> {
        let (sender, queue) = mpsc::channel(1);
        let (answers, outcomes) = mpsc::channel(1);
        let Some(target) = target else {
            let topic = open_topic(settings).map_err(|error| format!("{error:#}"))?;
            let task = tokio::spawn(topic.run(queue, answers));
            return Ok(Self { sender, outcomes, task, health: None, is_silent: false });
        };
        let attempts = target.attempts_max.min(attempts);
        let webhook = Webhook::new(Target {
            attempts_max: attempts,
            circuit_failures: attempts,
            deadline: NO_DEADLINE,
            // One by one: what is sent by hand is to be answered.
            rate: None,
            ..target.clone()
        });
        let webhook = webhook.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        let health = Some(webhook.health());
        let task = tokio::spawn(webhook.run(queue, answers));
        Ok(Self { sender, outcomes, task, health, is_silent: false })
    }

    /// Sends one and waits for what becomes of it: the reason, if it is not taken.
    async fn send(&mut self, delivery: Delivery) -> Result<(), String> {
        let gone = || "the delivery has ended".to_owned();
        self.sender.send(delivery).await.map_err(|_| gone())?;
        let answer = self.outcomes.recv();
        let outcome = if self.health.is_some() {
            answer.await
        } else {
            let Ok(outcome) = tokio::time::timeout(TOPIC_PATIENCE, answer).await else {
                self.is_silent = true;
                return Err(format!(
                    "kafka has not acknowledged it within {TOPIC_PATIENCE:?}, and may have it"
                ));
            };
            outcome
        };
        outcome.ok_or_else(gone)?.given_up.map_or(Ok(()), Err)
    }

    /// Whether what has just failed will go on failing.
    fn is_away(&self) -> bool {
        let circuit = self.health.as_ref().map(|health| health.status().circuit);
        let is_probed = match circuit {
            None | Some(CircuitState::Closed) => false,
            Some(CircuitState::HalfOpen | CircuitState::Open) => true,
        };
        is_probed || self.is_silent || self.task.is_finished()
    }
}

fn open_topic(settings: &Settings) -> anyhow::Result<AlertTopic> {
    let client = client_config(&settings.kafka)?;
    Ok(AlertTopic::new(client, &settings.alerts, Handle::current())?)
}

/// Sends one event to one target, whatever events the target wants, and prints what is answered.
///
/// # Errors
/// There is no such target, the event is not taken, or nobody takes the output.
pub async fn test(
    settings: &Settings,
    name: &str,
    now: EventTime,
    out: &mut impl Write,
) -> Result<(), AlertsError> {
    let channels = channels_of(&settings.alerts)?;
    let channel = channel_named(&channels, name)?;
    if channel == Channel::Topic {
        // Only the client's log says why Kafka does not answer.
        drop(telemetry::start_logging(&settings.telemetry));
    }
    let delivery = delivery(&test_event(now), &settings.alerts.source);
    let id = delivery.id.to_string();
    let began = Instant::now();
    let target = channels.get(&channel).and_then(Option::as_ref);
    let answer = match Line::open(settings, target, 1) {
        Ok(mut line) => line.send(delivery).await,
        Err(why) => Err(why),
    };
    let took = began.elapsed();
    if let Err(why) = answer {
        return Err(AlertsError::NotTaken { name: name.to_owned(), id, took, why });
    }
    let answered = match channel {
        Channel::Topic => "kafka has acknowledged it",
        Channel::Target(_) => "the answer was a success (status 2xx)",
    };
    writeln!(out, "{name} has taken the event {id}: {answered}, after {took:.3?}")?;
    Ok(())
}

/// An alert that has fired. Its name is another each time: a receiver would not tell of a repeat.
fn test_event(now: EventTime) -> AlertEvent {
    let decided = ProcessingTime::from_micros(now.micros());
    AlertEvent {
        alert_id: format!("{TEST}-{}", now.micros()),
        revision: 1,
        state: AlertState::Fired,
        rule: TEST.to_owned(),
        severity: TEST_SEVERITY,
        machine_id: MachineId::new(TEST).ok(),
        sensor_id: None,
        window_start: now,
        window_end: now,
        findings: 1,
        count: 1,
        threshold: String::new(),
        observed: 0.0,
        detail: TEST_DETAIL.to_owned(),
        trip_id: None,
        fired_at: decided,
        changed_at: decided,
        resolved_at: None,
        historical: false,
        suppressed_by: None,
    }
}

/// An event that is sent again.
#[derive(Clone, Debug)]
struct Outgoing {
    /// Name of the letter.
    letter: String,
    delivery: Delivery,
}

/// What is sent where, oldest first, and what cannot be.
#[derive(Debug, Default)]
struct Plan {
    outgoing: BTreeMap<Channel, Vec<Outgoing>>,
    /// Lines for people.
    refused: Vec<String>,
}

impl Plan {
    fn count(&self) -> usize {
        self.outgoing.values().map(Vec::len).sum()
    }
}

/// Posts alerts that became dead letters again, under the ids they had. Gives whether all of them were taken.
///
/// Where: to the target that is named; else to the target that has given the event up, and of events that became too many to every
/// target that wants them.
///
/// # Errors
/// There is no such target, letters cannot be read, they are too many or not confirmed, or nobody takes the output.
pub async fn replay(
    settings: &Settings,
    arguments: &AlertsReplay,
    now: EventTime,
    out: &mut impl Write,
) -> Result<bool, AlertsError> {
    let channels = channels_of(&settings.alerts)?;
    let only =
        arguments.target.as_deref().map(|name| channel_named(&channels, name)).transpose()?;
    let letters = undelivered(&settings.lake, arguments, now).await?;
    if letters.len() > LETTERS_MAX {
        return Err(AlertsError::TooMany);
    }
    let plan = plan(&letters, &channels, only.as_ref(), ProcessingTime::from_micros(now.micros()));
    if !arguments.dry_run && !arguments.yes && plan.count() > 0 {
        return Err(AlertsError::NotConfirmed { count: plan.count() });
    }
    print_some(&plan.refused, out)?;
    let mut is_complete = plan.refused.is_empty();
    if arguments.dry_run {
        for (channel, outgoing) in &plan.outgoing {
            for Outgoing { letter, delivery } in outgoing {
                writeln!(out, "would send {} ({letter}) to {}", delivery.id, channel.as_str())?;
            }
        }
        writeln!(out, "{} would be sent, {} cannot be", plan.count(), plan.refused.len())?;
        return Ok(is_complete);
    }
    for (channel, outgoing) in &plan.outgoing {
        let target = channels.get(channel).and_then(Option::as_ref);
        let posted = post(settings, target, outgoing).await;
        posted.print(channel, out)?;
        is_complete &= posted.is_complete();
    }
    if plan.outgoing.is_empty() {
        writeln!(out, "0 to be sent, {} cannot be", plan.refused.len())?;
    }
    Ok(is_complete)
}

/// The letters asked for, oldest first, at most one more than a replay takes.
async fn undelivered(
    lake: &config::Lake,
    arguments: &AlertsReplay,
    now: EventTime,
) -> Result<Vec<Letter>, AlertsError> {
    let reasons = match arguments.reason.as_slice() {
        [] => REASONS.map(str::to_owned).to_vec(),
        reasons => reasons.to_vec(),
    };
    let filter = LetterFilter {
        reason: reasons,
        source: Some(LETTER_SOURCE.to_owned()),
        since: arguments.since.clone(),
        until: None,
    };
    let selection = Selection::new(&filter, &[], now)?;
    let limit = arguments.limit.unwrap_or(LETTERS_MAX + 1).min(LETTERS_MAX + 1);
    let mut letters = Vec::new();
    let cut = |letters: &mut Vec<Letter>| {
        // A letter's time is that of the alert's change: its begin goes before its end.
        letters.sort_by(|a, b| (a.timestamp, &a.key, &a.raw).cmp(&(b.timestamp, &b.key, &b.raw)));
        letters.truncate(limit);
    };
    read_letters(lake, &selection, |letter| {
        letters.push(letter);
        if letters.len() >= 2 * (LETTERS_MAX + 1) {
            cut(&mut letters);
        }
    })
    .await?;
    cut(&mut letters);
    Ok(letters)
}

fn plan(
    letters: &[Letter],
    channels: &Channels,
    only: Option<&Channel>,
    now: ProcessingTime,
) -> Plan {
    let mut plan = Plan::default();
    // One event that was given up twice is one event.
    let mut planned = BTreeSet::<(Channel, Arc<str>)>::new();
    for letter in letters {
        let key = letter.key.to_string();
        let found = event_of(letter).and_then(|event| {
            let goes_to = match only {
                Some(channel) => vec![channel.clone()],
                None => owing(letter, &event, channels)?,
            };
            Ok((event, goes_to))
        });
        let (event, goes_to) = match found {
            Ok(found) => found,
            Err(why) => {
                plan.refused.push(format!("{key} cannot be sent again: {why}"));
                continue;
            }
        };
        let delivery = as_it_was(letter, &event, now);
        for channel in goes_to {
            if planned.insert((channel.clone(), Arc::clone(&delivery.id))) {
                let next = Outgoing { letter: key.clone(), delivery: delivery.clone() };
                plan.outgoing.entry(channel).or_default().push(next);
            }
        }
    }
    plan
}

/// The CloudEvent that a letter holds.
fn event_of(letter: &Letter) -> Result<AlertCloudEvent, String> {
    if letter.is_cut() {
        let (kept, length) = (letter.raw.len(), letter.raw_length);
        return Err(format!("only {kept} of its {length} bytes are kept"));
    }
    serde_json::from_slice(&letter.raw)
        .map_err(|error| format!("it holds no event of an alert: {error}"))
}

/// The same bytes under the same id.
fn as_it_was(letter: &Letter, event: &AlertCloudEvent, now: ProcessingTime) -> Delivery {
    Delivery {
        id: event.id.as_str().into(),
        key: event.subject.as_str().into(),
        body: String::from_utf8_lossy(&letter.raw).into(),
        // Its deadline has passed long ago; this is another try.
        changed_at: now,
        told: None,
    }
}

/// Channels that have not had an event.
fn owing(
    letter: &Letter,
    event: &AlertCloudEvent,
    channels: &Channels,
) -> Result<Vec<Channel>, String> {
    if letter.reason == UNDELIVERED {
        // The detail begins with the name of the channel that has given it up.
        let name = letter.detail.split_once(": ").map_or("", |(name, _)| name);
        let found = channels.keys().find(|channel| channel.as_str() == name);
        let gone = || {
            format!("its target {name:?} is not in the settings any more: name one to send it to")
        };
        return Ok(vec![found.ok_or_else(gone)?.clone()]);
    }
    let event = for_audience(event);
    let wants = |target: &Option<Target>| match target {
        Some(target) => target.audience.wants(&event),
        None => Audience::everything().wants(&event),
    };
    let wanting = channels.iter().filter(|(_, target)| wants(target));
    let wanting: Vec<Channel> = wanting.map(|(channel, _)| channel.clone()).collect();
    if wanting.is_empty() {
        return Err("no target wants it any more: name one to send it to".to_owned());
    }
    Ok(wanting)
}

/// As much of an event as an audience looks at.
fn for_audience(event: &AlertCloudEvent) -> AlertEvent {
    let told = &event.data.data;
    AlertEvent {
        revision: told.alert_context.revision,
        state: match event.kind {
            AlertType::Fired => AlertState::Fired,
            AlertType::Resolved => AlertState::Resolved,
        },
        rule: told.alert_context.rule.clone(),
        severity: told.essentials.severity as u8,
        historical: told.alert_context.historical,
        ..test_event(EventTime::from_micros(0))
    }
}

/// What came of the events for one channel.
#[derive(Debug, Default)]
struct Posted {
    taken: usize,
    /// Lines for people.
    failed: Vec<String>,
    /// Not tried, since the channel fails.
    untried: usize,
}

impl Posted {
    fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.untried == 0
    }

    fn print(&self, channel: &Channel, out: &mut impl Write) -> io::Result<()> {
        let Self { taken, failed, untried } = self;
        let name = channel.as_str();
        write!(out, "{name} has taken {taken}")?;
        if !failed.is_empty() {
            write!(out, ", not taken {}", failed.len())?;
        }
        if *untried > 0 {
            write!(out, ", and {untried} were not tried, since it fails")?;
        }
        writeln!(out)?;
        print_some(failed, out)
    }
}

async fn post(settings: &Settings, target: Option<&Target>, outgoing: &[Outgoing]) -> Posted {
    let mut posted = Posted::default();
    let mut line = match Line::open(settings, target, ATTEMPTS_MAX) {
        Ok(line) => line,
        Err(why) => {
            let (failed, untried) = (vec![format!("  {why}")], outgoing.len());
            return Posted { taken: 0, failed, untried };
        }
    };
    for (index, Outgoing { letter, delivery }) in outgoing.iter().enumerate() {
        match line.send(delivery.clone()).await {
            Ok(()) => posted.taken += 1,
            Err(why) => {
                posted.failed.push(format!("  {} ({letter}): {why}", delivery.id));
                if line.is_away() {
                    posted.untried = outgoing.len() - index - 1;
                    break;
                }
            }
        }
    }
    posted
}

fn print_some(lines: &[String], out: &mut impl Write) -> io::Result<()> {
    for line in lines.iter().take(NAMED_MAX) {
        writeln!(out, "{line}")?;
    }
    match lines.len().saturating_sub(NAMED_MAX) {
        0 => Ok(()),
        more => writeln!(out, "and {more} others"),
    }
}

#[cfg(test)]
mod tests;
