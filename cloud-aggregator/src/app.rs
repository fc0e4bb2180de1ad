//! Puts the parts together: the only place that spawns tasks and connects channels.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::alerts::{AlertDesk, Outlet};
use crate::config::{Audience, Keys, Settings};
use crate::gap_watch::{GapDesk, Scanner};
use crate::health::Health;
use crate::outcomes::{self, Api, OutcomeTopic, Tokens};
use crate::pipeline::{Parts, Pipeline, PipelineError};
use crate::reload::Reloader;
use crate::sink::alert::{Channel, Outcome};
use crate::sink::alert_topic::AlertTopic;
use crate::sink::commit::Lake;
use crate::sink::delta::{LakeError, Location};
use crate::sink::maintenance::{self, Maintenance, Reports};
use crate::sink::rows::TELEMETRY;
use crate::sink::webhook::{TargetHealth, Webhook};
use crate::source::kafka::{Source, client_config, start};
use crate::{admin, config, telemetry};

/// A service is wrong: the port is taken, the consumer ended (`EX_UNAVAILABLE` of sysexits.h).
const EXIT_UNAVAILABLE: u8 = 69;
/// The program is wrong (`EX_SOFTWARE`).
const EXIT_SOFTWARE: u8 = 70;
/// The storage cannot be written (`EX_IOERR`).
const EXIT_STORAGE: u8 = 74;
/// Stopped before the end; the next start goes on (`EX_TEMPFAIL`).
const EXIT_TEMPORARY: u8 = 75;
/// The configuration is wrong (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;
/// Commits that a start may find behind the last log checkpoint: recovery reads them for each partition and table.
const CHECKPOINT_COMMITS_AT_START_MAX: u64 = 100;
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Maintenance sorts and compresses: it gets what the other threads leave.
const MAINTENANCE_NICE: i32 = 10;
/// Kept of the drain timeout for leaving the consumer group.
const LEAVE_SHARE: u32 = 4;

/// Why the process ends, and with which exit code.
#[derive(Debug)]
pub struct Failure {
    /// The reason with its sources.
    pub cause: anyhow::Error,
    /// See sysexits.h.
    pub exit_code: u8,
}

fn exit_with<E: Into<anyhow::Error>>(exit_code: u8) -> impl Fn(E) -> Failure {
    move |cause| Failure { cause: cause.into(), exit_code }
}

/// Runs until SIGTERM or SIGINT, or until all is read that was there at the start.
///
/// # Errors
/// Something without which the process cannot start or go on.
pub fn run(settings: Settings, keys: Keys, file: Option<PathBuf>) -> Result<(), Failure> {
    telemetry::start_logging(&settings.telemetry)
        .map_err(|error| Failure { cause: anyhow!(error), exit_code: EXIT_CONFIG })?;
    settings.warn_of_spread_rules();
    let metrics = telemetry::start_metrics().map_err(exit_with(EXIT_SOFTWARE))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(exit_with(EXIT_SOFTWARE))?;
    let result = runtime.block_on(run_async(Arc::new(settings), (keys, file), metrics));
    // Whatever is still at work (an upload that does not end) must not hold the process.
    runtime.shutdown_background();
    result
}

async fn run_async(
    settings: Arc<Settings>,
    (keys, file): (Keys, Option<PathBuf>),
    metrics: PrometheusHandle,
) -> Result<(), Failure> {
    // First: a signal that comes early must be taken as one that comes late.
    let mut signals = Signals::new().map_err(exit_with(EXIT_SOFTWARE))?;
    let hangup = signal(SignalKind::hangup()).map_err(exit_with(EXIT_SOFTWARE))?;
    let listener = admin::bind(settings.admin.listen)
        .await
        .with_context(|| format!("admin.listen {} cannot be opened", settings.admin.listen))
        .map_err(exit_with(EXIT_UNAVAILABLE))?;
    let address = listener.local_addr().map_err(exit_with(EXIT_UNAVAILABLE))?;
    info!(%address, "health, metrics and status are served");
    // A run that only drains is over before there is much to do; it looks after the log itself.
    let is_maintained = settings.maintenance.enabled && !settings.trigger.available_now;
    let checkpoint_commits = is_maintained
        .then(|| settings.maintenance.checkpoint_commits.min(CHECKPOINT_COMMITS_AT_START_MAX));
    let lake_settings = config::Lake { checkpoint_commits, ..settings.lake.clone() };
    let opened = tokio::select! {
        opened = Lake::open(&lake_settings) => opened,
        name = signals.stop() => {
            info!("{name}: nothing was begun");
            return Ok(());
        }
    };
    let lake = opened.map_err(|error| lake_failure(&settings.lake.location, error))?;
    let (stop_sender, stop) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let (events_sender, events) = mpsc::channel(settings.kafka.batch_queue_length);
    let source =
        start(&settings.kafka, events_sender, Handle::current()).map_err(exit_with(EXIT_CONFIG))?;
    let health = Arc::new(Health::new(Arc::clone(&source.brokers_down)));
    let source = Arc::new(source);
    let (outcomes_sender, outcomes) = mpsc::channel(settings.alerts.queue_length);
    let (channels, targets) =
        open_channels(&settings, &outcomes_sender, &mut tasks).map_err(exit_with(EXIT_CONFIG))?;
    health.watch_targets(targets);
    open_api(&settings, stop.clone(), &mut tasks).await.map_err(exit_with(EXIT_CONFIG))?;
    if is_maintained {
        spawn_maintenance(lake_settings, settings.maintenance.clone(), stop.clone())
            .map_err(exit_with(EXIT_SOFTWARE))?;
    }
    tasks.spawn(upkeep(metrics.clone()));
    tasks.spawn(admin::serve(listener, Arc::clone(&health), metrics, stop.clone()));
    let (rules_sender, rules) = mpsc::channel(1);
    let reloader = Reloader::new(file, keys, rules_sender, Arc::clone(&health));
    tasks.spawn(reloader.run(hangup, stop.clone()));
    let gaps = GapDesk::new(&settings).map(|(desk, requests, answers)| {
        let scanner = Scanner::new(settings.lake.clone(), settings.gaps.look_back);
        tasks.spawn(scanner.run(requests, answers));
        desk
    });
    let alerts = &settings.alerts;
    let desk = AlertDesk::new(channels, alerts.pending_max, alerts.source.clone());
    let parts = Parts {
        settings: Arc::clone(&settings),
        source: Arc::clone(&source),
        events,
        lake,
        desk,
        outcomes,
        health,
        rules,
        gaps,
        stop,
    };
    let result = supervise(Pipeline::new(parts), signals, stop_sender, &settings).await;
    // Held until here: a closed channel would read as the end of all channels.
    drop(outcomes_sender);
    leave_group(source, settings.shutdown.drain_timeout / LEAVE_SHARE).await;
    tasks.shutdown().await;
    result
}

fn lake_failure(location: &str, error: LakeError) -> Failure {
    let exit_code = if error.is_wrong_place() { EXIT_CONFIG } else { EXIT_STORAGE };
    let cause = anyhow::Error::from(error).context(format!("lake.location {location}"));
    Failure { cause, exit_code }
}

/// The signals that stop the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    /// Waits for one and gives its name.
    async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Runs the pipeline to its end; after a signal it has the drain timeout to finish its epoch.
async fn supervise(
    pipeline: Pipeline,
    mut signals: Signals,
    stop: watch::Sender<bool>,
    settings: &Settings,
) -> Result<(), Failure> {
    let running = pipeline.run();
    tokio::pin!(running);
    tokio::select! {
        result = &mut running => return finished(result),
        name = signals.stop() => info!("{name}: finishing the epoch"),
    }
    stop.send_replace(true);
    let limit = settings.shutdown.drain_timeout / LEAVE_SHARE * (LEAVE_SHARE - 1);
    match tokio::time::timeout(limit, running).await {
        Ok(result) => finished(result),
        Err(_) => {
            warn!(?limit, "the epoch did not finish in time, the next start repeats it");
            Ok(())
        }
    }
}

fn finished(result: Result<(), PipelineError>) -> Result<(), Failure> {
    result.map_err(|error| {
        let exit_code = match &error {
            PipelineError::Imbalance(_) | PipelineError::Epoch(_) | PipelineError::State(_) => {
                EXIT_SOFTWARE
            }
            PipelineError::Source(_) | PipelineError::NothingToRead { .. } => EXIT_UNAVAILABLE,
            PipelineError::Unfinished { .. } => EXIT_TEMPORARY,
            PipelineError::WrongPlace(_) => EXIT_CONFIG,
            PipelineError::Corrupt { .. } => EXIT_STORAGE,
        };
        Failure { cause: error.into(), exit_code }
    })
}

async fn leave_group(source: Arc<Source>, limit: Duration) {
    let Ok(source) = Arc::try_unwrap(source) else {
        warn!("the consumer is still in use, the group notices our absence later");
        return;
    };
    let began = Instant::now();
    let leaving = tokio::task::spawn_blocking(|| source.stop());
    match tokio::time::timeout(limit, leaving).await {
        Ok(_) => info!(took = ?began.elapsed(), "stopped"),
        Err(_) => warn!(?limit, "brokers did not answer, the group notices our absence later"),
    }
}

/// Channels, and how they are.
type Channels = (BTreeMap<Channel, Outlet>, Vec<TargetHealth>);

fn open_channels(
    settings: &Settings,
    outcomes: &mpsc::Sender<Outcome>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Channels> {
    let alerts = &settings.alerts;
    let (mut channels, mut health) = (BTreeMap::new(), Vec::new());
    if !alerts.topic.is_empty() {
        let (sender, queue) = mpsc::channel(alerts.queue_length);
        let topic = AlertTopic::new(client_config(&settings.kafka)?, alerts, Handle::current())?;
        health.push(topic.health());
        tasks.spawn(topic.run(queue, outcomes.clone()));
        channels.insert(Channel::Topic, Outlet { sender, audience: Audience::everything() });
    }
    for target in alerts.all_targets() {
        let (sender, queue) = mpsc::channel(alerts.queue_length);
        let audience = target.audience.clone();
        let webhook = Webhook::new(target)?;
        health.push(webhook.health());
        channels.insert(webhook.channel(), Outlet { sender, audience });
        tasks.spawn(webhook.run(queue, outcomes.clone()));
    }
    Ok((channels, health))
}

/// Takes what people found, if there is somebody who may tell.
async fn open_api(
    settings: &Settings,
    stop: watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let api = &settings.api;
    if !api.is_on() {
        return Ok(());
    }
    let tokens = Tokens::read(&api.token_file)?;
    let topic = &settings.kafka.topics.outcomes;
    let sink = OutcomeTopic::new(client_config(&settings.kafka)?, topic, api.publish_timeout)?;
    let listener = outcomes::bind(api.listen)
        .await
        .with_context(|| format!("api.listen {} cannot be bound", api.listen))?;
    info!(address = %listener.local_addr()?, "outcomes are taken");
    let api = Arc::new(Api::new(api.clone(), tokens, Box::new(sink)));
    tasks.spawn(outcomes::serve(listener, api, stop));
    Ok(())
}

/// A thread of its own, so that sorting keeps no worker of the pipeline busy. It ends with the process.
fn spawn_maintenance(
    lake: config::Lake,
    settings: config::Maintenance,
    stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let yields = || {
        if let Err(error) = rustix::process::nice(MAINTENANCE_NICE) {
            warn!(%error, "maintenance runs with the priority of everything else");
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("maintenance")
        .on_thread_start(yields)
        .enable_all()
        .build()?;
    let run = move || {
        runtime.block_on(maintenance::run(lake, settings, stop));
        runtime.shutdown_background();
    };
    std::thread::Builder::new().name("maintenance".to_owned()).spawn(run)?;
    Ok(())
}

/// One round of maintenance over one table or all. `None`: another instance is at it.
///
/// # Errors
/// The lake or the table is not there, or cannot be opened; what fails in a table is in its report.
pub fn maintain(settings: &Settings, table: Option<&str>) -> Result<Option<Reports>, Failure> {
    telemetry::start_logging(&settings.telemetry)
        .map_err(|error| Failure { cause: anyhow!(error), exit_code: EXIT_CONFIG })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(exit_with(EXIT_SOFTWARE))?;
    let round = async {
        let name = table.unwrap_or(TELEMETRY);
        // A wrong folder is to stay as it is.
        let location = Location::existing(&settings.lake)?;
        let is_there =
            tokio::time::timeout(settings.lake.operation_timeout, location.has_table(name));
        let is_there = is_there.await.context("the storage does not answer")??;
        if !is_there {
            let location = &settings.lake.location;
            bail!("there is no table {name} in lake.location {location}");
        }
        let clock = maintenance::system_clock();
        let mut maintenance =
            Maintenance::open(&settings.lake, &settings.maintenance, clock)?.checking_its_clock();
        let reports = maintenance.round(table).await?;
        if reports.is_some() {
            maintenance.release().await?;
        }
        anyhow::Ok(reports)
    };
    runtime.block_on(round).map_err(exit_with(EXIT_STORAGE))
}

async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

/// Asks a running aggregator for `/healthz`.
///
/// # Errors
/// Nobody answers there within 3 s, or something else than 200.
pub fn healthcheck(listen: SocketAddr) -> anyhow::Result<()> {
    if listen.port() == 0 {
        bail!("admin.listen has port 0: set the port that the running aggregator logs");
    }
    let mut stream = TcpStream::connect_timeout(&listen, HEALTHCHECK_TIMEOUT)
        .with_context(|| format!("nobody listens on {listen}"))?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    write!(stream, "GET /healthz HTTP/1.1\r\nhost: {listen}\r\nconnection: close\r\n\r\n")?;
    let mut answer = [0_u8; 12];
    stream.read_exact(&mut answer).with_context(|| format!("{listen} did not answer"))?;
    if &answer[9..] != b"200" {
        bail!("{listen} answered {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}
