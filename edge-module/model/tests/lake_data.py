"""A small lake as the aggregator writes it: tables of synthetic trips, samples and outcomes."""

import functools

import numpy as np

from machine_model.synthetic import REST_LEVEL_V, synthetic_signal

try:
    from arro3.core import Array, DataType, Table
    from deltalake import write_deltalake
except ImportError:
    write_deltalake = None

RATE_HZ = 20_000.0
WINDOW_SAMPLES, HOP_SAMPLES = 32_768, 2048
# Six windows before the trip.
SAMPLES = WINDOW_SAMPLES + 5 * HOP_SAMPLES
SECOND_US, DAY_US = 10**6, 86_400 * 10**6
# Noon of 2026-03-01.
START_US = 1_772_366_400 * SECOND_US
SHAPE = "motor-shape@2.0.0"
LINE = "motor-line@1.0.0"


class LakeData:
    """Rows by table; a trip a day unless a time is given."""

    def __init__(self):
        self.trips, self.outcomes, self.waveforms, self.alerts = [], [], [], []

    def trip(self, signal, verdict=None, *, machine="press-1", at_us=None, model=SHAPE, **other):
        """A trip with its samples, in two pieces before it and one after it, and what was found."""
        number = len(self.trips)
        at_us = START_US + number * DAY_US if at_us is None else at_us
        name = other.pop("trip_id", f"{machine}-{number}")
        sensor = f"{machine}/motor-z"
        self.trips.append(
            {
                "event_type": "trip",
                "machine_id": machine,
                "trip_id": name,
                "sensor_id": sensor,
                "timestamp": at_us,
                "model": model,
                "cause": "score",
                "score": 0.9,
            }
        )
        self.samples(machine, sensor, name, at_us, signal, **other)
        if verdict is not None:
            self.outcome(f"ticket-{name}", verdict, machine, name, at_us + 3600 * SECOND_US)
        return name

    def samples(self, machine, sensor, trip, at_us, signal, rate=RATE_HZ, unit="V"):
        first_us = at_us - round(len(signal) / rate * 1e6)
        middle = len(signal) // 2
        after = np.full(HOP_SAMPLES, 77.0)
        parts = ((0, signal[:middle]), (middle, signal[middle:]), (len(signal), after))
        for piece, (offset, samples) in enumerate(parts, start=1):
            self.waveforms.append(
                {
                    "machine_id": machine,
                    "sensor_id": sensor,
                    "trip_id": trip,
                    "piece": piece,
                    "first_sample": first_us + round(offset / rate * 1e6),
                    "sample_rate_hz": rate,
                    "unit": unit,
                    "sample_count": len(samples),
                    "samples": np.asarray(samples, dtype="<f4").tobytes(),
                }
            )

    def outcome(self, name, verdict, machine, trip, at_us, alert=None):
        self.outcomes.append(
            {
                "outcome_id": name,
                "verdict": verdict,
                "machine_id": machine,
                "alert_id": alert,
                "trip_id": trip,
                "timestamp": at_us,
                "source_offset": len(self.outcomes),
            }
        )

    def write(self, folder):
        """Each table in one commit; a table without rows is not there."""
        for name, rows, date_of in (
            ("machine_events", self.trips, "timestamp"),
            ("outcomes", self.outcomes, "timestamp"),
            ("waveforms", self.waveforms, "first_sample"),
            ("alerts", self.alerts, "fired_at"),
        ):
            if rows:
                columns = {key: column(key, [row[key] for row in rows]) for key in rows[0]}
                columns["date"] = dates([row[date_of] for row in rows])
                write_deltalake(folder / name, Table.from_pydict(columns), partition_by=["date"])
        return folder


def column(name, values):
    if name in ("timestamp", "first_sample", "fired_at"):
        return Array(values, DataType.int64()).cast(DataType.timestamp("us", tz="UTC"))
    if name in ("score", "sample_rate_hz"):
        return Array(values, DataType.float64())
    if name in ("piece", "sample_count"):
        return Array(values, DataType.int32())
    if name == "source_offset":
        return Array(values, DataType.int64())
    return Array(values, DataType.binary() if name == "samples" else DataType.string())


def dates(times_us):
    return Array([time // DAY_US for time in times_us], DataType.int32()).cast(DataType.date32())


@functools.cache
def fault(seed):
    """What the committed shape finds: a logit of 7."""
    return synthetic_signal("shaft harmonics and noise", SAMPLES, RATE_HZ, seed)


@functools.cache
def harmless(seed):
    """A machine that hammers and is sound: the committed shape is 1.2 logits over its threshold."""
    return synthetic_signal("impulses on a resonance", SAMPLES, RATE_HZ, seed)


def like(vector, edges_hz, seed):
    """A tone in each band with the energy that a feature vector of the committed shape has there."""
    time = np.arange(SAMPLES) / RATE_HZ
    signal = 1e-6 * np.random.default_rng(seed).standard_normal(SAMPLES)
    for energy_ln, low, high in zip(vector, edges_hz, edges_hz[1:]):
        signal += np.sqrt(2 * np.exp(energy_ln)) * np.sin(2 * np.pi * np.sqrt(low * high) * time)
    return (REST_LEVEL_V + signal).astype(np.float32)


def swaying(seed, amplitude):
    """A slow line, so many times that of the synthetic shaft."""
    signal = synthetic_signal("slow shaft", SAMPLES, RATE_HZ, seed)
    return (REST_LEVEL_V + amplitude * (signal - REST_LEVEL_V)).astype(np.float32)


def judged_lake(confirmed=7, false_alarms=7, machines=("press-1", "press-2")):
    """Faults and harmless noise in turn, told apart rightly."""
    lake = LakeData()
    for number in range(confirmed + false_alarms):
        machine = machines[number % len(machines)]
        left = (confirmed, false_alarms)
        is_fault = number % 4 < 2 if min(left) > 0 else left[0] > 0
        if is_fault:
            lake.trip(fault(number), "confirmed", machine=machine)
            confirmed -= 1
        else:
            lake.trip(harmless(number), "false-alarm", machine=machine)
            false_alarms -= 1
    return lake
