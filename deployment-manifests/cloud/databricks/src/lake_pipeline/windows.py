"""Windows, recounted from `telemetry`: the lake is the state, so that streaming and a batch query give the same.

A batch touches windows by its readings and closes windows by the watermarks that it moves. Those that are closed then are counted anew
from the table, held against the latest revision in `anomalies`, and appended where the answer is another one.
"""

from pyspark.sql import functions as F

from lake_pipeline.lake import earlier, late_before, state_of
from lake_pipeline.rules import double, quoted

GROUP = ("source_topic", "source_partition", "kind", "id")
WINDOW = ("rule", *GROUP, "start", "end")
ID = {"sensor": "sensor_id", "machine": "machine_id"}
NOT_BAD = "coalesce(quality, 'good') <> 'bad'"


def windows_of(rules):
    """An array of the windows that a reading is counted in, in SQL: rule, first microsecond, first microsecond after."""
    parts = []
    for rule in rules:
        latest = f"(unix_micros(timestamp) - pmod(unix_micros(timestamp), {rule.slide}L))"
        starts = f"transform(sequence(0L, {rule.windows_of_a_reading - 1}L), place -> {latest} - place * {rule.slide}L)"
        held = f"filter({starts}, start -> start + {rule.window}L > unix_micros(timestamp))"
        made = f"transform({held}, start -> named_struct('rule', {quoted(rule.name)}, 'start', start, 'end', start + {rule.window}L))"
        none = "CAST(array() AS ARRAY<STRUCT<rule: STRING, start: BIGINT, end: BIGINT>>)"
        parts.append(f"if({rule.condition}, {made}, {none})")
    return f"concat({', '.join(parts)})"


def threshold(rules):
    """Whether a window of a rule is an anomaly, in SQL over what was counted."""
    cases = []
    for rule in rules:
        observed = {
            "count": "CAST(count AS DOUBLE)", "rate": f"count / {double(rule.window / 1e6)}", "mean": "mean_value", "max": "max_value",
            "min": "min_value", "rate-of-change": "rate_of_change",
        }[rule.aggregate]
        cases.append(f"WHEN rule = {quoted(rule.name)} THEN coalesce({observed} {rule.comparison} {double(rule.limit)}, false)")
    return f"CASE {' '.join(cases)} ELSE false END"


def matches(rows, rules):
    """Each window that a reading is counted in, one row each."""
    counted = F.expr(f"explode({windows_of(rules)})").alias("counted")
    return rows.where(NOT_BAD).select("*", counted).select("*", "counted.*").drop("counted")


def groups(counted, state, now, started, settings):
    """Sensors and machines whose windows the batch may close or touch, with how far they have come before and after.

    Silent ones are among them once: their open windows are closed when they have been silent for `idle-timeout`.
    """
    heard = state_of(counted, settings).withColumnRenamed("newest", "heard_newest")
    before = state.where("kind <> 'batch'").select(
        *GROUP, F.col("newest").alias("old_newest"), F.col("late_before").alias("old_late_before"), F.col("idle_newest").alias("old_idle"),
        "heard")
    silent_since = F.timestamp_micros(F.unix_micros(F.greatest("heard", F.lit(started))) + F.lit(settings.idle_timeout))
    is_silent = (silent_since <= F.lit(now)) & (F.col("old_idle").isNull() | (F.col("old_idle") < F.col("old_newest")))
    of_batch = heard.join(before.drop("heard"), list(GROUP), "left").withColumn("is_idle", F.lit(False))
    idle = (before.where(is_silent).join(heard.select(*GROUP), list(GROUP), "left_anti").drop("heard")
            .withColumn("heard_newest", F.col("old_newest")).withColumn("is_idle", F.lit(True)))
    every = of_batch.unionByName(idle).withColumn("newest", F.greatest("old_newest", "heard_newest"))
    return every.select(
        *GROUP, "newest", "is_idle", "old_late_before", "old_idle",
        F.greatest("old_late_before", late_before(settings, F.col("newest"))).alias("late_before"),
        F.when(F.col("is_idle"), F.col("newest")).otherwise(F.col("old_idle")).alias("idle_newest"),
        F.unix_micros(earlier(F.col("old_newest"), settings.allowed_lateness)).alias("closed_from"),
        F.unix_micros(earlier(F.col("newest"), settings.allowed_lateness)).alias("closed_to"))


def touched(counted, rules_by):
    """Windows that readings of the batch are counted in."""
    parts = []
    for kind, rules in rules_by.items():
        rows = matches(counted.where(F.col(ID[kind]).isNotNull()), rules)
        parts.append(rows.select("rule", "source_topic", "source_partition", F.lit(kind).alias("kind"), F.col(ID[kind]).alias("id"),
                                 "start", "end").distinct())
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.unionByName(part)
    return whole


def spans(moved, touched_windows, window_max):
    """From when to when `telemetry` has to be read for each group, in microseconds."""
    first = touched_windows.groupBy(*GROUP).agg(F.min("start").alias("first"))
    idle = F.unix_micros("idle_newest")
    return (moved.join(first, list(GROUP), "left")
            .withColumn("low", F.least("first", F.col("closed_from") - F.lit(window_max)))
            .withColumn("high", F.greatest("closed_to", idle + F.lit(window_max))).where("low < high"))


# What is true of a window before and after the batch.
CLOSED_BEFORE = "coalesce(`end` <= closed_from, false) OR coalesce(start <= unix_micros(old_idle), false)"
CLOSED = "`end` <= closed_to OR coalesce(start <= unix_micros(idle_newest), false)"
REMEMBERED = "old_late_before IS NULL OR `end` > unix_micros(old_late_before)"


def recount(telemetry, read, touched_windows, rules_by, dates):
    """What a batch query over `telemetry` says of the windows that are closed now and were touched, or not closed before."""
    parts = []
    for kind, rules in rules_by.items():
        of_kind = read.where(F.col("kind") == kind)
        rows = (telemetry.where(F.col("date").between(*dates)).withColumnRenamed(ID[kind], "id")
                .withColumn("micros", F.unix_micros("timestamp")))
        inside = [(F.col("r.source_topic") == F.col("g.source_topic")), (F.col("r.source_partition") == F.col("g.source_partition")),
                  (F.col("r.id") == F.col("g.id")), (F.col("r.micros") >= F.col("g.low")), (F.col("r.micros") < F.col("g.high"))]
        kept = ("kind", "old_late_before", "old_idle", "idle_newest", "closed_from", "closed_to", "is_idle")
        joined = rows.alias("r").join(of_kind.alias("g"), inside).select("r.*", *[f"g.{name}" for name in kept])
        named = joined.withColumn(ID[kind], F.col("id"))
        found = matches(named, rules).where(f"({CLOSED}) AND ({REMEMBERED})")
        machine = F.max_by("machine_id", F.struct("timestamp", "source_offset")) if kind == "sensor" else F.col("id")
        point = F.struct("timestamp", "value")
        parts.append(found.groupBy(*WINDOW).agg(
            F.count("*").alias("count"), F.max("value").alias("max_value"), F.min("value").alias("min_value"),
            F.avg("value").alias("mean_value"), F.min(point).alias("first"), F.max(point).alias("last"),
            F.first(F.expr(CLOSED_BEFORE)).alias("was_closed"), F.first(F.expr("`end` <= closed_to")).alias("is_passed"),
            (machine if kind == "sensor" else F.first("id")).alias("machine_id")))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.unionByName(part)
    known = touched_windows.select(*WINDOW, F.lit(True).alias("is_touched"))
    return whole.join(known, list(WINDOW), "left").where("NOT was_closed OR is_touched")


def revisions(counted, anomalies, rules, now):
    """Rows of `anomalies`: windows that are anomalies and were not told so yet, and those whose last row is not true any more."""
    latest = (anomalies.select("rule", F.when(F.col("sensor_id").isNull(), "machine").otherwise("sensor").alias("kind"),
                               F.coalesce("sensor_id", "machine_id").alias("id"), F.unix_micros("window_start").alias("start"),
                               F.struct("revision", "count", "is_anomaly").alias("row"))
              .groupBy("rule", "kind", "id", "start").agg(F.max("row").alias("told")))
    seconds = (F.unix_micros("last.timestamp") - F.unix_micros("first.timestamp")) / F.lit(1e6)
    judged = (counted.withColumn("rate_of_change", F.when(seconds > 0, (F.col("last.value") - F.col("first.value")) / seconds))
              .withColumn("is_anomaly", F.expr(threshold(rules))).join(latest, ["rule", "kind", "id", "start"], "left"))
    news = judged.where("""(is_anomaly AND (told IS NULL OR NOT told.is_anomaly OR told.count <> count))
        OR (NOT is_anomaly AND coalesce(told.is_anomaly, false))""")
    start, end = F.timestamp_micros("start"), F.timestamp_micros("end")
    return news.select(
        F.to_date(start).alias("date"), "rule", F.when(F.col("kind") == "sensor", F.col("id")).alias("sensor_id"), "machine_id",
        F.struct(start.alias("start"), end.alias("end")).alias("window"), start.alias("window_start"), end.alias("window_end"),
        "is_anomaly", "count", (F.coalesce("told.revision", F.lit(0)) + 1).cast("int").alias("revision"),
        F.expr("CASE WHEN was_closed THEN 'correction' WHEN is_passed THEN 'watermark' ELSE 'idle' END").alias("closed_by"),
        "max_value", "min_value", "mean_value", "rate_of_change", F.col("first.timestamp").alias("first_match"),
        F.col("last.timestamp").alias("last_match"), F.lit(now).cast("timestamp").alias("emitted_at"))
