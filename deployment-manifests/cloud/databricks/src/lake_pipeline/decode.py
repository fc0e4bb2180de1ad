"""From bytes of Kafka to columns of the tables, in expressions of SQL: whatever is no record gets a reason instead.

What is a record stands in cloud-aggregator/INPUT.md, and the order of the checks is the aggregator's, so that the reasons are too. A JSON
text is read as VARIANT, which refuses what `from_json` lets pass: keys that come twice, other types, numbers as text.
"""

from pyspark.sql import functions as F, types as T

from lake_pipeline import protobuf
from lake_pipeline.settings import DEAD_LETTERS, MACHINE_EVENTS, OUTCOMES, READINGS, WAVEFORMS

IDENTIFIER_BYTES_MAX, METRIC_TYPE_BYTES_MAX, UNIT_BYTES_MAX = 256, 64, 32
FEATURES_MAX, FEATURE_NAME_BYTES_MAX, RAW_BYTES_MAX, NOTE_BYTES_MAX, REPORTER_BYTES_MAX = 256, 64, 65536, 4096, 128
U64_MAX = 2**64 - 1
EVENT_TEXTS = ("cause", "rule", "sensor_id", "metric_type", "model", "detail", "rule_version", "trip_id", "operator",
               "waveform_sequences", "contributions")
EVENT_NUMBERS = ("value", "limit", "score")
EVENT_COUNTS = ("command_latency_micros", "confirmation_latency_micros", "first_sequence", "last_sequence", "record_count",
                "delivered_sequence")
OUTCOME_LIMITS = {"trip_id": 256, "sensor_id": 256, "ticket_id": 256, "part": 256, "reported_by": REPORTER_BYTES_MAX}
COMMON_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]([.][0-9]{1,9})?Z$"
ANY_TIME = (r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:([0-5][0-9]|60)([.][0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$")
# Half of a pair of UTF-16 alone is no text.
LONE_SURROGATE = (r"(?<!\\)(\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
                  r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})")
BLANK, CONTROL = r"^\p{IsWhite_Space}*$", r"\p{Cc}"
# Parameters of a content type, without semicolons in quotes; a charset that is not UTF-8 among them.
JSON_TYPE = r"(?i)^\s*application/json\s*(;(?!\s*charset\s*=\s*(?!\"?utf-8\"?\s*(;|$)))([^;\"]|\"([^\"\\]|\\.)*\")*)*$"
PROTOBUF_TYPE = r"(?i)^\s*application/x-protobuf\s*(;.*)?$"
SOURCE = ("source_topic", "source_partition", "source_offset")
CARRIED = (*SOURCE, "received_at", "content_type", "raw", "raw_length")


def pattern(text):
    """A regular expression as a literal of SQL."""
    return "r'" + text.replace("'", r"\x27") + "'"


def records(kafka, settings):
    """Columns of a Kafka stream that the batches look at. `received_at` is the batch's time: the same when it runs again."""
    kinds = F.create_map(*[F.lit(part) for pair in settings.topics.items() for part in pair])
    header = F.expr("try_element_at(filter(headers, header -> header.key = 'content-type'), 1).value")
    limit = settings.record_bytes_max
    return kafka.select(
        F.col("topic").alias("source_topic"), F.col("partition").alias("source_partition"), F.col("offset").alias("source_offset"),
        F.current_timestamp().alias("received_at"), kinds[F.col("topic")].alias("kind"),
        header.cast("string").alias("content_type"),
        F.when(F.length("value") > limit, F.substring("value", 1, RAW_BYTES_MAX)).otherwise(F.col("value")).alias("raw"),
        F.coalesce(F.length("value"), F.lit(0)).cast("long").alias("raw_length"))


def encoding(batch, settings):
    """Adds how the bytes are to be read, or why not at all."""
    return batch.withColumn("encoding", F.expr(f"""CASE
        WHEN content_type IS NULL OR content_type = 'application/json' THEN 'json'
        WHEN content_type = 'application/x-protobuf' OR content_type RLIKE {pattern(PROTOBUF_TYPE)} THEN 'protobuf'
        WHEN content_type RLIKE {pattern(JSON_TYPE)} THEN 'json' END""")).withColumn("refused", F.expr(f"""CASE
        WHEN raw_length > {settings.record_bytes_max} THEN named_struct('reason', 'too-large', 'detail',
            concat('the record has ', raw_length, ' bytes, at most {settings.record_bytes_max} are read: raise kafka.record-bytes-max'))
        WHEN encoding IS NULL THEN named_struct('reason', 'content-type', 'detail',
            concat('content type "', content_type, '" is neither application/json in UTF-8 nor application/x-protobuf'))
        WHEN raw_length = 0 THEN named_struct('reason', 'empty', 'detail', 'the record is empty') END""")).withColumn(
            "content_type", F.expr("""CASE encoding WHEN 'json' THEN 'application/json' WHEN 'protobuf' THEN 'application/x-protobuf'
        ELSE content_type END"""))


def as_text(batch, kind, has_protobuf):
    """Adds the JSON text of each record; that of protobuf is made by Python, and only where there is any."""
    if not has_protobuf:
        return batch.withColumn("text", F.expr("CASE WHEN refused IS NULL THEN CAST(raw AS STRING) END"))
    schema = T.StructType([T.StructField(name, T.StringType()) for name in ("text", "reason", "detail")])
    reader = F.udf(lambda data: protobuf.as_json(kind, bytes(data)) if data is not None else None, schema)
    is_protobuf = "encoding = 'protobuf'" if kind != WAVEFORMS else "true"
    wanted = F.expr(f"CASE WHEN refused IS NULL AND {is_protobuf} THEN raw END")
    read = batch.withColumn("read", reader(wanted))
    return (read.withColumn("text", F.expr("CASE WHEN refused IS NULL THEN if(read IS NULL, CAST(raw AS STRING), read.text) END"))
            .withColumn("refused", F.expr("coalesce(refused, CASE WHEN read.reason IS NOT NULL THEN "
                                          "named_struct('reason', read.reason, 'detail', read.detail) END)")).drop("read"))


def with_fields(batch, names):
    """Adds `v_NAME`, the VARIANT of each field; `is_object` is false where the text is not one JSON object.

    VARIANT stops behind the first value. In an array anything that follows is noticed, but for what follows the array's end: that an
    object around it notices. Fields are asked for by path: of a struct of them Spark would make a copy of the parser for each.
    """
    parsed = batch.withColumn("parsed", F.expr(f"""CASE
        WHEN refused IS NULL AND is_valid_utf8(text)
            AND NOT (contains(text, '\\\\u') AND text RLIKE {pattern(LONE_SURROGATE)})
            AND NOT (contains(text, ']') AND try_parse_json(concat('{{"r":', text, '}}')) IS NULL)
        THEN try_parse_json(concat('[', text, ']')) END"""))
    only = "CASE WHEN try_variant_get(parsed, '$[1]', 'variant') IS NULL THEN try_variant_get(parsed, '$[0]', 'variant') END"
    document = parsed.withColumn("document", F.expr(only))
    return document.select(*CARRIED, "refused", F.expr("coalesce(schema_of_variant(document) LIKE 'OBJECT%', false)").alias("is_object"),
                           *[F.expr(f"try_variant_get(document, '$.{name}', 'variant')").alias(f"v_{name}") for name in names])


class Shape:
    """What a kind of record looks like: the types of its fields, what is derived from them, checks and columns.

    Each step is a projection of its own, so that nothing is computed twice: `t_` the type of a field as VARIANT names it, `s_` its text,
    `d_` a number, `u_` the bits of a whole number without sign, `i_` a time.
    """

    def __init__(self, texts=(), numbers=(), counts=(), flags=(), times=(), maps=()):
        self.texts, self.numbers, self.counts, self.flags, self.times, self.maps = texts, numbers, counts, flags, times, maps
        self.names = (*texts, *numbers, *counts, *flags, *maps)
        self.checks, self.columns = [], {}

    def apply(self, batch):
        """The fields, their types, and their values where the type is right."""
        typed = batch.select("*", *[F.expr(f"schema_of_variant(v_{name})").alias(f"t_{name}") for name in self.names])
        values = [F.expr(f"CASE WHEN t_{name} = 'STRING' THEN try_variant_get(v_{name}, '$', 'string') END").alias(f"s_{name}")
                  for name in self.texts]
        values += [F.expr(f"CASE WHEN t_{name} IN ('BIGINT', 'DOUBLE', 'FLOAT') OR t_{name} LIKE 'DECIMAL%' "
                          f"THEN try_variant_get(v_{name}, '$', 'double') END").alias(f"d_{name}") for name in self.numbers]
        # VARIANT has whole numbers beyond 63 bits as DECIMAL.
        values += [F.expr(f"CASE WHEN t_{name} IN ('BIGINT', 'DECIMAL(19,0)', 'DECIMAL(20,0)') "
                          f"THEN try_variant_get(v_{name}, '$', 'decimal(20,0)') END").alias(f"w_{name}") for name in self.counts]
        values += [F.expr(f"try_variant_get(v_{name}, '$', 'map<string,variant>')").alias(f"m_{name}") for name in self.maps]
        valued = typed.select("*", *values)
        derived = [F.expr(f"CASE WHEN w_{name} BETWEEN 0 AND {U64_MAX} THEN "
                          f"CAST(if(w_{name} > {2**63 - 1}, w_{name} - {2**64}, w_{name}) AS BIGINT) END").alias(f"u_{name}")
                   for name in self.counts]
        derived += [F.expr(instant(f"s_{name}")).alias(f"i_{name}") for name in self.times]
        number = ("CASE WHEN schema_of_variant(value) IN ('BIGINT', 'DOUBLE', 'FLOAT') OR schema_of_variant(value) LIKE 'DECIMAL%' "
                  "THEN try_variant_get(value, '$', 'double') END")
        derived += [F.expr(f"transform_values(m_{name}, (key, value) -> {number})").alias(f"n_{name}") for name in self.maps]
        return valued.select("*", *derived)

    # ---- checks ----

    def check(self, condition, reason, detail):
        self.checks.append((condition, reason, detail))

    def wrong(self, condition, name, expected):
        self.check(condition, "json", f"not a record in JSON: field `{name}`: expected {expected}")

    def text(self, *names):
        for name in names:
            self.wrong(f"t_{name} <> 'STRING'", name, "a string")

    def required_text(self, *names):
        """A derived reader says of a field that is missing what it says of one of another type."""
        for name in names:
            self.wrong(f"t_{name} IS DISTINCT FROM 'STRING'", name, "a string")

    def optional_text(self, *names):
        for name in names:
            self.wrong(f"t_{name} NOT IN ('STRING', 'VOID')", name, "a string")

    def number(self, *names):
        for name in names:
            self.wrong(f"t_{name} <> 'VOID' AND NOT coalesce(abs(d_{name}) < double('Infinity'), false)", name, "a number")

    def count(self, *names):
        for name in names:
            self.wrong(f"t_{name} <> 'VOID' AND u_{name} IS NULL", name, "a whole number")

    def word(self, name, words, expected):
        listed = ", ".join(f"'{word}'" for word in words)
        self.wrong(f"s_{name} NOT IN ({listed})", name, expected)

    def missing(self, *names):
        for name in names:
            self.check(f"v_{name} IS NULL", "missing-field", f"field `{name}` is missing")

    def named(self, name, limit, reason="name"):
        self.check(f"s_{name} RLIKE {pattern(BLANK)} OR octet_length(s_{name}) > {limit} OR s_{name} RLIKE {pattern(CONTROL)}", reason,
                   f"{name} has no name of 1 to {limit} bytes without control characters")

    def named_or_empty(self, name, limit):
        self.check(f"s_{name} <> '' AND (s_{name} RLIKE {pattern(BLANK)} OR octet_length(s_{name}) > {limit} "
                   f"OR s_{name} RLIKE {pattern(CONTROL)})", "name",
                   f"{name} has no name of 1 to {limit} bytes without control characters")

    def time(self, name):
        self.check(f"i_{name} IS NULL", "timestamp", f"{name} is not RFC 3339 such as 2026-03-01T08:15:30.123456Z")

    def identity_types(self):
        self.optional_text("device_id")
        self.count("generation", "sequence")

    def historical(self):
        self.wrong("t_historical <> 'BOOLEAN'", "historical", "a boolean")

    def historical_or_null(self):
        self.wrong("t_historical NOT IN ('BOOLEAN', 'VOID')", "historical", "a boolean")

    def whole_identity(self):
        """A producer may name its device without numbering its records."""
        self.check("(u_generation IS NULL) <> (u_sequence IS NULL) OR (s_device_id IS NULL AND u_generation IS NOT NULL)", "identity",
                   "device_id, generation and sequence belong together: give all three or none")

    def unit(self):
        self.check(f"octet_length(s_unit) > {UNIT_BYTES_MAX}", "too-many", f"field `unit` has over {UNIT_BYTES_MAX} bytes")


IDENTITY = {"device_id": "CASE WHEN u_sequence IS NOT NULL THEN s_device_id END", "generation": "u_generation", "sequence": "u_sequence"}
IDENTITY_TEXTS, IDENTITY_COUNTS = ("device_id",), ("generation", "sequence")
IS_HISTORICAL = "coalesce(try_variant_get(v_historical, '$', 'boolean'), false)"


def present(name):
    """An empty text says nothing."""
    return f"nullif(s_{name}, '')"


def instant(value):
    """A timestamp of RFC 3339 text, to the microsecond; null if it is none. Second 60 is the next one, as there."""
    local = (f"concat(substr({value}, 1, 10), ' ', substr({value}, 12, 6), least(substr({value}, 18, 2), '59'), '.', "
             f"rpad(substr(regexp_extract({value}, r'[.]([0-9]+)', 1), 1, 6), 6, '0'), 'Z')")
    sign = f"if(substr({value}, -6, 1) = '-', -1, 1)"
    minutes = f"(int(substr({value}, -5, 2)) * 60 + int(substr({value}, -2, 2)))"
    offset = f"if(upper(right({value}, 1)) = 'Z', 0, {sign} * {minutes})"
    micros = f"unix_micros(try_to_timestamp({local})) + if(substr({value}, 18, 2) = '60', 1000000, 0) - {offset} * 60000000L"
    # From the year 0 to the end of the year 9999.
    ranged = f"timestamp_micros(CASE WHEN {micros} BETWEEN -62167219200000000L AND 253402300799999999L THEN {micros} END)"
    return (f"CASE WHEN {value} RLIKE {pattern(COMMON_TIME)} THEN try_to_timestamp({value}) "
            f"WHEN {value} RLIKE {pattern(ANY_TIME)} THEN {ranged} END")


def reading():
    """Checks in the order of the aggregator."""
    shape = Shape(texts=("sensor_id", "timestamp", "metric_type", "machine_id", "unit", "quality", *IDENTITY_TEXTS), numbers=("value",),
                  counts=IDENTITY_COUNTS, flags=("historical",), times=("timestamp",), maps=("features",))
    shape.text("sensor_id", "timestamp", "metric_type")
    shape.wrong("t_value IS NOT NULL AND NOT coalesce(abs(d_value) < double('Infinity'), false)", "value", "a number")
    shape.optional_text("machine_id", "unit", "quality")
    shape.word("quality", protobuf.QUALITIES[1:], "good, uncertain or bad")
    shape.identity_types()
    shape.historical_or_null()
    shape.wrong("t_features <> 'VOID' AND (m_features IS NULL OR exists(map_values(n_features), "
                "number -> NOT coalesce(abs(number) < double('Infinity'), false)))", "features", "a map of names to numbers")
    shape.missing("sensor_id", "timestamp", "metric_type", "value")
    shape.named("machine_id", IDENTIFIER_BYTES_MAX)
    shape.unit()
    shape.check(f"size(m_features) > {FEATURES_MAX} OR exists(map_keys(m_features), name -> octet_length(name) > "
                f"{FEATURE_NAME_BYTES_MAX})", "too-many",
                f"field `features` has over {FEATURES_MAX} entries, or a name over {FEATURE_NAME_BYTES_MAX} bytes")
    shape.named("device_id", IDENTIFIER_BYTES_MAX)
    shape.named("sensor_id", IDENTIFIER_BYTES_MAX)
    shape.time("timestamp")
    shape.named("metric_type", METRIC_TYPE_BYTES_MAX)
    shape.whole_identity()
    shape.columns = {
        "metric_type": "s_metric_type", "sensor_id": "s_sensor_id", "timestamp": "i_timestamp", "value": "d_value",
        "machine_id": "s_machine_id", "unit": present("unit"), "quality": "s_quality", **IDENTITY, "historical": IS_HISTORICAL,
        "features": "CASE WHEN size(n_features) > 0 THEN n_features END",
    }
    return shape


def machine_event():
    names = tuple(name for name in EVENT_TEXTS)
    shape = Shape(texts=("event_type", "machine_id", "timestamp", *names, *IDENTITY_TEXTS), numbers=EVENT_NUMBERS,
                  counts=(*EVENT_COUNTS, *IDENTITY_COUNTS), flags=("historical",), times=("timestamp",))
    shape.required_text("event_type", "machine_id", "timestamp")
    shape.word("event_type", protobuf.EVENT_TYPES[1:], "the word of an event")
    shape.identity_types()
    shape.historical()
    shape.named("device_id", IDENTIFIER_BYTES_MAX)
    shape.named("machine_id", IDENTIFIER_BYTES_MAX)
    shape.time("timestamp")
    shape.whole_identity()
    shape.optional_text(*EVENT_TEXTS)
    shape.number(*EVENT_NUMBERS)
    shape.count(*EVENT_COUNTS)
    shape.named("sensor_id", IDENTIFIER_BYTES_MAX, "json")
    shape.named("metric_type", METRIC_TYPE_BYTES_MAX, "json")
    shape.columns = {"event_type": "s_event_type", "machine_id": "s_machine_id", "timestamp": "i_timestamp", **IDENTITY,
                     "historical": IS_HISTORICAL}
    shape.columns |= {name: present(name) for name in EVENT_TEXTS} | {name: f"d_{name}" for name in EVENT_NUMBERS}
    shape.columns |= {name: f"u_{name}" for name in EVENT_COUNTS}
    return shape


def outcome():
    optional = ("alert_id", *OUTCOME_LIMITS, "note")
    shape = Shape(texts=("outcome_id", "verdict", "machine_id", "timestamp", *optional), times=("timestamp",))
    shape.required_text("verdict", "machine_id", "timestamp")
    shape.optional_text("outcome_id", *optional)
    shape.word("verdict", protobuf.VERDICTS[1:], "confirmed, false-alarm, part-replaced or note")
    shape.named("outcome_id", IDENTIFIER_BYTES_MAX)
    shape.check("s_outcome_id IS NULL", "missing-field", "field `outcome_id` is missing")
    shape.named("machine_id", IDENTIFIER_BYTES_MAX)
    shape.time("timestamp")
    shape.check("s_alert_id <> '' AND NOT s_alert_id RLIKE r'^[0-9a-fA-F]{64}$'", "name", "alert_id is not 64 hexadecimal digits")
    for name, limit in OUTCOME_LIMITS.items():
        shape.named_or_empty(name, limit)
    shape.check(f"s_note <> '' AND (s_note RLIKE {pattern(BLANK)} OR octet_length(s_note) > {NOTE_BYTES_MAX} "
                f"OR regexp_replace(s_note, r'[\t\n\r]', '') RLIKE {pattern(CONTROL)})", "name",
                f"note has no text of 1 to {NOTE_BYTES_MAX} bytes without control characters")
    shape.columns = {"outcome_id": "s_outcome_id", "verdict": "s_verdict", "machine_id": "s_machine_id", "timestamp": "i_timestamp"}
    shape.columns |= {name: present(name) for name in optional} | {"alert_id": f"lower({present('alert_id')})"}
    return shape


def dead_letter():
    raw = "try_to_binary(s_raw_base64, 'base64')"
    shape = Shape(texts=("reason", "detail", "source", "timestamp", "raw_base64", *IDENTITY_TEXTS), counts=("raw_length", *IDENTITY_COUNTS),
                  times=("timestamp",))
    shape.required_text("reason", "detail", "source", "timestamp", "raw_base64")
    shape.identity_types()
    shape.wrong("u_raw_length IS NULL", "raw_length", "a whole number")
    shape.time("timestamp")
    shape.check(f"{raw} IS NULL", "base64", "field `raw_base64` is not base64")
    shape.check(f"length({raw}) > {RAW_BYTES_MAX}", "too-many", f"field `raw` has over {RAW_BYTES_MAX} bytes")
    shape.named("device_id", IDENTIFIER_BYTES_MAX)
    shape.whole_identity()
    shape.columns = {"reason": "s_reason", "detail": "s_detail", "source": "s_source", "timestamp": "i_timestamp", **IDENTITY,
                     "letter_raw": raw, "letter_length": "u_raw_length"}
    return shape


def waveform():
    """The JSON text is that of `protobuf`: on this topic there is nothing else."""
    shape = Shape(texts=("machine_id", "sensor_id", "first_sample", "unit", "trip_id", "samples_base64", *IDENTITY_TEXTS),
                  numbers=("sample_rate_hz",), counts=("piece", "sample_count", *IDENTITY_COUNTS), times=("first_sample",))
    shape.check(f"{present('trip_id')} IS NULL", "missing-field", "field `trip_id` is missing")
    shape.missing("piece")
    shape.named("device_id", IDENTIFIER_BYTES_MAX)
    shape.whole_identity()
    shape.named("machine_id", IDENTIFIER_BYTES_MAX)
    shape.named("sensor_id", IDENTIFIER_BYTES_MAX)
    shape.time("first_sample")
    shape.unit()
    shape.check("NOT coalesce(d_sample_rate_hz > 0, false)", "waveform", "waveform block: sample_rate_hz is not a positive number")
    shape.columns = {"machine_id": "s_machine_id", "sensor_id": "s_sensor_id", "trip_id": "s_trip_id", "piece": "CAST(u_piece AS INT)",
                     "first_sample": "i_first_sample", "sample_rate_hz": "d_sample_rate_hz", "unit": present("unit"),
                     "sample_count": "CAST(u_sample_count AS INT)", "samples": "try_to_binary(s_samples_base64, 'base64')", **IDENTITY}
    return shape


SHAPES = {READINGS: reading, MACHINE_EVENTS: machine_event, OUTCOMES: outcome, DEAD_LETTERS: dead_letter, WAVEFORMS: waveform}


def decode(batch, kind, settings, has_protobuf):
    """Records of one kind with their columns; `refused` (reason and detail) where one is none."""
    shape = SHAPES[kind]()
    fielded = shape.apply(with_fields(as_text(encoding(batch, settings), kind, has_protobuf), shape.names))
    told = [("json", "not a record in JSON: not one object in UTF-8")] + [(reason, detail) for _, reason, detail in shape.checks]
    conditions = ["NOT is_object"] + [condition for condition, _, _ in shape.checks]
    cases = " ".join(f"WHEN {condition} THEN {place}" for place, condition in enumerate(conditions, 1))
    judged = fielded.withColumn("fault", F.expr(f"CASE WHEN refused IS NOT NULL THEN NULL {cases} END"))
    reasons = F.array(*[F.struct(F.lit(reason).alias("reason"), F.lit(detail).alias("detail")) for reason, detail in told])
    made = [F.expr(expression).alias(name) for name, expression in shape.columns.items()]
    refused = F.coalesce("refused", F.try_element_at(reasons, F.col("fault"))).alias("refused")
    return judged.select(*CARRIED, refused, *made).withColumn("date", F.to_date(shape.times[0] if kind == WAVEFORMS else "timestamp"))
