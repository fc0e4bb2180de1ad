"""Every reader reads every table of a lake, at each stage of its life, and all say the same.

    matrix.py LAKE FOLDER --aggregator PROGRAM [--spark PYTHON JARS] [--jars JARS] [--java JAVA]

FOLDER must not be there. The lake is copied into it after each stage:

    appends      as the aggregator has left it
    merge        another program has added a column to telemetry, with a row that has it
    compaction   the aggregator has merged small files (`maintain`)
    vacuum       what it has replaced is three hours old and deleted
    checkpoint   the log begins with a checkpoint, the commits before it are deleted

Prints a line for each reader: its name and seconds. Whatever differs is an error.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pyarrow as pa
from deltalake import write_deltalake

from canonical import tables_of

HERE = pathlib.Path(__file__).resolve().parent
STAGES = ["appends", "merge", "compaction", "vacuum", "checkpoint"]
MERGED, COLUMN = "telemetry", "calibration"
# 2001-01-01, in days and microseconds since 1970.
DAY = 11_323
NOON = (DAY * 86_400 + 43_200) * 1_000_000
AGE_SECONDS = 3 * 3600
# The shortest that the aggregator allows.
MAINTENANCE = {"LEASE": "1s", "FILES_MIN": "2", "VACUUM_RETENTION": "1h", "VACUUM_INTERVAL": "1s", "LOG_RETENTION": "1h"}
MAINTAIN_SECONDS_MAX = 120
READER_SECONDS_MAX = 900


def ensure(holds, fault):
    if not holds:
        raise SystemExit(fault)


def foreign_row():
    """A row that no aggregator has read: its source says so."""
    columns = {"date": pa.array([DAY], pa.date32()), "metric_type": ["foreign"], "sensor_id": ["foreign"],
               "timestamp": pa.array([NOON], pa.timestamp("us", "UTC")), "value": [1.5], "historical": [False],
               "source_topic": ["foreign"], "source_partition": pa.array([0], pa.int32()),
               "source_offset": pa.array([1], pa.int64()), COLUMN: [0.25]}
    return pa.table(columns)


def merge(lake):
    write_deltalake(os.path.join(lake, MERGED), foreign_row(), mode="append", schema_mode="merge")


def age(lake):
    """Makes all files three hours old, and what the log says of removed ones."""
    then = time.time() - AGE_SECONDS
    for path in pathlib.Path(lake).rglob("*"):
        if path.parent.name == "_delta_log" and path.suffix == ".json":
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(r'"deletionTimestamp":\d+', f'"deletionTimestamp":{int(then * 1000)}', text), encoding="utf-8")
        os.utime(path, (then, then))


def maintain(lake, program, **more):
    names = {f"AGGREGATOR__MAINTENANCE__{name}": value for name, value in {**MAINTENANCE, **more}.items()}
    environment = {**os.environ, "AGGREGATOR__LAKE__LOCATION": str(lake), **names}
    done = subprocess.run([program, "maintain"], env=environment, capture_output=True, text=True, timeout=MAINTAIN_SECONDS_MAX)
    ensure(done.returncode == 0, f"maintain: {done.returncode}: {done.stdout}{done.stderr}")


def files(lake):
    """Parquet files of rows, by table."""
    return {name: {path for path in pathlib.Path(folder).rglob("*.parquet") if path.parent.name != "_delta_log"}
            for name, folder in tables_of(lake).items()}


def vacuum(lake, program, there):
    """Maintains until the replaced files are gone: it looks for them once in an interval, which the round before has begun."""
    deadline = time.monotonic() + MAINTAIN_SECONDS_MAX
    while True:
        maintain(lake, program)
        left = files(lake)
        if all(len(left[table]) < len(there[table]) for table in (MERGED, "anomalies")):
            return
        ensure(time.monotonic() < deadline, f"nothing was vacuumed within {MAINTAIN_SECONDS_MAX} s")


def named(folder):
    """How many files the commits of a log name."""
    active = set()
    for path in sorted(pathlib.Path(folder, "_delta_log").glob("*.json")):
        for action in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if "add" in action:
                active.add(action["add"]["path"])
            if "remove" in action:
                active.discard(action["remove"]["path"])
    return len(active)


def stages(source, folder, program):
    """Copies of the lake after each stage; each has really happened."""
    lake = folder / "lake"
    shutil.copytree(source, lake)
    copies = []

    def keep(stage):
        copies.append(folder / stage)
        shutil.copytree(lake, copies[-1])

    keep("appends")
    merge(lake)
    keep("merge")
    before = {name: named(path) for name, path in tables_of(lake).items()}
    maintain(lake, program)
    keep("compaction")
    after = {name: named(path) for name, path in tables_of(lake).items()}
    ensure(after[MERGED] < before[MERGED] and after["anomalies"] < before["anomalies"], f"nothing was merged: {before}, {after}")
    there = files(lake)
    age(lake)
    vacuum(lake, program, there)
    keep("vacuum")
    age(lake)
    maintain(lake, program, CHECKPOINT_COMMITS="1")
    keep("checkpoint")
    for name, path in tables_of(lake).items():
        log = sorted(os.listdir(os.path.join(path, "_delta_log")))
        checkpoint = any(entry.endswith(".checkpoint.parquet") for entry in log)
        ensure(checkpoint and f"{0:020}.json" not in log, f"{name}: the log still has all: {log}")
    return [str(copy) for copy in copies]


def readers(arguments, folder):
    """Command line of each reader, without the lakes."""
    commands = {name: [sys.executable, str(HERE / f"read_{name}.py")] for name in ("duckdb", "pyarrow", "polars")}
    if arguments.jars:
        jars = sorted(pathlib.Path(arguments.jars).glob("*.jar"))
        compiler = [jar for jar in jars if jar.name.startswith("ecj-")]
        ensure(len(compiler) == 1, f"{arguments.jars}: {len(compiler)} compilers")
        classes = folder / "classes"
        path = ":".join(map(str, jars))
        subprocess.run([arguments.java, "-jar", str(compiler[0]), "-17", "-proc:none", "-cp", path, "-d", str(classes),
                        str(HERE / "KernelReader.java")], check=True, timeout=READER_SECONDS_MAX)
        commands["kernel"] = [arguments.java, "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{classes}:{path}",
                              "KernelReader"]
    if arguments.spark:
        python, jars = arguments.spark
        commands["spark"] = [python, str(HERE / "read_spark.py"), jars]
    return commands


def read(name, command, lakes):
    began = time.monotonic()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command + lakes, capture_output=True, text=True, timeout=READER_SECONDS_MAX, env=environment)
    ensure(done.returncode == 0, f"{name} cannot read: {done.stderr[-4000:]}")
    answers = {line["lake"]: line["tables"] for line in map(json.loads, done.stdout.splitlines())}
    ensure(list(answers) == lakes, f"{name} read {list(answers)}")
    print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    return answers


def check_reader(name, answers, lakes):
    """What a reader says of one stage and the next."""
    for lake, before in zip(lakes[1:], lakes):
        stage = pathlib.Path(lake).name
        ensure(set(answers[lake]) == set(answers[before]), f"{name}: {stage}: tables {sorted(answers[lake])}")
        for table, now in answers[lake].items():
            earlier = answers[before][table]
            ensure(now["rows"] == now["distinct"], f"{name}: {stage}: {table} has rows twice: {now}")
            if stage == "merge" and table == MERGED:
                ensure(now["rows"] == earlier["rows"] + 1 and now["checksum"] != earlier["checksum"], f"{name}: {stage}: {now}")
                ensure(set(now["columns"]) == {*earlier["columns"], COLUMN}, f"{name}: {stage}: {now['columns']}")
            else:
                ensure(now == earlier, f"{name}: {stage}: {table} was {earlier} and is {now}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--aggregator", required=True)
    parser.add_argument("--jars")
    parser.add_argument("--java", default="java")
    parser.add_argument("--spark", nargs=2)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    lakes = stages(arguments.lake, arguments.folder, arguments.aggregator)
    ensure([pathlib.Path(lake).name for lake in lakes] == STAGES, f"stages {lakes}")
    first, of = None, {}
    for name, command in readers(arguments, arguments.folder).items():
        of[name] = read(name, command, lakes)
        check_reader(name, of[name], lakes)
        first = first or name
        for lake in lakes:
            for table, due in of[first][lake].items():
                found = of[name][lake].get(table)
                ensure(found == due, f"{pathlib.Path(lake).name}: {table}: {first} reads {due}, {name} {found}")
    empty = [table for table, answer in of[first][lakes[0]].items() if answer["rows"] == 0]
    ensure(not empty, f"nothing is to be read of {empty}")
    counts = ", ".join(f"{table} {answer['rows']}" for table, answer in of[first][lakes[-1]].items())
    print(f"{len(of)} readers agree at {len(lakes)} stages: {counts}")


main()
