//! `demo`: three machines, one fault, one network cut, and nothing lost. `make demo` builds and runs it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use e2e_tests::demo::services::Stack;
use e2e_tests::demo::{Options, run};

/// Runs three simulated machines with the two real programs, breaks a bearing and the network, and checks the books.
///
/// STACK=real uses mosquitto and Apache Kafka, DEMO_DIR names the folder of journal, tables and configuration files,
/// EDGE_MODULE_BIN and CLOUD_AGGREGATOR_BIN the programs.
#[derive(Parser)]
struct Arguments {
    /// End by itself after the story; the exit code is 1 if an expectation failed.
    #[arg(long)]
    once: bool,
    /// Play recordings of a motor test rig from this folder instead of the signal model.
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    /// Seed of all simulated signals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match tell() {
        Ok(code) => code,
        Err(error) => {
            // Without the stack trace that RUST_BACKTRACE adds to an error that `main` returns. Nobody listens if it fails.
            drop(writeln!(std::io::stderr(), "demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn tell() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let options = Options {
        stack: stack()?,
        dir: std::env::var_os("DEMO_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from),
        once: arguments.once,
        replay: arguments.replay,
        seed: arguments.seed,
    };
    Ok(if run(&options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn stack() -> anyhow::Result<Stack> {
    match std::env::var("STACK").as_deref() {
        Err(_) | Ok("" | "embedded") => Ok(Stack::Embedded),
        Ok("real") => Ok(Stack::Real),
        Ok(other) => anyhow::bail!("STACK is {other:?}: use \"embedded\" or \"real\""),
    }
}
