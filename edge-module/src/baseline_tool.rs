//! `edge-module baseline`: what was learnt of the machines, as a table for people. Reads files only.

use std::io::{self, Write};
use std::process::ExitCode;

use edge_core::baseline::SensorBaseline;
use shared_proto::model::MachineId;

use crate::calibration::{BaselineFolder, KeptBaseline, MachineConditions};
use crate::cli::{EXIT_FAILURE, say};
use crate::config::Settings;

/// Prints the baseline of one machine, or of all. Exit code 1: there is none, or it cannot be read.
#[must_use]
pub fn run(settings: &Settings, machine: Option<&str>) -> ExitCode {
    let folder = BaselineFolder::at(&settings.device.data_dir);
    let wanted = |id: &&MachineId| machine.is_none_or(|machine| machine == id.as_str());
    let conditions = MachineConditions::of(settings);
    let machines: Vec<_> = conditions.keys().filter(wanted).collect();
    if machines.is_empty() {
        say("the settings name no such machine");
        return ExitCode::from(EXIT_FAILURE);
    }
    let mut is_whole = true;
    for id in machines {
        match folder.read(id) {
            Ok(Some(kept)) => {
                let is_current = conditions[id].version() == kept.conditions;
                if let Err(error) = print(&mut io::stdout().lock(), &kept, is_current) {
                    say(format_args!("standard output: {error}"));
                    return ExitCode::from(EXIT_FAILURE);
                }
            }
            Ok(None) => {
                say(format_args!("{id} was not learnt: the thresholds of its models hold"));
                is_whole = false;
            }
            Err(reason) => {
                say(format_args!("{id}: {reason}"));
                is_whole = false;
            }
        }
    }
    if is_whole { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
}

fn print(output: &mut impl Write, kept: &KeptBaseline, is_current: bool) -> io::Result<()> {
    let baseline = &kept.baseline;
    writeln!(
        output,
        "{}, learnt at {} for {}",
        baseline.machine_id, baseline.learnt_at, baseline.operator
    )?;
    if !is_current {
        writeln!(
            output,
            "  NOT IN FORCE: the settings have other operating conditions by now; learn again"
        )?;
    }
    for (condition, sensors) in &baseline.conditions {
        for (sensor, usual) in sensors {
            writeln!(output, "  condition {condition}, sensor {sensor}, model {}", usual.model)?;
            print_sensor(output, usual)?;
        }
    }
    for (condition, sensors) in &baseline.not_learnt {
        for (sensor, windows) in sensors {
            writeln!(
                output,
                "  condition {condition}, sensor {sensor}: too little, {windows} windows"
            )?;
        }
    }
    Ok(())
}

fn print_sensor(output: &mut impl Write, usual: &SensorBaseline) -> io::Result<()> {
    let (windows, seconds) = (usual.windows, usual.running_seconds);
    writeln!(output, "    {windows} windows, {seconds:.0} s of running")?;
    let logit = usual.logit;
    writeln!(
        output,
        "    logit {:.2} to {:.2}, median {:.2}; threshold {:.2}",
        logit.min, logit.max, usual.logit_deciles[4], usual.threshold_logit
    )?;
    writeln!(
        output,
        "    {:<13} {:>11} {:>11} {:>11} {:>11}",
        "feature", "mean", "deviation", "lowest", "highest"
    )?;
    for (name, spread) in &usual.features {
        let (mean, deviation) = (spread.mean, spread.deviation);
        let (min, max) = (spread.min, spread.max);
        writeln!(output, "    {name:<13} {mean:>11.4} {deviation:>11.4} {min:>11.4} {max:>11.4}")?;
    }
    Ok(())
}
