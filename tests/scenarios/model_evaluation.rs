//! The committed models and limits on the recordings, as `make evaluate` judges them: through the edge module's own windows,
//! features, interpreter, votes and limits.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use e2e_tests::recordings::data_dir;
use e2e_tests::{edge_module, workspace_root};

const EXIT_DATA: i32 = 65;
const EXIT_NO_INPUT: i32 = 66;

fn python(arguments: &[&str]) -> anyhow::Result<Output> {
    let program = workspace_root().join("target/setup/model-venv/bin/python");
    Command::new(&program)
        .args(arguments)
        .env("EDGE_MODULE_BIN", edge_module::program())
        // Nothing is written into the checkout.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(workspace_root().join("edge-module/model"))
        .output()
        .with_context(|| program.display().to_string())
}

fn evaluate(data: &Path, out: &Path) -> anyhow::Result<Output> {
    let (data, out) = (data.to_str().context("UTF-8")?, out.to_str().context("UTF-8")?);
    python(&["-m", "machine_model", "evaluate", "--data", data, "--out", out])
}

#[test]
fn the_committed_models_and_limits_reach_their_goals_on_the_recordings() -> anyhow::Result<()> {
    let Some(data) = data_dir()? else { return Ok(()) };
    let out = tempfile::tempdir()?;
    let done = evaluate(&data, out.path())?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("report.json"))?)?;
    let goals = report["goals"].as_array().context("no goals")?;
    // Two of the motor, three of the bearings, two of the pump.
    ensure!(goals.len() == 7, "{goals:?}");
    let missed: Vec<_> = goals.iter().filter(|goal| goal["reached"] != true).collect();
    ensure!(missed.is_empty(), "{missed:?}");
    for file in ["report.txt", "report.png"] {
        let length = std::fs::metadata(out.path().join(file))?.len();
        ensure!(length > 1000, "{file} has {length} bytes");
    }
    Ok(())
}

#[test]
fn recordings_that_are_not_there_or_cut_off_are_named() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, out) = (dir.path().join("data"), dir.path().join("out"));
    let refused = |expected_code: i32, expected: &str| {
        let done = evaluate(&data, &out)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.code() == Some(expected_code), "{:?}: {said}", done.status);
        ensure!(said.contains(expected) && !said.contains("Traceback"), "{said}");
        anyhow::Ok(())
    };
    refused(EXIT_NO_INPUT, "data")?;
    let motor = data.join("adi_motor");
    std::fs::create_dir_all(&motor)?;
    std::fs::write(motor.join("recordings.csv"), "row,source\n0,none\n")?;
    std::fs::write(motor.join("recordings.npy"), b"\x93NUMPY\x01\x00")?;
    refused(EXIT_DATA, "adi_motor")
}

#[test]
fn the_python_side_holds_its_own_tests() -> anyhow::Result<()> {
    let done = python(&["-m", "unittest"])?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{said}");
    ensure!(said.contains("OK") && !said.contains("Ran 0 tests"), "{said}");
    Ok(())
}
