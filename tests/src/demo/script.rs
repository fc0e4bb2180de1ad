//! The story, from a healthy plant to the reset.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use edge_core::interlock::MachineState;

use super::configuration::{
    EdgeConfiguration, HOT_ABOVE, Judgement, PRESSURE_LIMIT, WINDOW_SECONDS, cloud_text,
};
use super::figures::{EdgeFigures, Figures, Sources, edge_figures};
use super::machine::{Machine, MachineName, Vibration};
use super::narrator::{Narrator, Tone};
use super::plant::{Plant, now};
use super::replay::Replay;
use super::report;
use super::services::{Broker, Program, Stack, Upstream};
use super::verdict::{Check, Lake, count_windows};
use crate::eventually::eventually_true;
use crate::http::Webhook;
use crate::ports::free_port;
use crate::signal::{MotorProfile, MotorSignal};

pub(super) const PRESS: MachineName = "press-1";
pub(super) const PUMP: MachineName = "pump-2";
pub(super) const FAN: MachineName = "fan-3";
/// Stops of the fan while the network is cut.
pub(super) const DRILLS: u32 = 20;

const HEALTHY_TIME: Duration = Duration::from_secs(5);
/// From the first pit to a ruined bearing; weeks in a plant.
const GROWTH_SECONDS: f64 = 12.0;
const TRIP_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const ALERT_DEADLINE: Duration = Duration::from_secs(20);
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
const HOT_TEMPERATURE: f64 = 112.0;
const USUAL_TEMPERATURE: f64 = 71.0;
const HOT_TIME: Duration = Duration::from_secs(3);
const PRESSURE_OF_DRILL: f64 = PRESSURE_LIMIT + 1.5;
const USUAL_PRESSURE: f64 = 6.0;
/// RMS in volts that stops a machine whatever the model says: six times the healthy level.
const RMS_LIMIT: f64 = 0.05;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which services.
    pub stack: Stack,
    /// Folder of all files; a fresh one if absent.
    pub dir: Option<PathBuf>,
    /// End after the story instead of running on.
    pub once: bool,
    /// Folder of recordings.
    pub replay: Option<PathBuf>,
    /// Of all signals.
    pub seed: u64,
}

/// The running demo.
pub(super) struct Demo {
    pub(super) narrator: Arc<Narrator>,
    pub(super) dir: PathBuf,
    pub(super) plant: Arc<Plant>,
    upstream: Upstream,
    is_cut: Arc<AtomicBool>,
    pub(super) figures: Figures,
    edge_port: u16,
    is_replay: bool,
    pub(super) checks: Vec<Check>,
    /// Event times (microseconds) between which the network was away.
    pub(super) cut: (i64, i64),
}

/// The two programs, which end before the verdict.
struct Programs {
    edge: Program,
    cloud: Program,
    /// The plant's broker must outlive them.
    _broker: Broker,
}

/// Runs the demo; true if every expectation was met.
///
/// # Errors
/// It cannot start, or a program of it ends unasked.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let dir = folder(options)?;
    let narrator = Arc::new(Narrator::new()?);
    report::introduce(&narrator, options, &dir);
    let (mut demo, programs) = start(options, narrator, dir)?;
    demo.healthy()?;
    demo.fault()?;
    demo.cut_network()?;
    demo.mend_network()?;
    demo.reset()?;
    let (edge, lake) = demo.settle(programs, options.once)?;
    report::conclude(demo, edge, &lake)
}

fn folder(options: &Options) -> anyhow::Result<PathBuf> {
    let dir = match &options.dir {
        Some(dir) => {
            // A journal and tables of an earlier run would be counted into this one.
            let taken = dir.join("lake").exists() || dir.join("edge").exists();
            anyhow::ensure!(
                !taken,
                "{} holds an earlier run: name another folder in DEMO_DIR or delete it",
                dir.display()
            );
            dir.clone()
        }
        None => tempfile::Builder::new().prefix("demo-").tempdir()?.keep(),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    dir.canonicalize().with_context(|| dir.display().to_string())
}

fn start(
    options: &Options,
    narrator: Arc<Narrator>,
    dir: PathBuf,
) -> anyhow::Result<(Demo, Programs)> {
    let replay = options.replay.as_deref().map(Replay::read).transpose()?;
    if let Some(replay) = &replay {
        narrator.say(&format!("Replay: {}.", replay.description));
    }
    let broker = Broker::start(options.stack, &dir)?;
    let upstream = Upstream::start(options.stack, &dir)?;
    let webhook = Webhook::start()?;
    let (edge_port, cloud_port) = (free_port()?, free_port()?);
    let lake = dir.join("lake");
    let cloud_config = cloud_text(&upstream.cloud_servers(), &lake, &webhook.url(), cloud_port);
    let cloud = Program::start(
        "cloud-aggregator",
        "CLOUD_AGGREGATOR_BIN",
        &dir,
        cloud_port,
        &cloud_config,
    )?;
    let judgement = Judgement {
        bundle: Some(crate::workspace_root().join("edge-module/model/bundles/motor-v1")),
        rms_limit: replay.as_ref().map_or(RMS_LIMIT, |replay| replay.rms_limit),
    };
    let edge_config = EdgeConfiguration {
        data_dir: &dir.join("edge"),
        mqtt_port: broker.port(),
        kafka: &upstream.plant_servers(),
        admin_port: edge_port,
        judgement: &judgement,
        machines: [PRESS, PUMP, FAN],
    };
    let edge =
        Program::start("edge-module", "EDGE_MODULE_BIN", &dir, edge_port, &edge_config.text())?;
    let machines = machines(options.seed, replay.as_ref());
    let plant = Arc::new(Plant::start(broker.port(), machines, HOT_ABOVE)?);
    let is_cut = Arc::new(AtomicBool::new(false));
    let sources = Sources {
        plant: Arc::clone(&plant),
        edge_port,
        cloud_port,
        webhook,
        is_cut: Arc::clone(&is_cut),
    };
    let figures = Figures::start(Arc::clone(&narrator), sources)?;
    narrator.event(Tone::Faint, "edge-module and cloud-aggregator are ready");
    let demo = Demo {
        narrator,
        dir,
        plant,
        upstream,
        is_cut,
        figures,
        edge_port,
        is_replay: replay.is_some(),
        checks: Vec::new(),
        cut: (0, 0),
    };
    Ok((demo, Programs { edge, cloud, _broker: broker }))
}

fn machines(seed: u64, replay: Option<&Replay>) -> Vec<Machine> {
    let plan = [
        (PRESS, Duration::from_millis(1_000), 58.0),
        (PUMP, Duration::from_millis(1_000), USUAL_TEMPERATURE),
        // The fan has a brake: it stands within a fifth of a second.
        (FAN, Duration::from_millis(200), 34.0),
    ];
    let machine = |(place, (name, spin_time, temperature)): (usize, (MachineName, _, f64))| {
        let seed = seed.wrapping_mul(31).wrapping_add(place as u64);
        let vibration = match replay {
            Some(replay) => Vibration::Recorded(replay.of_machine(place)),
            None => Vibration::Simulated(Box::new(MotorSignal::new(
                MotorProfile::healthy_1800_rpm(),
                seed,
            ))),
        };
        Machine::new(name, vibration, spin_time, temperature, seed)
    };
    plan.into_iter().enumerate().map(machine).collect()
}

impl Demo {
    fn check(&mut self, what: &str, passed: bool, detail: String) {
        self.checks.push(Check::new(what, passed, detail));
    }

    fn healthy(&mut self) -> anyhow::Result<()> {
        self.narrator.chapter(1, "A healthy plant");
        self.narrator.say(
            "Three machines send vibration (20,000 samples a second each), temperature and pressure over MQTT. \
             The edge module cuts the vibration into windows, and a small neural network scores each window \
             on the gateway itself. Everything is written to its journal before it goes to Kafka.",
        );
        let armed = self.plant.wait_for(FAN, STOP_DEADLINE, |fan| fan.interlock() == "armed")?;
        std::thread::sleep(HEALTHY_TIME);
        let quiet = self.plant.look(|machines| {
            machines.iter().all(|machine| machine.state() == MachineState::Running)
        });
        self.check(
            "healthy machines are watched and keep running",
            armed && quiet,
            format!("{} s of operation", HEALTHY_TIME.as_secs()),
        );
        let rms = self.plant.look(|machines| machines[0].rms());
        self.narrator.event(
            Tone::Good,
            &format!("all armed, all running; {PRESS} shakes with {:.1} mV RMS", rms * 1e3),
        );
        Ok(())
    }

    fn fault(&mut self) -> anyhow::Result<()> {
        self.narrator.chapter(2, "A bearing fails on press-1");
        self.narrator.say(if self.is_replay {
            "The machine plays its healthy recording for another six seconds, then one with a heavily damaged \
             bearing. Three of five windows must agree, so that one bump does not stop production."
        } else {
            "A pit grows in the outer race. Each ball that passes hits it and rings the housing: first a whisper \
             under the noise, then a hammer. The fixed limit stands at six times the healthy level; the model \
             should see it earlier. Three of five windows must agree, so that one bump does not stop production."
        });
        self.plant.change(PRESS, |press| press.grow_fault(GROWTH_SECONDS))?;
        let began = Instant::now();
        let tripped = self
            .plant
            .wait_for(PRESS, TRIP_DEADLINE, |press| press.state() != MachineState::Running)?;
        let rms = self.plant.look(|machines| machines[0].rms());
        let after = began.elapsed().as_secs_f64();
        if tripped {
            self.narrator.event(
                Tone::Alarm,
                &format!(
                    "TRIP  {PRESS}: stop ordered after {after:.1} s{}, at {:.1} mV RMS",
                    if self.is_replay { ", the healthy ones included" } else { " of the fault" },
                    rms * 1e3
                ),
            );
        }
        self.check(
            "growing bearing fault stops press-1",
            tripped,
            format!("after {after:.1} s at {:.1} mV RMS", rms * 1e3),
        );
        let confirmed =
            self.plant.wait_for(PRESS, STOP_DEADLINE, |press| press.interlock() == "stopped")?;
        self.check(
            "press-1 spins down and confirms its standstill",
            confirmed,
            format!("the interlock says {:?}", self.interlock(0)),
        );
        if confirmed {
            self.narrator.event(
                Tone::Good,
                "press-1 stands still and says so. The trip is latched: only a person leaves it",
            );
        }
        Ok(())
    }

    fn interlock(&self, place: usize) -> String {
        self.plant.look(|machines| machines[place].interlock().to_owned())
    }

    fn cut_network(&mut self) -> anyhow::Result<()> {
        self.narrator.chapter(3, "The network is cut");
        self.narrator.say(
            "Nothing reaches Kafka now. The stop path does not notice, since it shares nothing with the network: \
             to prove it, the fan is stopped by an overpressure and reset again and again.",
        );
        self.upstream.cut()?;
        self.is_cut.store(true, Ordering::SeqCst);
        self.cut.0 = now().micros();
        self.narrator.event(Tone::Alarm, "network down");
        self.drills()?;
        self.narrator.say(&format!(
            "Meanwhile the temperature of pump-2 rises over {HOT_ABOVE:.0} °C: too little for a stop, but a \
             matter for maintenance when more than five readings of a window are above it. (The window is \
             {WINDOW_SECONDS} s here, a minute in a plant.) It all happens offline, in the journal.",
        ));
        let window = i64::from(WINDOW_SECONDS) * 1_000_000;
        let left = window - now().micros().rem_euclid(window);
        std::thread::sleep(Duration::from_micros(u64::try_from(left).unwrap_or(0)));
        self.plant.change(PUMP, |pump| pump.heat_to(HOT_TEMPERATURE))?;
        self.plant.wait_for(PUMP, STOP_DEADLINE, |pump| pump.last_readings().0 > HOT_ABOVE)?;
        self.narrator.event(Tone::Alarm, "pump-2 is above 100 °C");
        std::thread::sleep(HOT_TIME);
        self.plant.change(PUMP, |pump| pump.heat_to(USUAL_TEMPERATURE))?;
        self.plant
            .wait_for(PUMP, STOP_DEADLINE, |pump| pump.last_readings().0 < HOT_ABOVE - 5.0)?;
        let left = window - now().micros().rem_euclid(window);
        std::thread::sleep(Duration::from_micros(u64::try_from(left).unwrap_or(0)));
        let hot = self.plant.tally().hot.len();
        self.narrator.event(
            Tone::Plain,
            &format!("pump-2 has cooled down; {hot} readings were above it, nobody outside knows"),
        );
        let alerts = self.figures.alerts().len();
        self.check(
            "no alert while the network is cut",
            alerts == 0 && hot > 5,
            format!("{alerts} alerts, {hot} hot readings in the journal"),
        );
        Ok(())
    }

    /// Stops and resets the fan again and again.
    fn drills(&mut self) -> anyhow::Result<()> {
        let mut done = 0;
        for _ in 0..DRILLS {
            if self.drill()? {
                done += 1;
            }
        }
        let mut latencies = self.plant.tally().drill_latencies;
        latencies.sort();
        let median = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
        self.narrator.event(
            Tone::Good,
            &format!(
                "{done} stops of fan-3 without a network, each confirmed and reset; from the sensor over the \
                 broker to the command at the machine: {:.2} ms in the median",
                median.as_secs_f64() * 1e3
            ),
        );
        self.check(
            "every stop works without the network",
            done == DRILLS,
            format!("{done} of {DRILLS} confirmed and reset"),
        );
        Ok(())
    }

    fn drill(&self) -> anyhow::Result<bool> {
        self.plant.drill(FAN, PRESSURE_OF_DRILL)?;
        if !self.plant.wait_for(FAN, STOP_DEADLINE, |fan| fan.interlock() == "stopped")? {
            return Ok(false);
        }
        self.plant.measure_pressure(FAN, USUAL_PRESSURE)?;
        self.plant.reset(FAN)?;
        if !self.plant.wait_for(FAN, STOP_DEADLINE, |fan| fan.interlock() == "armed")? {
            return Ok(false);
        }
        self.plant.change(FAN, Machine::start)?;
        self.plant.wait_for(FAN, STOP_DEADLINE, |fan| fan.is_at_speed())
    }

    fn mend_network(&mut self) -> anyhow::Result<()> {
        let owed = edge_figures(self.edge_port)?.owed;
        self.narrator.chapter(4, "The network is back");
        self.narrator.say(&format!(
            "{owed} records wait in the journal. Machine events leave first, then the readings in order. The \
             aggregator keeps a watermark for each sensor, so that the backlog is not late because others are \
             live: the offline window is counted as if the network had never been away.",
        ));
        self.cut.1 = now().micros();
        self.upstream.mend()?;
        self.is_cut.store(false, Ordering::SeqCst);
        let mended = Instant::now();
        self.narrator.event(Tone::Good, "network up");
        let drained = self.wait_until_drained();
        self.check(
            "backlog drains",
            drained,
            format!("{owed} records in {:.1} s", mended.elapsed().as_secs_f64()),
        );
        if drained {
            let seconds = mended.elapsed().as_secs_f64();
            let text = format!("backlog of {owed} records delivered within {seconds:.1} s");
            self.narrator.event(Tone::Good, &text);
        }
        let alerted = eventually_true("the alert of pump-2", ALERT_DEADLINE, || {
            self.figures.alerts().iter().any(|alert| alert.sensor == format!("{PUMP}/temperature"))
        })
        .is_ok();
        self.check(
            "window that happened offline is alerted",
            alerted,
            format!("{:.1} s after the network was back", mended.elapsed().as_secs_f64()),
        );
        Ok(())
    }

    fn wait_until_drained(&self) -> bool {
        let is_drained = || edge_figures(self.edge_port).is_ok_and(|edge| edge.owed < 50);
        eventually_true("the backlog is delivered", DRAIN_DEADLINE, is_drained).is_ok()
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        self.narrator.chapter(5, "A person resets press-1");
        self.narrator.say(
            "The bearing has been replaced, the machine stands still, its values are healthy: the reset is \
             accepted. It clears the latch and starts nothing; that stays the operator's decision.",
        );
        self.plant.change(PRESS, Machine::repair)?;
        self.plant.reset(PRESS)?;
        let armed =
            self.plant.wait_for(PRESS, STOP_DEADLINE, |press| press.interlock() == "armed")?;
        let still = self.plant.look(|machines| machines[0].state() == MachineState::Stopped);
        self.check(
            "reset by a person is accepted and starts nothing",
            armed && still,
            format!("the interlock says {:?}", self.interlock(0)),
        );
        if armed {
            self.narrator.event(Tone::Good, "press-1 is armed again, and still at rest");
        }
        Ok(())
    }

    /// Lets everything arrive, ends both programs and reads the tables.
    fn settle(&mut self, programs: Programs, once: bool) -> anyhow::Result<(EdgeFigures, Lake)> {
        if !once {
            self.run_on()?;
        }
        self.narrator.chapter(6, "The books are checked");
        self.plant.silence();
        // What is owed is shown twice a second, what is journalled at once.
        let is_quiet = || {
            edge_figures(self.edge_port)
                .is_ok_and(|edge| edge.owed == 0 && edge.delivered == edge.journalled)
        };
        let quiet = eventually_true("nothing is owed", DRAIN_DEADLINE, is_quiet);
        let mut edge = edge_figures(self.edge_port)?;
        self.check(
            "everything journalled is delivered",
            quiet.is_ok(),
            format!("{} of {}", edge.delivered, edge.journalled),
        );
        let expected = count_windows(&self.plant.tally().hot);
        let folder = self.dir.join("lake");
        let arrived = eventually_true("all rows are in the lake", DRAIN_DEADLINE, || {
            Lake::read(&folder).is_ok_and(|lake| {
                lake.record_rows() >= edge.journalled && lake.anomalous_windows() == expected
            })
        });
        if let Err(error) = arrived {
            self.narrator.event(Tone::Alarm, &format!("{error:#}"));
        }
        self.end(programs.edge);
        // The event of its end comes after the last figures that it showed.
        let is_over = || Lake::read(&folder).is_ok_and(|lake| lake.events("stopped").count() > 0);
        let last = eventually_true("the event of the end is in the lake", DRAIN_DEADLINE, is_over);
        if let Err(error) = last {
            self.narrator.event(Tone::Alarm, &format!("{error:#}"));
        }
        edge.journalled += 1;
        edge.delivered += 1;
        self.end(programs.cloud);
        let lake = Lake::read(&folder)?;
        Ok((edge, lake))
    }

    fn end(&mut self, program: Program) {
        let name = program.name().to_owned();
        let ended = program.end();
        let detail = match &ended {
            Ok(time) => format!("in {:.1} s", time.as_secs_f64()),
            Err(error) => format!("{error:#}"),
        };
        self.check(&format!("{name} ends in order"), ended.is_ok(), detail);
    }

    /// The machines stay alive until somebody has seen enough.
    fn run_on(&self) -> anyhow::Result<()> {
        self.narrator.event(
            Tone::Bold,
            "The machines keep running: press Ctrl-C for the books. (ARGS=--once ends here by itself.)",
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(tokio::signal::ctrl_c())?)
    }
}
