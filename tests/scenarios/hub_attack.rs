//! A hub that sends what no hub sends: nonsense under every topic, floods of calls, request ids again, twins of wrong types whose
//! versions go back. What is asserted is what the machine is told meanwhile, what is in force, and what the module costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::hub::{HubSettings, HubStandIn};
use serde_json::{Value, json};

use crate::plant::{DEADLINE, Plant};
use crate::stop_isolation::{MACHINES, Phase, Press};

const STOPS: usize = 40;
/// Of each kind of nonsense, and more if the stops take longer.
const ROUNDS_MIN: u64 = 40;
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/";
/// What the module may grow by: its queues are full then, and its log.
const GROWTH_KILOBYTES_MAX: u64 = 64 << 10;
/// Lines are told now and then; a line for each message would be a hundred times as much.
const LOG_BYTES_MAX: usize = 1 << 20;

/// Topic and payload.
type Nonsense = (String, Vec<u8>);

fn topics_of_nobody() -> Vec<Nonsense> {
    let long = "x".repeat(60_000);
    let topics = [
        "",
        "/",
        "x",
        "$iothub/",
        "$iothub/methods/POST/",
        "$iothub/methods/POST//?$rid=1",
        "$iothub/methods/POST/ping/",
        "$iothub/methods/POST/ping/?$rid=",
        "$iothub/methods/POST/ping/?$rid=%ZZ",
        "$iothub/methods/POST/ping/?$rid=%FF%FE",
        "$iothub/twin/res/abc/?$rid=1",
        "$iothub/twin/res/99999/?$rid=1",
        "$iothub/twin/res/200/?$rid=18446744073709551616",
        "$iothub/twin/res/200/",
        "$iothub/twin/PATCH/properties/reported/?$version=3",
        "devices/somebody/modules/else/inputs/opc/",
        "devices/somebody/messages/devicebound/%24.to=x",
        "$dps/registrations/res/200/?$rid=1",
    ];
    let topics = topics.map(str::to_owned).into_iter();
    let long = [
        format!("$iothub/methods/POST/{long}/?$rid=1"),
        format!("$iothub/methods/POST/ping/?$rid={long}"),
        format!("$iothub/twin/res/200/?$rid={long}"),
        long,
    ];
    topics.chain(long).map(|topic| (topic, b"{}".to_vec())).collect()
}

/// Desired properties that are none, in patches and in answers to questions that were not asked. `next` is the version that the
/// module waits for: under it comes only what is no patch at all, since anything else would be one.
fn twins_of_nobody(next: u64) -> Vec<Nonsense> {
    let deep = format!("{}1{}", "{\"a\":".repeat(20_000), "}".repeat(20_000));
    let wide: serde_json::Map<String, Value> =
        (0..5_000).map(|number| (format!("k{number}"), json!(number))).collect();
    let broken = [
        Vec::new(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[1,2]".to_vec(),
        b"\xFF\xFE".to_vec(),
        deep.into_bytes(),
    ];
    let whole = [
        Value::from(wide).to_string().into_bytes(),
        json!({ "$version": "many" }).to_string().into_bytes(),
        json!({ "machines": 7, "$version": 1 }).to_string().into_bytes(),
    ];
    let patch =
        |version: &str, body: &Vec<u8>| (format!("{DESIRED}?$version={version}"), body.clone());
    let versions = ["-1", "0", "1", "x", "", "99999999999999999999999"];
    let bodies = || broken.iter().chain(&whole);
    let patches = bodies().flat_map(|body| versions.map(|version| patch(version, body)));
    let awaited = broken.iter().map(|body| patch(&next.to_string(), body));
    let answers = bodies().flat_map(|body| {
        (0..8).map(|rid| (format!("$iothub/twin/res/200/?$rid={rid}"), body.clone()))
    });
    let bare = (DESIRED.to_owned(), b"{}".to_vec());
    patches.chain(awaited).chain(answers).chain([bare]).collect()
}

/// Calls of methods that there are, with payloads that are none, and one request id for all.
fn calls_of_nobody() -> Vec<Nonsense> {
    let big = vec![b'x'; 250_000];
    let names = ["ping", "getStatus", "getTrips", "journalStatus", "setModel", "stopMachine"];
    let bodies = [Vec::new(), b"{".to_vec(), b"[[[[".to_vec(), b"\xFF".to_vec(), big];
    let calls = names.iter().flat_map(|name| {
        let topic = format!("$iothub/methods/POST/{name}/?$rid=");
        let of_one = bodies.iter().map(move |body| (format!("{topic}again"), body.clone()));
        let topic = format!("$iothub/methods/POST/{name}/?$rid={name}");
        of_one.chain((0..50).map(move |number| (format!("{topic}{number}"), b"{}".to_vec())))
    });
    calls.collect()
}

/// Sends all of it again and again until it is over; gives how many publishes that were.
fn flood(hub: &HubStandIn, nonsense: &[Nonsense], is_over: &AtomicBool) -> u64 {
    let (mut sent, mut round) = (0, 0);
    while round < ROUNDS_MIN || !is_over.load(Ordering::SeqCst) {
        round += 1;
        for (topic, body) in nonsense {
            // As fast as they are taken: the queue is the pace.
            if hub.send_anything(topic, body) {
                sent += 1;
            } else {
                std::thread::yield_now();
            }
        }
    }
    sent
}

fn resident_kilobytes(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("no VmRSS")?.parse()?)
}

fn settings(edge: &EdgeModule) -> anyhow::Result<Value> {
    let status: Value = serde_json::from_str(&edge.get("/status")?.1)?;
    Ok(status["settings"]["version"].clone())
}

/// A change of settings and a call arrive, whatever was sent before.
fn check_link(hub: &HubStandIn, percent: f64) -> anyhow::Result<()> {
    let version = hub.set_desired(json!({ "deadband": { "percent": percent } }));
    let fits = |reported: &Value| {
        let desired = &reported["settings"]["desired"];
        desired["version"] == version && desired["state"] == "in-force"
    };
    hub.block_on(hub.wait_reported(fits, DEADLINE))?;
    eventually("a call is answered", DEADLINE, || {
        let (status, answer) = hub.block_on(hub.call("ping", json!({}), Duration::from_secs(5)))?;
        ensure!(status == 200 && answer["deviceId"].is_string(), "{status} {answer}");
        Ok(())
    })
}

/// A press whose module is linked to the hub.
fn start(hub: &HubStandIn) -> anyhow::Result<(Plant, Press, EdgeModule)> {
    let mut plant = Plant::new("hub-attack")?;
    plant.edge_settings.machines = MACHINES.to_owned();
    plant.edge_settings.environment.extend(hub.module_environment());
    let quick = [
        ("PORT", hub.port().to_string()),
        ("RECONNECT_MIN", "20ms".to_owned()),
        ("RECONNECT_MAX", "200ms".to_owned()),
        ("REPORT_INTERVAL", "100ms".to_owned()),
    ];
    let quick = quick.map(|(name, value)| (format!("EDGE__IOT_HUB__{name}"), value));
    plant.edge_settings.environment.extend(quick);
    let mut press = Press::start(plant.mosquitto.port())?;
    let edge = plant.start_edge_module()?;
    press.stop_once()?;
    check_link(hub, 1.0)?;
    Ok((plant, press, edge))
}

#[test]
fn nonsense_of_a_hub_changes_nothing_and_delays_no_stop() -> anyhow::Result<()> {
    let hub = HubStandIn::start(HubSettings::default())?;
    let (_plant, mut press, mut edge) = start(&hub)?;
    let (version, process) = (settings(&edge)?, edge.process().id());
    let before = resident_kilobytes(process)?;
    for (name, nonsense) in [
        ("topics", topics_of_nobody()),
        ("twins", twins_of_nobody(hub.desired().1 + 1)),
        ("calls", calls_of_nobody()),
    ] {
        let is_over = AtomicBool::new(false);
        let phase = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(&hub, &nonsense, &is_over));
            let phase = Phase::run(name, STOPS, &mut press, &edge);
            is_over.store(true, Ordering::SeqCst);
            let sent = flooding.join().map_err(|_| anyhow::anyhow!("the flood broke"))?;
            println!("{name}: {sent} publishes");
            ensure!(sent > 1_000, "{name}: {sent} publishes are no flood");
            phase
        })?;
        phase.print();
        phase.check()?;
        ensure!(settings(&edge)? == version, "{name}: other settings are in force");
    }
    // Four times what a hub may send: the connection ends, and the next one is a good one.
    let connections = hub.connections();
    let huge = vec![b'x'; 1 << 20];
    ensure!(hub.send_anything("$iothub/methods/POST/ping/?$rid=huge", &huge), "nobody is there");
    eventually("the connection is left", DEADLINE, || {
        ensure!(hub.connections() > connections, "{} connections", hub.connections());
        Ok(())
    })?;
    check_link(&hub, 2.0).with_context(|| edge.describe())?;
    ensure!(edge.process().id() == process && edge.process().is_running()?, "another process");
    let after = resident_kilobytes(process)?;
    println!("resident: {before} kB before, {after} kB after");
    ensure!(after < before + GROWTH_KILOBYTES_MAX, "{before} kB before, {after} kB after");
    let log = edge.process().stderr().len();
    println!("log: {log} bytes");
    ensure!(log < LOG_BYTES_MAX, "{log} bytes of log");
    let metrics = edge.metrics()?;
    for reason in ["topic", "twin"] {
        let refused = metric(&metrics, "hub_refused_total", reason).unwrap_or_default();
        ensure!(refused > 100.0, "{reason}: {refused} were counted");
    }
    let ordered = metric(&metrics, "interlock_trips_total", "ordered").unwrap_or_default();
    ensure!(ordered == 0.0, "{ordered} stops by calls that are none");
    Ok(())
}
