"""One batch of records, in the order that makes a crash harmless.

    telemetry -> late_readings, machine_events, outcomes, waveforms, dead_letters -> anomalies -> the state of the sensors

Each append carries the checkpoint's id and the batch's number, and Delta skips one that was there before. What a batch decides follows
from its records, from the batch's own time and from the state, which is written last: a batch that runs again decides the same.
"""

import json
import logging
from datetime import timedelta

from pyspark.sql import Window, functions as F

from lake_pipeline import windows
from lake_pipeline.decode import CARRIED, RAW_BYTES_MAX, SOURCE, decode
from lake_pipeline.lake import BEGAN_PROPERTY, CHECKPOINT_PROPERTY, STATE, is_file
from lake_pipeline.refusal import Refusal
from lake_pipeline.settings import DEAD_LETTERS, KINDS, MACHINE_EVENTS, OUTCOMES, READINGS, WAVEFORMS

LOG = logging.getLogger("lake_pipeline")
APP_PREFIX = "lake-pipeline/"
IDENTITY = ("device_id", "generation", "sequence")
# Where records of a kind go, and where their repeats are looked for.
TABLES = {READINGS: "telemetry", MACHINE_EVENTS: "machine_events", OUTCOMES: "outcomes", WAVEFORMS: "waveforms",
          DEAD_LETTERS: "dead_letters"}
SEEN_IN = {READINGS: ("telemetry", "late_readings"), MACHINE_EVENTS: ("machine_events",), WAVEFORMS: ("waveforms",),
           DEAD_LETTERS: ("dead_letters",)}
DATES_LISTED_MAX = 64


class Pipeline:
    """What is done with each batch."""

    def __init__(self, spark, lake, settings, checkpoint, is_cached=True):
        self.spark, self.lake, self.settings, self.checkpoint, self.is_cached = spark, lake, settings, checkpoint, is_cached
        self.rules_by = {kind: rules for kind in ("sensor", "machine") if (rules := [rule for rule in settings.rules if rule.by == kind])}
        self.started, self.app_id, self.refusal = None, None, None

    # ---- the checkpoint and the lake belong together ----

    def checkpoint_id(self):
        """The stable id of the checkpoint; nothing if it is new."""
        file = f"{self.checkpoint}/metadata"
        return json.loads(self.spark.read.text(file).first().value)["id"] if is_file(self.spark, file) else None

    def prepare(self, starting_offsets):
        """Before the first batch: whose lake it is, and whether the checkpoint is the one that goes with it."""
        was_there = self.lake.open()
        properties, checkpoint = self.lake.state_properties(), self.checkpoint_id()
        if checkpoint is not None and properties is not None:
            bound = properties.get(CHECKPOINT_PROPERTY)
            if bound not in (None, checkpoint):
                raise Refusal(f"the lake {self.lake.location} is written with the checkpoint of id {bound}, and {self.checkpoint} is "
                              f"that of id {checkpoint}: go on with the other one")
            if properties.get(BEGAN_PROPERTY) != self.lake.since():
                raise Refusal(f"the lake {self.lake.location} went back to the cloud aggregator and was handed over anew since "
                              f"{self.checkpoint} was begun, which would read again what the aggregator has read: start with a new "
                              "checkpoint and the offsets of `cloud-aggregator lake offsets --hand-over --format spark`")
            return
        if checkpoint is not None:
            raise Refusal(f"{self.checkpoint} is a checkpoint of another lake: {self.lake.location} knows none")
        highest = self.lake.highest_offsets() if was_there else {}
        self.check_start(highest, starting_offsets)
        self.lake.rebuild_state(self.settings)

    def check_start(self, highest, starting_offsets):
        """A new checkpoint must not read what the lake holds."""
        for (topic, partition), offset in sorted(highest.items()):
            if topic not in self.settings.topics:
                continue
            start = (starting_offsets or {}).get(topic, {}).get(str(partition))
            if start is None or 0 <= start <= offset or start == -2:
                raise Refusal(
                    f"the lake {self.lake.location} has rows up to offset {offset} of {topic}/{partition}, and this start would read from "
                    f"{'the beginning' if start in (None, -2) else start}: name the file of `cloud-aggregator lake offsets --hand-over "
                    "--format spark` with --starting-offsets, or go on with the checkpoint that has written the lake")

    def bind(self):
        """The application id of this checkpoint's appends; from its first batch on the lake names the checkpoint."""
        if self.app_id is None:
            checkpoint = self.checkpoint_id()
            if self.lake.state_properties().get(CHECKPOINT_PROPERTY) != checkpoint:
                self.lake.set_state_property(CHECKPOINT_PROPERTY, checkpoint)
            self.app_id = APP_PREFIX + checkpoint
        return self.app_id

    # ---- a batch ----

    def __call__(self, batch, batch_id):
        try:
            self.process(batch, batch_id)
        except Refusal as refusal:
            # Spark gives its own error for it.
            self.refusal = refusal
            raise

    def keep(self, rows):
        """Rows that are looked at more than once, without the way that they came: Spark would plan it anew each time.

        A worker that is lost takes its part along. Then the batch fails, and runs again from the checkpoint of the query.
        """
        return rows.localCheckpoint() if self.is_cached else rows

    def process(self, batch, batch_id):
        self.lake.check_owner()
        app_id = self.bind()
        state = self.lake.read(STATE)
        if not state.where((F.col("kind") == "batch") & (F.col("id") == app_id) & (F.col("batch") >= batch_id)).isEmpty():
            LOG.info("batch %s is there already", batch_id)
            return
        batch = self.keep(batch)
        found = {row.kind: row for row in batch.groupBy("kind").agg(
            F.count("*").alias("records"), F.max("received_at").alias("now"),
            F.max(F.coalesce(F.lower("content_type").contains("protobuf"), F.lit(False))).alias("has_protobuf")).collect()}
        if not found:
            return
        now = max(row.now for row in found.values())
        self.started = self.started or now
        refused, counted, tally = [], None, {}
        for kind in sorted(set(KINDS.values()) & set(found), key=list(TABLES).index):
            has_protobuf = found[kind].has_protobuf or kind == WAVEFORMS
            decoded = self.keep(decode(batch.where(F.col("kind") == kind), kind, self.settings, has_protobuf))
            if kind == READINGS:
                decoded = counted = self.keep(self.judge(decoded, state, now))
            else:
                decoded = self.keep(self.accepted(decoded, kind, now))
            tally[kind] = self.write(decoded, kind, app_id, batch_id, refused)
        if refused:
            letters = refused[0]
            for part in refused[1:]:
                letters = letters.unionByName(part)
            self.lake.append(letters, "dead_letters", app_id, batch_id)
        self.write_windows(counted if tally.get(READINGS, {}).get("counted") else None, state, now, app_id, batch_id)
        LOG.info("batch %s: %s", batch_id, {kind: dict(counts) for kind, counts in tally.items()})

    def write(self, rows, kind, app_id, batch_id, refused):
        """Appends what is a record and late, and hands over what is none. Gives how many there are of each."""
        counts = {row.disposition: row.records for row in rows.groupBy("disposition").agg(F.count("*").alias("records")).collect()}
        good = rows.where("disposition = 'counted'")
        if counts.get("counted"):
            if kind == DEAD_LETTERS:
                refused.append(letters_of_edge(good))
            else:
                self.lake.append(good, TABLES[kind], app_id, batch_id)
        if counts.get("late"):
            self.lake.append(rows.where("disposition = 'late'"), "late_readings", app_id, batch_id)
        if counts.get("refused"):
            refused.append(letters(rows.where("disposition = 'refused'")))
        return counts

    # ---- what becomes of a record ----

    def accepted(self, decoded, kind, now):
        """Records of topics that are not counted in windows: repeats are gone."""
        rows = decoded
        if kind == OUTCOMES:
            rows = refuse_future(rows, now, self.settings)
        else:
            rows = self.without_repeats(rows, kind)
        return rows.withColumn("disposition", F.when(F.col("refused").isNotNull(), "refused").otherwise("counted"))

    def judge(self, decoded, state, now):
        """Readings with what becomes of each: counted, late or refused; repeats are gone."""
        rows = refuse_future(self.without_repeats(decoded, READINGS), now, self.settings)
        rows = rows.withColumn("refused", F.when(
            F.col("refused").isNull() & (F.unix_micros("timestamp") < self.settings.oldest_event_time),
            refusal("timestamp-too-old", "the timestamp is before counting.oldest-event-time: set the sensor's clock or that"),
        ).otherwise(F.col("refused")))
        bad = rows.where("refused IS NOT NULL").withColumn("disposition", F.lit("refused"))
        known = state.where("kind = 'sensor'").select(
            "source_topic", "source_partition", F.col("id").alias("sensor_id"), F.col("late_before").alias("known_late_before"))
        before = (Window.partitionBy("source_topic", "source_partition", "sensor_id").orderBy("source_offset")
                  .rowsBetween(Window.unboundedPreceding, -1))
        behind = F.lit(self.settings.allowed_lateness + self.settings.retention)
        good = (rows.where("refused IS NULL").join(known, ["source_topic", "source_partition", "sensor_id"], "left")
                .withColumn("newest_before", F.unix_micros(F.max("timestamp").over(before)) - behind))
        is_late = F.coalesce(F.unix_micros("timestamp") < F.greatest("newest_before", F.unix_micros("known_late_before")), F.lit(False))
        good = good.withColumn("disposition", F.when(is_late, "late").otherwise("counted")).drop("newest_before", "known_late_before")
        return good.unionByName(bad)

    def without_repeats(self, rows, kind):
        """Without records whose identity came earlier in their Kafka partition, in this batch or in the tables."""
        numbered = rows.where("refused IS NULL AND device_id IS NOT NULL")
        span = numbered.agg(F.min("date").alias("first"), F.max("date").alias("last"), F.count_distinct("date").alias("dates")).first()
        if not span.dates:
            return rows
        same = ["source_topic", "source_partition", *IDENTITY]
        order = Window.partitionBy(*same).orderBy("source_offset")
        first = numbered.withColumn("place", F.row_number().over(order)).where("place = 1").drop("place")
        is_of_batch = F.col("date").between(span.first, span.last)
        if span.dates <= DATES_LISTED_MAX:
            is_of_batch = F.col("date").isin([row.date for row in numbered.select("date").distinct().collect()])
        for table in SEEN_IN[kind]:
            seen = (self.lake.read(table).where(is_of_batch).where("device_id IS NOT NULL").select(*same, "source_offset").alias("s"))
            repeats = [F.col(f"n.{name}") == F.col(f"s.{name}") for name in same]
            first = first.alias("n").join(seen, [*repeats, F.col("s.source_offset") < F.col("n.source_offset")], "left_anti")
        return first.unionByName(rows.where("refused IS NOT NULL OR device_id IS NULL"))

    # ---- windows ----

    def write_windows(self, rows, state, now, app_id, batch_id):
        settings, rules_by = self.settings, self.rules_by
        counted = rows.where("disposition = 'counted'") if rows is not None else self.lake.read("telemetry").limit(0)
        moved = self.keep(windows.groups(counted, state, now, self.started, settings))
        if rules_by and not moved.isEmpty():
            touched = self.keep(windows.touched(counted, rules_by))
            window_max = max(rule.window for rule in settings.rules)
            read = self.keep(windows.spans(moved, touched, window_max))
            span = read.agg(F.min(F.timestamp_micros("low")).alias("low"), F.max(F.timestamp_micros("high")).alias("high")).first()
            if span.low is not None:
                dates = (span.low.date(), span.high.date())
                recounted = windows.recount(self.lake.read("telemetry"), read, touched, rules_by, dates)
                told_dates = (dates[0] - timedelta(microseconds=window_max), dates[1])
                told = self.lake.read("anomalies").where(F.col("date").between(*told_dates))
                news = self.keep(windows.revisions(recounted, told, settings.rules, now))
                if not news.isEmpty():
                    self.lake.append(news, "anomalies", app_id, batch_id)
        self.write_state(moved, now, app_id, batch_id)

    def write_state(self, moved, now, app_id, batch_id):
        """How far the sensors have come, and that the batch is done: the last write of a batch."""
        rows = moved.select(*windows.GROUP, "newest", "late_before",
                            F.when(~F.col("is_idle"), F.lit(now)).cast("timestamp").alias("heard"), "idle_newest")
        mark = self.spark.range(1).select(
            F.lit("").alias("source_topic"), F.lit(-1).alias("source_partition"), F.lit("batch").alias("kind"), F.lit(app_id).alias("id"),
            *[F.lit(None).cast("timestamp").alias(name) for name in ("newest", "late_before", "heard", "idle_newest")])
        source = rows.unionByName(mark).withColumn("batch", F.lit(batch_id).cast("long"))
        same = " AND ".join(f"t.{name} = s.{name}" for name in windows.GROUP)
        grown = ", ".join(f"t.{name} = greatest(t.{name}, s.{name})" for name in ("newest", "late_before", "heard", "idle_newest"))
        # The rows belong to the session of the batch.
        source.sparkSession.sql(f"MERGE INTO {self.lake.name(STATE)} t USING {{source}} s ON {same} "
                                f"WHEN MATCHED THEN UPDATE SET {grown}, t.batch = s.batch WHEN NOT MATCHED THEN INSERT *", source=source)


def refusal(reason, detail):
    return F.struct(F.lit(reason).alias("reason"), F.lit(detail).alias("detail"))


def refuse_future(rows, now, settings):
    """Refuses what is further ahead of the batch's time than a clock may be."""
    is_ahead = F.unix_micros("timestamp") > F.unix_micros(F.lit(now)) + settings.future_limit
    told = refusal("timestamp-in-future",
                   "the timestamp is further ahead of the batch's time than counting.future-limit: set the sensor's clock")
    return rows.withColumn("refused", F.when(F.col("refused").isNull() & is_ahead, told).otherwise(F.col("refused")))


def letters(rows):
    """Records that were refused, as rows of `dead_letters`. Only of one that was read it is known which it was."""
    has_identity = F.col("refused.reason").isin("timestamp-in-future", "timestamp-too-old")
    identity = [F.when(has_identity, F.col(name)).alias(name) if name in rows.columns else F.lit(None).cast(kind).alias(name)
                for name, kind in zip(IDENTITY, ("string", "long", "long"))]
    return rows.select(
        F.to_date("received_at").alias("date"), "refused.reason", "refused.detail", F.col("source_topic").alias("source"),
        F.col("received_at").alias("timestamp"), *identity,
        F.coalesce(F.substring("raw", 1, RAW_BYTES_MAX), F.lit(b"")).alias("raw"), "raw_length", "content_type", *SOURCE, "received_at")


def letters_of_edge(rows):
    """Dead letters of edge modules, which come over a topic of their own."""
    carried = [name for name in CARRIED if name not in ("raw", "raw_length", "content_type")]
    return rows.select("date", "reason", "detail", "source", "timestamp", *IDENTITY, F.col("letter_raw").alias("raw"),
                       F.col("letter_length").alias("raw_length"), F.lit(None).cast("string").alias("content_type"), *carried)
