"""The contract of the lake: which columns of which types each table has.

The file is cloud-aggregator/contract/lake.odcs.json, the same that the aggregator and the readers are compared with.
"""

import json

from lake_pipeline.refusal import Refusal

VERSION_MAJOR = "1"
TYPES = {
    "string": "STRING", "date": "DATE", "timestamp": "TIMESTAMP", "double": "DOUBLE", "boolean": "BOOLEAN", "long": "BIGINT",
    "integer": "INT", "binary": "BINARY", "map<string,double>": "MAP<STRING, DOUBLE>",
    "struct<start:timestamp,end:timestamp>": "STRUCT<start: TIMESTAMP, end: TIMESTAMP>",
}
# What this job writes. `alerts` and `current_windows` are the aggregator's alone.
WRITTEN = ("telemetry", "anomalies", "late_readings", "machine_events", "outcomes", "waveforms", "dead_letters")


class Table:
    """One table of the contract."""

    def __init__(self, given):
        self.name = given["name"]
        self.columns = [(column["name"], TYPES[column["physicalType"]]) for column in given["properties"]]
        partitions = [column for column in given["properties"] if column.get("partitioned")]
        partitions.sort(key=lambda column: column["partitionKeyPosition"])
        self.partitions = [column["name"] for column in partitions]

    def names(self):
        return [name for name, _ in self.columns]


def load(text):
    """The tables that the job writes, by name."""
    contract = json.loads(text)
    version = contract["version"]
    if version.split(".")[0] != VERSION_MAJOR:
        raise Refusal(f"the contract has version {version}, this job knows {VERSION_MAJOR}: deploy the bundle of the same release")
    tables = {given["name"]: Table(given) for given in contract["schema"] if given["name"] in WRITTEN}
    missing = sorted(set(WRITTEN) - set(tables))
    if missing:
        raise Refusal(f"the contract has no table {missing[0]}")
    return tables
