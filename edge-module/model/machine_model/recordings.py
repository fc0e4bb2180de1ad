"""The recordings on disk: read, checked, in the unit of their sensor. `DATA.md` beside them says what they are.

Anything wrong is a `DataFault`: one line that names the file, what is wrong and the remedy. Speeds, loads, kinds, bearings
and runs are whatever the files say; columns that nobody asked for are left alone.
"""

import csv
import gzip
import hashlib
import pathlib
from dataclasses import dataclass

import numpy as np

from .synthetic import REST_LEVEL_V

# sysexits.h: data that is not as it should be; an input that does not exist or cannot be read.
EXIT_DATA = 65
EXIT_NO_INPUT = 66

MOTOR_RATE_HZ = 20_000.0
MOTOR_VOLTS_PER_COUNT = 3e-5
MOTOR_AXES = {"X": 0, "Y": 1, "Z": 2}
FEMTO_RATE_HZ = 25_600.0
FEMTO_G_PER_COUNT = 0.0016
FEMTO_SAMPLES = 2560
FEMTO_AXES = ("horizontal", "vertical")
FEMTO_HEALTHY_PHASES = ("normal", "late_normal")
FEMTO_ABNORMAL_PHASE = "abnormal"
SKAB_CHANNELS = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
HEALTHY = "healthy"


class DataFault(Exception):
    """What is wrong with which file, and what to do: one line."""

    def __init__(self, path, what, remedy, code=EXIT_DATA):
        super().__init__(f"{path}: {what}; {remedy}")
        self.code = code


def missing(path, remedy):
    return DataFault(path, "does not exist", remedy, EXIT_NO_INPUT)


@dataclass(frozen=True)
class MotorRecordings:
    """`adi_motor`: volts [recordings, samples, 3] as the edge sees them, f32, and what the table says of each."""

    volts: np.ndarray
    name: tuple
    rpm: np.ndarray
    load: np.ndarray
    kind: np.ndarray
    abnormal: np.ndarray

    def __len__(self):
        return len(self.volts)


@dataclass(frozen=True)
class Bearing:
    """One bearing of `femto`: g [snapshots, 2560, 2], f32, with seconds from the start and to the end."""

    name: str
    samples: np.ndarray
    seconds_from_start: np.ndarray
    seconds_to_end: np.ndarray
    phase: np.ndarray

    @property
    def healthy(self):
        return np.isin(self.phase, FEMTO_HEALTHY_PHASES)

    @property
    def abnormal(self):
        return self.phase == FEMTO_ABNORMAL_PHASE


@dataclass(frozen=True)
class PumpRun:
    """One run of `skab`: channels [rows, 8]; `abnormal` per row; `labelled` is false for a file that is all healthy."""

    name: str
    channels: np.ndarray
    abnormal: np.ndarray
    labelled: bool


def fingerprints(recordings):
    """The beginning of the SHA-256 of each recording's samples."""
    return [
        hashlib.sha256(np.ascontiguousarray(volts).tobytes()).hexdigest()[:16]
        for volts in recordings.volts
    ]


def data_folder(folder, name):
    """The folder `name` in `folder`, or `folder` itself if that is its name."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise missing(folder, "name the folder that holds adi_motor, femto or skab")
    if (folder / name).is_dir():
        return folder / name
    if folder.resolve().name == name:
        return folder
    raise missing(folder / name, "name the folder that holds it")


def present(folder):
    """Which of the three data sets a folder has; at least one."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise missing(folder, "name a folder that holds adi_motor, femto or skab")
    found = [name for name in ("adi_motor", "femto", "skab") if (folder / name).is_dir()]
    if not found:
        raise DataFault(
            folder,
            "holds none of adi_motor, femto, skab",
            "name the folder above them",
            EXIT_NO_INPUT,
        )
    return found


def load_motor(folder):
    table = folder / "recordings.csv"
    rows = read_table(table, ("row", "rpm", "extra_shaft_load_lb", "kind", "abnormal"), ",")
    array = folder / "recordings.npy"
    counts = read_array(array, (None, None, len(MOTOR_AXES)), "[recordings, samples, 3]")
    indices = numbers(table, rows, "row", int)
    check_rows(table, indices, array, len(counts))
    # As the edge sees them: f32 volts.
    volts = (REST_LEVEL_V + counts[indices] * MOTOR_VOLTS_PER_COUNT).astype(np.float32)
    abnormal = numbers(table, rows, "abnormal", int)
    zero_or_one(table, "abnormal", abnormal)
    kind = np.array([row["kind"] for row in rows])
    if any((kind == HEALTHY) & (abnormal == 1)):
        what = f"kind is {HEALTHY} and abnormal is 1 in the same line: they disagree"
        raise DataFault(table, what, "correct one of them")
    names = tuple(row.get("source_name") or f"row {index}" for row, index in zip(rows, indices))
    return MotorRecordings(
        volts,
        names,
        numbers(table, rows, "rpm", float),
        numbers(table, rows, "extra_shaft_load_lb", float),
        kind,
        abnormal,
    )


def load_femto(folder):
    table = folder / "snapshots.csv"
    columns = ("bearing", "row", "seconds_from_start", "seconds_to_end", "phase")
    rows = read_table(table, columns, ",")
    bearings = []
    for name in dict.fromkeys(row["bearing"] for row in rows):
        own = [row for row in rows if row["bearing"] == name]
        if not name or "/" in name or "\\" in name:
            raise DataFault(
                table, f"bearing {name!r} is no file's name", "name each bearing as its .npy file"
            )
        array = folder / f"{name}.npy"
        counts = read_array(
            array, (None, FEMTO_SAMPLES, len(FEMTO_AXES)), f"[rows, {FEMTO_SAMPLES}, 2]"
        )
        indices = numbers(table, own, "row", int)
        check_rows(table, indices, array, len(counts))
        start, to_end = (
            numbers(table, own, key, float) for key in ("seconds_from_start", "seconds_to_end")
        )
        order = np.argsort(start, kind="stable")
        samples = (counts[indices[order]] * FEMTO_G_PER_COUNT).astype(np.float32)
        phase = np.array([row["phase"] for row in own])[order]
        bearings.append(Bearing(name, samples, start[order], to_end[order], phase))
    return bearings


def load_skab(folder):
    files = sorted([*folder.glob("*.csv.gz"), *folder.glob("*.csv")])
    if not files:
        raise DataFault(
            folder,
            "holds no .csv or .csv.gz",
            "put the runs into it or leave it out",
            EXIT_NO_INPUT,
        )
    runs = []
    for path in files:
        rows = read_table(path, SKAB_CHANNELS, ";")
        channels = np.stack([numbers(path, rows, name, float) for name in SKAB_CHANNELS], axis=-1)
        labelled = "anomaly" in rows[0]
        abnormal = numbers(path, rows, "anomaly", float) if labelled else np.zeros(len(rows))
        zero_or_one(path, "anomaly", abnormal)
        runs.append(PumpRun(path.name.split(".csv")[0], channels, abnormal == 1, labelled))
    return runs


def read_table(path, columns, delimiter):
    """The rows of a table that has at least these columns and one row."""
    if not path.is_file():
        raise missing(path, "the folder must have the form that DATA.md describes")
    try:
        opened = (
            gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="")
        )
        with opened as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            rows = list(reader)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataFault(path, f"cannot be read ({error})", "copy it again", EXIT_NO_INPUT) from None
    found = reader.fieldnames or []
    absent = [name for name in columns if name not in found]
    if absent:
        what = f"has no column {', '.join(absent)} among {', '.join(found) or 'none'}"
        raise DataFault(
            path, what, f"give it the columns {', '.join(columns)}, separated by {delimiter!r}"
        )
    if not rows:
        raise DataFault(path, "has no rows", "give it at least one, or leave the folder out")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataFault(
                path, f"line {number} has another number of fields than line 1", "correct the line"
            )
    return rows


def read_array(path, shape, described):
    """An int16 array of this shape; None in the shape is any length above 0."""
    if not path.is_file():
        raise missing(path, "copy it beside its table, which names it")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataFault(path, f"is no NumPy array ({error})", "copy it again") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "i" or array.dtype.itemsize != 2:
        found = getattr(array, "dtype", type(array).__name__)
        raise DataFault(path, f"holds {found}", "save it as int16, NumPy format 1.0")
    fits = array.ndim == len(shape) and all(
        length > 0 if wanted is None else length == wanted
        for length, wanted in zip(array.shape, shape)
    )
    if not fits:
        raise DataFault(path, f"has shape {list(array.shape)}", f"it must be {described}")
    return array


def numbers(path, rows, column, kind):
    """A column as an array of finite numbers."""
    values = []
    for number, row in enumerate(rows, start=2):
        try:
            value = float(row[column])
            if not np.isfinite(value) or (kind is int and value != int(value)):
                raise ValueError
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise DataFault(
                path, f"line {number}: {column} is {row[column]!r}", f"make it {wanted}"
            ) from None
        values.append(kind(value))
    return np.array(values)


def zero_or_one(path, column, values):
    if not np.isin(values, (0, 1)).all():
        found = values[~np.isin(values, (0, 1))][0]
        raise DataFault(path, f"{column} is {found:g}", "use 0 for healthy and 1 for abnormal")


def check_rows(table, indices, array, length):
    if indices.min() < 0 or indices.max() >= length:
        wrong = indices.max() if indices.max() >= length else indices.min()
        what = f"names row {wrong} of {array.name}, which has {length}"
        raise DataFault(table, what, "give both files the same rows")
    if len(set(indices.tolist())) != len(indices):
        raise DataFault(table, f"names a row of {array.name} twice", "give each row one line")
