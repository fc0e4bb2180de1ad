//! Wires everything together: the only place that spawns tasks and threads and connects channels.
//!
//! | thread | runtime | runs |
//! |---|---|---|
//! | `protection` | own, one thread | sessions of the sensors, paths to the machines, the stop path |
//! | `journal` | own, one thread | the journal: its fsync blocks nobody else |
//! | `latches` | none | writes latches |
//! | `forwarder` | own, one thread | Kafka, and what leaves by the hub |
//! | main | own, one thread | recording session, admin pages, signals, settings read again |
//!
//! `protection` runs at a higher priority where that is allowed (`protection.nice`), all but it and `latches` at a lower one
//! (`protection.background-nice`).
//!
//! A panic on the protection thread ends the process: the machine side must take our silence as a trip.

mod lines;
mod signals;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rumqttc::AsyncClient;
use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType, MachineId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::actuation::Actuation;
use crate::admin::{self, Board, Part, QuietBoard};
use crate::calibration::{BaselineFolder, Baselines};
use crate::cli::{EXIT_CONFIG, EXIT_DATA_DIR, EXIT_FAILURE, say};
use crate::config::{Model, Settings};
use crate::data_dir::{DataDir, Latches, read_patiently};
use crate::hub::preflight::{Preflight, no_way_at_all};
use crate::hub::telemetry::Uplink;
use crate::intake::InputTopics;
use crate::journal::{Connections, Delivered, JournalCommand, Recorder, chain, durable_at_start};
use crate::kafka::{Forwarder, Start, now};
use crate::latch::{LatchFolder, RestoredLatch, write_all};
use crate::models::{Initial, ModelManager};
use crate::mqtt::acknowledgements::Acknowledgements;
use crate::mqtt::sensors::SensorSessions;
use crate::mqtt::source::{Session, SessionEvent, SessionKind};
use crate::protection::{self, Protection, Sinks};
use crate::recognition::{InputLog, Noted, Recognition};
use crate::recording::{self, Recording};
use crate::reload::{Loaded, Reloader};
use crate::scoring::{Bundle, Models, load_models};
use crate::store::{Journal, JournalSettings, Lane, SegmentedJournal, generation_folder};
use crate::supervise::run_again_after_panic;
use crate::telemetry::{self, LogFilter};
use crate::watchdog::Supervisor;
use lines::{
    BaselineLines, HubLines, ModelLines, access, connect_settings, keep_baselines, start_link,
    telemetry_line,
};
use signals::Signals;

/// Messages between the recording session and its path. Small: what waits here is not acknowledged.
const SESSION_QUEUE_LENGTH: usize = 256;
const LATCH_QUEUE_LENGTH: usize = 1_024;
/// How long the end waits for the journal's last fsync.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long the end waits for the broker to take the last acknowledgements.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// First and longest wait before a journal that does not open is tried again.
const OPEN_RETRY_MIN: Duration = Duration::from_millis(250);
const OPEN_RETRY_MAX: Duration = Duration::from_secs(10);
/// How long the end waits for settings, models, and the link to a hub.
const PART_TIMEOUT: Duration = Duration::from_secs(1);
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Checks what `run` would need, without running.
#[must_use]
pub fn check(loaded: Loaded) -> ExitCode {
    let Loaded { settings, desired, refusal, .. } = loaded;
    let (models, refused) = load_models(&settings);
    let faults = refused.iter().map(|(name, error)| format!("{}: {error}", Model::key(name)));
    let hub = Preflight::of(&settings, &access(&settings));
    let faults = faults.chain(beyond(&settings, &models)).chain(hub.faults).chain(refusal);
    let faults: Vec<String> = faults.collect();
    if !faults.is_empty() {
        say(format_args!("wrong settings\n{}", faults.join("\n")));
        return ExitCode::from(EXIT_CONFIG);
    }
    let named = models.iter().map(|(name, bundle)| format!("{name} = {}", bundle.identity()));
    let named = named.collect::<Vec<_>>().join(", ");
    let named = if named.is_empty() { "none".to_owned() } else { named };
    let machines = settings.describe_machines();
    let desired = desired.map(|it| format!("with desired properties of version {}", it.version));
    let notes = hub.notes.into_iter().map(|note| format!("note: {note}"));
    let lines = machines.into_iter().chain(desired).chain(hub.lines).chain(notes);
    let lines: String = lines.map(|line| format!("\n  {line}")).collect();
    let (device, count) = (&settings.device.id, settings.machines.len());
    say(format_args!(
        "settings are valid: device {device}, {count} machines, models {named}{lines}"
    ));
    ExitCode::SUCCESS
}

/// Asks the running module's `/healthz`.
#[must_use]
pub fn healthcheck(settings: Settings) -> ExitCode {
    match ask_health(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("not healthy: {error:#}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn ask_health(settings: &Settings) -> anyhow::Result<()> {
    let mut address = settings.admin.listen;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let mut stream = std::net::TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)
        .with_context(|| format!("no answer at admin.listen {address}"))?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    bail!("answer {:?}", answer.lines().next().unwrap_or_default())
}

/// Runs until SIGTERM or SIGINT. `file` is read again when it changes, and on SIGHUP.
#[must_use]
pub fn run(loaded: Loaded, file: Option<PathBuf>) -> ExitCode {
    let settings = loaded.settings.clone();
    if let Some(fault) = no_way_at_all(&settings, |name| std::env::var(name).ok()) {
        say(format_args!("wrong settings\n{fault}"));
        return ExitCode::from(EXIT_CONFIG);
    }
    let log_filter = match telemetry::start_logging(&settings.telemetry) {
        Ok(log_filter) => log_filter,
        Err(error) => {
            say(format_args!("logging does not start: {error}"));
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let (mut data_dir, latches) = match DataDir::take(&settings) {
        Ok(taken) => taken,
        Err(error) => {
            error!(
                "device.data-dir {} cannot be used: {error:#}",
                settings.device.data_dir.display()
            );
            return ExitCode::from(EXIT_DATA_DIR);
        }
    };
    let sources = Sources { loaded, file, log_filter };
    match run_tasks(&settings, sources, &mut data_dir, latches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// A model that does not pass is no reason to leave the machines without their limits.
fn models_and_events(settings: &Settings) -> (Initial, Vec<MachineEvent>) {
    let initial = Initial::load(settings);
    for limit in beyond(settings, &initial.models) {
        error!(limit, "a limit is judged by nobody");
    }
    let events = initial.refused.iter().map(|(model, error)| {
        match initial.models.get(model).map(Bundle::identity) {
            Some(before) => {
                error!(model, %error, before, "model refused; the one before is in force")
            }
            None => error!(model, %error, "model refused; limits alone protect its sensors"),
        }
        let details = MachineEventDetails {
            cause: Some("self-test".to_owned()),
            detail: Some(format!("{model}: {error}")),
            ..MachineEventDetails::default()
        };
        own_event(settings, MachineEventType::ModelRefused, details)
    });
    let events = events.collect();
    (initial, events)
}

/// Limits on what the model of their sensor does not compute.
fn beyond(settings: &Settings, models: &Models) -> Vec<String> {
    settings.beyond_models(|name| {
        let features = &models.get(name)?.metadata().features;
        let bands = features.band_edges_hz.len().saturating_sub(1);
        Some((bands, features.line_hz.is_some()))
    })
}

/// The models in force, for people.
fn names(models: &Models) -> Option<String> {
    let names: Vec<String> = models.values().map(Bundle::identity).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn read_baselines(settings: &Settings) -> Baselines {
    let folder = BaselineFolder::at(&settings.device.data_dir);
    let machines: Vec<MachineId> =
        settings.machines.iter().map(|machine| machine.id.clone()).collect();
    read_patiently("baselines", move || folder.read_all(&machines)).unwrap_or_default()
}

fn own_event(
    settings: &Settings,
    event_type: MachineEventType,
    details: MachineEventDetails,
) -> MachineEvent {
    crate::journal::event_of_now(own_name(settings), event_type, details)
}

/// The device speaks of itself under its own name.
fn own_name(settings: &Settings) -> MachineId {
    MachineId::new(settings.device.id.as_str()).expect("both names obey the same rules")
}

/// Where the settings come from, to read them again.
struct Sources {
    loaded: Loaded,
    file: Option<PathBuf>,
    log_filter: LogFilter,
}

struct Stops {
    intake: watch::Sender<bool>,
    forwarder: watch::Sender<bool>,
    /// After the forwarder: what it sends at its end may leave by the hub.
    link: watch::Sender<bool>,
    journal: watch::Sender<bool>,
    supervisor: Supervisor,
}

impl Stops {
    fn new() -> Self {
        Self {
            intake: watch::Sender::new(false),
            forwarder: watch::Sender::new(false),
            link: watch::Sender::new(false),
            journal: watch::Sender::new(false),
            supervisor: Supervisor::from_environment(),
        }
    }
}

struct Threads {
    journal: JoinHandle<()>,
    forwarder: JoinHandle<()>,
}

/// The stop path, running, and what the rest is connected to it with.
struct StopPath {
    protection: JoinHandle<()>,
    latches: JoinHandle<()>,
    events: mpsc::Sender<MachineEvent>,
    event_receiver: mpsc::Receiver<MachineEvent>,
    reloader: Reloader,
    historical_after: watch::Receiver<Duration>,
    recording: recording::Links,
    models: ModelLines,
    baselines: BaselineLines,
    hub: HubLines,
}

/// What records and sends, made when the journal is open.
struct Rest {
    session: Session,
    recording: Recording,
    commands: mpsc::Sender<JournalCommand>,
    threads: Threads,
}

fn run_tasks(
    settings: &Settings,
    sources: Sources,
    data_dir: &mut DataDir,
    latches: Latches,
) -> anyhow::Result<()> {
    let metrics = telemetry::start_metrics().context("metrics do not start")?;
    let awaited = [Part::Protection, Part::Actuator, Part::Recording, Part::Journal];
    let board = Board::new(&settings.device.id, &awaited);
    let runtime = own_runtime()?;
    let (listener, address) = runtime
        .block_on(admin::bind(settings.admin.listen))
        .with_context(|| format!("admin.listen {} cannot be bound", settings.admin.listen))?;
    info!(%address, "admin pages");
    let (initial, refusals) = models_and_events(settings);
    let baselines = read_baselines(settings);
    for kept in baselines.values() {
        board.show_baseline(&kept.baseline);
    }
    let stops = Stops::new();
    // First the machines are protected; a journal that does not open must not delay that.
    let path =
        start_stop_path(settings, sources, (&initial.models, &baselines), latches, &stops, &board)?;
    yield_to_stop_path(settings.protection.background_nice);
    let result = runtime.block_on(async {
        let mut stop = stops.intake.subscribe();
        let pages = tokio::spawn(admin::serve(listener, board.clone(), metrics, async move {
            // The sender outlives this task.
            drop(stop.wait_for(|is_stopping| *is_stopping).await);
        }));
        let mut signals = Signals::new()?;
        let supervisor = stops.supervisor.clone();
        tokio::spawn(supervisor.pulse(board.clone(), stops.intake.subscribe()));
        let opened = tokio::select! {
            journal = open_journal(settings, data_dir, &board) => journal.map(Some),
            result = signals.wait_for_end(&path.protection, None, &board) => result.map(|()| None),
        };
        let result = match opened {
            Ok(Some(journal)) => {
                run_with_journal(
                    settings,
                    journal,
                    (initial, baselines),
                    refusals,
                    path,
                    stops,
                    signals,
                    &board,
                )
                .await
            }
            ended => {
                stops.intake.send_replace(true);
                let joined = join(path.protection, "protection").await;
                // The latches' queue closes with the stop path.
                ended.map(|_| ()).and(joined).and(join(path.latches, "latches").await)
            }
        };
        pages.abort();
        result
    });
    info!("edge module stopped");
    // What hangs on a disk must not keep the process from its end, and the machines from the next start.
    runtime.shutdown_timeout(LEAVE_TIMEOUT);
    result
}

/// Lowers the priority of this thread, and so of those that it starts from here on: when the processor is busy the stop path
/// goes first.
fn yield_to_stop_path(nice: u8) {
    if let Err(error) = rustix::process::setpriority_process(None, i32::from(nice)) {
        warn!(%error, nice, "threads beside the stop path keep their priority");
    }
}

/// Raises the priority of this thread, where that is allowed.
fn go_first(nice: i8) {
    if let Err(error) = rustix::process::setpriority_process(None, i32::from(nice)) {
        info!(%error, nice, "the stop path runs at ordinary priority: protection.nice needs CAP_SYS_NICE or a nice limit");
    }
}

#[expect(clippy::too_many_arguments, reason = "each is handed on to a part of its own")]
async fn run_with_journal(
    settings: &Settings,
    journal: SegmentedJournal,
    (initial, baselines): (Initial, Baselines),
    refusals: Vec<MachineEvent>,
    path: StopPath,
    stops: Stops,
    mut signals: Signals,
    board: &Board,
) -> anyhow::Result<()> {
    let StopPath {
        protection,
        latches,
        events,
        event_receiver,
        reloader,
        historical_after,
        recording,
        models,
        baselines: baseline_lines,
        hub,
    } = path;
    let details =
        MachineEventDetails { model: names(&initial.models), ..MachineEventDetails::default() };
    let started = own_event(settings, MachineEventType::Started, details);
    for event in std::iter::once(started).chain(refusals) {
        if events.try_send(event).is_err() {
            warn!("the start is not journalled: the queue of machine events is full");
        }
    }
    let (uplink, downlink) = telemetry_line(settings);
    let lines = (event_receiver, historical_after, recording, uplink);
    let Rest { session, recording, commands, threads } =
        start_rest(settings, journal, (&initial.models, &baselines), lines, &stops, board)?;
    let (session_events, session_receiver) = mpsc::channel(SESSION_QUEUE_LENGTH);
    let (client, acknowledgements) = (session.client(), session.acknowledgements());
    let session = tokio::spawn(session.run(session_events));
    let recording = tokio::spawn(recording.run(session_receiver, stops.intake.subscribe()));
    let reloader = tokio::spawn(reloader.run(stops.intake.subscribe()));
    let link = start_link(settings, (hub, downlink), board, &stops.link);
    let ModelLines { reached, settings: newest, troubles } = models;
    let manager = ModelManager::new(settings.clone(), initial, own_name(settings), reached);
    let manager = tokio::spawn(manager.run(newest, troubles, stops.intake.subscribe()));
    let folder = BaselineFolder::at(&settings.device.data_dir);
    let keeper = tokio::spawn(keep_baselines(folder, baseline_lines));
    let result = signals.wait_for_end(&protection, Some(&threads), board).await;
    stops.intake.send_replace(true);
    let leaving = recording.await.ok().map(|events| Leaving { client, acknowledgements, events });
    wait_for_part("settings", reloader).await;
    wait_for_part("models", manager).await;
    keeper.abort();
    let lasting = (threads, link);
    let finished =
        finish(settings, events, commands, leaving, stops, lasting, protection, latches).await;
    session.abort();
    result.and(finished)
}

/// One that hangs on a disk or a server must not keep the others from their end.
async fn wait_for_part<T>(part: &'static str, task: tokio::task::JoinHandle<T>) {
    if tokio::time::timeout(PART_TIMEOUT, task).await.is_err() {
        warn!(part, "does not end; the module ends without it");
    }
}

/// Limits of the journal by the settings.
#[must_use]
pub const fn journal_limits(settings: &Settings) -> JournalSettings {
    JournalSettings {
        segment_bytes: settings.journal.segment_bytes,
        bytes_max: settings.journal.bytes_max,
        free_bytes_min: settings.journal.free_bytes_min,
        cache_bytes: settings.journal.cache_bytes,
    }
}

/// Waits for the folder, then for the journal in it.
async fn open_journal(
    settings: &Settings,
    data_dir: &mut DataDir,
    board: &Board,
) -> anyhow::Result<SegmentedJournal> {
    if data_dir.is_awaited() {
        board.set(Part::Journal, Err("the disk of device.data-dir does not answer".to_owned()));
    }
    data_dir.wait().await?;
    Ok(open_patiently(settings, board).await)
}

/// Opens the journal, however long that takes: a disk that is full at the start may have room later, and the machines are
/// protected meanwhile.
async fn open_patiently(settings: &Settings, board: &Board) -> SegmentedJournal {
    let mut wait = OPEN_RETRY_MIN;
    loop {
        let (folder, limits) = (settings.device.data_dir.clone(), journal_limits(settings));
        let opened = tokio::task::spawn_blocking(move || {
            SegmentedJournal::open(&folder, limits, now()).map_err(|error| chain(&error))
        });
        let reason = match opened.await {
            Ok(Ok(journal)) => return journal,
            Ok(Err(reason)) => reason,
            Err(panic) => panic.to_string(),
        };
        error!(
            reason,
            wait_ms = wait.as_millis() as u64,
            "journal does not open; machines are protected, nothing is recorded: check the disk of device.data-dir"
        );
        board.set(Part::Journal, Err(format!("does not open: {reason}")));
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(OPEN_RETRY_MAX);
    }
}

/// Starts what protects the machines.
fn start_stop_path(
    settings: &Settings,
    sources: Sources,
    known: (&Models, &Baselines),
    latches: Latches,
    stops: &Stops,
    board: &Board,
) -> anyhow::Result<StopPath> {
    let (events, event_receiver) = mpsc::channel(settings.protection.event_queue_length);
    let Latches { folder: latch_folder, restored, orphans } = latches;
    for latch in orphans {
        error!(machine_id = %latch.machine_id, state = latch.as_str(), "a trip is latched on a machine that the settings do not name: it is not watched; its latch is kept");
    }
    let (reloader, lines) = connect_settings(settings, sources, &latch_folder, &events, board);
    let (latches, latch_receiver) = std::sync::mpsc::sync_channel(LATCH_QUEUE_LENGTH);
    let sinks = Sinks { events: events.clone(), latches, board: QuietBoard::new(board) };
    let intake = stops.intake.subscribe();
    Ok(StopPath {
        latches: spawn_latches(latch_folder.clone(), latch_receiver, board.clone())?,
        protection: spawn_protection(
            settings.clone(),
            known,
            restored,
            (sinks, board),
            lines.protection,
            (intake, stops.supervisor.clone()),
        )?,
        events,
        event_receiver,
        reloader,
        historical_after: lines.historical_after,
        recording: lines.recording,
        models: lines.models,
        baselines: lines.baselines,
        hub: lines.hub,
    })
}

type RestLines =
    (mpsc::Receiver<MachineEvent>, watch::Receiver<Duration>, recording::Links, Option<Uplink>);

/// Starts the threads of journal and forwarder, and makes what runs on this one.
fn start_rest(
    settings: &Settings,
    journal: SegmentedJournal,
    known: (&Models, &Baselines),
    lines: RestLines,
    stops: &Stops,
    board: &Board,
) -> anyhow::Result<Rest> {
    let (event_receiver, historical_after, links, hub) = lines;
    let (generation, next_sequence) = (journal.generation(), journal.next_sequence().0);
    board.show_generation(generation.0);
    let (device_id, machines) = (&settings.device.id, settings.machines.len());
    info!(%device_id, generation = generation.0, next_sequence, models = names(known.0), machines, "edge module starts");
    let (commands, command_receiver) = mpsc::channel(settings.journal.queue_length);
    let filters = InputTopics::new(&settings.mqtt).filters();
    let session = Session::new(settings, SessionKind::Recording, filters)?;
    let reader = journal.reader();
    let (inputs, noted) = open_inputs(&generation_folder(&settings.device.data_dir, generation));
    let recognition = Recognition::new(&*reader, &noted);
    let recording = Recording::new(settings, known, recognition, commands.clone(), board.clone())?
        .linked(links);
    let durable = watch::Sender::new(durable_at_start(&journal));
    let (delivered, delivered_receiver) = watch::channel(Delivered::default());
    let start = Start {
        durable: durable.subscribe(),
        delivered,
        device_id: settings.device.id.clone(),
        generation,
        acknowledged: Lane::ALL.map(|lane| (lane, journal.acknowledged(lane))),
        upstream: settings.upstream.clone(),
        hub,
    };
    let forwarder =
        Forwarder::new(settings.kafka.clone(), start, reader, commands.clone(), board.clone())?
            .following(historical_after);
    let connections = Connections {
        inputs,
        events: event_receiver,
        commands: command_receiver,
        durable,
        delivered: delivered_receiver,
        acknowledgements: session.acknowledgements(),
        board: board.clone(),
    };
    let limits = (settings.journal.group_records_max, settings.journal.ledger_interval);
    let recorder = Recorder::new(Box::new(journal), own_name(settings), limits, connections);
    let (stop, drain_timeout) = (stops.forwarder.subscribe(), settings.shutdown.drain_timeout);
    let threads = Threads {
        journal: spawn_recorder(recorder, stops.journal.subscribe(), board.clone())?,
        forwarder: spawn_forwarder(forwarder, stop, drain_timeout, board.clone())?,
    };
    Ok(Rest { session, recording, commands, threads })
}

/// The journal goes on without: then less is known again after a crash.
fn open_inputs(folder: &Path) -> (Option<InputLog>, Vec<Noted>) {
    match InputLog::open(folder) {
        Ok((log, noted)) => (Some(log), noted),
        Err(error) => {
            error!(folder = %folder.display(), %error, "inputs-0 and inputs-1 cannot be opened: what the broker repeats after a crash may be recorded twice");
            (None, Vec::new())
        }
    }
}

/// The recording session when nothing is taken in any more.
struct Leaving {
    client: AsyncClient,
    acknowledgements: Acknowledgements,
    events: mpsc::Receiver<SessionEvent>,
}

impl Leaving {
    /// Acknowledges what is durable, and only then leaves the broker: it would deliver that again. What still comes is not
    /// acknowledged, and kept by the broker.
    async fn leave(mut self, flushed: impl Future<Output = bool>) -> bool {
        tokio::pin!(flushed);
        let is_flushed = tokio::select! {
            is_flushed = &mut flushed => is_flushed,
            () = discard(&mut self.events) => flushed.await,
        };
        let leave = async {
            self.acknowledgements.wait_until_written().await;
            if self.client.try_disconnect().is_ok() {
                // Until the session has ended.
                std::future::pending::<()>().await;
            }
        };
        let left = async {
            tokio::select! {
                () = leave => {}
                () = discard(&mut self.events) => {}
            }
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, left).await.is_err() {
            info!(
                "the broker has not closed the recording session; it may deliver some messages again"
            );
        }
        is_flushed
    }
}

/// Takes events until there are no more.
async fn discard(events: &mut mpsc::Receiver<SessionEvent>) {
    while events.recv().await.is_some() {}
}

/// In order: no more input, events of the stop path, what is in flight, the journal.
#[expect(clippy::too_many_arguments, reason = "each is a part that ends")]
async fn finish(
    settings: &Settings,
    events: mpsc::Sender<MachineEvent>,
    commands: mpsc::Sender<JournalCommand>,
    leaving: Option<Leaving>,
    stops: Stops,
    (threads, link): (Threads, Option<tokio::task::JoinHandle<()>>),
    protection: JoinHandle<()>,
    latches: JoinHandle<()>,
) -> anyhow::Result<()> {
    let protection = join(protection, "protection").await;
    let stopped = own_event(settings, MachineEventType::Stopped, MachineEventDetails::default());
    if events.try_send(stopped).is_err() {
        warn!("the stop is not journalled: the queue of machine events is full");
    }
    drop(events);
    let (flushed, is_flushed) = oneshot::channel();
    let flush = async {
        commands.send(JournalCommand::Flush(flushed)).await.is_ok() && is_flushed.await.is_ok()
    };
    let flush = async { tokio::time::timeout(FLUSH_TIMEOUT, flush).await.unwrap_or(false) };
    let is_flushed = match leaving {
        Some(leaving) => leaving.leave(flush).await,
        None => flush.await,
    };
    if !is_flushed {
        warn!(
            "the journal does not take the last records; the broker keeps what is not acknowledged"
        );
    }
    drop(commands);
    stops.forwarder.send_replace(true);
    let forwarder = join(threads.forwarder, "forwarder").await;
    stops.link.send_replace(true);
    if let Some(link) = link {
        wait_for_part("link to the hub", link).await;
    }
    stops.journal.send_replace(true);
    let journal = join(threads.journal, "journal").await;
    let latches = join(latches, "latches").await;
    protection.and(forwarder).and(journal).and(latches)
}

async fn join(thread: JoinHandle<()>, name: &'static str) -> anyhow::Result<()> {
    let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
    joined.map_err(|_| anyhow::anyhow!("thread {name} panicked"))
}

fn spawn(
    name: &str,
    run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let label = name.to_owned();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = run() {
            error!(thread = label, "{error:#}");
        }
    })?;
    Ok(thread)
}

fn own_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn spawn_recorder(
    mut recorder: Recorder,
    stop: watch::Receiver<bool>,
    board: Board,
) -> anyhow::Result<JoinHandle<()>> {
    spawn("journal", move || {
        let run = async || recorder.run(stop.clone()).await;
        run_again_after_panic(Part::Journal, &board, stop.clone(), run)
    })
}

fn spawn_forwarder(
    mut forwarder: Forwarder,
    stop: watch::Receiver<bool>,
    drain_timeout: Duration,
    board: Board,
) -> anyhow::Result<JoinHandle<()>> {
    spawn("forwarder", move || {
        let run = async || forwarder.run(stop.clone(), drain_timeout).await;
        run_again_after_panic(Part::Forwarder, &board, stop.clone(), run)
    })
}

fn spawn_latches(
    folder: LatchFolder,
    latches: std::sync::mpsc::Receiver<edge_core::interlock::LatchSnapshot>,
    board: Board,
) -> anyhow::Result<JoinHandle<()>> {
    spawn("latches", move || {
        write_all(&folder, &latches, &board);
        Ok(())
    })
}

fn spawn_protection(
    settings: Settings,
    known: (&Models, &Baselines),
    restored: Vec<RestoredLatch>,
    (sinks, board): (Sinks, &Board),
    links: protection::Links,
    (stop, supervisor): (watch::Receiver<bool>, Supervisor),
) -> anyhow::Result<JoinHandle<()>> {
    let mut sensors = SensorSessions::new(&settings)?;
    let (actuation, paths) = Actuation::new(&settings, board)?;
    let protection = Protection::new(&settings, known, restored, actuation, sinks)?.linked(links);
    let heartbeat_interval = settings.protection.heartbeat_interval;
    let nice = settings.protection.nice;
    spawn("protection", move || {
        go_first(nice);
        let runtime = own_runtime()?;
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            sensors.start(&mut tasks);
            let reports = paths.start(&mut tasks);
            tokio::spawn(supervisor.feed());
            protection.run(sensors, reports, tasks, heartbeat_interval, stop).await;
        });
        Ok(())
    })
}
