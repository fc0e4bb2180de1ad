"""Appends rows to a Delta table without the program that owns it, one commit after the other, as another job would.

    lake_writer.py LAKE TABLE COMMITS

Each commit adds one row with source_topic 'foreign'. A version that somebody else was faster with is tried again with
the next number, as the protocol asks of a blind append.
"""

import json
import os
import sys
import time
import uuid

import duckdb


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    table, commits = os.path.join(sys.argv[1], sys.argv[2]), int(sys.argv[3])
    log = os.path.join(table, "_delta_log")
    connection = duckdb.connect()
    version = 0
    for number in range(commits):
        # The columns that are no partitions; those that are missing are null.
        name = f"date=2026-01-01/metric_type=foreign/part-{uuid.uuid4()}.parquet"
        path = os.path.join(table, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        connection.execute(
            f"COPY (SELECT 'foreign' AS sensor_id, TIMESTAMPTZ '2026-01-01 00:00:00Z' AS timestamp, "
            f"{number}.0 AS value, 'foreign' AS source_topic, CAST(0 AS INTEGER) AS source_partition, "
            f"CAST({number} AS BIGINT) AS source_offset) TO '{path}' (FORMAT PARQUET)")
        add = {"add": {"path": name, "partitionValues": {"date": "2026-01-01", "metric_type": "foreign"},
                       "size": os.path.getsize(path), "modificationTime": int(time.time() * 1000), "dataChange": True}}
        draft = os.path.join(log, f".{uuid.uuid4()}.tmp")
        with open(draft, "w", encoding="utf-8") as file:
            file.write(json.dumps(add) + "\n")
        while True:
            try:
                os.link(draft, os.path.join(log, f"{version:020d}.json"))
                break
            except FileExistsError:
                version += 1
        os.unlink(draft)


main()
