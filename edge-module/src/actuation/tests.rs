//! Who gets which order, with paths that only write down what they were told; and a Modbus path whose device is a plain socket.

use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::admin::Board;
use crate::calibration::Baselines;
use crate::config::Settings;
use crate::scoring::Models;

const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, note: String) {
        self.0.lock().expect("not poisoned").push(note);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("not poisoned"))
    }
}

struct NotedPath {
    name: &'static str,
    notes: Notes,
    is_full: bool,
}

impl Actuator for NotedPath {
    fn stop(&self, order: StopOrder) -> Result<(), QueueFull> {
        if self.is_full {
            return Err(QueueFull);
        }
        self.notes.add(format!("{} stop {} {}", self.name, order.trip_id, order.attempt));
        Ok(())
    }

    fn heartbeat(&self, count: u64) -> Result<(), QueueFull> {
        self.notes.add(format!("{} heartbeat {count}", self.name));
        Ok(())
    }

    fn withdraw(&self) -> Result<(), QueueFull> {
        self.notes.add(format!("{} withdraw", self.name));
        Ok(())
    }
}

struct Bench {
    actuation: Actuation,
    notes: Notes,
    board: Board,
    machine_id: MachineId,
}

impl Bench {
    /// A machine with paths a, b, c, of which `ready` are ready.
    fn new(ready: &[usize], full: Option<usize>) -> Self {
        let settings = Settings::load(None::<&FilePath>).expect("defaults are valid");
        let (sender, _) = mpsc::channel(1);
        let mut maker = replace::Maker::new(&settings, sender).expect("no password to read");
        let display = maker.display();
        let notes = Notes::default();
        let paths = ["a", "b", "c"].into_iter().enumerate().map(|(index, name)| {
            let is_full = full == Some(index);
            let path = NotedPath { name, notes: notes.clone(), is_full };
            Path::new(index, name.to_owned(), "test", Box::new(path))
        });
        let machine_id = MachineId::new("press-1").expect("valid");
        let machine = Machine { paths: paths.collect(), ..Machine::default() };
        let board = Board::default();
        let actuation = Actuation {
            machines: [(machine_id.clone(), machine)].into(),
            maker,
            display,
            display_health: Health::Ready,
            confirmation_deadline: DEADLINE,
            board: QuietBoard::new(&board),
            is_health_changed: true,
        };
        let mut bench = Self { actuation, notes, board, machine_id };
        for index in ready {
            assert_eq!(bench.tell(*index, PathEvent::Ready), None);
        }
        bench
    }

    fn tell(&mut self, index: usize, event: PathEvent) -> Option<Told> {
        let path = Some((self.machine_id.clone(), index));
        self.actuation.handle(PathReport { path, event })
    }

    fn stop(&mut self, attempt: u32, reach: StopReach) -> Vec<String> {
        let machine_id = self.machine_id.clone();
        self.actuation.stop(&machine_id, "t", attempt, reach);
        self.notes.take()
    }

    fn state(&mut self, index: usize, state: MachineState, asked: Instant) -> bool {
        let event = PathEvent::State { state, asked, received: asked, is_retained: false };
        self.tell(index, event).is_some()
    }
}

fn lost() -> PathEvent {
    PathEvent::Lost("cable".to_owned())
}

fn failed() -> PathEvent {
    PathEvent::Failed { trip_id: "t".to_owned(), why: "no answer".to_owned() }
}

#[test]
fn a_first_stop_takes_the_first_path_and_the_next_all() {
    let mut bench = Bench::new(&[0, 1, 2], None);
    assert_eq!(bench.stop(1, StopReach::First), ["a stop t 1"]);
    assert_eq!(bench.stop(2, StopReach::All), ["a stop t 2", "b stop t 2", "c stop t 2"]);
}

#[test]
fn a_first_path_that_cannot_be_relied_on_makes_it_all_paths_at_once() {
    let all = ["a stop t 1", "b stop t 1", "c stop t 1"];
    assert_eq!(Bench::new(&[1], None).stop(1, StopReach::First), all, "never connected");
    let mut bench = Bench::new(&[0, 1, 2], None);
    bench.tell(0, lost());
    assert_eq!(bench.stop(1, StopReach::First), all, "lost before");
    let mut bench = Bench::new(&[0, 1, 2], None);
    bench.tell(0, PathEvent::Faulty("illegal address".to_owned()));
    assert_eq!(bench.stop(1, StopReach::First), all, "refuses");
    let mut bench = Bench::new(&[0, 1, 2], Some(0));
    assert_eq!(bench.stop(1, StopReach::First), all[1..], "queue full");
}

#[test]
fn a_path_that_fails_after_the_order_brings_in_the_others_once() {
    for event in [lost(), failed()] {
        let mut bench = Bench::new(&[0, 1, 2], None);
        assert_eq!(bench.stop(1, StopReach::First), ["a stop t 1"]);
        bench.tell(0, event.clone());
        assert_eq!(bench.notes.take(), ["b stop t 1", "c stop t 1"], "{event:?}");
        bench.tell(0, event);
        assert!(bench.notes.take().is_empty());
        bench.tell(0, PathEvent::Ready);
        assert_eq!(bench.notes.take(), ["a stop t 1"], "back while the stop is open");
    }
    let mut bench = Bench::new(&[0, 1, 2], None);
    bench.stop(1, StopReach::First);
    bench.tell(1, lost());
    assert!(bench.notes.take().is_empty(), "a path that was not ordered");
}

#[test]
fn nothing_is_ordered_after_standstill_or_reset() {
    let mut bench = Bench::new(&[0, 1], None);
    bench.stop(1, StopReach::First);
    let machine_id = bench.machine_id.clone();
    bench.actuation.confirmed(&machine_id);
    assert_eq!(bench.notes.take(), ["a withdraw", "b withdraw", "c withdraw"]);
    bench.tell(0, lost());
    bench.tell(0, PathEvent::Ready);
    bench.tell(0, failed());
    assert!(bench.notes.take().is_empty());
    bench.actuation.released(&machine_id);
    assert!(bench.state(0, MachineState::Running, Instant::now()), "free to run");
}

#[test]
fn only_standstill_asked_for_after_the_order_confirms() {
    let mut bench = Bench::new(&[0, 1, 2], None);
    let before = Instant::now();
    bench.stop(1, StopReach::First);
    assert!(!bench.state(1, MachineState::Stopped, before), "asked before the order");
    let (state, asked, received) = (MachineState::Stopped, Instant::now(), Instant::now());
    let retained = PathEvent::State { state, asked, received, is_retained: true };
    assert_eq!(bench.tell(1, retained), None, "had lain in the broker");
    assert!(bench.state(1, MachineState::Stopped, Instant::now()), "any path confirms");
}

#[test]
fn paths_that_contradict_each_other_are_believed_after_the_deadline_and_once() {
    let mut bench = Bench::new(&[0, 1, 2], None);
    bench.stop(1, StopReach::All);
    assert!(bench.state(0, MachineState::Stopped, Instant::now()));
    let machine_id = bench.machine_id.clone();
    bench.actuation.confirmed(&machine_id);
    let soon = Instant::now();
    assert!(!bench.state(1, MachineState::Running, soon), "its read-back is slower");
    assert!(bench.state(1, MachineState::Running, soon + DEADLINE), "it still turns");
    assert!(!bench.state(1, MachineState::Running, soon + DEADLINE * 2), "told once");
    assert!(bench.state(0, MachineState::Running, soon), "a path that had seen standstill");
}

#[test]
fn the_page_names_machine_path_and_reason() {
    let mut bench = Bench::new(&[0, 1], None);
    bench.tell(1, lost());
    bench.actuation.show_health();
    let lines = bench.board.lines().concat();
    assert!(lines.contains("machine press-1 path b: cable"), "{lines}");
    assert!(lines.contains("machine press-1 path c: starting"), "{lines}");
    bench.tell(1, PathEvent::Ready);
    bench.tell(2, PathEvent::Ready);
    bench.actuation.show_health();
    assert_eq!(bench.board.lines().concat(), "actuator: ok\n");
}

/// Answers Modbus requests on a thread of its own: reads with 0, writes with their echo, kept in the order of their arrival.
fn answering_device() -> (u16, Arc<Mutex<Vec<[u8; 5]>>>) {
    use std::io::{Read as _, Write as _};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let writes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&writes);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 12];
            while stream.read_exact(&mut request).is_ok() {
                let pdu: [u8; 5] = request[7..12].try_into().expect("five bytes");
                let answer = if pdu[0] <= 2 {
                    let mut answer = request[..4].to_vec();
                    answer.extend([0, 4, request[6], pdu[0], 1, 0]);
                    answer
                } else {
                    seen.lock().expect("not poisoned").push(pdu);
                    request.to_vec()
                };
                stream.write_all(&answer).expect("taken");
            }
        }
    });
    (port, writes)
}

fn settings_with_modbus(port: u16) -> Settings {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temporary file");
    let text = format!(
        "[[machines]]\nid = \"press-1\"\n[[machines.actuators]]\nkind = \"modbus-tcp\"\nhost = \"127.0.0.1\"\n\
         port = {port}\nstop-coil = 3\nstandstill-input = 4\nheartbeat-register = 9\npoll-interval = \"5ms\"\n"
    );
    std::fs::write(file.path(), text).expect("written");
    Settings::load(Some(file.path())).expect("valid")
}

/// The connections go on while the loop that judges is not polled: the signs of life must stay away then.
#[tokio::test]
async fn heartbeats_come_from_the_judging_loop_alone() {
    let (port, writes) = answering_device();
    let settings = settings_with_modbus(port);
    let (actuation, connections) =
        Actuation::new(&settings, &Board::default()).expect("no password to read");
    let mut sessions = JoinSet::new();
    let reports = connections.start(&mut sessions);
    let (events, _events) = mpsc::channel(16);
    let (latches, _latches) = std::sync::mpsc::sync_channel(16);
    let sinks =
        crate::protection::Sinks { events, latches, board: QuietBoard::new(&Board::default()) };
    let known = (&Models::new(), &Baselines::new());
    let protection =
        crate::protection::Protection::new(&settings, known, Vec::new(), actuation, sinks)
            .expect("valid settings");
    // Not started: no sensor says anything.
    let sensors =
        crate::mqtt::sensors::SensorSessions::new(&settings).expect("no password to read");
    let (_stop, stop) = tokio::sync::watch::channel(false);
    let interval = Duration::from_millis(5);
    let judging = protection.run(sensors, reports, sessions, interval, stop);
    tokio::pin!(judging);
    let count = || {
        let writes = writes.lock().expect("not poisoned");
        writes.iter().filter(|pdu| pdu[..3] == [6, 0, 9]).count()
    };
    let beats = async |least: usize| {
        while count() < least {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = &mut judging => panic!("the loop has ended"),
        () = beats(5) => {}
    }
    // One that was queued already may still be written.
    tokio::time::sleep(interval * 4).await;
    let before = count();
    tokio::time::sleep(interval * 40).await;
    assert_eq!(count(), before, "signs of life without the loop");
    tokio::select! {
        () = &mut judging => panic!("the loop has ended"),
        () = beats(before + 5) => {}
    }
}

#[tokio::test]
async fn other_machines_bring_their_connections_and_leave_without_them() {
    let (port, writes) = answering_device();
    let none = Settings::load(None::<&FilePath>).expect("defaults are valid");
    let (mut actuation, connections) =
        Actuation::new(&none, &Board::default()).expect("no password to read");
    let mut tasks = JoinSet::new();
    let mut reports = connections.start(&mut tasks);
    let one = settings_with_modbus(port).machines.remove(0);
    let (machine_id, paths) = (one.id.clone(), one.paths());
    let with = |paths: &[config::Actuator]| [(machine_id.clone(), paths.to_vec())].into();
    actuation.replace(with(&paths), &mut tasks);
    let number = |actuation: &Actuation| actuation.machines[&machine_id].paths[0].number;
    let first = number(&actuation);
    let work = async {
        while actuation.machines[&machine_id].paths[0].health != Health::Ready {
            let report = reports.recv().await.expect("the device is there");
            actuation.handle(report);
        }
        actuation.stop(&machine_id, "t", 1, StopReach::First);
        loop {
            let report = reports.recv().await.expect("the device is there");
            if let Some(Told::Written { .. }) = actuation.handle(report) {
                break;
            }
        }
        assert!(writes.lock().expect("not poisoned").contains(&[5, 0, 3, 0, 0]));

        actuation.replace(with(&paths), &mut tasks);
        assert_eq!(number(&actuation), first, "the same path keeps its connection");
        let broker = config::Actuator::Mqtt { host: None, port: Some(1) };
        actuation.replace(with(&[broker]), &mut tasks);
        assert_ne!(number(&actuation), first);
        let event = PathEvent::Failed { trip_id: "t".to_owned(), why: "late".to_owned() };
        let path = Some((machine_id.clone(), first));
        assert_eq!(actuation.handle(PathReport { path, event }), None, "of a path that is gone");
        let ended = tasks.join_next().await.expect("a task").expect("no panic");
        assert_eq!(ended, TaskEnd::Dismissed, "the device");
        actuation.replace(BTreeMap::new(), &mut tasks);
        let ended = tasks.join_next().await.expect("a task").expect("no panic");
        assert_eq!(ended, TaskEnd::Dismissed, "the other broker");
        assert_eq!(tasks.len(), 1, "the broker of [mqtt] stays");
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("nothing hangs");
}
