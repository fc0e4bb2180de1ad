"""The tables that the aggregator writes: which trips a model made, what people found, and the samples around them.

A trip is labelled by outcomes: `confirmed` and `part-replaced` say abnormal, `false-alarm` says healthy, a `note` says
nothing. Of an outcome the newest row counts, by its timestamp and then its offset: a person may correct. What cannot be
used is counted under a name of `LEFT_OUT`, never dropped silently.
"""

import collections
import pathlib
from dataclasses import dataclass, field

import numpy as np

from .recordings import DataFault, missing

ABNORMAL_VERDICTS = ("confirmed", "part-replaced")
HEALTHY_VERDICTS = ("false-alarm",)
# Rules that only warn have a snapshot, too, where the settings say so.
TRIP_EVENTS = ("trip", "alarm")
# Snapshots begin before the trip and may go on for a minute: their pieces lie in a neighbouring day at most.
DAY_US = 86_400 * 10**6
# As edge-module/src/scoring/mod.rs: a tenth of a percent moves no frequency by a whole bin of the bands.
RATE_TOLERANCE = 1e-3
# As in edge-module/config/default.toml.
GAP_TOLERANCE_SAMPLES = 2.0
SAMPLE_BYTES = 4

LEFT_OUT = {
    "without-outcome": "trips of the model of which nobody said what was found",
    "outcomes-disagree": "trips that one outcome confirms and another calls a false alarm",
    "outcome-without-trip": "outcomes that name no trip, nor an alert of one",
    "outcome-of-unknown-trip": "outcomes whose trip is not in machine_events",
    "sensor-of-another-model": "trips with an outcome whose sensor this model does not score",
    "without-waveform": "trips with an outcome of which no samples are in the table",
    "other-rate": "trips whose samples have another rate than the model's",
    "other-unit": "trips whose samples have another unit than the model's",
    "damaged-samples": "trips whose samples are not of the form: length, count, not finite",
    "other-time": "trips whose samples all lie after them: the clocks of sensor and gateway differ",
    "too-short": "trips with fewer windows before them than votes are needed, or none that led to them",
}


@dataclass(frozen=True)
class Trip:
    """A trip of one sensor that people have judged."""

    machine: str
    trip_id: str
    sensor: str
    at_us: int
    abnormal: bool
    model: str
    cause: str


@dataclass
class Labelled:
    """Trips in the order of time, and how many could not be used, by reason."""

    trips: list
    left_out: collections.Counter = field(default_factory=collections.Counter)
    versions: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Samples that follow each other without a gap, f32, in the sensor's unit."""

    start_us: int
    rate_hz: float
    samples: np.ndarray


class Lake:
    """The tables in one folder or at one address, each as of the moment it was opened."""

    def __init__(self, location):
        self.location = str(location).rstrip("/")
        if "://" not in self.location and not pathlib.Path(self.location).is_dir():
            raise missing(self.location, "name the folder of the aggregator's tables")
        self.tables = {}

    def table(self, name):
        """A table, or None if there is none of this name."""
        if name not in self.tables:
            self.tables[name] = self._open(name)
        return self.tables[name]

    def rows(self, name, columns, where):
        """Rows of a table as dictionaries; columns that it does not have are None."""
        table = self.table(name)
        if table is None:
            return []
        present = {one.name for one in table.schema().fields}
        chosen = [column for column in columns if column in present]
        times = {one.name for one in table.schema().fields if "timestamp" in str(one.type)}
        # Microseconds since 1970, whatever zone a reader would put to them.
        terms = [
            f'CAST("{column}" AS BIGINT) AS "{column}"' if column in times else f'"{column}"'
            for column in chosen
        ]
        query = f'SELECT {", ".join(terms)} FROM "{name}" WHERE {where}'
        return [dict.fromkeys(columns) | row for row in self._execute(name, table, query)]

    def _open(self, name):
        deltalake = _deltalake()
        path = f"{self.location}/{name}"
        try:
            return deltalake.DeltaTable(path)
        except deltalake.exceptions.TableNotFoundError:
            return None
        except Exception as error:  # The library's errors have no common class.
            raise DataFault(path, f"cannot be read ({_line(error)})", "see the table") from None

    def _execute(self, name, table, query):
        try:
            batches = _deltalake().QueryBuilder().register(name, table).execute(query)
            for batch in batches:
                columns = {key: batch.column(key).to_pylist() for key in batch.schema.names}
                for values in zip(*columns.values()):
                    yield dict(zip(columns, values))
        except Exception as error:
            path = f"{self.location}/{name}"
            raise DataFault(path, f"cannot be read ({_line(error)})", "see the table") from None


def _deltalake():
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError:
        remedy = "pip install -r requirements.txt"
        raise DataFault("deltalake", "is not installed", remedy, 69) from None
    return deltalake


def _line(error):
    return " ".join(str(error).split())[:200]


def labelled_trips(lake, model_name):
    """Trips of the sensors that a model of this name scores, labelled by what people found."""
    left_out = collections.Counter()
    if lake.table("machine_events") is None:
        remedy = "name the folder of the aggregator's tables"
        raise missing(f"{lake.location}/machine_events", remedy)
    events = trip_events(lake)
    sensors = {
        (event["machine_id"], event["sensor_id"])
        for event in events.values()
        if is_of_model(event, model_name)
    }
    verdicts = verdicts_by_trip(lake, set(events), left_out)
    trips = []
    for key, event in events.items():
        found = verdicts.get(key)
        is_own = (event["machine_id"], event["sensor_id"]) in sensors
        if not found:
            left_out["without-outcome"] += is_own
        elif not is_own:
            left_out["sensor-of-another-model"] += 1
        elif len(found) > 1:
            left_out["outcomes-disagree"] += 1
        else:
            trips.append(
                Trip(
                    *key,
                    event["sensor_id"],
                    event["timestamp"],
                    next(iter(found)),
                    event["model"] or "",
                    event["cause"] or "",
                )
            )
    trips.sort(key=lambda trip: (trip.at_us, trip.machine, trip.trip_id))
    names = [name for name in ("machine_events", "outcomes", "alerts", "waveforms")]
    versions = {name: table.version() for name in names if (table := lake.table(name)) is not None}
    return Labelled(trips, left_out, versions)


def is_of_model(event, model_name):
    """Whether this model, of whatever version, scores the sensor that tripped: a limit's trip names it, too."""
    return (event["model"] or "").rpartition("@")[0] == model_name and event["sensor_id"]


def trip_events(lake):
    """The first event of each trip by machine and trip."""
    columns = ("machine_id", "trip_id", "sensor_id", "timestamp", "model", "cause")
    where = f"event_type IN ({', '.join(map(quoted, TRIP_EVENTS))}) AND trip_id IS NOT NULL"
    rows = lake.rows("machine_events", columns, where)
    rows = [row for row in rows if row["machine_id"] and row["timestamp"] is not None]
    events = {}
    for row in sorted(rows, key=lambda row: (row["timestamp"], row["trip_id"], str(row))):
        events.setdefault((row["machine_id"], row["trip_id"]), row)
    return dict(sorted(events.items()))


def verdicts_by_trip(lake, trips, left_out):
    """What people found of each trip: True for abnormal, False for healthy; both, where they disagree."""
    alerts = {
        row["alert_id"]: (row["machine_id"], row["trip_id"])
        for row in lake.rows("alerts", ("alert_id", "machine_id", "trip_id"), "trip_id IS NOT NULL")
    }
    verdicts = collections.defaultdict(set)
    for row in newest_outcomes(lake):
        if row["verdict"] in ABNORMAL_VERDICTS:
            abnormal = True
        elif row["verdict"] in HEALTHY_VERDICTS:
            abnormal = False
        else:
            continue
        key = (row["machine_id"], row["trip_id"])
        if not row["trip_id"]:
            key = alerts.get(row["alert_id"])
        if key is None:
            left_out["outcome-without-trip"] += 1
        elif key not in trips:
            left_out["outcome-of-unknown-trip"] += 1
        else:
            verdicts[key].add(abnormal)
    return verdicts


def newest_outcomes(lake):
    columns = (
        "outcome_id",
        "verdict",
        "machine_id",
        "alert_id",
        "trip_id",
        "timestamp",
        "source_offset",
    )
    newest = {}
    age = lambda row: (row["timestamp"] or 0, row["source_offset"] or 0)
    for row in lake.rows("outcomes", columns, "outcome_id IS NOT NULL"):
        before = newest.get(row["outcome_id"])
        if before is None or age(row) > age(before):
            newest[row["outcome_id"]] = row
    return [newest[name] for name in sorted(newest)]


def runs_of(lake, trip, rate_hz, unit):
    """The trip's samples before it as runs, and None; or no runs, and the reason."""
    columns = ("first_sample", "sample_rate_hz", "unit", "sample_count", "samples")
    days = ", ".join(quoted(day(trip.at_us + shift * DAY_US)) for shift in (-1, 0, 1))
    where = (
        f"date IN ({days}) AND machine_id = {quoted(trip.machine)} "
        f"AND sensor_id = {quoted(trip.sensor)} AND trip_id = {quoted(trip.trip_id)}"
    )
    pieces = lake.rows("waveforms", columns, where)
    if not pieces:
        return [], "without-waveform"
    if any(not is_whole(piece) for piece in pieces):
        return [], "damaged-samples"
    if any(abs(piece["sample_rate_hz"] / rate_hz - 1) > RATE_TOLERANCE for piece in pieces):
        return [], "other-rate"
    if any(piece["unit"] and piece["unit"] != unit for piece in pieces):
        return [], "other-unit"
    runs = [before(run, trip.at_us) for run in joined(pieces)]
    runs = [run for run in runs if len(run.samples)]
    if any(not np.isfinite(run.samples).all() for run in runs):
        return [], "damaged-samples"
    return runs, None if runs else "other-time"


def is_whole(piece):
    content, rate = piece["samples"], piece["sample_rate_hz"]
    if content is None or piece["first_sample"] is None or not rate or not rate > 0:
        return False
    count = piece["sample_count"]
    return len(content) % SAMPLE_BYTES == 0 and count in (None, len(content) // SAMPLE_BYTES)


def joined(pieces):
    """Pieces as runs; what repeats a piece, or reaches back into one, is not taken twice."""
    runs, parts, end_us = [], [], None
    for piece in sorted(pieces, key=lambda one: (one["first_sample"], len(one["samples"]))):
        samples = np.frombuffer(piece["samples"], "<f4")
        start_us, rate = piece["first_sample"], piece["sample_rate_hz"]
        tolerance_us = GAP_TOLERANCE_SAMPLES * 1e6 / rate + 1.0
        if end_us is not None and start_us < end_us - tolerance_us:
            continue
        if end_us is None or start_us > end_us + tolerance_us or rate != parts[0][1]:
            runs.append(parts := [])
        parts.append((start_us, rate, samples))
        end_us = start_us + len(samples) / rate * 1e6
    return [Run(one[0][0], one[0][1], np.concatenate([part[2] for part in one])) for one in runs]


def before(run, at_us):
    """What of a run was taken until this moment."""
    count = int(np.floor((at_us - run.start_us) * run.rate_hz / 1e6 + 1e-6))
    return Run(run.start_us, run.rate_hz, run.samples[: max(0, count)])


def day(time_us):
    return str(np.datetime64(time_us, "us").astype("datetime64[D]"))


def quoted(text):
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"
