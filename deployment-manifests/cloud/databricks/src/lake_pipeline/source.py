"""Kafka as Spark reads it: where to begin, and who may.

Partitions are Spark's own business: the lake knows offsets by topic and partition, and the checkpoint of the query is what goes on.
"""

import json

from pyspark.errors import PySparkException

from lake_pipeline.refusal import Refusal

EARLIEST, LATEST = -2, -1
# Databricks has Kafka's client under another name.
CLIENTS = ("org.apache.kafka", "kafkashaded.org.apache.kafka")
# Aborted transactions are no records.
FIXED = {"kafka.isolation.level": "read_committed", "includeHeaders": "true", "failOnDataLoss": "true"}
ADMIN_PATIENCE_SECONDS = 30


def starting_offsets(text, topics):
    """Offsets by topic and partition, as `cloud-aggregator lake offsets --format spark` prints them."""
    try:
        given = json.loads(text)
        found = {topic: {str(int(partition)): int(offset) for partition, offset in partitions.items()}
                 for topic, partitions in given.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Refusal(f'the starting offsets are not such as {{"temperature":{{"0":123}}}}: {error}') from error
    unknown = sorted(set(found) - set(topics))
    if unknown:
        raise Refusal(f"the starting offsets name the topic {unknown[0]}, which kafka.topics does not: "
                      "use the configuration that the aggregator had")
    return found


def partitions_of(spark, topics, options):
    """Numbers of the partitions of each topic. Spark wants an offset for each of them."""
    try:
        jvm = spark._jvm
    except (AttributeError, PySparkException):
        # Spark Connect (serverless) has no way to ask: then the offsets have to name them all, and Spark says if they do not.
        return {}
    properties = jvm.java.util.HashMap()
    for name, value in options.items():
        if name.startswith("kafka.") and name != "kafka.isolation.level":
            properties.put(name.removeprefix("kafka."), value)
    for package in CLIENTS:
        try:
            jvm.java.lang.Class.forName(f"{package}.clients.admin.Admin", False, jvm.Thread.currentThread().getContextClassLoader())
        except Exception:  # noqa: BLE001: py4j has one error for every one of Java's
            continue
        part = jvm
        for name in f"{package}.clients.admin.Admin".split("."):
            part = getattr(part, name)
        admin = part.create(properties)
        try:
            names = jvm.java.util.ArrayList()
            for topic in topics:
                names.append(topic)
            described = admin.describeTopics(names).allTopicNames().get(ADMIN_PATIENCE_SECONDS, jvm.java.util.concurrent.TimeUnit.SECONDS)
            return {topic: [str(partition.partition()) for partition in described[topic].partitions()] for topic in topics}
        finally:
            admin.close()
    return {}


def stream(spark, settings, options, offsets, batch_records):
    """The records of all topics. `offsets` counts for a new checkpoint only; partitions that it does not name are read whole.

    `batch_records` bounds a batch; a real-time query has none.
    """
    given = FIXED | {"kafka.bootstrap.servers": settings.brokers} | options
    topics = sorted(settings.topics)
    start = "earliest"
    if offsets is not None:
        there = partitions_of(spark, topics, given)
        whole = {topic: {number: EARLIEST for number in there.get(topic, ())} | offsets.get(topic, {}) for topic in topics}
        start = json.dumps({topic: numbers for topic, numbers in whole.items() if numbers})
    reader = spark.readStream.format("kafka").options(**given).option("subscribe", ",".join(topics)).option("startingOffsets", start)
    if batch_records is not None:
        reader = reader.option("maxOffsetsPerTrigger", batch_records)
    return reader.load()
