#!/usr/bin/env python3
"""Writes to a Delta table beside the program under test, with a library that is not ours, until its standard input ends.

    delta_writer.py LAKE TABLE

Appends a row, makes large files of small ones, sorts them along a curve (Z-order), changes a table property and writes a log
checkpoint, in turn. Commits that others were faster than are counted and not repeated. Prints one JSON object at the end:
how often each was done, and how often one was refused.
"""

import json
import os
import select
import sys

from arro3.core import Array, DataType, RecordBatch, Table
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

# 2001-01-01, in days since 1970.
DAY = 11323


def row(number):
    """One row that the program has never read: its source says so."""
    columns = {
        "date": Array([DAY], DataType.int32()).cast(DataType.date32()),
        "metric_type": Array(["foreign"], DataType.string()),
        "sensor_id": Array([f"foreign-{number}"], DataType.string()),
        "value": Array([float(number)], DataType.float64()),
        "source_topic": Array(["foreign"], DataType.string()),
        "source_partition": Array([0], DataType.int32()),
        "source_offset": Array([number], DataType.int64()),
    }
    batch = RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return Table.from_batches([batch])


def is_over():
    ready, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(ready) and not sys.stdin.readline()


def main():
    lake, name = sys.argv[1:]
    folder = os.path.join(lake, name)
    counts = {"appends": 0, "compactions": 0, "z_orders": 0, "properties": 0, "checkpoints": 0, "refused": 0}

    def append():
        write_deltalake(folder, row(counts["appends"]), mode="append", schema_mode="merge")

    def compact():
        DeltaTable(folder).optimize.compact()

    def z_order():
        DeltaTable(folder).optimize.z_order(["sensor_id", "timestamp"])

    def properties():
        DeltaTable(folder).alter.set_table_properties({"owner": f"foreign-{counts['properties']}"}, raise_if_not_exists=False)

    def checkpoint():
        DeltaTable(folder).create_checkpoint()

    steps = {"appends": append, "compactions": compact, "z_orders": z_order, "properties": properties,
             "checkpoints": checkpoint}
    while not is_over():
        for what, step in steps.items():
            try:
                step()
                counts[what] += 1
            except CommitFailedError as error:
                print(f"{what}: {error}", file=sys.stderr)
                counts["refused"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
