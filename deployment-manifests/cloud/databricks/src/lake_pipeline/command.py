"""`lake-pipeline run | matches | maintain | check`: where and which; what the pipeline does stands in the configuration alone."""

import argparse
import logging
import re
import sys

from lake_pipeline import contract, settings as settings_of
from lake_pipeline.refusal import Refusal

REFUSED = 78
TRIGGERS = 'available-now, or "processing-time 5s"'
BATCH_RECORDS = 1_000_000
VACUUM_HOURS_MIN = 168


def arguments_of(given):
    parser = argparse.ArgumentParser(prog="lake-pipeline", description="The cloud aggregator's pipeline on Spark.")
    commands = parser.add_subparsers(dest="command", required=True)
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--config", required=True, help="the aggregator's configuration (TOML)")
    every.add_argument("--contract", required=True, help="cloud-aggregator/contract/lake.odcs.json")
    every.add_argument("--lake", help="instead of lake.location")
    every.add_argument("--brokers", help="instead of kafka.brokers")
    reads = argparse.ArgumentParser(add_help=False)
    reads.add_argument("--checkpoint", required=True, 
                       help="folder of the query's offsets; one for each lake, and a new one for each hand-over")
    reads.add_argument("--starting-offsets", help="file of `cloud-aggregator lake offsets --format spark`, for a new checkpoint")
    reads.add_argument("--batch-records", type=int, default=BATCH_RECORDS, help="records of a batch at most")
    reads.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                       help="of Spark's Kafka source: kafka.security.protocol=SASL_SSL")
    reads.add_argument("--option-file", action="append", default=[], metavar="NAME=FILE", help="the same, read from a file")
    reads.add_argument("--option-secret", action="append", default=[], metavar="NAME=SCOPE/KEY", help="the same, a secret of Databricks")
    run = commands.add_parser("run", parents=[every, reads], help="read the topics into the tables")
    run.add_argument("--trigger", required=True, help=TRIGGERS)
    run.add_argument("--no-cache", action="store_true", help="where rows cannot be kept (serverless): batches are read more than once")
    matches = commands.add_parser("matches", parents=[every, reads], help="each reading that a rule's filter matches to a topic, at once")
    matches.add_argument("--to", required=True, help="topic for the matches")
    matches.add_argument("--trigger", default="real-time 5m", help='"real-time 5m" (a checkpoint each 5 minutes) or "processing-time 1s"')
    maintain = commands.add_parser("maintain", parents=[every], help="make large files of small ones, delete what nothing names")
    maintain.add_argument("--vacuum-hours", type=int, default=VACUUM_HOURS_MIN, help=f"at least {VACUUM_HOURS_MIN}")
    commands.add_parser("check", parents=[every], help="whether the configuration is one that this job can carry out")
    return parser.parse_args(given)


def read_file(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from error


def secret(spark, name):
    """A secret of Databricks, SCOPE/KEY."""
    scope, _, key = name.partition("/")
    try:
        from pyspark.dbutils import DBUtils
    except ImportError as error:
        raise Refusal(f"secret {name}: there are secret scopes on Databricks only, use --option-file") from error
    return DBUtils(spark).secrets.get(scope, key)


def options_of(spark, arguments):
    """Options of the Kafka source. Nobody prints them."""
    found = {}
    for flag, given, value_of in (
            ("--option", arguments.option, str), ("--option-file", arguments.option_file, lambda file: read_file(file).strip()),
            ("--option-secret", arguments.option_secret, lambda name: secret(spark, name))):
        for pair in given:
            name, sign, value = pair.partition("=")
            if not sign or not name:
                raise Refusal(f"{flag} {name}: NAME=VALUE is wanted")
            found[name] = value_of(value)
    return found


def trigger_of(text, allowed):
    """Spark's trigger of ours."""
    word, _, rest = text.partition(" ")
    if word in allowed and word == "available-now" and not rest:
        return {"availableNow": True}
    names = {"processing-time": "processingTime", "real-time": "realTime"}
    if word in allowed and word in names and rest:
        micros = settings_of.micros(re.sub(r"\s", "", rest), "--trigger")
        return {names[word]: f"{micros // 1000} milliseconds"}
    if word in ("continuous", "real-time"):
        raise Refusal(f"--trigger {text}: Spark counts no windows record by record; `matches` gives single readings so, and "
                      f"windows need {TRIGGERS}")
    raise Refusal(f"--trigger {text!r} is none of: {', '.join(allowed)}")


def load(arguments):
    settings = settings_of.load(read_file(arguments.config))
    changes = {name: value for name, value in (("location", arguments.lake), ("brokers", arguments.brokers)) if value}
    return settings_of.replaced(settings, changes), contract.load(read_file(arguments.contract))


def start(spark, arguments, settings, tables):
    """Starts the query of `run`; gives it and its pipeline."""
    from lake_pipeline import decode, source
    from lake_pipeline.lake import Lake
    from lake_pipeline.pipeline import Pipeline

    trigger = trigger_of(arguments.trigger, ("available-now", "processing-time"))
    offsets = source.starting_offsets(read_file(arguments.starting_offsets), settings.topics) if arguments.starting_offsets else None
    pipeline = Pipeline(spark, Lake(spark, settings.location, tables), settings, arguments.checkpoint, not arguments.no_cache)
    pipeline.prepare(offsets)
    kafka = source.stream(spark, settings, options_of(spark, arguments), offsets, arguments.batch_records)
    query = (decode.records(kafka, settings).writeStream.foreachBatch(pipeline).option("checkpointLocation", arguments.checkpoint)
             .queryName("lake-pipeline").trigger(**trigger).start())
    return query, pipeline


def run(spark, arguments, settings, tables):
    query, pipeline = start(spark, arguments, settings, tables)
    try:
        query.awaitTermination()
    except Exception:
        if pipeline.refusal is not None:
            raise pipeline.refusal from None
        raise


def matches(spark, arguments, settings, _tables):
    """Readings that match a rule's filter, record by record: no windows, no repeats dropped, at least once."""
    from pyspark.sql import functions as F

    from lake_pipeline import decode, source

    readings = {topic: kind for topic, kind in settings.topics.items() if kind == settings_of.READINGS}
    only = settings_of.replaced(settings, {"topics": readings})
    if arguments.to in settings.topics:
        raise Refusal(f"--to {arguments.to} is a topic that is read")
    if not only.rules:
        raise Refusal("rules is empty: there is nothing to match")
    options = options_of(spark, arguments)
    offsets = source.starting_offsets(read_file(arguments.starting_offsets), settings.topics) if arguments.starting_offsets else None
    trigger = trigger_of(arguments.trigger, ("real-time", "processing-time"))
    kafka = source.stream(spark, only, options, offsets, None if "realTime" in trigger else arguments.batch_records)
    read = decode.decode(decode.records(kafka, only), settings_of.READINGS, only, has_protobuf=False)
    names = [F.when(F.expr(rule.condition), F.lit(rule.name)) for rule in only.rules]
    found = (read.where("refused IS NULL AND coalesce(quality, 'good') <> 'bad'").withColumn("rules", F.array_compact(F.array(*names)))
             .where("size(rules) > 0"))
    moment = F.date_format("timestamp", "yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'").alias("timestamp")
    columns = ["rules", "sensor_id", "machine_id", moment, "metric_type", "value", "unit", *decode.SOURCE]
    out = found.select(F.coalesce("machine_id", "sensor_id").alias("key"), F.to_json(F.struct(*columns)).alias("value"))
    writes = {name: value for name, value in options.items() if name.startswith("kafka.")}
    query = (out.writeStream.format("kafka").options(**{"kafka.bootstrap.servers": settings.brokers} | writes).option("topic", arguments.to)
             .outputMode("update").option("checkpointLocation", arguments.checkpoint).queryName("lake-matches")
             .trigger(**trigger).start())
    query.awaitTermination()


def maintain(spark, arguments, settings, tables):
    """One round: only while the job owns the lake, since the aggregator looks after its own."""
    from lake_pipeline.lake import STATE, Lake

    if arguments.vacuum_hours < VACUUM_HOURS_MIN:
        raise Refusal(f"--vacuum-hours {arguments.vacuum_hours}: readers may still need files of the last {VACUUM_HOURS_MIN} hours")
    lake = Lake(spark, settings.location, tables)
    lake.check_owner()
    for name in (*tables, STATE):
        detail = lake.detail(name)
        if detail is not None:
            spark.sql(f"OPTIMIZE {lake.name(name)}")
            spark.sql(f"VACUUM {lake.name(name)} RETAIN {arguments.vacuum_hours} HOURS")
            lake.check_protocol(name, lake.detail(name))


def carry_out(arguments):
    settings, tables = load(arguments)
    if arguments.command == "check":
        print(f"{len(settings.rules)} rules, {len(settings.topics)} topics: the Spark job can carry this out")
        return
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("lake-pipeline").getOrCreate()
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    {"run": run, "matches": matches, "maintain": maintain}[arguments.command](spark, arguments, settings, tables)


def main(given=None):
    """The entry point of the wheel."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("lake_pipeline").setLevel(logging.INFO)
    try:
        carry_out(arguments_of(given))
    except Refusal as refusal:
        print(f"lake-pipeline: {refusal}", file=sys.stderr)
        sys.exit(REFUSED)
