//! Every HTTP port of both programs, asked what nobody should ask, with valid requests in between.
//!
//! Requests are made of a seed and a number, and each knows what is to be answered. `API_FUZZ_CASES` is how many there are,
//! `API_FUZZ_SEED` where they begin; a failure names both, and the same numbers are the same requests. Afterwards the table of
//! outcomes must hold what was taken, each once, and the programs no more than they did before.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, anyhow, bail, ensure};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::edge_module::EdgeModule;
use e2e_tests::eventually::eventually;
use e2e_tests::http::exchange;
use e2e_tests::ports::free_port;
use e2e_tests::process::ChildProcess;
use serde_json::Value;

use crate::plant::{DEADLINE, Plant};

mod answers;
mod bodies;
mod cases;

use answers::{Outcomes, check_answer};
use cases::{Case, Port};

const CASES: u64 = 4_000;
const SEED: u64 = 1;
/// Clients at the same time. The admin ports close the oldest connection beyond 64.
const CLIENTS: u64 = 8;
/// Clients at each port that stop in the middle and stay.
const SLOW_CLIENTS: usize = 12;
const SLOW_BEGINNINGS: [&[u8]; 4] =
    [b"", b"PO", b"GET /status HTTP/1.1\r\nhost: te", b"POST /api/outcomes HTTP/1.1\r\n"];
/// Longest body that is taken, so that more is soon sent.
const BODY_BYTES_MAX: usize = 65_536;
/// What may be open or held beside what was before: connections to Kafka, files of an epoch.
const DESCRIPTORS_MORE_MAX: usize = 16;
const MEMORY_KIB_MORE_MAX: u64 = 96 * 1024;
const REQUEST_SHOWN_BYTES_MAX: usize = 2_000;

/// A number of the environment, or the one that the pipeline uses.
fn number_of(variable: &str, otherwise: u64) -> anyhow::Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(otherwise),
    }
}

struct Programs {
    plant: Plant,
    aggregator: CloudAggregator,
    edge: EdgeModule,
    ports: BTreeMap<Port, u16>,
}

/// The port of the pages, by the settings that the program was started with.
fn admin_port(config: &Path) -> anyhow::Result<u16> {
    let text = std::fs::read_to_string(config)?;
    let (_, table) = text.split_once("[admin]").context("no table [admin]")?;
    let line = table.lines().find_map(|line| line.strip_prefix("listen = "));
    let (_, port) = line.and_then(|line| line.rsplit_once(':')).context("no address")?;
    Ok(port.trim_matches('"').parse()?)
}

impl Programs {
    fn start() -> anyhow::Result<Self> {
        let mut plant = Plant::new("api-fuzz")?;
        let outcomes_port = free_port()?;
        let tokens = plant.dir.join("tokens");
        std::fs::create_dir_all(&plant.dir)?;
        std::fs::write(&tokens, format!("cmms:{}\n", cases::TOKEN))?;
        let variables = [
            ("LISTEN", format!("127.0.0.1:{outcomes_port}")),
            ("TOKEN_FILE", tokens.display().to_string()),
            ("BODY_BYTES_MAX", BODY_BYTES_MAX.to_string()),
            ("BODY_TIMEOUT", "300ms".to_owned()),
            ("RATE_MAX", "100000".to_owned()),
            ("RATE_BURST", "100000".to_owned()),
        ];
        let settings = &mut plant.aggregator_settings;
        let variables = variables.map(|(name, value)| (format!("AGGREGATOR__API__{name}"), value));
        settings.environment.extend(variables);
        let (aggregator, edge) = (plant.start_aggregator()?, plant.start_edge_module()?);
        let pages_of = |config: &str| admin_port(&plant.dir.join(config));
        let ports = [
            (Port::Outcomes, outcomes_port),
            (Port::Aggregator, pages_of("cloud-aggregator/cloud-aggregator.toml")?),
            (Port::Edge, pages_of("edge-module/edge-module.toml")?),
        ];
        Ok(Self { plant, aggregator, edge, ports: ports.into() })
    }

    /// Connections that never come to the end of their request.
    fn open_slow_clients(&self) -> anyhow::Result<Vec<TcpStream>> {
        let mut clients = Vec::new();
        for port in self.ports.values() {
            for number in 0..SLOW_CLIENTS {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.write_all(SLOW_BEGINNINGS[number % SLOW_BEGINNINGS.len()])?;
                clients.push(stream);
            }
        }
        Ok(clients)
    }

    /// Sends one request and holds the answer against what it should be. Gives the outcomes that became rows by it.
    fn run(&self, case: &Case) -> anyhow::Result<Outcomes> {
        let port = *self.ports.get(&case.port).context("no such port")?;
        let bytes = exchange(port, &case.request, case.afterwards)?;
        check_answer(case, &bytes).with_context(|| {
            let answer = String::from_utf8_lossy(&bytes);
            let end = case.request.len().min(REQUEST_SHOWN_BYTES_MAX);
            let request = case.request[..end].escape_ascii();
            format!("{}, to {:?}: {request}\nthe answer: {answer}", case.kind, case.port)
        })
    }

    fn campaign(&self, seed: u64, count: u64) -> anyhow::Result<Outcomes> {
        let next = AtomicU64::new(0);
        let work = || -> anyhow::Result<Outcomes> {
            let mut taken = Outcomes::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(taken);
                }
                let case = cases::case(seed, number);
                let outcomes = self.run(&case).with_context(|| {
                    // Nobody waits for the others of a campaign that has failed.
                    next.store(count, Ordering::Relaxed);
                    format!("API_FUZZ_SEED={seed}, number {number} of {count}")
                })?;
                taken.extend(outcomes);
            }
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
            let mut all = Outcomes::default();
            for client in clients {
                let taken = client.join().map_err(|_| anyhow!("a client has panicked"))?;
                all.extend(taken?);
            }
            Ok(all)
        })
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        let aggregator = (self.aggregator.get("/healthz")?.0, self.aggregator.process());
        let edge = (self.edge.get("/healthz")?.0, self.edge.process());
        for (status, process) in [aggregator, edge] {
            ensure!(process.is_running()?, "{} ended:\n{}", process.name(), process.tail());
            ensure!(status == 200, "{} is not healthy: {status}", process.name());
        }
        Ok(())
    }

    fn usage(&mut self) -> anyhow::Result<[Usage; 2]> {
        Ok([Usage::of(self.aggregator.process())?, Usage::of(self.edge.process())?])
    }

    /// Everything that was taken is a row, once, as it was sent, and nothing else is.
    fn check_rows(&self, taken: &Outcomes) -> anyhow::Result<()> {
        let expected = taken.rows() as u64;
        let count = self.plant.wait_for_count("SELECT count(*) FROM outcomes", expected)?;
        ensure!(count == expected, "{count} rows of {expected} outcomes");
        let columns = answers::COLUMNS.join(", ");
        let rows = self.plant.lake().query(&format!("SELECT {columns} FROM outcomes"))?;
        let mut found = BTreeMap::<String, Vec<Value>>::new();
        for row in rows {
            let id = row["outcome_id"].as_str().context("a row without name")?.to_owned();
            found.entry(id).or_default().push(row);
        }
        for (id, sent) in &taken.sure {
            let rows = found.remove(id).with_context(|| format!("{id} is no row: {sent}"))?;
            let is_same = answers::COLUMNS.iter().all(|name| rows[0][*name] == sent[*name]);
            ensure!(rows.len() == 1 && is_same, "{sent} became {rows:?}");
        }
        for (id, rows) in found {
            let told = taken.in_any_form.get(&id);
            ensure!(told == Some(&rows.len()), "told {told:?} times, there: {rows:?}");
        }
        Ok(())
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    memory_kib: u64,
}

impl Usage {
    fn of(process: &ChildProcess) -> anyhow::Result<Self> {
        let dir = PathBuf::from(format!("/proc/{}", process.id()));
        let status = std::fs::read_to_string(dir.join("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = resident.context("no VmRSS")?.trim().trim_end_matches(" kB");
        let descriptors = std::fs::read_dir(dir.join("fd"))?.count();
        Ok(Self { descriptors, memory_kib: words.parse()? })
    }

    fn check_after(self, after: Self) -> anyhow::Result<()> {
        let descriptors_max = self.descriptors + DESCRIPTORS_MORE_MAX;
        let memory_max = self.memory_kib + MEMORY_KIB_MORE_MAX;
        if after.descriptors > descriptors_max || after.memory_kib > memory_max {
            bail!("before {self:?}, now {after:?}");
        }
        Ok(())
    }
}

/// Nothing has panicked, no secret is told, and nothing of a request breaks a line of the log.
fn check_log(process: &ChildProcess) -> anyhow::Result<()> {
    let name = process.name();
    let text = process.stdout() + &process.stderr();
    ensure!(!text.is_empty(), "{name} has logged nothing");
    for word in ["panicked", "stack backtrace", cases::TOKEN] {
        ensure!(!text.contains(word), "{name} has logged {word:?}:\n{}", process.tail());
    }
    let breaks = |character: &char| character.is_control() && !matches!(character, '\n' | '\t');
    let found = text.chars().find(breaks);
    ensure!(found.is_none(), "{name} has logged {found:?}:\n{}", process.tail());
    Ok(())
}

#[test]
fn whatever_is_asked_is_answered_and_only_what_is_valid_is_taken() -> anyhow::Result<()> {
    let seed = number_of("API_FUZZ_SEED", SEED)?;
    let count = number_of("API_FUZZ_CASES", CASES)?;
    let mut programs = Programs::start()?;
    // The first row makes the table, which takes memory of its own.
    let first = Case::first();
    let mut taken = programs.run(&first)?;
    programs.plant.wait_for_count("SELECT count(*) FROM outcomes", 1)?;
    let before = programs.usage()?;
    let slow_clients = programs.open_slow_clients()?;
    taken.extend(programs.campaign(seed, count)?);
    ensure!(taken.sure.len() as u64 > count / 8, "few are valid: {}", taken.sure.len());
    programs.check_alive()?;
    drop(slow_clients);
    programs.check_rows(&taken).with_context(|| format!("API_FUZZ_SEED={seed}, {count}"))?;
    eventually("the programs hold what they held before", DEADLINE, || {
        let after = programs.usage()?;
        before.into_iter().zip(after).try_for_each(|(before, after)| before.check_after(after))
    })?;
    programs.check_alive()?;
    check_log(programs.aggregator.process())?;
    check_log(programs.edge.process())
}
