//! What was refused is looked at and sent again with the program's own commands.

use anyhow::{Context as _, anyhow, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, Finished, run_command};
use rdkafka::message::Message as _;
use serde_json::Value;

use crate::plant::{Plant, kafka, now};

/// A reading whose value is a text.
const TYPED: &[u8] = br#"{"sensor_id":"s","timestamp":"2026-03-01T08:15:30Z","metric_type":"temperature","value":"hot"}"#;

fn run(plant: &Plant, arguments: &[&str]) -> anyhow::Result<Finished> {
    run_command(&plant.dir.join("cloud-aggregator"), arguments)
}

fn json_lines(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn dead_letters_are_listed_shown_and_sent_again_once() -> anyhow::Result<()> {
    let mut plant = Plant::new("letters")?;
    let limit = ("AGGREGATOR__COUNTING__METRIC_TYPES_MAX".to_owned(), "1".to_owned());
    plant.aggregator_settings.environment.push(limit);
    let topic = plant.topic("temperature");
    let reading = |metric: &str, sequence: u64| {
        let text = format!(
            "{{\"sensor_id\":\"s\",\"timestamp\":\"{}\",\"metric_type\":\"{metric}\",\"value\":{sequence},\
             \"device_id\":\"gw\",\"generation\":1,\"sequence\":{sequence}}}",
            now()
        );
        ("s".to_owned(), text.into_bytes())
    };
    let records = vec![
        reading("temperature", 1),
        reading("humidity", 2),
        reading("humidity", 3),
        ("s".to_owned(), TYPED.to_vec()),
        ("s".to_owned(), vec![0xff, 0x00, 0x01]),
        ("s".to_owned(), vec![b'x'; 70_000]),
        reading("temperature", 9),
    ];
    kafka()?.produce(&topic, &records)?;
    let mut aggregator = plant.start_aggregator()?;
    plant.wait_for_count("SELECT count(*) FROM dead_letters", 5)?;
    plant.wait_for_count("SELECT count(*) FROM telemetry", 2)?;

    let (binary, typed) = look(&plant)?;
    replay(&mut plant, &mut aggregator, &binary)?;
    replay_at_once(&plant, &typed)
}

/// Gives the names of the letter that is no text and of the one of [`TYPED`].
fn look(plant: &Plant) -> anyhow::Result<(String, String)> {
    let topic = plant.topic("temperature");
    let listed = run(plant, &["dead-letters", "list"])?;
    ensure!(listed.code == Some(0), "{listed:?}");
    for expected in ["5 dead letters", "metric-types-limit", "json"] {
        ensure!(listed.output.contains(expected), "{expected}: {listed:?}");
    }
    let listed = run(
        plant,
        &["dead-letters", "list", "--reason", "json", "--since", "1h", "--format", "json"],
    )?;
    let letters = json_lines(&listed.output)?;
    ensure!(letters.len() == 3, "{letters:?}");
    let of_type = letters.iter().find(|letter| letter["detail"].to_string().contains("`value`"));
    let of_type = of_type.with_context(|| format!("no type conflict named: {letters:?}"))?;

    let typed = of_type["letter"].as_str().context("a name")?;
    let shown = run(plant, &["dead-letters", "show", typed])?;
    ensure!(shown.code == Some(0) && shown.output.contains("\"value\":\"hot\""), "{shown:?}");
    let binary =
        letters.iter().find(|letter| letter["raw_length"] == 3).context("the binary one")?;
    let name = binary["letter"].as_str().context("a name")?;
    let shown = run(plant, &["dead-letters", "show", name])?;
    ensure!(shown.output.contains("00000000  ff 00 01"), "{shown:?}");
    let unknown = run(plant, &["dead-letters", "show", &format!("{topic}/0/999999")])?;
    ensure!(unknown.code == Some(66) && unknown.errors.contains("no dead letter"), "{unknown:?}");
    Ok((name.to_owned(), typed.to_owned()))
}

/// Several people send the same letter at the same moment: it leaves once.
fn replay_at_once(plant: &Plant, letter: &str) -> anyhow::Result<()> {
    let topic = plant.topic("pressure");
    let arguments = ["dead-letters", "replay", letter, "--topic", &topic, "--yes"];
    let dir = plant.dir.join("cloud-aggregator");
    let finished: Vec<Finished> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| run_command(&dir, &arguments))).collect();
        let ended = runs.into_iter().map(|run| run.join().map_err(|_| anyhow!("it panicked"))?);
        ended.collect::<anyhow::Result<_>>()
    })?;
    for one in &finished {
        let is_refused = one.code == Some(74) && one.errors.contains("begun to send 1 of");
        ensure!(one.code == Some(0) || is_refused, "{finished:?}");
    }
    // If each has seen another, none has sent.
    let last = run(plant, &arguments)?;
    ensure!(last.code == Some(0), "{last:?}");
    let messages = kafka()?.read_all(&topic)?;
    let copies = messages.iter().filter(|message| message.payload() == Some(TYPED)).count();
    ensure!(copies == 1, "{copies} copies: {finished:?}, {last:?}");
    Ok(())
}

fn replay(plant: &mut Plant, aggregator: &mut CloudAggregator, binary: &str) -> anyhow::Result<()> {
    // What is cut is refused, what is not confirmed is not sent.
    let all = run(plant, &["dead-letters", "replay", "--reason", "json", "--dry-run"])?;
    ensure!(all.code == Some(1) && all.output.contains("65536 of its 70000 bytes"), "{all:?}");
    let limited = ["dead-letters", "replay", "--reason", "metric-types-limit"];
    let unconfirmed = run(plant, &limited)?;
    ensure!(
        unconfirmed.code == Some(64) && unconfirmed.errors.contains("--yes"),
        "{unconfirmed:?}"
    );
    let unselected = run(plant, &["dead-letters", "replay", "--yes"])?;
    ensure!(unselected.code == Some(64) && unselected.errors.contains("--all"), "{unselected:?}");

    // The cause is mended, the letters are sent again and count, although the device's sequence has passed them.
    aggregator.process().terminate()?;
    aggregator.process().wait(crate::plant::DEADLINE)?;
    plant.aggregator_settings.environment.clear();
    let _aggregator = plant.start_aggregator()?;
    let confirmed = [&limited[..], &["--yes"]].concat();
    let sent = run(plant, &confirmed)?;
    ensure!(sent.code == Some(0) && sent.output.contains("2 sent, 0 were sent before"), "{sent:?}");
    plant.wait_for_count("SELECT count(*) FROM telemetry WHERE metric_type = 'humidity'", 2)?;
    let again = run(plant, &confirmed)?;
    ensure!(again.output.contains("0 sent, 2 were sent before"), "{again:?}");
    let sequences = plant
        .lake()
        .query("SELECT sequence FROM telemetry WHERE metric_type = 'humidity' ORDER BY sequence")?;
    ensure!(
        sequences.iter().map(|row| row["sequence"].as_u64()).eq([Some(2), Some(3)]),
        "{sequences:?}"
    );
    let other = ["dead-letters", "replay", binary, "--topic", &plant.topic("vibration"), "--yes"];
    let other = run(plant, &other)?;
    ensure!(other.code == Some(0) && other.output.contains("1 sent"), "{other:?}");
    plant.wait_for_count("SELECT count(*) FROM dead_letters", 6)?;
    Ok(())
}

#[test]
fn a_lake_that_is_not_there_and_a_broker_that_does_not_answer_have_exit_codes() -> anyhow::Result<()>
{
    let plant = Plant::new("no-letters")?;
    let dir = plant.dir.join("cloud-aggregator");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("cloud-aggregator.toml"), plant.aggregator_settings.to_toml(1))?;
    for arguments in
        [&["dead-letters", "list"][..], &["dead-letters", "replay", "--all", "--dry-run"]]
    {
        let finished = run(&plant, arguments)?;
        ensure!(finished.code == Some(74), "{arguments:?}: {finished:?}");
        ensure!(finished.errors.contains("lake"), "{finished:?}");
    }
    let wrong = run(&plant, &["dead-letters", "list", "--since", "yesterday"])?;
    ensure!(wrong.code == Some(64) && wrong.errors.contains("such as 2h"), "{wrong:?}");
    Ok(())
}
