//! The manager alone. Both paths answer as a test says; what they were told is read there.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared_proto::model::SensorId;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::scoring::{METADATA_FILE, MODEL_FILE, Models};

const DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for a fetch before files and times are looked at again.
const TURN: Duration = Duration::from_millis(20);
/// After so many turns in which nothing was begun nothing will be.
const TURNS_ENOUGH: usize = 5;
const NAME: &str = "x";
const BEFORE: &str = "motor@1.0.0";
const NEXT: &str = "motor@1.0.1";
const THIRD: &str = "motor@1.0.2";
/// A shadow or a watch is over with the next look.
const SHORT: &str = "shadow-time = \"1ms\"\n";

/// What both paths were told, and how they answer.
#[derive(Default)]
struct Told {
    orders: Vec<String>,
    report: ShadowReport,
    /// The stop path answers nothing.
    is_deaf: bool,
}

#[derive(Clone, Default)]
struct Paths(Arc<Mutex<Told>>);

impl Paths {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The orders since the last call.
    fn orders(&self) -> Vec<String> {
        std::mem::take(&mut self.told().orders)
    }

    async fn protect(self, mut orders: mpsc::Receiver<ModelOrder>) {
        while let Some(order) = orders.recv().await {
            let mut told = self.told();
            match order {
                ModelOrder::Set(NewModel { name, bundle, budget, answer, .. }) => {
                    // Deaf, it drops the answer.
                    if !told.is_deaf {
                        let identity = bundle.identity();
                        told.orders.push(format!("set {name} {identity} {budget:?}"));
                        answer.send(()).expect("waited for");
                    }
                }
                ModelOrder::Remove(name) => told.orders.push(format!("remove {name}")),
            }
        }
    }

    async fn record(self, mut orders: mpsc::Receiver<ShadowOrder>) {
        while let Some(order) = orders.recv().await {
            let mut told = self.told();
            let order = match order {
                ShadowOrder::Begin { name, bundle } => {
                    format!("shadow {name} {}", bundle.identity())
                }
                ShadowOrder::Report { answer, .. } => {
                    answer.send(Some(told.report.clone())).expect("waited for");
                    continue;
                }
                ShadowOrder::End { name } => format!("end {name}"),
                // Goes with what the stop path is told.
                ShadowOrder::Remove { .. } | ShadowOrder::Switch { .. } => continue,
            };
            told.orders.push(order);
        }
    }
}

struct Bench {
    manager: ModelManager,
    paths: Paths,
    events: mpsc::Receiver<MachineEvent>,
    folder: TempDir,
}

impl Bench {
    /// [`BEFORE`] is in force; other versions pass their shadow time.
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for identity in [BEFORE, NEXT, THIRD] {
            copy_bundle(&folder.path().join(identity), identity);
        }
        let before = Bundle::load(&folder.path().join(BEFORE)).expect("a good copy");
        let initial = Initial {
            models: Models::from([(NAME.to_owned(), before)]),
            candidates: Vec::new(),
            refused: BTreeMap::new(),
        };
        let (protection, to_protection) = mpsc::channel(8);
        let (recording, to_recording) = mpsc::channel(8);
        let (sender, events) = mpsc::channel(64);
        let paths = Paths::default();
        paths.told().report = report(0);
        tokio::spawn(paths.clone().protect(to_protection));
        tokio::spawn(paths.clone().record(to_recording));
        let reached = Reached { protection, recording, events: sender, board: Board::default() };
        let settings = settings(folder.path(), SHORT, &in_folder(folder.path(), BEFORE));
        let machine_id = MachineId::new("gw-1").expect("valid");
        let manager = ModelManager::new(settings, initial, machine_id, reached);
        Self { manager, paths, events, folder }
    }

    /// Other settings: lines of `[model]`, and entries of `bundles`.
    fn set(&mut self, lines: &str, bundles: &str) {
        self.manager.settings = settings(self.folder.path(), lines, bundles);
    }

    /// As an entry of `bundles`.
    fn named(&self, identity: &str) -> String {
        in_folder(self.folder.path(), identity)
    }

    fn bundle(&self, identity: &str) -> Bundle {
        Bundle::load(&self.folder.path().join(identity)).expect("a good copy")
    }

    fn managed(&self) -> &Managed {
        &self.manager.models[NAME]
    }

    fn in_force(&self) -> Option<String> {
        self.managed().in_force.as_ref().map(Bundle::identity)
    }

    /// As in the loop of the program.
    async fn turn(&mut self) {
        self.manager.look().await;
        if let Ok(Some(ended)) = timeout(TURN, self.manager.work.join_next()).await {
            self.manager.handle_ended(ended).await;
        }
        tokio::task::yield_now().await;
    }

    async fn until(&mut self, what: &str, is_it: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_it(self) {
            assert!(began.elapsed() < DEADLINE, "{what}: {:?}", self.paths.told().orders);
            self.turn().await;
        }
    }

    /// Nothing more comes of the settings.
    async fn check_quiet(&mut self) {
        for _ in 0..TURNS_ENOUGH {
            self.turn().await;
        }
        assert_eq!(self.paths.orders(), [""; 0]);
        assert!(self.manager.work.is_empty() && matches!(self.managed().stage, Stage::Settled));
    }

    /// Begins a fetch, of which nothing is taken; gives its number.
    async fn begin_fetch(&mut self, identity: &str) -> u64 {
        let last = self.manager.fetches;
        self.set(SHORT, &self.named(identity));
        for _ in 0..TURNS_ENOUGH {
            self.manager.look().await;
        }
        assert!(matches!(self.managed().stage, Stage::Fetching), "of {identity}");
        assert_eq!(self.manager.fetches, last + 1);
        last + 1
    }

    /// [`NEXT`] has passed its shadow time and is under watch.
    async fn watch_next(&mut self) {
        self.set(SHORT, &self.named(NEXT));
        self.until("under watch", |it| matches!(it.managed().stage, Stage::Watched { .. })).await;
        let expected = [
            format!("shadow {NAME} {NEXT}"),
            format!("end {NAME}"),
            format!("set {NAME} {NEXT} Some(10ms)"),
        ];
        assert_eq!(self.paths.orders(), expected);
        assert_eq!(self.in_force().as_deref(), Some(NEXT));
    }

    /// The stop path finds the model under watch too slow.
    async fn tell_trouble(&mut self) {
        let detail = "of the last 30 windows one half took over 20 ms".to_owned();
        let trouble = Trouble { name: NAME.to_owned(), cause: "latency", detail };
        self.manager.handle_trouble(trouble).await;
    }

    fn check_returned(&mut self) {
        assert_eq!(self.in_force().as_deref(), Some(BEFORE));
        assert_eq!(self.paths.orders(), [format!("set {NAME} {BEFORE} None")]);
        let refusal = self.managed().refusal.clone().expect("a reason");
        for words in [NEXT, "one half took over 20 ms", &format!("returned to {BEFORE}")] {
            assert!(refusal.contains(words), "{words} is not in {refusal}");
        }
        let mut events = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        let [changed, refused] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(changed.event_type, MachineEventType::ModelChanged);
        assert_eq!(refused.event_type, MachineEventType::ModelRefused);
        assert_eq!(refused.details.cause.as_deref(), Some("latency"));
        assert_eq!(refused.details.model.as_deref(), Some(BEFORE));
        let detail = refused.details.detail.as_ref().expect("a detail");
        assert!(detail.contains(&refusal), "{detail}");
        let kept = KeptModels::at(&self.manager.data_dir).read(NAME).expect("no fault");
        assert!(kept.expect("kept").is_same(&self.bundle(BEFORE)), "a restart begins with it");
    }
}

fn copy_bundle(folder: &Path, identity: &str) {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles/motor-v1");
    let text = std::fs::read(original.join(METADATA_FILE)).expect("committed");
    let mut metadata: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    metadata["version"] = identity.rsplit('@').next().expect("a version").into();
    std::fs::create_dir_all(folder).expect("made");
    std::fs::copy(original.join(MODEL_FILE), folder.join(MODEL_FILE)).expect("copied");
    std::fs::write(folder.join(METADATA_FILE), metadata.to_string()).expect("written");
}

fn in_folder(folder: &Path, identity: &str) -> String {
    format!("{NAME} = \"{}\"", folder.join(identity).display())
}

fn settings(folder: &Path, lines: &str, bundles: &str) -> Settings {
    let text = format!(
        "[device]\ndata-dir = \"{}\"\n[model]\n{lines}bundles = {{ {bundles} }}\n\
         [[machines]]\nid = \"m\"\nscored-sensors = [{{ sensor = \"m/z\", model = \"{NAME}\" }}]\n",
        folder.join("data").display()
    );
    let file = folder.join("settings.toml");
    std::fs::write(&file, text).expect("written");
    Settings::load(Some(file.as_path())).expect("valid")
}

/// Of a candidate that would have decided so often where the model in force did not.
fn report(decisions: u64) -> ShadowReport {
    let in_force = Said { windows: 40, ..Said::default() };
    let new = Said { decisions, ..in_force.clone() };
    let sensor = SensorId::new("m/z").expect("valid");
    ShadowReport { sensors: [(sensor, Compared { in_force, new })].into(), ..Default::default() }
}

#[tokio::test]
async fn a_model_too_slow_on_the_stop_path_gives_way_to_the_one_before_and_is_not_tried_again() {
    let mut bench = Bench::start();
    bench.watch_next().await;
    bench.tell_trouble().await;
    bench.check_returned();
    bench.check_quiet().await;
    // Told late, and of a model that is not in force any more.
    bench.tell_trouble().await;
    bench.check_quiet().await;
    // Other settings, but not of this model.
    let lines = format!("{SHORT}latency-budget = \"50ms\"\n");
    bench.set(&lines, &bench.named(NEXT));
    bench.check_quiet().await;
    assert_eq!(bench.in_force().as_deref(), Some(BEFORE));
    assert!(bench.managed().refusal.is_some());

    bench.set(&lines, &bench.named(THIRD));
    let is_third = |bench: &Bench| bench.in_force().as_deref() == Some(THIRD);
    bench.until("another one is tried", is_third).await;
    assert_eq!(bench.managed().refusal, None);
}

#[tokio::test]
async fn a_return_that_the_stop_path_does_not_take_is_tried_again_before_anything_else() {
    let mut bench = Bench::start();
    bench.watch_next().await;
    bench.paths.told().is_deaf = true;
    bench.tell_trouble().await;
    bench.set(SHORT, &bench.named(THIRD));
    for _ in 0..TURNS_ENOUGH {
        bench.turn().await;
        assert!(matches!(bench.managed().stage, Stage::Returning { .. }));
    }
    assert_eq!(bench.paths.orders(), [""; 0]);
    bench.paths.told().is_deaf = false;
    // One look, so that nothing else begins.
    bench.manager.look().await;
    bench.check_returned();
    let is_third = |bench: &Bench| bench.in_force().as_deref() == Some(THIRD);
    bench.until("what the settings ask for since", is_third).await;
}

#[tokio::test]
async fn another_budget_holds_for_a_model_that_is_under_watch_already() {
    let mut bench = Bench::start();
    bench.watch_next().await;
    let lines = "shadow-time = \"1h\"\nlatency-budget = \"1us\"\n";
    bench.set(lines, &bench.named(NEXT));
    bench.paths.told().is_deaf = true;
    bench.turn().await;
    bench.paths.told().is_deaf = false;
    for _ in 0..TURNS_ENOUGH {
        bench.turn().await;
    }
    assert_eq!(bench.paths.orders(), [format!("set {NAME} {NEXT} Some(1µs)")], "once");
    assert!(matches!(bench.managed().stage, Stage::Watched { .. }));
    bench.tell_trouble().await;
    bench.check_returned();
}

#[tokio::test]
async fn a_download_that_hangs_is_given_up_when_the_settings_name_another_bundle() {
    let mut bench = Bench::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let (asked, is_asked) = oneshot::channel();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let first = stream.read_u8().await.expect("a request");
        asked.send(()).expect("waited for");
        // No answer, until the client hangs up.
        let mut request = vec![first];
        stream.read_to_end(&mut request).await.ok();
        request
    });
    let url = format!("http://127.0.0.1:{port}/a.tar");
    let sha256 = "0".repeat(64);
    bench.set(SHORT, &format!("{NAME} = {{ url = \"{url}\", sha256 = \"{sha256}\" }}"));
    bench.until("asked", |it| matches!(it.managed().stage, Stage::Fetching)).await;
    timeout(DEADLINE, is_asked).await.expect("in time").expect("it is asked");

    bench.set(SHORT, &bench.named(NEXT));
    let is_next = |bench: &Bench| {
        bench.in_force().as_deref() == Some(NEXT) && matches!(bench.managed().stage, Stage::Settled)
    };
    bench.until("the newer one is in force for good", is_next).await;
    let request = timeout(DEADLINE, server).await.expect("it hangs up").expect("no panic");
    assert!(request.starts_with(b"GET /a.tar"), "{}", String::from_utf8_lossy(&request));
    let expected = [
        format!("shadow {NAME} {NEXT}"),
        format!("end {NAME}"),
        format!("set {NAME} {NEXT} Some(10ms)"),
    ];
    assert_eq!(bench.paths.orders(), expected);
    bench.check_quiet().await;
    assert_eq!(bench.managed().refusal, None);
}

#[tokio::test]
async fn what_an_overtaken_fetch_brings_late_neither_comes_into_force_nor_sets_the_stage_back() {
    let mut bench = Bench::start();
    let first = bench.begin_fetch(NEXT).await;
    bench.begin_fetch(THIRD).await;
    // The settings come back to the first one: only its second fetch counts.
    bench.begin_fetch(NEXT).await;
    let late = |bench: &Bench| {
        let results = [
            Ok(bench.bundle(THIRD)),
            Ok(bench.bundle(NEXT)),
            Err(NotFetched::Later("it is silent".to_owned())),
            Err(NotFetched::Refused { cause: "fetch", detail: "it is gone".to_owned() }),
        ];
        results.map(|result| Fetched { name: NAME.to_owned(), number: first, result })
    };
    for fetched in late(&bench) {
        bench.manager.handle_fetched(fetched).await;
        assert!(matches!(bench.managed().stage, Stage::Fetching));
    }
    bench.until("its shadow", |it| matches!(it.managed().stage, Stage::Shadow { .. })).await;
    for fetched in late(&bench) {
        bench.manager.handle_fetched(fetched).await;
        assert!(matches!(bench.managed().stage, Stage::Shadow { .. }));
    }
    bench.until("under watch", |it| matches!(it.managed().stage, Stage::Watched { .. })).await;
    for fetched in late(&bench) {
        bench.manager.handle_fetched(fetched).await;
        assert!(matches!(bench.managed().stage, Stage::Watched { .. }));
    }
    let expected = [
        format!("shadow {NAME} {NEXT}"),
        format!("end {NAME}"),
        format!("set {NAME} {NEXT} Some(10ms)"),
    ];
    assert_eq!(bench.paths.orders(), expected);
    assert_eq!(bench.managed().refusal, None);
}

#[tokio::test]
async fn a_change_beside_a_refused_bundle_leaves_it_refused_and_the_model_in_force() {
    let mut bench = Bench::start();
    bench.paths.told().report = report(1);
    bench.set(SHORT, &bench.named(NEXT));
    bench.until("refused", |it| it.managed().held.is_some()).await;
    let refusal = bench.managed().refusal.clone();
    assert!(refusal.as_ref().is_some_and(|text| text.contains("would have decided")));
    assert_eq!(bench.paths.orders(), [format!("shadow {NAME} {NEXT}"), format!("end {NAME}")]);

    let beside =
        format!("{}, y = \"{}\"", bench.named(NEXT), bench.folder.path().join(THIRD).display());
    bench.set(SHORT, &beside);
    let is_there = |bench: &Bench| {
        let other = bench.manager.models.get("y");
        other.is_some_and(|it| it.in_force.is_some() && matches!(it.stage, Stage::Settled))
    };
    bench.until("the other model is in force", is_there).await;
    bench.set(&format!("{SHORT}latency-budget = \"20ms\"\n"), &beside);
    for _ in 0..TURNS_ENOUGH {
        bench.turn().await;
    }
    assert_eq!(bench.paths.orders(), [format!("set y {THIRD} Some(10ms)")]);
    bench.set(SHORT, &bench.named(NEXT));
    bench.until("the other is gone", |it| !it.manager.models.contains_key("y")).await;
    assert_eq!(bench.paths.orders(), ["remove y"]);
    bench.check_quiet().await;
    assert_eq!(bench.in_force().as_deref(), Some(BEFORE));
    assert_eq!(bench.managed().refusal, refusal);

    // The word of a person who knows.
    bench.set("shadow-time = \"0s\"\n", &bench.named(NEXT));
    bench.until("forced", |it| it.in_force().as_deref() == Some(NEXT)).await;
    assert_eq!(bench.managed().refusal, None);
}
