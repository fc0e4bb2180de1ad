//! The command line says where and which; what the pipeline does stands in the configuration alone.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::alerts::commands;
use crate::outcomes::report::Report;
use crate::sink::alert::EventKind;
use crate::sink::maintenance::table_names;

/// Counts anomalies from Kafka in event-time windows, writes Delta tables exactly once, alerts.
#[derive(Debug, Parser)]
#[command(name = "cloud-aggregator", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until SIGTERM, or until all is read when `trigger.available-now` is set.
    Run(ConfigFile),
    /// Check the configuration: exit code 0, or 78 with every fault.
    CheckConfig(ConfigFile),
    /// Ask a running aggregator whether it lives: exit code 0 or 1.
    Healthcheck(ConfigFile),
    /// Try the rules of the configuration.
    #[command(subcommand)]
    Rules(Rules),
    /// Maintain the tables once and print what was done: exit code 0; 74 if a table failed, 75 if another instance is at it.
    Maintain(Maintain),
    /// Recompute windows and counts from `telemetry` and compare: exit code 0 if all is equal, 1 if not, 74 if the lake cannot be read.
    ///
    /// Also: no Kafka record has two rows or none, states and tables belong together. The lake may be written meanwhile. Windows that
    /// are still open are counted and left out.
    Audit(AuditArguments),
    /// Look at the alerts, and whether they arrive.
    #[command(subcommand)]
    Alerts(Alerts),
    /// What came of the alerts.
    #[command(subcommand)]
    Report(Report),
    /// Look at what was refused, and send it again.
    #[command(subcommand)]
    DeadLetters(Letters),
    /// What the tables are.
    #[command(subcommand)]
    Lake(Lake),
}

/// What to do with the tables.
#[derive(Debug, Subcommand)]
pub enum Lake {
    /// Print what a reader of the tables may rely on: their columns, types, units, partitions and meaning.
    Contract {
        /// How it is printed.
        #[arg(long, value_enum, default_value_t = ContractFormat::Odcs)]
        format: ContractFormat,
    },
    /// Take one sensor's rows, or one person's name, out of every table: exit code 0; 64 without --yes or with a blank name, 74 if
    /// the lake cannot be read or written.
    ///
    /// Of a sensor every row is deleted. Of a person the name is taken out of what was reported, and what was found stays. Dead letters
    /// that hold the name are deleted. Aggregators may run meanwhile; windows and alerts of the sensor that are still open are written
    /// when they end, so let it fall silent, and run this again after `alerting.resolve-after`. Kafka keeps its records as long as it keeps them.
    Forget(LakeForget),
    /// Copy the lake to another storage while it is written: exit code 0; 64 without a place, 74 if a storage refuses, 75 if the lake does
    /// not hold still, 78 if the place is not empty or no copy of this lake, or the move cannot be taken back.
    ///
    /// Each run copies what the copy lacks, and can be cut off anywhere. `--final` ends the move: from then on aggregators with the old
    /// location stop with exit code 78, and those with the new one go on where they were. Needs the rights to write both places.
    Copy(LakeCopy),
    /// Print where each Kafka partition stands: the first offset whose record has no row yet. Exit code 0; 74 if the lake cannot be read,
    /// 78 if it is another program's by now or has a hub's topics.
    ///
    /// With --hand-over the lake goes to the Spark job of deployment-manifests/cloud/databricks: aggregators that still write it
    /// end with exit code 78, as do those that start on it, and the job goes on from these offsets. What they owe to side tables is put
    /// there; alerts that nobody got yet wait for the way back.
    Offsets(LakeOffsets),
    /// Take the lake back from a Spark job, where its checkpoint says it has come to: exit code 0; 74 if the lake or the checkpoint
    /// cannot be read, 75 if the last batch of the job has not ended, 78 if the lake was not handed over or the checkpoint is another job's.
    ///
    /// Stop the job before. Every row that it has written is counted into the states: watermarks, windows, repeats of devices. A
    /// take-over that was cut off is begun again by the same command.
    TakeOver(LakeTakeOver),
}

/// `lake offsets`.
#[derive(Args, Debug)]
pub struct LakeOffsets {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Hand the lake over to a Spark job.
    #[arg(long)]
    pub hand_over: bool,
    /// How the offsets are printed.
    #[arg(long, value_enum, default_value_t = OffsetFormat::Text)]
    pub format: OffsetFormat,
}

/// `lake take-over`.
#[derive(Args, Debug)]
pub struct LakeTakeOver {
    /// Which configuration: that of the aggregators that go on.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Folder or URL of the job's checkpoint; with the storage options of this configuration.
    #[arg(long)]
    pub checkpoint: String,
}

/// How offsets are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OffsetFormat {
    /// A partition a line.
    Text,
    /// As the option `startingOffsets` of Spark's Kafka source takes them.
    Spark,
}

/// `lake copy`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("place").required(true).multiple(true).args(["to", "to_config"]))]
pub struct LakeCopy {
    /// Which configuration: that of the lake as it is.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Folder or URL of the new place; with the storage options of this configuration, or of --to-config.
    #[arg(long)]
    pub to: Option<String>,
    /// Configuration of the aggregators at the new place; its `[lake]` is what is read.
    #[arg(long)]
    pub to_config: Option<PathBuf>,
    /// End the move, and refuse the old place to whoever writes there.
    #[arg(long = "final", conflicts_with = "reopen")]
    pub is_final: bool,
    /// Also compare the bytes of the data files that are there already.
    #[arg(long, conflicts_with = "reopen")]
    pub compare: bool,
    /// Take the move back, if nothing was written at the new place.
    #[arg(long)]
    pub reopen: bool,
}

/// `lake forget`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("whom").required(true).args(["sensor", "person"]))]
pub struct LakeForget {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Name of the sensor, as in `sensor_id`.
    #[arg(long)]
    pub sensor: Option<String>,
    /// Name of the person, as in `reported_by` and `operator`.
    #[arg(long)]
    pub person: Option<String>,
    /// Delete the files that held them at once: queries that are running fail, and older versions of the tables are gone.
    #[arg(long)]
    pub now: bool,
    /// Do it.
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Count the rows, and touch none.
    #[arg(long)]
    pub dry_run: bool,
}

/// How the contract is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ContractFormat {
    /// Open Data Contract Standard, JSON.
    Odcs,
    /// For people.
    Markdown,
}

/// What to do with alerts.
#[derive(Debug, Subcommand)]
pub enum Alerts {
    /// Print the JSON Schema of an event: what triggers of Logic Apps and flows are made of.
    Schema {
        /// Of which event.
        #[arg(value_parser = PossibleValuesParser::new(schema_names()))]
        event: String,
    },
    /// Name the alerts of the table, open ones first, newest first: exit code 0; 64 if --since is no moment, 74 if the lake cannot be read.
    ///
    /// Each alert is named once, as its newest row has it. Suppressed ones, of which nobody was told, are among them.
    List(AlertsList),
    /// Send one event to one target, and say what is answered: exit code 0 if it was taken, 69 if not, 64 if there is no such target.
    ///
    /// It goes once, by the way that alerts go, whatever alerts the target wants: an alert of the rule "test" on the machine "test",
    /// severity 4, that says that it is a test. Its id is new each time. A call-out may come of it.
    Test(AlertsTest),
    /// Post alerts again that no target took or that became too many: exit code 0; 1 if some were not taken, 64 without --yes or if there
    /// is no such target, 74 if the lake cannot be read.
    ///
    /// These are the dead letters with the reasons alert-undelivered and alert-overflow. Each goes to the target that has given it up,
    /// or was owed it and wants it, or to the one that is named, oldest first. It does not remember what it has replayed: an event keeps
    /// its id (the header idempotency-key), by which a receiver knows it again, so that a repeat is harmless. A target that fails three
    /// times in a row is left alone.
    Replay(AlertsReplay),
}

/// `alerts list`.
#[derive(Args, Debug)]
pub struct AlertsList {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Only those that are not over.
    #[arg(long)]
    pub open: bool,
    /// Only of this machine, or of this sensor.
    #[arg(long)]
    pub machine: Option<String>,
    /// Only of this rule, or machine event.
    #[arg(long)]
    pub rule: Option<String>,
    /// Only fired then or later: 2026-03-01T08:15:30Z, 2026-03-01, or how long ago, such as 2h.
    #[arg(long)]
    pub since: Option<String>,
    /// How many are named.
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// How they are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `alerts test`.
#[derive(Args, Debug)]
pub struct AlertsTest {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Name of one of `alerts.targets`, "webhook" for `alerts.webhook-url`, "topic" for `alerts.topic`.
    pub target: String,
}

/// `alerts replay`.
#[derive(Args, Debug)]
pub struct AlertsReplay {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Send all of them to this target instead, whatever it wants.
    pub target: Option<String>,
    /// Only with this reason; may be given more than once.
    #[arg(long, value_parser = PossibleValuesParser::new(commands::REASONS))]
    pub reason: Vec<String>,
    /// Only of changes then or later: 2026-03-01T08:15:30Z, 2026-03-01, or how long ago, such as 2h.
    #[arg(long)]
    pub since: Option<String>,
    /// At most so many, oldest first.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Send them.
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Say what would be sent, and send nothing.
    #[arg(long)]
    pub dry_run: bool,
}

fn schema_names() -> impl Iterator<Item = &'static str> {
    EventKind::ALL.map(EventKind::as_str).into_iter().chain(["outcome"])
}

/// Which tables.
#[derive(Args, Debug)]
pub struct Maintain {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// This table alone.
    #[arg(long, value_parser = PossibleValuesParser::new(table_names()))]
    pub table: Option<String>,
}

/// `audit`.
#[derive(Args, Debug)]
pub struct AuditArguments {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// How many differences are named.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Letters {
    /// Count them by reason and source and name the newest: exit code 0; 64 for a reason that there is not, 74 if the lake cannot be read.
    ///
    /// The column `replay` says which were sent again (`sent`), which perhaps (`unfinished`: by a run that did not end), and which are
    /// what came of a replay (`of` the letter that was sent).
    List(LettersList),
    /// Print one with its bytes, as text or hexadecimal: exit code 0; 66 if there is none of that name.
    Show(LettersShow),
    /// Send them to Kafka as they came: exit code 0; 1 if some were left alone, 64 without --yes, 66 if a name is not there, 69 if Kafka
    /// does not take them.
    ///
    /// A letter goes to the topic and partition that it came from, with the header `replay-of`. What has caused the refusal
    /// should be mended before: the aggregator judges it like any other record, except that it is no repeat. What was sent is written down
    /// in the lake, and not sent again by a second run. Left alone and told are letters that cannot be sent, letters that a run which
    /// did not end may have sent (--unfinished sends these), and letters that are copies of others sent before, refused for the same
    /// reason (--again or their names send these).
    Replay(LettersReplay),
}

/// Which letters.
#[derive(Args, Clone, Debug, Default)]
pub struct LetterFilter {
    /// Only with this reason; may be given more than once.
    #[arg(long)]
    pub reason: Vec<String>,
    /// Only from this MQTT or Kafka topic.
    #[arg(long)]
    pub source: Option<String>,
    /// Only refused then or later: 2026-03-01T08:15:30Z, 2026-03-01, or how long ago, such as 2h.
    #[arg(long)]
    pub since: Option<String>,
    /// Only refused before.
    #[arg(long)]
    pub until: Option<String>,
}

impl LetterFilter {
    /// Whether it takes every letter.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { reason, source, since, until } = self;
        reason.is_empty() && source.is_none() && since.is_none() && until.is_none()
    }
}

/// `dead-letters list`.
#[derive(Args, Debug)]
pub struct LettersList {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Which letters.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// How many are named, newest first.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// How they are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `dead-letters show`.
#[derive(Args, Debug)]
pub struct LettersShow {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Name of the letter: topic/partition/offset.
    pub letter: String,
    /// How it is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `dead-letters replay`.
#[derive(Args, Debug)]
pub struct LettersReplay {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Names of letters: topic/partition/offset.
    pub letters: Vec<String>,
    /// Which letters.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// All there are.
    #[arg(long)]
    pub all: bool,
    /// At most so many, oldest first.
    #[arg(long)]
    pub limit: Option<usize>,
    /// To this topic instead of the one that they came from.
    #[arg(long)]
    pub topic: Option<String>,
    /// Also what was sent before, may have been sent, or came back for the same reason; of a letter and its copy only the copy.
    #[arg(long)]
    pub again: bool,
    /// Only what a run that did not end may have sent: it may arrive twice, and no run may be at work.
    #[arg(long, conflicts_with = "again")]
    pub unfinished: bool,
    /// Send them.
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Say what would be sent, and send nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// What to do with rules.
#[derive(Debug, Subcommand)]
pub enum Rules {
    /// Run the rules over a file and print the windows: exit code 0; 65 if no line is a reading, 66 if the file cannot be read.
    ///
    /// Every window of the file is judged as if all its readings had come in time. Lines that are no readings are told on
    /// standard error and left out.
    Test(RulesTest),
}

/// Which file, and how the windows are printed.
#[derive(Args, Debug)]
pub struct RulesTest {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Readings, one JSON object a line, as on the Kafka topics; "-" is standard input.
    #[arg(long)]
    pub input: PathBuf,
    /// How the windows are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Print the anomalies alone.
    #[arg(long)]
    pub anomalies: bool,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Which configuration.
#[derive(Args, Debug)]
pub struct ConfigFile {
    /// TOML file over the defaults; AGGREGATOR__… variables override both.
    #[arg(long)]
    pub config: Option<PathBuf>,
}
