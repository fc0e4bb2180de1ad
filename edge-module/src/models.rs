//! Models that come and go while the module runs.
//!
//! ```text
//! settings -> fetched, tested -> shadow (journal's path) -> in force (stop path) -> kept on this device
//!                  |                  |                        |
//!                  '-> refused <------'                        '-> returned to the one before
//! ```
//!
//! Another bundle in the settings, or another content of the folder or archive that they name, is a candidate. It is fetched and
//! tested (hash, shape, self-test), then it scores the same samples as the model in force for `model.shadow-time`, without a say. A
//! candidate that takes too long, or that would have decided otherwise on a sensor, is refused and told with the figures of both. One that
//! passes comes into force on the stop path between two inputs, without losing a window, and stays under watch for as long again: if it is
//! over `model.latency-budget` there, or has no answers, the one before is put back. In force or refused, a machine event and
//! `/status` say so. The model in force is kept in the data folder, so that a restart begins with it and nothing else.
//!
//! Nothing here stands between a sample and a stop; the stop path is handed a model that is ready and never waits.

mod kept;
mod shadow;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType, MachineId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::admin::Board;
use crate::bundle_store::{BundleSource, BundleStore, DownloadLimits};
use crate::config::Settings;
use crate::data_dir::read_patiently;
use crate::scoring::{Bundle, METADATA_FILE, MODEL_FILE, Models, Scorer, load_models};
use crate::telemetry;

pub use kept::KeptModels;
pub use shadow::{Compared, Said, Shadow, ShadowReport};

/// How often shadows and files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Wait before a bundle that could not be fetched is tried again; doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(900);
/// Longest wait for a path to take a model; it answers between two inputs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest detail of an event, in bytes.
const DETAIL_BYTES_MAX: usize = 2_048;

/// A model for the stop path.
pub struct NewModel {
    /// Name of the settings.
    pub name: String,
    /// The bundle.
    pub bundle: Bundle,
    /// Ready to be used.
    pub scorer: Box<dyn Scorer>,
    /// How long its windows may take while it is watched; `None`: it is not watched.
    pub budget: Option<Duration>,
    /// Told when it is in force.
    pub answer: oneshot::Sender<()>,
}

/// What the journal's path is asked.
pub enum ShadowOrder {
    /// Let a model score beside the one in force.
    Begin {
        /// Name of the settings.
        name: String,
        /// The candidate.
        bundle: Bundle,
    },
    /// What came of it so far.
    Report {
        /// Name of the settings.
        name: String,
        /// Longest time for a window.
        budget: Duration,
        /// Nothing if there is no such shadow.
        answer: oneshot::Sender<Option<ShadowReport>>,
    },
    /// No shadow any more.
    End {
        /// Name of the settings.
        name: String,
    },
    /// Score with this model from now on.
    Switch {
        /// Name of the settings.
        name: String,
        /// The model.
        bundle: Bundle,
        /// Ready to be used.
        scorer: Box<dyn Scorer>,
    },
}

/// A model that does not do on the stop path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Name of the settings.
    pub name: String,
    /// `latency` or `inference`.
    pub cause: &'static str,
    /// What was seen.
    pub detail: String,
}

/// What `/status` shows of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShownModel {
    /// `name@version`; nothing: its sensors are under their limits alone.
    pub in_force: Option<String>,
    /// What is being done.
    pub state: &'static str,
    /// The one that is to come, `name@version`, or where it comes from.
    pub candidate: Option<String>,
    /// Why the last candidate was refused or taken back, if that was so.
    pub refusal: Option<String>,
    /// What the last shadow time has shown.
    pub report: Option<String>,
}

/// Whom models concern.
pub struct Reached {
    /// The stop path.
    pub protection: mpsc::Sender<NewModel>,
    /// The journal's path.
    pub recording: mpsc::Sender<ShadowOrder>,
    /// The journal.
    pub events: mpsc::Sender<MachineEvent>,
    /// Operators.
    pub board: Board,
}

/// Models at the start, and what is still to be done for them.
pub struct Initial {
    /// To be put in force at once.
    pub models: Models,
    /// Names whose bundle of the settings is not the one in force: it comes as a candidate.
    pub candidates: Vec<String>,
    /// Bundles of the settings that did not pass.
    pub refused: BTreeMap<String, String>,
}

impl Initial {
    /// Loads what was in force when the module ended, or else what the settings name. Waits for the data folder, but not for ever.
    #[must_use]
    pub fn load(settings: &Settings) -> Self {
        let (mut models, refused) = load_models(settings);
        let names: Vec<String> = settings.model.sources().into_keys().collect();
        let mut candidates = Vec::new();
        for (name, kept) in read_kept(&settings.device.data_dir, names.clone()) {
            if models.get(&name).is_some_and(|bundle| bundle.is_same(&kept)) {
                continue;
            }
            if models.contains_key(&name) {
                candidates.push(name.clone());
            }
            models.insert(name, kept);
        }
        let missing = names.into_iter().filter(|name| !models.contains_key(name));
        candidates.extend(missing.filter(|name| !refused.contains_key(name)));
        Self { models, candidates, refused }
    }
}

fn read_kept(data_dir: &Path, names: Vec<String>) -> Models {
    let kept = KeptModels::at(data_dir);
    let read_all = move || {
        let read = names.into_iter().filter_map(|name| match kept.read(&name) {
            Ok(bundle) => Some((name, bundle?)),
            Err(error) => {
                warn!(model = name, %error, "the model that was in force is damaged on this disk");
                None
            }
        });
        read.collect::<Models>()
    };
    read_patiently("models", read_all).unwrap_or_default()
}

/// One model by its name.
#[derive(Default)]
struct Managed {
    source: Option<BundleSource>,
    in_force: Option<Bundle>,
    stage: Stage,
    /// Files of the source as they were when they were last read, and as they were at the last look.
    stamp: Option<Stamp>,
    seen: Option<Stamp>,
    failures: u32,
    refusal: Option<String>,
    report: Option<String>,
    /// Passed its self-test and was refused after its shadow time: a person may want it all the same.
    held: Option<Bundle>,
}

#[derive(Default)]
enum Stage {
    /// Nothing is to come.
    #[default]
    Settled,
    /// A bundle is fetched and tested.
    Fetching,
    /// It could not be fetched; tried again then.
    Waiting { until: Instant },
    /// It scores beside the one in force.
    Shadow { bundle: Bundle, until: Instant },
    /// It is in force, under watch; the one before is at hand.
    Watched { before: Option<Bundle>, until: Instant },
}

/// Changes when the files behind a source do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(Vec<(u64, Option<SystemTime>)>);

impl Stamp {
    fn of(source: &BundleSource) -> Option<Self> {
        let files: Vec<PathBuf> = match source {
            BundleSource::Folder(folder) => {
                [METADATA_FILE, MODEL_FILE].iter().map(|name| folder.join(name)).collect()
            }
            BundleSource::Archive { file, .. } => vec![file.clone()],
            // The hash of the settings says which one it is.
            BundleSource::Download { .. } => return None,
        };
        let found = files.iter().map(|file| {
            let found = std::fs::metadata(file).ok()?;
            Some((found.len(), found.modified().ok()))
        });
        found.collect::<Option<Vec<_>>>().map(Self)
    }
}

/// A bundle that was fetched, or why not.
struct Fetched {
    name: String,
    source: BundleSource,
    stamp: Option<Stamp>,
    result: Result<Bundle, NotFetched>,
}

enum NotFetched {
    /// Perhaps later.
    Later(String),
    /// Never.
    Refused { cause: &'static str, detail: String },
}

/// Puts models in force and takes them out.
pub struct ModelManager {
    settings: Settings,
    models: BTreeMap<String, Managed>,
    data_dir: PathBuf,
    store: Option<Arc<BundleStore>>,
    kept: KeptModels,
    work: JoinSet<Fetched>,
    machine_id: MachineId,
    reached: Reached,
}

impl ModelManager {
    /// Knows what the module was started with; `machine_id` is the device's own name.
    #[must_use]
    pub fn new(
        settings: Settings,
        initial: Initial,
        machine_id: MachineId,
        reached: Reached,
    ) -> Self {
        let Initial { models: in_force, candidates, refused } = initial;
        let mut models: BTreeMap<String, Managed> = BTreeMap::new();
        for (name, source) in settings.model.sources() {
            let stamp = Stamp::of(&source);
            let is_candidate = candidates.contains(&name);
            let managed = Managed {
                in_force: in_force.get(&name).cloned(),
                refusal: refused.get(&name).cloned(),
                // A candidate is fetched with the first look.
                source: (!is_candidate).then_some(source),
                stamp: stamp.filter(|_| !is_candidate),
                ..Managed::default()
            };
            models.insert(name, managed);
        }
        let data_dir = settings.device.data_dir.clone();
        let kept = KeptModels::at(&data_dir);
        let work = JoinSet::new();
        Self { settings, models, data_dir, store: None, kept, work, machine_id, reached }
    }

    /// Runs until `stop`. `settings` are the newest ones.
    pub async fn run(
        mut self,
        mut settings: watch::Receiver<Settings>,
        mut troubles: mpsc::Receiver<Trouble>,
        mut stop: watch::Receiver<bool>,
    ) {
        for name in self.models.keys().cloned().collect::<Vec<_>>() {
            self.keep(&name).await;
            self.show(&name);
        }
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            tokio::select! {
                _ = stop.changed() => {}
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.settings = settings.borrow_and_update().clone();
                }
                Some(fetched) = self.work.join_next() => match fetched {
                    Ok(fetched) => self.handle_fetched(fetched).await,
                    Err(error) => error!(%error, "fetching a model has panicked"),
                },
                Some(trouble) = troubles.recv() => self.handle_trouble(trouble).await,
                _ = look.tick() => self.look().await,
            }
        }
    }

    /// Begins what is due: other sources, other files, the end of a shadow or a watch.
    async fn look(&mut self) {
        let sources = self.settings.model.sources();
        let count = self.models.len();
        self.models.retain(|name, _| sources.contains_key(name));
        if self.models.len() < count {
            self.reached.board.keep_models(&|name| sources.contains_key(name));
        }
        for (name, source) in sources {
            let managed = self.models.entry(name.clone()).or_default();
            let stamp = Stamp::of(&source);
            // Two looks in a row must see the same files: one that is being written is left alone.
            let is_quiet = managed.seen == stamp;
            managed.seen.clone_from(&stamp);
            let is_other = managed.source.as_ref() != Some(&source)
                || (stamp.is_some() && stamp != managed.stamp);
            if is_other && is_quiet && !matches!(managed.stage, Stage::Fetching) {
                self.end_shadow(&name).await;
                self.fetch(&name, source, stamp);
                continue;
            }
            self.pass_time(&name, source, stamp).await;
        }
    }

    async fn pass_time(&mut self, name: &str, source: BundleSource, stamp: Option<Stamp>) {
        let now = Instant::now();
        let is_at_once = self.settings.model.shadow_time.is_zero();
        let Some(managed) = self.models.get_mut(name) else { return };
        match &managed.stage {
            Stage::Settled if is_at_once && managed.held.is_some() => {
                if let Some(bundle) = managed.held.take() {
                    managed.refusal = None;
                    self.switch(name, bundle, None).await;
                    self.show(name);
                }
            }
            Stage::Waiting { until } if *until <= now => self.fetch(name, source, stamp),
            Stage::Shadow { bundle, until } if *until <= now => {
                let bundle = bundle.clone();
                self.judge_shadow(name, bundle).await;
            }
            Stage::Watched { until, .. } if *until <= now => {
                managed.stage = Stage::Settled;
                self.keep(name).await;
                self.show(name);
            }
            Stage::Settled
            | Stage::Fetching
            | Stage::Waiting { .. }
            | Stage::Shadow { .. }
            | Stage::Watched { .. } => {}
        }
    }

    fn fetch(&mut self, name: &str, source: BundleSource, stamp: Option<Stamp>) {
        let store = match self.open_store(&source) {
            Ok(store) => store,
            Err(reason) => {
                self.wait(name, &reason);
                return;
            }
        };
        let Some(managed) = self.models.get_mut(name) else { return };
        managed.stage = Stage::Fetching;
        managed.held = None;
        managed.source = Some(source.clone());
        managed.stamp.clone_from(&stamp);
        let name = name.to_owned();
        self.show(&name);
        self.work.spawn(async move {
            let result = fetch(store.as_deref(), &source).await;
            Fetched { name, source, stamp, result }
        });
    }

    /// Folders need no store, and so no data folder that can be written.
    fn open_store(&mut self, source: &BundleSource) -> Result<Option<Arc<BundleStore>>, String> {
        if matches!(source, BundleSource::Folder(_)) || self.store.is_some() {
            return Ok(self.store.clone());
        }
        let store = BundleStore::open(&self.data_dir, DownloadLimits::default());
        let store = store.map(Arc::new).map_err(|error| error.to_string())?;
        self.store = Some(Arc::clone(&store));
        Ok(Some(store))
    }

    /// Tries again later.
    fn wait(&mut self, name: &str, reason: &str) {
        let Some(managed) = self.models.get_mut(name) else { return };
        let wait = RETRY_MIN.saturating_mul(1 << managed.failures.min(8)).min(RETRY_MAX);
        managed.failures += 1;
        managed.stage = Stage::Waiting { until: Instant::now() + wait };
        managed.refusal = Some(reason.to_owned());
        warn!(
            model = name,
            reason,
            wait_s = wait.as_secs(),
            "bundle not fetched, tried again later"
        );
        self.show(name);
    }

    async fn handle_fetched(&mut self, fetched: Fetched) {
        let Fetched { name, source, stamp, result } = fetched;
        let Some(managed) = self.models.get_mut(&name) else { return };
        if managed.source.as_ref() != Some(&source) || managed.stamp != stamp {
            // The settings ask for another one by now.
            managed.stage = Stage::Settled;
            return self.show(&name);
        }
        managed.stage = Stage::Settled;
        let bundle = match result {
            Ok(bundle) => bundle,
            Err(NotFetched::Later(reason)) => return self.wait(&name, &reason),
            Err(NotFetched::Refused { cause, detail }) => {
                return self.refuse(&name, cause, detail, None);
            }
        };
        managed.failures = 0;
        managed.refusal = None;
        match &managed.in_force {
            Some(in_force) if in_force.is_same(&bundle) => {}
            Some(_) if !self.settings.model.shadow_time.is_zero() => {
                return self.begin_shadow(name, bundle).await;
            }
            Some(_) | None => self.switch(&name, bundle, None).await,
        }
        self.show(&name);
    }

    async fn begin_shadow(&mut self, name: String, bundle: Bundle) {
        let order = ShadowOrder::Begin { name: name.clone(), bundle: bundle.clone() };
        if !self.order(order).await {
            return self.wait(&name, "the journal's path does not answer");
        }
        let shadow_time = self.settings.model.shadow_time;
        info!(
            model = name,
            candidate = bundle.identity(),
            ?shadow_time,
            "model scores beside the one in force"
        );
        if let Some(managed) = self.models.get_mut(&name) {
            managed.stage = Stage::Shadow { bundle, until: Instant::now() + shadow_time };
        }
        self.show(&name);
    }

    /// The shadow time is over: into force, or not.
    async fn judge_shadow(&mut self, name: &str, bundle: Bundle) {
        let (answer, report) = oneshot::channel();
        let budget = self.settings.model.latency_budget;
        let order = ShadowOrder::Report { name: name.to_owned(), budget, answer };
        let is_asked = self.order(order).await;
        let report = tokio::time::timeout(ANSWER_TIMEOUT, report).await;
        let report = match (is_asked, report) {
            (true, Ok(Ok(Some(report)))) => report,
            // Nobody there knows of it.
            (true, Ok(Ok(None))) => return self.begin_shadow(name.to_owned(), bundle).await,
            // With the next look, again.
            (true, Ok(Err(_)) | Err(_)) | (false, _) => return,
        };
        self.end_shadow(name).await;
        let identity = bundle.identity();
        if report.is_slow {
            let detail = format!("{identity} takes longer than model.latency-budget: {report}");
            return self.refuse(name, "latency", detail, Some(&report));
        }
        if let Some(disagreement) = report.disagreement() {
            let detail = format!(
                "{identity}: {disagreement}. If that is right, set model.shadow-time to 0s for the switch. {report}"
            );
            self.refuse(name, "shadow", detail, Some(&report));
            if let Some(managed) = self.models.get_mut(name) {
                managed.held = Some(bundle);
            }
            return;
        }
        self.switch(name, bundle, Some(&report)).await;
        self.show(name);
    }

    /// Puts a model in force on both paths, and under watch.
    async fn switch(&mut self, name: &str, bundle: Bundle, report: Option<&ShadowReport>) {
        if let Err(reason) = self.put_in_force(name, &bundle, true).await {
            return self.wait(name, &reason);
        }
        let until = Instant::now() + self.settings.model.shadow_time;
        let Some(managed) = self.models.get_mut(name) else { return };
        managed.report = report.map(ToString::to_string);
        let before = managed.in_force.replace(bundle.clone());
        let identity = bundle.identity();
        let from = before.as_ref().map_or("none".to_owned(), Bundle::identity);
        let is_first = before.is_none();
        managed.stage = Stage::Watched { before, until };
        info!(model = name, identity, before = from, "other model in force");
        let seen = report.map_or("not compared".to_owned(), ToString::to_string);
        let detail = Some(format!("model {name}: {from} -> {identity}; {seen}"));
        let details = MachineEventDetails {
            cause: Some("settings".to_owned()),
            model: Some(identity),
            detail,
            ..MachineEventDetails::default()
        };
        metrics::counter!(telemetry::MODEL_CHANGES, "result" => "changed").increment(1);
        self.tell(MachineEventType::ModelChanged, details);
        if is_first {
            // There is none before it that a restart could begin with.
            self.keep(name).await;
        }
    }

    /// The stop path first: what protects comes before what records.
    async fn put_in_force(
        &self,
        name: &str,
        bundle: &Bundle,
        is_watched: bool,
    ) -> Result<(), String> {
        let scorer = || bundle.scorer().map_err(|error| error.to_string());
        let (answer, answered) = oneshot::channel();
        let budget = is_watched.then_some(self.settings.model.latency_budget);
        let (name, bundle) = (name.to_owned(), bundle.clone());
        let model = NewModel { name, bundle, scorer: scorer()?, budget, answer };
        let (name, bundle) = (model.name.clone(), model.bundle.clone());
        let silent = || "the stop path does not answer".to_owned();
        self.reached.protection.try_send(model).map_err(|_| silent())?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(silent()),
        }
        let scorer = bundle.scorer().map_err(|error| error.to_string())?;
        if !self.order(ShadowOrder::Switch { name, bundle, scorer }).await {
            warn!("the journal's path does not answer: it records scores of the model before");
        }
        Ok(())
    }

    /// A model under watch does not do: the one before is put back.
    async fn handle_trouble(&mut self, trouble: Trouble) {
        let Trouble { name, cause, detail } = trouble;
        let Some(managed) = self.models.get_mut(&name) else { return };
        let Stage::Watched { before, .. } = &mut managed.stage else { return };
        let before = before.take();
        managed.stage = Stage::Settled;
        let identity = managed.in_force.as_ref().map_or_else(String::new, Bundle::identity);
        let Some(before) = before else {
            warn!(model = name, identity, cause, detail, "model in trouble, and none to return to");
            return self.show(&name);
        };
        let back = before.identity();
        match self.put_in_force(&name, &before, false).await {
            Ok(()) => {
                if let Some(managed) = self.models.get_mut(&name) {
                    managed.in_force = Some(before);
                }
                self.keep(&name).await;
                self.refuse(
                    &name,
                    cause,
                    format!("{identity}: {detail}; returned to {back}"),
                    None,
                );
            }
            Err(reason) => {
                error!(model = name, identity, reason, "cannot return to the model before")
            }
        }
    }

    fn refuse(
        &mut self,
        name: &str,
        cause: &'static str,
        detail: String,
        report: Option<&ShadowReport>,
    ) {
        error!(model = name, cause, detail, "model refused, the one before stays in force");
        let Some(managed) = self.models.get_mut(name) else { return };
        managed.stage = Stage::Settled;
        managed.refusal = Some(detail.clone());
        managed.report = report.map(ToString::to_string);
        let details = MachineEventDetails {
            cause: Some(cause.to_owned()),
            model: managed.in_force.as_ref().map(Bundle::identity),
            detail: Some(format!("model {name}: {detail}")),
            ..MachineEventDetails::default()
        };
        metrics::counter!(telemetry::MODEL_CHANGES, "result" => "refused").increment(1);
        self.tell(MachineEventType::ModelRefused, details);
        self.show(name);
    }

    async fn end_shadow(&mut self, name: &str) {
        let is_shadow =
            self.models.get(name).is_some_and(|it| matches!(it.stage, Stage::Shadow { .. }));
        if is_shadow && !self.order(ShadowOrder::End { name: name.to_owned() }).await {
            warn!(model = name, "the journal's path does not answer: a shadow goes on");
        }
    }

    /// Says whether the journal's path takes it.
    async fn order(&self, order: ShadowOrder) -> bool {
        let sent = self.reached.recording.send(order);
        tokio::time::timeout(ANSWER_TIMEOUT, sent).await.is_ok_and(|sent| sent.is_ok())
    }

    /// Keeps the model in force for the next start, and drops downloads that nobody needs.
    async fn keep(&self, name: &str) {
        let Some(bundle) = self.models.get(name).and_then(|managed| managed.in_force.clone())
        else {
            return;
        };
        let (kept, name, store) = (self.kept.clone(), name.to_owned(), self.store.clone());
        let wanted = self.models.values().filter_map(|managed| match &managed.source {
            Some(BundleSource::Download { sha256, .. }) => Some(sha256.clone()),
            Some(BundleSource::Folder(_) | BundleSource::Archive { .. }) | None => None,
        });
        let wanted: Vec<_> = wanted.collect();
        let keep = move || {
            let is_kept = kept.read(&name).is_ok_and(|it| it.is_some_and(|it| it.is_same(&bundle)));
            if !is_kept && let Err(error) = kept.write(&name, &bundle) {
                warn!(model = name, %error, "the model in force is not kept for the next start");
            }
            if let Some(store) = store
                && let Err(error) = store.prune(&wanted)
            {
                warn!(%error, "old bundles stay on the disk");
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(keep).await {
            error!(%error, "keeping a model has panicked");
        }
    }

    fn show(&self, name: &str) {
        let Some(managed) = self.models.get(name) else { return };
        let from = || managed.source.as_ref().map(ToString::to_string);
        let (state, candidate) = match &managed.stage {
            Stage::Settled if managed.in_force.is_none() => ("none", None),
            Stage::Settled => ("in-force", None),
            Stage::Fetching => ("fetching", from()),
            Stage::Waiting { .. } => ("waiting", from()),
            Stage::Shadow { bundle, .. } => ("shadow", Some(bundle.identity())),
            Stage::Watched { .. } => ("watched", None),
        };
        let in_force = managed.in_force.as_ref().map(Bundle::identity);
        let (refusal, report) = (managed.refusal.clone(), managed.report.clone());
        let shown = ShownModel { in_force, state, candidate, refusal, report };
        self.reached.board.show_model(name, shown);
    }

    fn tell(&self, event_type: MachineEventType, mut details: MachineEventDetails) {
        if let Some(detail) = &mut details.detail {
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        }
        let event = crate::journal::event_of_now(self.machine_id.clone(), event_type, details);
        if self.reached.events.try_send(event).is_err() {
            metrics::counter!(telemetry::EVENTS_DROPPED).increment(1);
            error!("event about a model dropped: the queue of machine events is full");
        }
    }
}

async fn fetch(store: Option<&BundleStore>, source: &BundleSource) -> Result<Bundle, NotFetched> {
    use crate::bundle_store::Disposition;

    let folder = match (store, source) {
        (_, BundleSource::Folder(folder)) => folder.clone(),
        (Some(store), source) => store.folder(source).await.map_err(|error| {
            let detail = error.to_string();
            match error.disposition() {
                Disposition::Retry | Disposition::Later => NotFetched::Later(detail),
                Disposition::Refuse => NotFetched::Refused { cause: "fetch", detail },
            }
        })?,
        (None, _) => return Err(NotFetched::Later("there is no store of bundles".to_owned())),
    };
    let loaded = tokio::task::spawn_blocking(move || Bundle::load(&folder)).await;
    let loaded = loaded.map_err(|error| NotFetched::Later(error.to_string()))?;
    loaded.map_err(|error| NotFetched::Refused { cause: "self-test", detail: error.to_string() })
}
