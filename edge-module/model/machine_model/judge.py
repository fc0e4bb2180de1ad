"""Recordings through `edge-module judge`: the windows, features, model, votes and limits of the machine itself.

Each recording is a machine of its own, `<id>`, with sensors `<id>/<axis>`, so that nothing of one recording is left when
the next begins. Times are invented and rise; they lead from an answer back to its recording.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from dataclasses import dataclass, field

import numpy as np

from .recordings import DataFault

BINARY = pathlib.Path(__file__).parents[3] / "target" / "release" / "edge-module"
EXIT_UNAVAILABLE = 69
EXIT_SOFTWARE = 70
# Noon of 2026-03-01, in nanoseconds since 1970: where the invented times begin.
EPOCH_NS = 1_772_366_400 * 10**9
SECOND_NS = 10**9
# Between recordings: longer than any window, so that none reaches into the next.
PAUSE_NS = 60 * SECOND_NS
BLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Block:
    """Samples of one sensor that follow each other."""

    sensor: str
    start_ns: int
    sample_rate_hz: float
    samples: np.ndarray


@dataclass(frozen=True)
class Window:
    sensor: str
    start_ns: int
    end_ns: int
    features: dict
    score: float | None
    abnormal: bool | None


@dataclass(frozen=True)
class Trip:
    machine: str
    rule: str
    sensor: str | None
    at_ns: int


@dataclass
class Judged:
    """The answers, by sensor and by machine, in the order of time."""

    windows: dict = field(default_factory=dict)
    trips: dict = field(default_factory=dict)


def program(path=None):
    """The program that judges: as given, from EDGE_MODULE_BIN, or where cargo leaves it."""
    path = pathlib.Path(path or os.environ.get("EDGE_MODULE_BIN") or BINARY)
    if not path.is_file() or not os.access(path, os.X_OK):
        remedy = (
            "build it with `cargo build --release -p edge-module` or name it with --edge-module"
        )
        raise DataFault(path, "is no program", remedy, EXIT_UNAVAILABLE)
    return path


def blocks_of(sensor, start_ns, sample_rate_hz, samples):
    """A recording in blocks of a second."""
    length = max(1, round(BLOCK_SECONDS * sample_rate_hz))
    for first in range(0, len(samples), length):
        offset_ns = round(first / sample_rate_hz * SECOND_NS)
        yield Block(sensor, start_ns + offset_ns, sample_rate_hz, samples[first : first + length])


def judge(path, configuration, blocks):
    """Runs `edge-module judge` over the blocks, which must come in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        config, output, errors = (
            pathlib.Path(folder) / name for name in ("judge.toml", "output.jsonl", "errors")
        )
        config.write_text(configuration)
        command = [str(path), "judge", "--config", str(config), "--output", str(output)]
        with open(errors, "wb") as error_file, subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=error_file
        ) as process:
            # A pipe that breaks: it ended early; its exit code and last line say why.
            with contextlib.suppress(BrokenPipeError):
                for block in blocks:
                    process.stdin.write(encode(block))
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code = process.wait()
        if code != 0:
            said = errors.read_text(errors="replace").strip().splitlines()
            what = f"judge ended with exit code {code}" + (f": {said[-1]}" if said else "")
            raise DataFault(
                path, what, "see what it says about its settings or the recordings", EXIT_SOFTWARE
            )
        if not output.is_file():
            raise DataFault(
                path,
                "judge wrote nothing",
                "is this an edge-module that has `judge`?",
                EXIT_SOFTWARE,
            )
        return parse(path, output)


def encode(block):
    header = {
        "sensor": block.sensor,
        "start": to_text(block.start_ns),
        "sample-rate-hz": block.sample_rate_hz,
        "samples": len(block.samples),
    }
    return (
        json.dumps(header).encode()
        + b"\n"
        + np.ascontiguousarray(block.samples, dtype="<f4").tobytes()
    )


def parse(path, output):
    judged = Judged()
    with open(output, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if "window" in record:
                    one = record["window"]
                    window = Window(
                        one["sensor"],
                        to_ns(one["start"]),
                        to_ns(one["end"]),
                        one["features"],
                        one.get("score"),
                        one.get("abnormal"),
                    )
                    judged.windows.setdefault(window.sensor, []).append(window)
                elif "trip" in record:
                    one = record["trip"]
                    trip = Trip(one["machine"], one["rule"], one.get("sensor"), to_ns(one["at"]))
                    judged.trips.setdefault(trip.machine, []).append(trip)
            except (ValueError, KeyError, TypeError) as error:
                raise DataFault(
                    path,
                    f"line {number} of judge's output is not understood ({error!r})",
                    "use the edge-module of this version",
                    EXIT_SOFTWARE,
                ) from None
    for answers in (*judged.windows.values(), *judged.trips.values()):
        answers.sort(key=lambda answer: getattr(answer, "start_ns", None) or answer.at_ns)
    return judged


def to_text(time_ns):
    """RFC 3339 in UTC; nanoseconds only where there are some."""
    seconds, rest = divmod(time_ns, SECOND_NS)
    text = np.datetime64(seconds, "s").astype(str)
    return f"{text}.{rest:09d}Z" if rest else f"{text}Z"


def to_ns(text):
    """Nanoseconds since 1970 of an RFC 3339 time in UTC."""
    for zone in ("Z", "+00:00"):
        if text.endswith(zone):
            return int(np.datetime64(text.removesuffix(zone), "ns").astype(np.int64))
    raise ValueError(f"{text!r} is no time in UTC")
