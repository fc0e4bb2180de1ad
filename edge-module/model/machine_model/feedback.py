"""From what people found to the next version of a model: `train --lake`.

Trips that were judged are windows with a label. The newest are held out, the others refit the model in force, and both
models judge the held-out trips by the same votes. Only a candidate that is not worse becomes a bundle; README.md says what
the figures mean. Nothing here is drawn by chance: the same tables and bundle give the same bytes.
"""

import collections
import pathlib
import tempfile
from dataclasses import dataclass

import numpy as np

from . import evaluate, feedback_report, judge, motor, pack, stop_rules
from .bench import Bench
from .candidate import OneSided, load_bundle, next_version, write_candidate
from .features import FeatureExtractor
from .figures import auc, upper_bound
from .lake import Lake, labelled_trips, runs_of
from .recordings import DataFault, data_folder, load_motor
from .refit import Example, refit

# Beside those of sysexits.h: the candidate is worse than the model in force; there is too little to learn from.
EXIT_REFUSED = 3
EXIT_TOO_LITTLE = 4
# Trips of each kind, in runs of their own, below which nothing is learnt.
TRIPS_MIN = 5
HELD_OUT_SHARE = 0.3
HELD_OUT_MIN = 2
# Trips of a machine that follow within this time are one run of it: never on both sides.
RUN_US = 600 * 10**6
# A trip is told at the end of the block that decided; votes may lie so much further back.
BLOCK_US = 10**6
# Windows whose features are computed at once: 16 MiB of samples.
CHUNK_WINDOWS = 64
# Machines in one run of the edge module's judge.
JUDGED_AT_ONCE = 32


@dataclass(frozen=True)
class Split:
    """Examples to learn from and the newer ones to judge by. Refuses a run of a machine that is on both sides."""

    train: tuple
    held_out: tuple

    def __post_init__(self):
        both = {one.group for one in self.train} & {one.group for one in self.held_out}
        if both:
            raise ValueError(f"{sorted(both)} are on both sides")


def run(lake, model, out, data=None, edge_module=None):
    """Reads, learns, compares and writes; the exit code."""
    bundle = load_bundle(model)
    program = judge.program(edge_module) if edge_module else None
    place = out / f"{bundle.name}-{next_version(bundle)}"
    for path in (place, packed_file(place)):
        if path.exists():
            raise DataFault(path, "is there already", "name another folder with --out")
    lake = Lake(lake)
    labelled = labelled_trips(lake, bundle.name)
    examples = examples_of(lake, labelled, bundle)
    evaluate.prepare(out)
    result = {"model": bundle.summary(), "lake": summary(labelled, examples)}
    lacking = lacks(examples)
    if lacking:
        return too_little(out, result, lacking)
    bench = None
    if data is not None:
        bench = Bench(load_motor(data_folder(data, "adi_motor")), bundle.metadata)
    split = split_newest(examples)
    lacking = lacks_a_kind(split)
    if lacking:
        return too_little(out, result, lacking)
    candidate = learn(bundle, split, bench)
    result["training"] = training_summary(bundle, split, candidate, bench)
    result["remembered"] = remembered(bundle, candidate, bench)
    with tempfile.TemporaryDirectory() as folder:
        # Written before it is judged: the edge module judges files, and the weights are those of the file.
        new = pathlib.Path(folder) / place.name
        trips = {(one.machine, one.trip_id): one for one in labelled.trips}
        faults = []
        try:
            write_candidate(new, bundle, candidate, split, result)
        except OneSided as fault:
            # The edge module would not take it: these votes tell the figures.
            faults, program = [str(fault)], None
        result["comparison"], plot = compare(bundle, new, candidate, split, (lake, trips), program)
        result["decision"] = decide(result, faults)
        if result["decision"]["accepted"]:
            write_candidate(place, bundle, candidate, split, result)
            result["written"] = {
                "folder": place.name,
                "file": packed_file(place).name,
                "sha256": pack.pack(place, packed_file(place)),
            }
    feedback_report.write(out, result, plot)
    return result["decision"]["exit-code"]


def too_little(out, result, lacking):
    result["decision"] = {"accepted": False, "reasons": lacking, "exit-code": EXIT_TOO_LITTLE}
    feedback_report.write(out, result)
    return EXIT_TOO_LITTLE


def packed_file(place):
    return place.with_name(place.name + ".tar")


def examples_of(lake, labelled, bundle):
    """Trips with their windows, in the order of time; what cannot be used is counted in `labelled.left_out`."""
    window = bundle.metadata["input"]
    extractor = FeatureExtractor(
        window["window-samples"],
        window["sample-rate-hz"],
        bundle.metadata["features"]["band-edges-hz"],
        bundle.metadata["features"].get("line-hz"),
    )
    columns = [extractor.names.index(name) for name in bundle.metadata["features"]["order"]]
    examples = []
    for trip, group in zip(labelled.trips, groups_of(labelled.trips)):
        runs, reason = runs_of(lake, trip, window["sample-rate-hz"], window["unit"])
        example = None
        if reason is None:
            example = example_of(trip, group, runs, window, (extractor, columns))
            reason = None if example else "too-short"
        if example is None:
            labelled.left_out[reason] += 1
        else:
            examples.append(example)
    return examples


def groups_of(trips):
    """A name for the run of its machine that each trip belongs to; trips come in the order of time."""
    latest, groups = {}, []
    for trip in trips:
        at_us, group = latest.get(trip.machine, (None, None))
        if at_us is None or trip.at_us - at_us > RUN_US:
            group = f"{trip.machine} from {judge.to_text(trip.at_us * 1000)}"
        latest[trip.machine] = (trip.at_us, group)
        groups.append(group)
    return groups


def example_of(trip, group, runs, window, features):
    """None if there are too few windows."""
    size, hop = window["window-samples"], window["hop-samples"]
    step_max = window.get("step-max")
    values, ends, votes = [], [], []
    for run in runs:
        starts = np.arange(0, len(run.samples) - size + 1, hop)
        for first in range(0, len(starts), CHUNK_WINDOWS):
            some = starts[first : first + CHUNK_WINDOWS]
            windows = np.stack([run.samples[start : start + size] for start in some])
            extractor, columns = features
            values.append(extractor.extract(windows)[:, columns])
            ends.append(run.start_us + (some + size) / run.rate_hz * 1e6)
            votes.append(~is_step(windows, step_max))
    if not values:
        return None
    ends, votes = np.concatenate(ends), np.concatenate(votes)
    teaches = votes
    if trip.abnormal:
        # A fault may have begun shortly before: only the windows that led to the trip.
        span_us = (size + (motor.VOTES_OF - 1) * hop) / window["sample-rate-hz"] * 1e6
        teaches = votes & (ends > trip.at_us - span_us - BLOCK_US)
    if votes.sum() < motor.VOTES or not teaches.any():
        return None
    values = np.concatenate(values).astype(np.float32).astype(np.float64)
    return Example(
        trip.trip_id, trip.machine, group, trip.at_us, trip.abnormal, values, teaches, votes
    )


def is_step(windows, step_max):
    """Whether each window holds a step of the sensor's rest level, as the edge module finds it."""
    if step_max is None:
        return np.zeros(len(windows), dtype=bool)
    halves = np.asarray(windows, dtype=np.float64)
    half = halves.shape[-1] // 2
    return np.abs(halves[:, half:].mean(axis=-1) - halves[:, :half].mean(axis=-1)) > step_max


def lacks(examples):
    """What is missing for learning, as sentences; empty if nothing is."""
    found = []
    for abnormal, name in ((True, "confirmed trips"), (False, "false alarms")):
        count = len({one.group for one in examples if one.abnormal == abnormal})
        if count < TRIPS_MIN:
            found.append(
                f"{count} {name} with samples, in runs of their own; {TRIPS_MIN} are needed"
            )
    return found


def lacks_a_kind(split):
    """Where runs have trips of both kinds, those of one may all have gone to the other side."""
    return [
        f"no {name} are left to {what}, as all are in runs with trips of the other kind"
        for side, what in ((split.train, "learn from"), (split.held_out, "judge by"))
        for abnormal, name in ((True, "confirmed trips"), (False, "false alarms"))
        if not any(one.abnormal == abnormal for one in side)
    ]


def split_newest(examples):
    """The newest of each kind are held out, with all trips of the same run of their machine."""
    held = set()
    for abnormal in (True, False):
        own = [one for one in examples if one.abnormal == abnormal]
        count = max(HELD_OUT_MIN, int(np.ceil(HELD_OUT_SHARE * len(own))))
        for one in reversed(own):
            if sum(other.group in held for other in own) >= count:
                break
            held.add(one.group)
    return Split(
        tuple(one for one in examples if one.group not in held),
        tuple(one for one in examples if one.group in held),
    )


def learn(bundle, split, bench):
    current = bundle.linear()
    scale = bundle.deviations(split.train)
    anchors = [] if bench or bundle.judges_level else bundle.anchors()
    return refit(current, split.train, scale, bench, anchors)


def compare(bundle, new, candidate, split, trips, program):
    """Figures of both models over the held-out trips, and the levels for the picture."""
    models = {"current": (bundle.folder, bundle.linear()), "candidate": (new, candidate)}
    result, plot = {
        "judged-by": "edge-module judge" if program else "the votes of this program"
    }, {}
    rows = [
        {"trip": one.name, "machine": one.machine, "at": judge.to_text(one.at_us * 1000),
         "found": "abnormal" if one.abnormal else "false alarm"}
        for one in split.held_out
    ]  # fmt: skip
    for name, (folder, linear) in models.items():
        levels = np.array([linear.level(one) - linear.threshold for one in split.held_out])
        tripped = levels >= 0
        if program:
            decided = judged_by_edge(program, folder, bundle, split.held_out, trips)
            result.setdefault("votes-that-agree", {})[name] = int((decided == tripped).sum())
            tripped = decided
        result[name] = figures(linear, split, tripped)
        plot[name] = levels
        for row, level, trip in zip(rows, levels, tripped):
            row[name] = {"trips": bool(trip), "level": finite(level)}
    result["trips"] = rows
    trained = {one.machine for one in split.train}
    result["trips-known-to-current"] = known_to(bundle, split.held_out)
    result["machines-not-learnt-from"] = len({one.machine for one in split.held_out} - trained)
    return result, (split.held_out, plot)


def figures(linear, split, tripped):
    abnormal = np.array([one.abnormal for one in split.held_out])
    scores = [linear.logits(one.features[one.votes]) - linear.threshold for one in split.held_out]
    taught = [linear.logits(one.features[one.teaches]) for one in split.held_out]
    labels = np.concatenate(
        [np.full(len(some), one.abnormal) for one, some in zip(split.held_out, taught)]
    )
    healthy = np.concatenate(
        [some for one, some in zip(split.held_out, scores) if not one.abnormal]
    )
    confirmed, found = int(abnormal.sum()), int(tripped[abnormal].sum())
    false_alarms, repeated = int((~abnormal).sum()), int(tripped[~abnormal].sum())
    return {
        "confirmed": confirmed,
        "confirmed-found": found,
        "recall": round(found / confirmed, 4),
        "recall-above-95": round(1 - upper_bound(confirmed - found, confirmed), 4),
        "false-alarms": false_alarms,
        "false-alarms-repeated": repeated,
        "false-alarms-repeated-below-95": round(upper_bound(repeated, false_alarms), 4),
        "windows-auc": round(auc(np.concatenate(taught), labels), 4),
        "false-window-rate": round(float((healthy >= 0).mean()), 5),
    }


def judged_by_edge(program, folder, bundle, examples, trips):
    """Whether each trip would be one again, by the windows, model and votes of the edge module."""
    lake, by_name = trips
    window, axis = bundle.metadata["input"], bundle.metadata.get("axis") or "sensor"
    decided = []
    for first in range(0, len(examples), JUDGED_AT_ONCE):
        some = examples[first : first + JUDGED_AT_ONCE]
        names = [f"trip-{first + number:05d}" for number in range(len(some))]
        configuration = stop_rules.motor_configuration(folder, names, axis)
        blocks = edge_blocks(
            lake, [by_name[one.machine, one.name] for one in some], names, (window, axis)
        )
        judged = judge.judge(program, configuration, blocks)
        decided += [bool(judged.trips.get(name)) for name in names]
    return np.array(decided, dtype=bool)


def edge_blocks(lake, trips, names, form):
    """Samples of the trips one after the other, at invented times that rise; distances within a trip are kept."""
    window, axis = form
    start_ns = judge.EPOCH_NS
    for trip, name in zip(trips, names):
        runs, _ = runs_of(lake, trip, window["sample-rate-hz"], window["unit"])
        for run in runs:
            offset_ns = (run.start_us - runs[0].start_us) * 1000
            sensor = stop_rules.sensor(name, axis)
            yield from judge.blocks_of(sensor, start_ns + offset_ns, run.rate_hz, run.samples)
        seconds = len(runs[-1].samples) / runs[-1].rate_hz
        start_ns += (runs[-1].start_us - runs[0].start_us) * 1000 + judge.PAUSE_NS
        start_ns += round(seconds * judge.SECOND_NS)


def remembered(bundle, candidate, bench):
    """What both models say of the data that the model in force was made with: its vectors, or the recordings."""
    current = bundle.linear()
    of, examples = ("recordings", bench.examples) if bench else ("vectors", bundle.anchors())
    said = [
        [model.level(one) >= model.threshold for one in examples] for model in (current, candidate)
    ]
    abnormal = np.array([one.abnormal for one in examples])
    before, after = (np.array(one, dtype=bool) for one in said)
    return {
        "of": of,
        # Volts of one test bench say nothing of another machine's level.
        "counts": bool(bench) or not bundle.judges_level,
        "abnormal": int(abnormal.sum()),
        "abnormal-found": {
            "current": int(before[abnormal].sum()),
            "candidate": int(after[abnormal].sum()),
        },
        "healthy": int((~abnormal).sum()),
        "healthy-above": {
            "current": int(before[~abnormal].sum()),
            "candidate": int(after[~abnormal].sum()),
        },
    }


def decide(result, faults=()):
    """Whether the candidate may take the place of the model in force, and why not."""
    before, after = result["comparison"]["current"], result["comparison"]["candidate"]
    reasons = list(faults)
    if after["confirmed-found"] < before["confirmed-found"]:
        reasons.append(
            f"finds {after['confirmed-found']} of {after['confirmed']} confirmed trips, "
            f"the model in force {before['confirmed-found']}"
        )
    elif (
        after["confirmed-found"] == before["confirmed-found"]
        and after["false-alarms-repeated"] > before["false-alarms-repeated"]
    ):
        reasons.append(
            f"repeats {after['false-alarms-repeated']} of {after['false-alarms']} false alarms, "
            f"the model in force {before['false-alarms-repeated']}, and finds no more"
        )
    kept = result["remembered"]
    if kept["counts"]:
        found, above = kept["abnormal-found"], kept["healthy-above"]
        if found["candidate"] < found["current"] or above["candidate"] > above["current"]:
            reasons.append(
                f"forgets what the model was made with ({kept['of']}): finds {found['candidate']} of "
                f"{kept['abnormal']} abnormal ones, before {found['current']}; calls "
                f"{above['candidate']} of {kept['healthy']} healthy ones abnormal, before {above['current']}"
            )
    return {
        "accepted": not reasons,
        "reasons": reasons,
        "exit-code": EXIT_REFUSED if reasons else 0,
    }


def summary(labelled, examples):
    """What of the tables is used and what is not, and why."""
    count = lambda abnormal: sum(one.abnormal == abnormal for one in examples)
    windows = lambda abnormal: int(
        sum(one.teaches.sum() for one in examples if one.abnormal == abnormal)
    )
    times = [one.at_us for one in examples]
    return {
        "tables": labelled.versions,
        "trips-with-outcome": len(labelled.trips),
        "confirmed": count(True),
        "false-alarms": count(False),
        "windows-abnormal": windows(True),
        "windows-healthy": windows(False),
        "machines": len({one.machine for one in examples}),
        "by-cause": counted(trip.cause for trip in labelled.trips),
        "by-model": counted(trip.model for trip in labelled.trips),
        "from": judge.to_text(min(times) * 1000) if times else None,
        "to": judge.to_text(max(times) * 1000) if times else None,
        "left-out": dict(sorted((+labelled.left_out).items())),
    }


def counted(words):
    return dict(sorted(collections.Counter(words).items()))


def training_summary(bundle, split, candidate, bench):
    """What was done."""
    current = bundle.linear()
    count = lambda side, abnormal: sum(one.abnormal == abnormal for one in side)
    return {
        "with": (
            "the recordings of its training and the lake"
            if bench
            else "the lake alone, held to the weights in force"
        ),
        "learnt-from": {
            "confirmed": count(split.train, True),
            "false-alarms": count(split.train, False),
        },
        "held-out": {
            "confirmed": count(split.held_out, True),
            "false-alarms": count(split.held_out, False),
        },
        # The next candidate tells by these which held-out trips are no news to the model before it.
        "learnt-to": {
            "confirmed": newest(split.train, True),
            "false-alarms": newest(split.train, False),
        },
        "weights-moved": round(float(np.linalg.norm(candidate.weights - current.weights)), 6),
        "bias": {"current": round(current.bias, 6), "candidate": round(candidate.bias, 6)},
    }


def newest(examples, abnormal):
    return judge.to_text(max(one.at_us for one in examples if one.abnormal == abnormal) * 1000)


def known_to(bundle, examples):
    """How many of these trips the model in force may have learnt from."""
    learnt_to = bundle.metadata["evaluation"].get("training", {}).get("learnt-to", {})
    until = {True: learnt_to.get("confirmed"), False: learnt_to.get("false-alarms")}
    until = {abnormal: judge.to_ns(text) // 1000 for abnormal, text in until.items() if text}
    return sum(one.at_us <= until.get(one.abnormal, -np.inf) for one in examples)


def finite(value):
    """For JSON, which has no infinity."""
    return round(float(value), 4) if np.isfinite(value) else None
