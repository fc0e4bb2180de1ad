//! `edge-module baseline`: what was learnt of the machines, as a table for people. Reads files only.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use edge_core::baseline::SensorBaseline;
use shared_proto::model::{MachineId, SensorId};

use crate::bundle_store::{BundleSource, BundleStore};
use crate::calibration::{BaselineFolder, KeptBaseline, MachineConditions};
use crate::cli::{EXIT_FAILURE, say};
use crate::config::Settings;
use crate::scoring::{Bundle, load_models};

/// The model that the settings give to a sensor.
enum Wanted {
    /// It is on this device, as `name@version` with the hash of its file.
    Known { identity: String, sha256: String },
    /// It is not, or does not pass.
    Unknown { reason: String },
}

/// By sensor; none where no model scores it.
type WantedModels = BTreeMap<SensorId, Wanted>;

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
    let (wanted, mut is_whole) = (wanted_models(settings), true);
    for id in machines {
        match folder.read(id) {
            Ok(Some(kept)) => {
                let is_current = conditions[id].version() == kept.conditions;
                if let Err(error) = print(&mut io::stdout().lock(), &kept, is_current, &wanted) {
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

/// As the module would load them. Nothing is fetched: what was not downloaded so far is not known here.
fn wanted_models(settings: &Settings) -> WantedModels {
    let (mut models, mut refused) = load_models(settings);
    for (name, source) in settings.model.sources() {
        let sha256 = match source {
            BundleSource::Download { sha256, .. } => sha256,
            BundleSource::Folder(_) | BundleSource::Archive { .. } => continue,
        };
        match Bundle::load(&BundleStore::folder_in(&settings.device.data_dir, &sha256)) {
            Ok(bundle) => drop(models.insert(name, bundle)),
            Err(error) => drop(refused.insert(name, format!("not downloaded so far: {error}"))),
        }
    }
    let wanted = |name: &str| match (models.get(name), refused.get(name)) {
        (Some(bundle), _) => Wanted::Known {
            identity: bundle.identity(),
            sha256: bundle.metadata().model_sha256.clone(),
        },
        (None, Some(reason)) => Wanted::Unknown { reason: reason.clone() },
        (None, None) => Wanted::Unknown { reason: "there is none of this name".to_owned() },
    };
    let scored = settings.scored_sensors().into_iter();
    scored.map(|(sensor, by)| (sensor, wanted(&by.model))).collect()
}

/// Whether the model that it was learnt with is the one of the settings.
fn compared(usual: &SensorBaseline, wanted: Option<&Wanted>) -> String {
    match wanted {
        Some(Wanted::Known { sha256, .. }) if *sha256 == usual.model_sha256 => {
            "learnt with the model of the settings".to_owned()
        }
        Some(Wanted::Known { identity, .. }) => format!(
            "OF ANOTHER MODEL: the settings name {identity}, and this is not used once that is in force; learn again"
        ),
        Some(Wanted::Unknown { reason }) => {
            format!("whether the settings name the same model is not known: {reason}")
        }
        None => "NOT IN FORCE: by the settings no model scores this sensor".to_owned(),
    }
}

fn print(
    output: &mut impl Write,
    kept: &KeptBaseline,
    is_current: bool,
    wanted: &WantedModels,
) -> io::Result<()> {
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
            writeln!(output, "    {}", compared(usual, wanted.get(sensor)))?;
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

#[cfg(test)]
mod tests {
    use edge_core::baseline::{BASELINE_FORMAT, Baseline, Spread};
    use shared_proto::model::EventTime;

    use super::*;

    const SHA256: &str = "5f";
    const SENSOR: &str = "m/z";

    fn kept() -> KeptBaseline {
        let spread = Spread { mean: -3.5, deviation: 0.1, min: -3.9, max: -3.3 };
        let usual = SensorBaseline {
            model: "motor-line@1.0.0".to_owned(),
            model_sha256: SHA256.to_owned(),
            windows: 40,
            running_seconds: 4.0,
            features: [("line".to_owned(), spread)].into(),
            logit: spread,
            logit_deciles: [-3.5; 9],
            threshold_logit: -1.1,
        };
        let sensors = BTreeMap::from([(SensorId::new(SENSOR).expect("valid"), usual)]);
        let baseline = Baseline {
            format: BASELINE_FORMAT,
            machine_id: MachineId::new("m").expect("valid"),
            learnt_at: EventTime::from_micros(0),
            operator: "Kim".to_owned(),
            conditions: [("any".to_owned(), sensors)].into(),
            not_learnt: BTreeMap::new(),
        };
        KeptBaseline { conditions: String::new(), baseline }
    }

    fn table(wanted: Option<Wanted>) -> String {
        let sensor = SensorId::new(SENSOR).expect("valid");
        let wanted = wanted.into_iter().map(|wanted| (sensor.clone(), wanted)).collect();
        let mut table = Vec::new();
        print(&mut table, &kept(), true, &wanted).expect("memory");
        String::from_utf8(table).expect("text")
    }

    #[test]
    fn a_baseline_says_whether_it_is_of_the_model_of_the_settings() {
        let known = |identity: &str, sha256: &str| {
            Some(Wanted::Known { identity: identity.to_owned(), sha256: sha256.to_owned() })
        };
        let check = |wanted: Option<Wanted>, expected: &str| {
            let table = table(wanted);
            let place = table.find(expected).unwrap_or_else(|| panic!("{expected} in {table}"));
            let sensor = table.find("sensor m/z, model motor-line@1.0.0").expect("its sensor");
            assert!(
                sensor < place && place < table.find("40 windows").expect("windows"),
                "{table}"
            );
        };
        let same = "    learnt with the model of the settings\n";
        check(known("motor-line@1.0.0", SHA256), same);
        // Another version of what the bundle says, and the same model.
        check(known("motor-line@1.0.1", SHA256), same);
        let other = "    OF ANOTHER MODEL: the settings name motor-line@1.0.0, and";
        check(known("motor-line@1.0.0", "60"), other);
        let reason = "line.tar cannot be read".to_owned();
        check(Some(Wanted::Unknown { reason }), "same model is not known: line.tar cannot be read");
        check(None, "    NOT IN FORCE: by the settings no model scores this sensor\n");
    }

    #[test]
    fn a_model_that_is_not_on_this_device_is_said_to_be_unknown() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("settings.toml");
        let (data_dir, nowhere) = (folder.path().display(), folder.path().join("none"));
        let sha256 = "0".repeat(64);
        let text = format!(
            "[device]\ndata-dir = \"{data_dir}\"\n[model]\nbundle-dir = \"{}\"\n\
             bundles = {{ far = {{ url = \"https://a.example/b.tar\", sha256 = \"{sha256}\" }} }}\n\
             [[machines]]\nid = \"m\"\n\
             scored-sensors = [\"m/z\", {{ sensor = \"m/x\", model = \"far\" }}]\n",
            nowhere.display()
        );
        std::fs::write(&file, text).expect("written");
        let wanted = wanted_models(&Settings::load(Some(file.as_path())).expect("valid"));
        let reason = |sensor: &str| match &wanted[&SensorId::new(sensor).expect("valid")] {
            Wanted::Unknown { reason } => reason.clone(),
            Wanted::Known { identity, .. } => panic!("{identity}"),
        };
        assert!(reason("m/z").contains("none/bundle.json"), "{}", reason("m/z"));
        assert!(reason("m/x").starts_with("not downloaded so far"), "{}", reason("m/x"));
        assert_eq!(wanted.len(), 2);
    }
}
