"""The Delta tables: made from the contract, written in appends that count once, and only while this job owns the lake.

Who owns a lake stands in a property of `telemetry` that `cloud-aggregator lake offsets --hand-over` sets and `lake take-over` takes away:
"spark" means this job, absent the aggregator. It is looked at before each batch. What the job remembers of sensors and machines is the
table `_spark_sensors` beside them, whose properties name the checkpoint that writes the lake and the hand-over that it began with.
"""

import time

from pyspark.errors import AnalysisException
from pyspark.sql import functions as F

from lake_pipeline.refusal import Refusal

OWNER_PROPERTY, OWNER = "cloud-aggregator.handedOverTo", "spark"
# When it was handed over: another hand-over has another time.
SINCE_PROPERTY = "cloud-aggregator.handedOverAt"
# Of the table of the state: the checkpoint that has written the lake, and the hand-over that it began with.
CHECKPOINT_PROPERTY, BEGAN_PROPERTY = "lake-pipeline.checkpoint", "lake-pipeline.handedOverAt"
# What `cloud-aggregator lake copy` leaves at the old place, and at a new one that is not finished.
MOVED_PROPERTY, UNFINISHED_COPY = "cloud-aggregator.movedTo", "_copy/unfinished.json"
STATE = "_spark_sensors"
STATE_COLUMNS = ("source_topic STRING, source_partition INT, kind STRING, id STRING, newest TIMESTAMP, late_before TIMESTAMP, "
                 "heard TIMESTAMP, idle_newest TIMESTAMP, batch BIGINT")
# Every reader of the lake has to understand what is written here: no deletion vectors, no column mapping, the classic checkpoint.
PROPERTIES = {"delta.minReaderVersion": "1", "delta.minWriterVersion": "2"}
SESSION = {
    "spark.sql.session.timeZone": "UTC",
    # Spark's own form of times (96 bits) has no zone to other readers, and no statistics.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Of columns that are made of columns of columns the planner derives conditions for minutes, and needs none of them.
    "spark.sql.constraintPropagation.enabled": "false",
    "spark.databricks.delta.properties.defaults.enableDeletionVectors": "false",
    "spark.databricks.delta.properties.defaults.enableRowTracking": "false",
    "spark.databricks.delta.properties.defaults.columnMapping.mode": "none",
    "spark.databricks.delta.properties.defaults.checkpointPolicy": "classic",
}
# Which rows came from a record at their offset: the aggregator has some of its own.
FROM_KAFKA = {
    "machine_events": "event_type NOT IN ('gap', 'gap-closed')",
    "dead_letters": "reason NOT IN ('alert-undelivered', 'alert-overflow')",
}
# As the aggregator has them.
STATISTICS = {
    "telemetry": "sensor_id,timestamp,value,machine_id,source_offset",
    "late_readings": "sensor_id,timestamp,value,machine_id,source_offset",
    "anomalies": "rule,sensor_id,machine_id,window_start,emitted_at", "machine_events": "event_type,machine_id,timestamp,received_at",
    "outcomes": "machine_id,timestamp,received_at", "waveforms": "machine_id,sensor_id,trip_id,first_sample",
    "dead_letters": "reason,timestamp,source_offset,received_at",
}


class Lake:
    """The tables of one lake."""

    def __init__(self, spark, location, tables):
        self.spark, self.location, self.tables = spark, location, tables
        for name, value in SESSION.items():
            spark.conf.set(name, value)

    def path(self, table):
        return f"{self.location}/{table}"

    def name(self, table):
        """The table in SQL."""
        return f"delta.`{self.path(table).replace('`', '``')}`"

    def read(self, table):
        return self.spark.read.format("delta").load(self.path(table))

    def detail(self, table):
        """Protocol and properties of a table; nothing if there is none."""
        try:
            return self.spark.sql(f"DESCRIBE DETAIL {self.name(table)}").first()
        except AnalysisException as error:
            if error.getCondition() in ("DELTA_TABLE_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE", "DELTA_PATH_DOES_NOT_EXIST",
                                        "PATH_NOT_FOUND", "TABLE_OR_VIEW_NOT_FOUND"):
                return None
            raise

    def open(self):
        """Makes the tables that are missing and checks those that are there. Gives whether there was a lake."""
        telemetry = self.detail("telemetry")
        if telemetry is not None:
            self.check_owner()
        if is_file(self.spark, self.path(UNFINISHED_COPY)):
            raise Refusal(f"the lake {self.location} is a copy that is not finished: `cloud-aggregator lake copy --final` ends it")
        for table in self.tables.values():
            detail = telemetry if table.name == "telemetry" else self.detail(table.name)
            if detail is None:
                self.create(table)
            else:
                self.check_protocol(table.name, detail)
                self.add_missing_columns(table)
        return telemetry is not None

    def create(self, table):
        properties = PROPERTIES | {"delta.dataSkippingStatsColumns": STATISTICS[table.name]}
        if table.name == "telemetry":
            properties |= {OWNER_PROPERTY: OWNER, SINCE_PROPERTY: str(int(time.time() * 1000))}
        columns = ", ".join(f"`{name}` {kind}" for name, kind in table.columns)
        partitions = ", ".join(f"`{name}`" for name in table.partitions)
        given = ", ".join(f"'{key}' = '{value}'" for key, value in properties.items())
        self.spark.sql(f"CREATE TABLE IF NOT EXISTS {self.name(table.name)} ({columns}) USING delta PARTITIONED BY ({partitions}) "
                       f"TBLPROPERTIES ({given})")
        self.check_protocol(table.name, self.detail(table.name))

    def check_protocol(self, name, detail):
        features = set(detail.tableFeatures or ()) - {"appendOnly", "invariants"}
        if (detail.minReaderVersion, detail.minWriterVersion) != (1, 2) or features:
            raise Refusal(
                f"table {name} asks for reader version {detail.minReaderVersion}, writer version {detail.minWriterVersion} and "
                f"{', '.join(sorted(features)) or 'no features'}; every reader of the lake knows 1 and 2: something else has changed it, "
                "take that back (ALTER TABLE ... DROP FEATURE)")

    def add_missing_columns(self, table):
        there = {column.name for column in self.read(table.name).schema}
        missing = [f"`{name}` {kind}" for name, kind in table.columns if name not in there]
        if missing:
            self.spark.sql(f"ALTER TABLE {self.name(table.name)} ADD COLUMNS ({', '.join(missing)})")

    def check_owner(self):
        """Refuses a lake that belongs to somebody else: asked before every batch."""
        detail = self.detail("telemetry")
        if detail is None:
            raise Refusal(f"{self.path('telemetry')} is gone: bring the lake back, or start with a new checkpoint and a new folder")
        if detail.properties.get(OWNER_PROPERTY) != OWNER:
            raise Refusal(
                f"the lake {self.location} belongs to the cloud aggregator (telemetry has no property {OWNER_PROPERTY} = {OWNER}): stop "
                "the aggregator, then `cloud-aggregator lake offsets --hand-over --format spark` gives the lake and the offsets to this "
                "job; start it with a new checkpoint")
        moved = detail.properties.get(MOVED_PROPERTY)
        if moved:
            raise Refusal(f"the lake was moved to {moved}: set lake.location to it; `lake copy --reopen` takes the move back")

    # ---- appends that count once ----

    def append(self, rows, table, app_id, batch_id):
        """Appends a batch's rows to a table; nothing if that batch was appended before."""
        columns = self.tables[table].names()
        partitions = [F.col(name) for name in self.tables[table].partitions]
        (rows.select(*columns).repartition(*partitions).write.format("delta").mode("append").option("txnAppId", app_id)
         .option("txnVersion", batch_id).save(self.path(table)))

    # ---- whose turn it is ----

    def since(self):
        """When the lake was handed over to this job, as the lake says it."""
        return self.detail("telemetry").properties.get(SINCE_PROPERTY, "")

    def state_properties(self):
        detail = self.detail(STATE)
        return None if detail is None else detail.properties

    def set_state_property(self, name, value):
        self.spark.sql(f"ALTER TABLE {self.name(STATE)} SET TBLPROPERTIES ('{name}' = '{value}')")

    def highest_offsets(self):
        """The highest offset of each Kafka partition that a row came from. Some rows of the aggregator came from none."""
        highest = {}
        for name in self.tables:
            if name == "anomalies":
                continue
            rows = self.read(name).where(FROM_KAFKA.get(name, "true"))
            for row in rows.groupBy("source_topic", "source_partition").agg(F.max("source_offset").alias("offset")).collect():
                key = (row.source_topic, row.source_partition)
                highest[key] = max(row.offset, highest.get(key, -1))
        return highest

    def rebuild_state(self, settings):
        """What the job remembers, from what the tables hold: how far each sensor and machine has come."""
        state = self.name(STATE)
        self.spark.sql(f"CREATE OR REPLACE TABLE {state} ({STATE_COLUMNS}) USING delta TBLPROPERTIES ("
                       + ", ".join(f"'{key}' = '{value}'" for key, value in PROPERTIES.items())
                       + f", '{BEGAN_PROPERTY}' = '{self.since()}')")
        newest = state_of(self.read("telemetry"), settings)
        empty = F.lit(None).cast("timestamp")
        rows = newest.select(
            "source_topic", "source_partition", "kind", "id", "newest", late_before(settings, F.col("newest")).alias("late_before"),
            F.current_timestamp().alias("heard"), empty.alias("idle_newest"), F.lit(-1).cast("long").alias("batch"))
        rows.coalesce(1).write.format("delta").mode("append").save(self.path(STATE))


def is_file(spark, path):
    """Whether there is a file, wherever Spark can read."""
    try:
        return not spark.read.format("binaryFile").load(path).select("path").isEmpty()
    except AnalysisException as error:
        if error.getCondition() == "PATH_NOT_FOUND":
            return False
        raise


def earlier(column, micros):
    return F.timestamp_micros(F.unix_micros(column) - F.lit(micros))


def late_before(settings, newest):
    """Readings before this are late, where the newest one is this."""
    return earlier(newest, settings.allowed_lateness + settings.retention)


def of_machines(rows, settings):
    """Readings that move a machine's watermark: those of metric types that a rule by machine may match."""
    may_match = [rule.may_match for rule in settings.rules if rule.by == "machine"]
    return rows.where("machine_id IS NOT NULL AND (" + (" OR ".join(may_match) or "false") + ")")


def state_of(rows, settings):
    """Newest event time of each sensor, and of each machine, in each Kafka partition."""
    def newest(of, kind, name):
        return (of.groupBy("source_topic", "source_partition", F.col(name).alias("id")).agg(F.max("timestamp").alias("newest"))
                .withColumn("kind", F.lit(kind)))
    sensors = newest(rows, "sensor", "sensor_id")
    return sensors.unionByName(newest(of_machines(rows, settings), "machine", "machine_id"))
