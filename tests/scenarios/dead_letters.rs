//! What was refused is looked at and sent again with the program's own commands.

use anyhow::{Context as _, anyhow, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, Finished, run_command};
use e2e_tests::ports::free_port;
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
    refuse(&plant, &typed)?;
    replay(&mut plant, &mut aggregator, &binary)?;
    came_back(&plant, &binary)?;
    replay_at_once(&plant, &typed)?;
    replay_unfinished(&plant, &binary)
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
    for command in ["list", "replay"] {
        let wrong = run(plant, &["dead-letters", command, "--reason", "metric-type-limit"])?;
        let is_named = wrong.errors.contains("metric-types-limit, ");
        ensure!(wrong.code == Some(64) && is_named, "{wrong:?}");
    }
    Ok((name.to_owned(), typed.to_owned()))
}

/// Files of runs that are written down.
fn runs(plant: &Plant) -> usize {
    let folder = plant.aggregator_settings.lake.join("_replays");
    std::fs::read_dir(folder).into_iter().flatten().count()
}

/// Nothing is sent, nothing is written down, and nothing counts as sent afterwards.
fn refuse(plant: &Plant, letter: &str) -> anyhow::Result<()> {
    let replay = ["dead-letters", "replay", letter, "--yes"];
    let nowhere = run(plant, &[&replay[..], &["--topic", "nosuch-topic"]].concat())?;
    let is_told = nowhere.errors.contains("no topic nosuch-topic");
    ensure!(nowhere.code == Some(69) && is_told, "{nowhere:?}");
    let nameless = run(plant, &[&replay[..], &["--topic", ""]].concat())?;
    ensure!(nameless.code == Some(64), "{nameless:?}");

    let down = plant.dir.join("broker-down");
    std::fs::create_dir_all(&down)?;
    let mut settings = plant.aggregator_settings.clone();
    settings.kafka_bootstrap = format!("127.0.0.1:{}", free_port()?);
    let settings = settings.to_toml(1).replace("[kafka]\n", "[kafka]\nrequest-timeout = \"1s\"\n");
    std::fs::write(down.join("cloud-aggregator.toml"), settings)?;
    let unanswered = run_command(&down, &replay)?;
    let is_told = unanswered.errors.contains("nothing was sent");
    ensure!(unanswered.code == Some(69) && is_told, "{unanswered:?}");

    let topic = plant.topic("pressure");
    let missing = [1, 2].map(|number| format!("{topic}/0/99999{number}"));
    let names = [&replay[..], &[&*missing[0], &*missing[1], "--topic", &*topic]].concat();
    let missed = run(plant, &names)?;
    let are_named = missing.iter().all(|name| missed.errors.contains(name));
    ensure!(missed.code == Some(66) && are_named && !missed.errors.contains(letter), "{missed:?}");

    ensure!(runs(plant) == 0, "{} runs", runs(plant));
    let dry = run(plant, &["dead-letters", "replay", letter, "--dry-run"])?;
    ensure!(dry.output.contains("1 would be sent, 0 were sent before"), "{dry:?}");
    Ok(())
}

/// A letter that was replayed and refused for the same reason is not sent by a selection.
fn came_back(plant: &Plant, binary: &str) -> anyhow::Result<()> {
    let vibration = plant.topic("vibration");
    let selected = ["dead-letters", "replay", "--source", &vibration];
    let held = run(plant, &[&selected[..], &["--yes"]].concat())?;
    let is_told = held.output.contains(binary) && held.output.contains("1 came back");
    ensure!(held.code == Some(1) && is_told && held.output.contains("0 sent"), "{held:?}");
    let again = run(plant, &[&selected[..], &["--again", "--dry-run"]].concat())?;
    ensure!(again.code == Some(0) && again.output.contains("1 would be sent"), "{again:?}");
    let listed = run(plant, &["dead-letters", "list", "--source", &vibration])?;
    ensure!(listed.output.contains(&format!("of {binary}")), "{listed:?}");
    Ok(())
}

/// Of a run that was cut off nobody knows what left: its letters are told, marked, and sent once more when that is asked for.
fn replay_unfinished(plant: &Plant, binary: &str) -> anyhow::Result<()> {
    let listed = run(plant, &["dead-letters", "list", "--format", "json"])?;
    let letters = json_lines(&listed.output)?;
    let vibration = plant.topic("vibration");
    let copy = letters.iter().find(|letter| letter["source"] == vibration.as_str());
    let copy = copy.with_context(|| format!("no letter of {vibration}: {letters:?}"))?;
    ensure!(copy["replay"].is_null() && copy["replay_of"] == binary, "{copy}");
    let field = |name: &str| copy[name].as_str().with_context(|| format!("no {name}: {copy}"));
    let letter = field("letter")?;
    let name = format!("{letter} {} {}", field("reason")?, field("timestamp")?);
    let cut = serde_json::json!({ "state": "sending", "letters": [name] });
    let folder = plant.aggregator_settings.lake.join("_replays");
    std::fs::write(folder.join("cut.json"), cut.to_string())?;

    let listed = run(plant, &["dead-letters", "list", "--source", &vibration])?;
    ensure!(listed.output.contains("unfinished"), "{listed:?}");
    let held = run(plant, &["dead-letters", "replay", letter, "--yes"])?;
    let expected = "1 may have been sent by the run _replays/cut.json that did not end";
    let is_told = held.output.contains(expected) && held.output.contains(letter);
    ensure!(held.code == Some(1) && is_told && held.output.contains("0 sent"), "{held:?}");
    let unfinished = ["dead-letters", "replay", "--unfinished", "--topic", &vibration, "--yes"];
    let sent = run(plant, &unfinished)?;
    ensure!(sent.code == Some(0) && sent.output.contains("1 sent"), "{sent:?}");
    let done = run(plant, &unfinished)?;
    ensure!(done.code == Some(0) && done.output.contains("0 sent"), "{done:?}");
    let before = run(plant, &["dead-letters", "replay", letter, "--yes"])?;
    let is_sent = before.output.contains("0 sent, 1 were sent before");
    ensure!(before.code == Some(0) && is_sent, "{before:?}");
    Ok(())
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
        let is_told = one.code == Some(1) && one.output.contains("1 may have been sent by the run");
        ensure!(one.code == Some(0) || is_refused || is_told, "{finished:?}");
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
    let listed = ["dead-letters", "list", "--reason", "metric-types-limit", "--format", "json"];
    let listed = json_lines(&run(plant, &listed)?.output)?;
    let are_marked = listed.iter().all(|letter| letter["replay"] == "sent");
    ensure!(listed.len() == 2 && are_marked, "{listed:?}");
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
    let empty = ["dead-letters", "list", "--since", "2026-03-02", "--until", "2026-03-02"];
    let empty = run(&plant, &empty)?;
    ensure!(empty.code == Some(64) && empty.errors.contains("--until"), "{empty:?}");

    // A folder that is no lake stays as it is.
    let lake = &plant.aggregator_settings.lake;
    std::fs::create_dir_all(lake)?;
    let replayed = run(&plant, &["dead-letters", "replay", "--all", "--yes"])?;
    ensure!(replayed.code == Some(74), "{replayed:?}");
    ensure!(std::fs::read_dir(lake)?.next().is_none(), "something was left in {}", lake.display());
    Ok(())
}
