//! The link to a hub fails in every way that it can, as fast as it may be tried again, while somebody reads the pages all the time:
//! each stop arrives as it does without.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::hub::{Fault, HubSettings, HubStandIn};

use crate::plant::{DEADLINE, Plant};
use crate::stop_isolation::{MACHINES, Phase, Press};

/// Of each phase; there are eight.
const STOPS: usize = 30;

/// What a phase does to the hub, and whether the link is away then.
type Doing = (&'static str, fn(&HubStandIn), bool);

const DOINGS: [Doing; 7] = [
    ("refused", |hub| hub.block_on(hub.stop()), true),
    ("black hole", |hub| hub.fault(Fault::Frozen), true),
    ("no TLS", |hub| hub.fault(Fault::CloseAtOnce), true),
    ("TLS alert", HubStandIn::expire_server_certificate, true),
    ("no CONNACK", |hub| hub.fault(Fault::NoConnack), true),
    ("not believed", |hub| hub.fault(Fault::RefuseCredentials), true),
    ("comes and goes", |_| {}, false),
];

fn settings(hub: &HubStandIn) -> Vec<(String, String)> {
    let pairs = [
        ("PORT", hub.port().to_string()),
        // Nothing holds the link back: it is a storm of connections where it fails at once.
        ("RECONNECT_MIN", "1ms".to_owned()),
        ("RECONNECT_MAX", "10ms".to_owned()),
        ("CONNECT_TIMEOUT", "1s".to_owned()),
        ("KEEP_ALIVE", "5s".to_owned()),
        ("REPORT_INTERVAL", "10ms".to_owned()),
    ];
    pairs.map(|(name, value)| (format!("EDGE__IOT_HUB__{name}"), value)).into()
}

/// Reads the pages until it is over, and drops connections if that is what the phase does.
fn disturb(
    edge: &EdgeModule,
    hub: &HubStandIn,
    drops: bool,
    is_over: &AtomicBool,
) -> anyhow::Result<u64> {
    let mut pages = 0;
    while !is_over.load(Ordering::SeqCst) {
        for page in ["/status", "/readyz", "/metrics"] {
            edge.get(page)?;
            pages += 1;
        }
        if drops {
            hub.drop_connections();
        }
    }
    Ok(pages)
}

fn run_phase(
    (name, drops): (&'static str, bool),
    press: &mut Press,
    edge: &EdgeModule,
    hub: &HubStandIn,
) -> anyhow::Result<Phase> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let disturbing = scope.spawn(|| disturb(edge, hub, drops, &is_over));
        let phase = Phase::run(name, STOPS, press, edge);
        is_over.store(true, Ordering::SeqCst);
        let pages = disturbing.join().map_err(|_| anyhow::anyhow!("the reader broke"))??;
        ensure!(pages > 0, "{name}: no page was read");
        phase
    })
}

fn disconnects(edge: &EdgeModule) -> anyhow::Result<f64> {
    let metrics = edge.metrics()?;
    let of = |reason| metric(&metrics, "hub_disconnects_total", reason).unwrap_or_default();
    Ok(of("lost") + of("refused"))
}

#[test]
fn a_link_to_a_hub_that_fails_in_any_way_delays_no_stop() -> anyhow::Result<()> {
    let hub = HubStandIn::start(HubSettings::default())?;
    let mut plant = Plant::new("stop-hub")?;
    plant.edge_settings.machines = MACHINES.to_owned();
    plant.edge_settings.environment.extend(hub.module_environment());
    plant.edge_settings.environment.extend(settings(&hub));
    let mut press = Press::start(plant.mosquitto.port())?;
    let edge = plant.start_edge_module()?;
    // The first stop after the start pays for what is done once.
    press.stop_once()?;
    let wait_connected = |expected: f64| {
        eventually(&format!("hub_connected is {expected}"), DEADLINE, || {
            let connected = metric(&edge.metrics()?, "hub_connected", "");
            ensure!(connected == Some(expected), "{connected:?}");
            Ok(())
        })
    };
    wait_connected(1.0)?;
    let mut phases = vec![run_phase(("connected", false), &mut press, &edge, &hub)?];
    for (name, begin, is_away) in DOINGS {
        let before = disconnects(&edge)?;
        begin(&hub);
        if is_away {
            hub.drop_connections();
            wait_connected(0.0).context(name)?;
        }
        phases.push(run_phase((name, !is_away), &mut press, &edge, &hub)?);
        eventually(&format!("{name}: the link has failed meanwhile"), DEADLINE, || {
            let now = disconnects(&edge)?;
            ensure!(now > before, "{now} after {before}");
            Ok(())
        })?;
        println!("{name}: {} connections failed", disconnects(&edge)? - before);
        hub.heal();
        hub.renew_server_certificate();
        hub.block_on(hub.restart(false));
        wait_connected(1.0).context(name)?;
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    for phase in &phases {
        phase.print();
    }
    println!("load average at the end: {}", load.trim());
    for phase in &phases {
        phase.check()?;
    }
    Ok(())
}
