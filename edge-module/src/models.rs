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

mod fetching;
mod initial;
mod kept;
mod shadow;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType, MachineId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::admin::Board;
use crate::bundle_store::{BundleSource, BundleStore, DownloadLimits};
use crate::config::Settings;
use crate::scoring::{Bundle, Scorer};
use crate::telemetry;
use fetching::{Fetched, Fetching, NotFetched, Stamp, fetch};

pub use initial::Initial;
pub use kept::KeptModels;
pub use shadow::{Compared, Said, Shadow, ShadowReport};

/// How often shadows and files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Wait before a bundle that could not be fetched is tried again; doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(900);
/// Wait before a model that could not be kept is kept again.
const KEEP_RETRY: Duration = Duration::from_secs(10);
/// Longest wait for a path to take a model; it answers between two inputs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Fewest windows that a candidate is judged by: a machine that stands still says nothing of it.
const SHADOW_WINDOWS_MIN: u64 = 30;
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

/// What the stop path is handed.
pub enum ModelOrder {
    /// A model to be put in force.
    Set(NewModel),
    /// The settings name it no more.
    Remove(String),
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
    /// The settings name it no more.
    Remove {
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
    pub protection: mpsc::Sender<ModelOrder>,
    /// The journal's path.
    pub recording: mpsc::Sender<ShadowOrder>,
    /// The journal.
    pub events: mpsc::Sender<MachineEvent>,
    /// Operators.
    pub board: Board,
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
    /// The fetch that is waited for: what any other brings is of settings that are no more.
    fetching: Option<Fetching>,
    /// Whether the model in force is still to be kept, and when that is tried next.
    keep_at: Option<Instant>,
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
    Shadow { bundle: Bundle, since: Instant },
    /// It is in force, under watch by this budget; the one before is at hand.
    Watched { before: Option<Bundle>, since: Instant, budget: Duration },
    /// It does not do; the one before is to be put back.
    Returning { before: Bundle, trouble: Trouble },
}

/// Puts models in force and takes them out.
pub struct ModelManager {
    settings: Settings,
    models: BTreeMap<String, Managed>,
    data_dir: PathBuf,
    store: Option<Arc<BundleStore>>,
    kept: KeptModels,
    work: JoinSet<Fetched>,
    /// Fetches begun so far.
    fetches: u64,
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
        Self {
            settings,
            models,
            data_dir,
            store: None,
            kept,
            work,
            fetches: 0,
            machine_id,
            reached,
        }
    }

    /// Runs until `stop`. `settings` are the newest ones.
    pub async fn run(
        mut self,
        mut settings: watch::Receiver<Settings>,
        mut troubles: mpsc::Receiver<Trouble>,
        mut stop: watch::Receiver<bool>,
    ) {
        self.forget_kept().await;
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
                Some(ended) = self.work.join_next() => self.handle_ended(ended).await,
                Some(trouble) = troubles.recv() => self.handle_trouble(trouble).await,
                _ = look.tick() => self.look().await,
            }
        }
    }

    /// Begins what is due: other sources, other files, the end of a shadow or a watch.
    async fn look(&mut self) {
        let sources = self.settings.model.sources();
        let gone = self.models.keys().filter(|name| !sources.contains_key(*name)).cloned();
        for name in gone.collect::<Vec<_>>() {
            self.remove(&name).await;
        }
        for (name, source) in sources {
            let managed = self.models.entry(name.clone()).or_default();
            let stamp = Stamp::of(&source);
            // Two looks in a row must see the same files: one that is being written is left alone.
            let is_quiet = managed.seen == stamp;
            managed.seen.clone_from(&stamp);
            let is_other = managed.source.as_ref() != Some(&source)
                || (stamp.is_some() && stamp != managed.stamp);
            if !is_other {
                self.pass_time(&name, source, stamp).await;
                continue;
            }
            // What was wanted before is not wanted any more.
            managed.held = None;
            if let Some(fetching) = managed.fetching.take() {
                fetching.handle.abort();
                managed.stage = Stage::Settled;
            }
            match managed.stage {
                // First what is in force has to show that it does.
                Stage::Watched { .. } | Stage::Returning { .. } => {
                    self.pass_time(&name, source, stamp).await;
                }
                Stage::Settled | Stage::Fetching | Stage::Waiting { .. } | Stage::Shadow { .. }
                    if is_quiet =>
                {
                    self.end_shadow(&name).await;
                    self.fetch(&name, source, stamp);
                }
                Stage::Settled | Stage::Fetching | Stage::Waiting { .. } | Stage::Shadow { .. } => {
                    self.show(&name);
                }
            }
        }
    }

    /// Takes a model out of force that the settings name no more: on both paths, on the disk and on the page.
    async fn remove(&mut self, name: &str) {
        let order = ModelOrder::Remove(name.to_owned());
        let sent = self.reached.protection.send(order);
        let is_taken =
            tokio::time::timeout(ANSWER_TIMEOUT, sent).await.is_ok_and(|sent| sent.is_ok());
        if !is_taken || !self.order(ShadowOrder::Remove { name: name.to_owned() }).await {
            // With the next look, again.
            return warn!(model = name, "a path does not answer: the model stays in force");
        }
        if let Some(fetching) = self.models.remove(name).and_then(|managed| managed.fetching) {
            fetching.handle.abort();
        }
        info!(model = name, "model out of force: the settings do not name it");
        let names: Vec<String> = self.models.keys().cloned().collect();
        self.reached.board.keep_models(&|name| names.iter().any(|kept| kept == name));
        self.forget_kept().await;
    }

    /// Forgets the models of names that the settings do not have.
    async fn forget_kept(&self) {
        let (kept, names) = (self.kept.clone(), self.models.keys().cloned().collect::<Vec<_>>());
        let forget = move || {
            if let Err(error) = kept.retain(&names) {
                warn!(%error, "models that the settings do not name stay on the disk");
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(forget).await {
            error!(%error, "forgetting a model has panicked");
        }
    }

    async fn pass_time(&mut self, name: &str, source: BundleSource, stamp: Option<Stamp>) {
        let now = Instant::now();
        let shadow_time = self.settings.model.shadow_time;
        let is_over = |since: Instant| now.duration_since(since) >= shadow_time;
        let Some(managed) = self.models.get_mut(name) else { return };
        match &managed.stage {
            Stage::Settled if shadow_time.is_zero() && managed.held.is_some() => {
                if let Some(bundle) = managed.held.take() {
                    managed.refusal = None;
                    self.switch(name, bundle, None).await;
                    self.show(name);
                }
            }
            Stage::Settled if managed.keep_at.is_some_and(|at| at <= now) => self.keep(name).await,
            Stage::Waiting { until } if *until <= now => self.fetch(name, source, stamp),
            Stage::Shadow { bundle, since } if is_over(*since) => {
                let bundle = bundle.clone();
                self.judge_shadow(name, bundle).await;
            }
            Stage::Watched { since, .. } if is_over(*since) => {
                managed.stage = Stage::Settled;
                self.keep(name).await;
                self.show(name);
            }
            Stage::Watched { budget, .. } if *budget != self.settings.model.latency_budget => {
                self.watch_anew(name).await;
            }
            Stage::Returning { before, trouble } => {
                let (before, trouble) = (before.clone(), trouble.clone());
                self.put_back(before, trouble).await;
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
        managed.stamp = stamp;
        let name = name.to_owned();
        self.show(&name);
        self.fetches += 1;
        let (number, of_task) = (self.fetches, name.clone());
        let handle = self.work.spawn(async move {
            let result = fetch(store.as_deref(), &source).await;
            Fetched { name: of_task, number, result }
        });
        if let Some(managed) = self.models.get_mut(&name) {
            managed.fetching = Some(Fetching { number, handle });
        }
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

    async fn handle_ended(&mut self, ended: Result<Fetched, JoinError>) {
        match ended {
            Ok(fetched) => self.handle_fetched(fetched).await,
            // It was overtaken.
            Err(error) if error.is_cancelled() => {}
            Err(error) => error!(%error, "fetching a model has panicked"),
        }
    }

    async fn handle_fetched(&mut self, fetched: Fetched) {
        let Fetched { name, number, result } = fetched;
        let Some(managed) = self.models.get_mut(&name) else { return };
        if managed.fetching.as_ref().is_none_or(|fetching| fetching.number != number) {
            // It was overtaken when it was done already: the settings have asked for another one since, or for the same one anew.
            return;
        }
        managed.stage = Stage::Settled;
        managed.fetching = None;
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
            managed.stage = Stage::Shadow { bundle, since: Instant::now() };
            managed.report = None;
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
        let windows = report.windows();
        if windows < SHADOW_WINDOWS_MIN {
            let reason = format!(
                "scored {windows} windows, {SHADOW_WINDOWS_MIN} are needed: a machine that it scores must run"
            );
            if let Some(managed) = self.models.get_mut(name)
                && managed.report.as_ref() != Some(&reason)
            {
                info!(model = name, windows, "shadow goes on: too few windows");
                managed.report = Some(reason);
                self.show(name);
            }
            return;
        }
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
        let Some(managed) = self.models.get_mut(name) else { return };
        managed.report = report.map(ToString::to_string);
        let before = managed.in_force.replace(bundle.clone());
        let identity = bundle.identity();
        let from = before.as_ref().map_or("none".to_owned(), Bundle::identity);
        let is_first = before.is_none();
        let budget = self.settings.model.latency_budget;
        managed.stage = Stage::Watched { before, since: Instant::now(), budget };
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

    /// The budget is another one: the model is put in force once more, to be watched by it from its next window on.
    async fn watch_anew(&mut self, name: &str) {
        let in_force = self.models.get(name).and_then(|managed| managed.in_force.clone());
        let Some(bundle) = in_force else { return };
        if let Err(reason) = self.put_in_force(name, &bundle, true).await {
            // With the next look, again.
            return warn!(model = name, reason, "model still watched by the budget of before");
        }
        let new_budget = self.settings.model.latency_budget;
        if let Some(Managed { stage: Stage::Watched { since, budget, .. }, .. }) =
            self.models.get_mut(name)
        {
            (*since, *budget) = (Instant::now(), new_budget);
            info!(model = name, ?new_budget, "model watched by another budget");
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
        let sent = self.reached.protection.send(ModelOrder::Set(model));
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, sent).await;
        sent.map_err(|_| silent())?.map_err(|_| silent())?;
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
        let name = trouble.name.clone();
        let Some(managed) = self.models.get_mut(&name) else { return };
        let Stage::Watched { before, .. } = &mut managed.stage else { return };
        match before.take() {
            Some(before) => self.put_back(before, trouble).await,
            None => {
                managed.stage = Stage::Settled;
                let Trouble { cause, detail, .. } = trouble;
                warn!(model = name, cause, detail, "model in trouble, and none to return to");
                self.show(&name);
            }
        }
    }

    async fn put_back(&mut self, before: Bundle, trouble: Trouble) {
        let Trouble { name, cause, detail } = trouble.clone();
        let put = self.put_in_force(&name, &before, false).await;
        let Some(managed) = self.models.get_mut(&name) else { return };
        if let Err(reason) = put {
            error!(model = name, reason, "cannot return to the model before: tried again");
            managed.stage = Stage::Returning { before, trouble };
            return self.show(&name);
        }
        let back = before.identity();
        let left = managed.in_force.replace(before);
        let identity = left.as_ref().map_or_else(String::new, Bundle::identity);
        self.keep(&name).await;
        self.refuse(&name, cause, format!("{identity}: {detail}; returned to {back}"), None);
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

    /// Keeps the model in force for the next start, and drops downloads that nobody needs. What fails is tried again.
    async fn keep(&mut self, name: &str) {
        let Some(bundle) = self.models.get(name).and_then(|managed| managed.in_force.clone())
        else {
            return;
        };
        let (kept, of_thread, store) = (self.kept.clone(), name.to_owned(), self.store.clone());
        let wanted = self.models.values().filter_map(|managed| match &managed.source {
            Some(BundleSource::Download { sha256, .. }) => Some(sha256.clone()),
            Some(BundleSource::Folder(_) | BundleSource::Archive { .. }) | None => None,
        });
        let wanted: Vec<_> = wanted.collect();
        let keep = move || {
            let before = kept.read(&of_thread);
            let is_kept = before.is_ok_and(|it| it.is_some_and(|it| it.is_same(&bundle)));
            let written = if is_kept { Ok(()) } else { kept.write(&of_thread, &bundle) };
            if let Some(store) = store
                && let Err(error) = store.prune(&wanted)
            {
                warn!(%error, "old bundles stay on the disk");
            }
            written.map_err(|error| error.to_string())
        };
        let written = tokio::task::spawn_blocking(keep).await.map_err(|error| error.to_string());
        let failed = written.and_then(|written| written).err();
        let Some(managed) = self.models.get_mut(name) else { return };
        let is_first = managed.keep_at.is_none();
        managed.keep_at = failed.as_ref().map(|_| Instant::now() + KEEP_RETRY);
        if let Some(reason) = failed.filter(|_| is_first) {
            warn!(
                model = name,
                reason, "the model in force is not kept for the next start: tried again"
            );
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
            Stage::Returning { .. } => ("returning", None),
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

#[cfg(all(test, feature = "tflite"))]
mod tests;
