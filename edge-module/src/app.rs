//! Wires everything together: the only place that spawns tasks and threads and connects channels.
//!
//! | thread | runtime | runs |
//! |---|---|---|
//! | `protection` | own, one thread | session of the sensors, paths to the machines, the stop path |
//! | `journal` | own, one thread | the journal: its fsync blocks nobody else |
//! | `latches` | none | writes latches |
//! | `forwarder` | own, one thread | Kafka |
//! | main | own, one thread | recording session, admin pages, signals, settings read again |
//!
//! A panic on the protection thread ends the process: the machine side must take our silence as a trip.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType, MachineId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::actuation::{Actuation, TaskEnd};
use crate::admin::{self, Board, Part};
use crate::cli::{EXIT_CONFIG, EXIT_DATA_DIR, EXIT_FAILURE};
use crate::config::{Keys, Settings};
use crate::intake::InputTopics;
use crate::journal::{Connections, Delivered, JournalCommand, Recorder, durable_at_start};
use crate::kafka::{Forwarder, Start, now};
use crate::latch::{LatchFolder, RestoredLatch, write_all};
use crate::mqtt::source::{Session, SessionKind};
use crate::protection::{self, NewMachines, Protection, Sinks};
use crate::recording::{self, NewFilters, Recording};
use crate::reload::{Reached, Reloader};
use crate::scoring::Bundle;
use crate::store::{Journal, JournalSettings, Lane, SegmentedJournal};
use crate::supervise::run_again_after_panic;
use crate::telemetry::{self, LogFilter};

/// Messages between a session and its path. Small: what waits here is not acknowledged.
const SESSION_QUEUE_LENGTH: usize = 256;
const LATCH_QUEUE_LENGTH: usize = 1_024;
/// How often the threads are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long the end waits for the journal's last fsync.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1_500);
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Checks what `run` would need, without running.
#[must_use]
pub fn check(settings: Settings) -> ExitCode {
    match load_model(&settings) {
        Ok(model) => {
            let model = model.map_or("none".to_owned(), |model| model.identity());
            eprintln!(
                "edge-module: settings are valid: device {}, {} machines, model {model}",
                settings.device.id,
                settings.machines.len()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("edge-module: wrong settings\nmodel.bundle-dir: {error:#}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// Asks the running module's `/healthz`.
#[must_use]
pub fn healthcheck(settings: Settings) -> ExitCode {
    match ask_health(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edge-module: not healthy: {error:#}");
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
pub fn run(settings: Settings, keys: Keys, file: Option<PathBuf>) -> ExitCode {
    let log_filter = match telemetry::start_logging(&settings.telemetry) {
        Ok(log_filter) => log_filter,
        Err(error) => {
            eprintln!("edge-module: logging does not start: {error}");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let _lock = match open_data_dir(&settings.device.data_dir) {
        Ok(lock) => lock,
        Err(error) => {
            error!(
                "device.data-dir {} cannot be used: {error:#}",
                settings.device.data_dir.display()
            );
            return ExitCode::from(EXIT_DATA_DIR);
        }
    };
    match run_tasks(&settings, Sources { keys, file, log_filter }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Takes the folder for this process alone and makes sure that it can be written.
///
/// # Errors
/// It cannot be created or written, or another process has it.
pub fn open_data_dir(folder: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(folder).context("it cannot be created; create it or choose another")?;
    let path = folder.join("lock");
    let lock =
        File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    if lock.try_lock().is_err() {
        bail!("another edge module runs on it; stop that one or choose another folder");
    }
    Ok(lock)
}

fn load_model(settings: &Settings) -> anyhow::Result<Option<Bundle>> {
    let folder = &settings.model.bundle_dir;
    if folder.as_os_str().is_empty() {
        return Ok(None);
    }
    Ok(Some(Bundle::load(folder)?))
}

/// A model that does not pass is no reason to leave the machines without their limits.
fn model_or_event(settings: &Settings) -> (Option<Bundle>, Option<MachineEvent>) {
    match load_model(settings) {
        Ok(model) => (model, None),
        Err(error) => {
            error!(error = format!("{error:#}"), "model refused; limits alone protect");
            let details = MachineEventDetails {
                cause: Some("self-test".to_owned()),
                detail: Some(format!("{error:#}")),
                ..MachineEventDetails::default()
            };
            (None, Some(own_event(settings, MachineEventType::ModelRefused, details)))
        }
    }
}

fn own_event(
    settings: &Settings,
    event_type: MachineEventType,
    details: MachineEventDetails,
) -> MachineEvent {
    MachineEvent {
        event_type,
        machine_id: own_name(settings),
        timestamp: now(),
        identity: None,
        historical: false,
        details,
    }
}

/// The device speaks of itself under its own name.
fn own_name(settings: &Settings) -> MachineId {
    MachineId::new(settings.device.id.as_str()).expect("both names obey the same rules")
}

/// Where the settings come from, to read them again.
struct Sources {
    keys: Keys,
    file: Option<PathBuf>,
    log_filter: LogFilter,
}

struct Stops {
    intake: watch::Sender<bool>,
    forwarder: watch::Sender<bool>,
    journal: watch::Sender<bool>,
}

struct Threads {
    protection: JoinHandle<()>,
    journal: JoinHandle<()>,
    forwarder: JoinHandle<()>,
    latches: JoinHandle<()>,
}

/// What runs on the main thread, made before anything is spawned.
struct MainTasks {
    session: Session,
    recording: Recording,
    reloader: Reloader,
    events: mpsc::Sender<MachineEvent>,
    commands: mpsc::Sender<JournalCommand>,
    stops: Stops,
    threads: Threads,
}

fn run_tasks(settings: &Settings, sources: Sources) -> anyhow::Result<()> {
    let metrics = telemetry::start_metrics().context("metrics do not start")?;
    let board = Board::new(&[Part::Protection, Part::Actuator, Part::Recording, Part::Journal]);
    let runtime = own_runtime()?;
    let (listener, address) = runtime
        .block_on(admin::bind(settings.admin.listen))
        .with_context(|| format!("admin.listen {} cannot be bound", settings.admin.listen))?;
    info!(%address, "admin pages");
    let tasks = start_threads(settings, sources, &board)?;
    let device_id = settings.device.id.to_string();
    let result = runtime.block_on(async {
        let MainTasks { session, recording, reloader, events, commands, stops, threads } = tasks;
        let (session_events, session_receiver) = mpsc::channel(SESSION_QUEUE_LENGTH);
        let session = tokio::spawn(session.run(session_events));
        let path = tokio::spawn(recording.run(session_receiver, stops.intake.subscribe()));
        let reloader = tokio::spawn(reloader.run(stops.intake.subscribe()));
        let mut stop = stops.intake.subscribe();
        let shown = board.clone();
        let pages = tokio::spawn(admin::serve(listener, shown, metrics, device_id, async move {
            // The sender outlives this task.
            drop(stop.wait_for(|is_stopping| *is_stopping).await);
        }));
        let result = wait_for_end(&threads, &board).await;
        stops.intake.send_replace(true);
        drop(path.await);
        drop(reloader.await);
        let finished = finish(settings, events, commands, stops, threads).await;
        session.abort();
        pages.abort();
        result.and(finished)
    });
    info!("edge module stopped");
    result
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

fn open_journal(settings: &Settings) -> anyhow::Result<SegmentedJournal> {
    SegmentedJournal::open(&settings.device.data_dir, journal_limits(settings), now())
        .context("journal does not open")
}

/// Channels by which other settings reach the paths, and trips the samples around them. Settings have one place: who sends
/// the next waits for the answer to the one before.
struct Lines {
    machines: mpsc::Sender<NewMachines>,
    filters: mpsc::Sender<NewFilters>,
    historical_after: watch::Sender<Duration>,
    protection: protection::Links,
    recording: recording::Links,
}

fn connect_settings(settings: &Settings) -> Lines {
    let (machines, new_machines) = mpsc::channel(1);
    let (filters, new_filters) = mpsc::channel(1);
    let (requests, snapshots) = mpsc::channel(settings.waveforms.queue_length);
    Lines {
        machines,
        filters,
        historical_after: watch::Sender::new(settings.kafka.historical_after),
        protection: protection::Links { snapshots: requests, settings: new_machines },
        recording: recording::Links { snapshots, settings: new_filters },
    }
}

/// Opens the journal, loads the model, and starts every thread but this one.
fn start_threads(
    settings: &Settings,
    sources: Sources,
    board: &Board,
) -> anyhow::Result<MainTasks> {
    let (model, refusal) = model_or_event(settings);
    let journal = open_journal(settings)?;
    let model_name = model.as_ref().map(Bundle::identity);
    let generation = journal.generation().0;
    board.show_run(model_name.clone(), generation);
    let next_sequence = journal.next_sequence().0;
    let (device_id, machines) = (&settings.device.id, settings.machines.len());
    info!(%device_id, generation, next_sequence, model = model_name, machines, "edge module starts");

    let (events, event_receiver) = mpsc::channel(settings.protection.event_queue_length);
    let (commands, command_receiver) = mpsc::channel(settings.journal.queue_length);
    let stops = Stops {
        intake: watch::Sender::new(false),
        forwarder: watch::Sender::new(false),
        journal: watch::Sender::new(false),
    };
    let filters = InputTopics::new(&settings.mqtt).filters();
    let session = Session::new(settings, SessionKind::Recording, filters)?;
    let reader = journal.reader();
    let recording =
        Recording::new(settings, model.as_ref(), &*reader, commands.clone(), board.clone())?;
    let lines = connect_settings(settings);
    let durable = watch::Sender::new(durable_at_start(&journal));
    let (delivered, delivered_receiver) = watch::channel(Delivered::default());
    let start = Start {
        durable: durable.subscribe(),
        delivered,
        device_id: settings.device.id.clone(),
        generation: journal.generation(),
        acknowledged: Lane::ALL.map(|lane| (lane, journal.acknowledged(lane))),
    };
    let kafka = settings.kafka.clone();
    let forwarder =
        Forwarder::new(kafka, start, journal.reader(), commands.clone(), board.clone())?
            .following(lines.historical_after.subscribe());
    let connections = Connections {
        events: event_receiver,
        commands: command_receiver,
        durable,
        delivered: delivered_receiver,
        broker: session.client(),
        board: board.clone(),
    };
    let group_records_max = settings.journal.group_records_max;
    let recorder =
        Recorder::new(Box::new(journal), own_name(settings), group_records_max, connections);
    let details = MachineEventDetails { model: model_name, ..MachineEventDetails::default() };
    let started = own_event(settings, MachineEventType::Started, details);
    for event in [Some(started), refusal].into_iter().flatten() {
        events.try_send(event).context("the queue of machine events is too short")?;
    }
    let (latches, latch_receiver) = std::sync::mpsc::sync_channel(LATCH_QUEUE_LENGTH);
    let latch_folder = LatchFolder::open(&settings.device.data_dir)?;
    let sinks = Sinks { events: events.clone(), latches, board: board.clone() };
    let reached = Reached {
        protection: lines.machines,
        recording: lines.filters,
        historical_after: lines.historical_after,
        log_filter: sources.log_filter,
        events: events.clone(),
        board: board.clone(),
    };
    let threshold = model.as_ref().map_or(1.0, |model| model.threshold().value());
    let in_force = (settings.clone(), sources.keys);
    let latches = latch_folder.clone();
    let reloader =
        Reloader::new(sources.file, in_force, threshold, latches, own_name(settings), reached);
    let recording = recording.linked(lines.recording);
    let drain_timeout = settings.shutdown.drain_timeout;
    let intake = stops.intake.subscribe();
    let threads = Threads {
        journal: spawn_recorder(recorder, stops.journal.subscribe(), board.clone())?,
        forwarder: spawn_forwarder(
            forwarder,
            stops.forwarder.subscribe(),
            drain_timeout,
            board.clone(),
        )?,
        latches: spawn_latches(latch_folder.clone(), latch_receiver, board.clone())?,
        protection: spawn_protection(
            settings.clone(),
            model,
            &latch_folder,
            sinks,
            lines.protection,
            intake,
        )?,
    };
    Ok(MainTasks { session, recording, reloader, events, commands, stops, threads })
}

/// In order: no more input, events of the stop path, what is in flight, the journal.
async fn finish(
    settings: &Settings,
    events: mpsc::Sender<MachineEvent>,
    commands: mpsc::Sender<JournalCommand>,
    stops: Stops,
    threads: Threads,
) -> anyhow::Result<()> {
    let protection = join(threads.protection, "protection").await;
    let stopped = own_event(settings, MachineEventType::Stopped, MachineEventDetails::default());
    if events.try_send(stopped).is_err() {
        warn!("the stop is not journalled: the queue of machine events is full");
    }
    drop(events);
    let (flushed, is_flushed) = oneshot::channel();
    let flush = async {
        commands.send(JournalCommand::Flush(flushed)).await.is_ok() && is_flushed.await.is_ok()
    };
    if !tokio::time::timeout(FLUSH_TIMEOUT, flush).await.unwrap_or(false) {
        warn!(
            "the journal does not take the last records; the broker keeps what is not acknowledged"
        );
    }
    drop(commands);
    stops.forwarder.send_replace(true);
    let forwarder = join(threads.forwarder, "forwarder").await;
    stops.journal.send_replace(true);
    let journal = join(threads.journal, "journal").await;
    let latches = join(threads.latches, "latches").await;
    protection.and(forwarder).and(journal).and(latches)
}

async fn join(thread: JoinHandle<()>, name: &'static str) -> anyhow::Result<()> {
    let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
    joined.map_err(|_| anyhow::anyhow!("thread {name} panicked"))
}

/// A signal, or the end of the stop path. Without journal or forwarder the machines are still protected: the module goes
/// on and says that it is not ready.
async fn wait_for_end(threads: &Threads, board: &Board) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    let others = [
        (Part::Journal, "journal", &threads.journal),
        (Part::Forwarder, "forwarder", &threads.forwarder),
    ];
    let mut reported = [false; 2];
    loop {
        tokio::select! {
            _ = terminate.recv() => { info!("SIGTERM"); return Ok(()); }
            _ = interrupt.recv() => { info!("SIGINT"); return Ok(()); }
            _ = look.tick() => {}
        }
        if threads.protection.is_finished() {
            bail!("thread protection ended unexpectedly");
        }
        for ((part, name, thread), is_reported) in others.iter().zip(&mut reported) {
            if thread.is_finished() && !std::mem::replace(is_reported, true) {
                error!(
                    thread = name,
                    "ended unexpectedly: machines stay protected, restart the module"
                );
                board.set(*part, Err(format!("thread {name} ended: restart the module")));
            }
        }
    }
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

/// The latches to start from; an unknown one is what the fail-safe rule says.
fn restored(settings: &Settings, folder: &LatchFolder) -> Vec<RestoredLatch> {
    use crate::config::UnknownLatch;

    let is_tripped = match settings.protection.unknown_latch {
        UnknownLatch::Tripped => true,
        UnknownLatch::Armed => false,
    };
    settings
        .machines
        .iter()
        .filter_map(|machine| folder.read(&machine.id))
        .filter(|latch| is_tripped || matches!(latch, RestoredLatch::Known(_)))
        .collect()
}

fn spawn_protection(
    settings: Settings,
    model: Option<Bundle>,
    latch_folder: &LatchFolder,
    sinks: Sinks,
    links: protection::Links,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    let restored = restored(&settings, latch_folder);
    let filters = InputTopics::new(&settings.mqtt).filters();
    let sensors = Session::new(&settings, SessionKind::Protection, filters)?;
    let (actuation, paths) = Actuation::new(&settings, sinks.board.clone())?;
    let protection =
        Protection::new(&settings, model.as_ref(), restored, actuation, sinks)?.linked(links);
    let heartbeat_interval = settings.protection.heartbeat_interval;
    spawn("protection", move || {
        let runtime = own_runtime()?;
        runtime.block_on(async {
            let (sensor_events, sensor_receiver) = mpsc::channel(SESSION_QUEUE_LENGTH);
            let mut tasks = JoinSet::new();
            tasks.spawn(async move {
                sensors.run(sensor_events).await;
                TaskEnd::Unexpected
            });
            let reports = paths.start(&mut tasks);
            protection.run(sensor_receiver, reports, tasks, heartbeat_interval, stop).await;
        });
        Ok(())
    })
}
