"""The job that the aggregator stands in for, in Spark Structured Streaming: the same topics, the same rule, Delta tables.

    windows.py --bootstrap B --jars DIR --dir NEW_DIR --queries anomaly[,raw] --records N

Reads N records that lie in the topics temperature, pressure and vibration, writes `anomaly` (windows of one minute with more than five
temperatures above 100) and `raw` (every record), waits for the batch that closes windows, and says as one JSON line what it took. Run it
with target/setup/spark/bin/python after deployment-manifests/local/setup spark.
"""

import argparse
import glob
import json
import os
import time
from datetime import datetime

BEGAN = time.time()
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")

from pyspark.sql import SparkSession, functions as F  # noqa: E402

SCHEMA = "sensor_id string, timestamp timestamp, metric_type string, value float"
PATIENCE_SECONDS = 500
CLOSING_SECONDS = 60


def session(arguments):
    jars = sorted(glob.glob(os.path.join(arguments.jars, "*.jar")))
    builder = (
        SparkSession.builder.master(arguments.master).appName("windows")
        .config("spark.jars", ",".join(jars)).config("spark.driver.extraClassPath", os.path.join(arguments.jars, "*"))
        .config("spark.driver.memory", "6g").config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1").config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false").config("spark.local.dir", os.path.join(arguments.dir, "local"))
        .config("spark.sql.warehouse.dir", os.path.join(arguments.dir, "warehouse"))
        .config("spark.sql.session.timeZone", "UTC").config("spark.sql.shuffle.partitions", "4")
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.databricks.delta.snapshotPartitions", "2")
        .config("spark.sql.streaming.numRecentProgressUpdates", "10000"))
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def start(spark, arguments, name):
    records = (
        spark.readStream.format("kafka").option("kafka.bootstrap.servers", arguments.bootstrap)
        .option("subscribe", "temperature,pressure,vibration").option("startingOffsets", "earliest").load()
        .select(F.from_json(F.col("value").cast("string"), SCHEMA).alias("d")).select("d.*"))
    if name == "anomaly":
        records = (
            records.filter("metric_type = 'temperature' and value > 100").withWatermark("timestamp", "1 minute")
            .groupBy(F.window("timestamp", "1 minute"), "sensor_id").count().filter("count > 5"))
    checkpoint = os.path.join(arguments.dir, "checkpoint-" + name)
    return (records.writeStream.format("delta").outputMode("append").option("checkpointLocation", checkpoint)
            .trigger(processingTime="1 second").start(os.path.join(arguments.dir, name)))


def rows(query):
    return sum(progress["numInputRows"] for progress in query.recentProgress)


def wait_until_closed(query):
    """Until the batch without data that follows the last data has emitted the windows which the watermark closes."""
    deadline = time.time() + CLOSING_SECONDS
    while time.time() < deadline:
        progress = query.recentProgress
        newest = max(p["batchId"] for p in progress if p["numInputRows"])
        if any(p["batchId"] > newest for p in progress) and not query.status["isTriggerActive"]:
            return
        time.sleep(0.1)


def end_of(progress):
    began = datetime.fromisoformat(progress["timestamp"].replace("Z", "+00:00")).timestamp()
    return began + progress["durationMs"].get("triggerExecution", 0) / 1e3


def main():
    parser = argparse.ArgumentParser()
    for name in ("--bootstrap", "--jars", "--dir", "--queries"):
        parser.add_argument(name, required=True)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--master", default=f"local[{os.cpu_count()}]")
    arguments = parser.parse_args()
    os.makedirs(arguments.dir, exist_ok=True)
    spark = session(arguments)
    pid = spark._jvm.java.lang.ProcessHandle.current().pid()
    started = time.time()
    queries = {name: start(spark, arguments, name) for name in arguments.queries.split(",")}
    while any(rows(query) < arguments.records for query in queries.values()):
        for name, query in queries.items():
            if query.exception():
                raise SystemExit(f"{name}: {query.exception()}")
        if time.time() - started > PATIENCE_SECONDS:
            raise SystemExit(f"not read within {PATIENCE_SECONDS} s: { {name: rows(query) for name, query in queries.items()} }")
        time.sleep(0.1)
    wait_until_closed(queries["anomaly"])
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        ticks = stat.read().rsplit(")", 1)[1].split()[11:13]
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    ended = max(end_of(p) for query in queries.values() for p in query.recentProgress if p["numInputRows"])
    logs = glob.glob(os.path.join(arguments.dir, "*", "_delta_log", "*.json"))
    answer = {
        "version": spark.version, "rows": min(rows(query) for query in queries.values()), "seconds": ended - started,
        "cpu_seconds": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), "peak_bytes": peak,
        "first_commit_seconds": min(os.stat(log).st_mtime for log in logs) - BEGAN,
    }
    for query in queries.values():
        query.stop()
    spark.stop()
    print(json.dumps(answer), flush=True)


main()
