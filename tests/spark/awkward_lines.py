"""Asks Spark what from_json makes of the awkward lines of shared-proto/tests/spark/from_json.jsonl, and writes its answers there.

    make bench-spark installs what is needed; then:  target/setup/spark/bin/python tests/spark/awkward_lines.py

Each line of the file has `case`, the message as `line` (null: a message without payload) or `hex`, and `spark`: the four fields as
Spark's job reads them (time in microseconds since 1970, value as text) and whether its windows count the row.
"""

import json
import os
import pathlib

from pyspark.sql import SparkSession, functions as F

FILE = pathlib.Path(__file__).resolve().parents[2] / "shared-proto/tests/spark/from_json.jsonl"
SCHEMA = "sensor_id string, timestamp timestamp, metric_type string, value float"


def payload(case):
    if "hex" in case:
        return bytearray.fromhex(case["hex"])
    return None if case["line"] is None else bytearray(case["line"].encode())


def main():
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
             .config("spark.sql.session.timeZone", "UTC").config("spark.ui.showConsoleProgress", "false").getOrCreate())
    spark.sparkContext.setLogLevel("ERROR")
    cases = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    rows = [(number, payload(case)) for number, case in enumerate(cases)]
    table = spark.createDataFrame(rows, "number int, value binary")
    read = table.select("number", F.from_json(F.col("value").cast("string"), SCHEMA).alias("d")).select("number", "d.*")
    answers = read.orderBy("number").selectExpr(
        "sensor_id", "unix_micros(timestamp) AS timestamp", "metric_type", "cast(value AS string) AS value",
        "coalesce(metric_type = 'temperature' AND value > 100, false) AND timestamp IS NOT NULL AS counted")
    for case, answer in zip(cases, answers.collect(), strict=True):
        case["spark"] = answer.asDict()
    version = spark.version
    spark.stop()
    FILE.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    print(f"{len(cases)} answers of Spark {version}")


main()
