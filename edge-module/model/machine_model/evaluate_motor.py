"""The motor: both bundles through `edge-module judge`, windows joined, figures by condition and by recording."""

import hashlib
import json
import pathlib
from dataclasses import dataclass

import numpy as np

from . import judge, stop_rules
from .figures import auc, recall_at, window_figures
from .recordings import EXIT_NO_INPUT, MOTOR_AXES, MOTOR_RATE_HZ, DataFault, fingerprints

BUNDLES = ("motor-shape-v2", "motor-line-v1")
BASELINES = ("rms", "peak", "crest-factor", "kurtosis")
# Scores are kept this far from 0 and 1 before they become logits again: beyond it their order tells nothing.
SCORE_MARGIN = 1e-15


@dataclass(frozen=True)
class Bundle:
    """What the evaluation must know of a bundle; the edge module checks it."""

    folder: pathlib.Path
    metadata: dict

    @property
    def axis(self):
        return self.metadata["axis"]

    @property
    def window_samples(self):
        return self.metadata["input"]["window-samples"]

    @property
    def hop_samples(self):
        return self.metadata["input"]["hop-samples"]

    def summary(self):
        return {
            key: self.metadata[key]
            for key in ("name", "version", "axis", "model-sha256", "threshold")
        }


def load_bundles(folder):
    bundles = []
    for name in BUNDLES:
        path = folder / name / "bundle.json"
        try:
            metadata = json.loads(path.read_bytes())
            digest = hashlib.sha256((path.parent / "model.tflite").read_bytes()).hexdigest()
        except OSError as error:
            raise DataFault(
                error.filename,
                "cannot be read",
                "name the folder of the bundles with --bundles",
                EXIT_NO_INPUT,
            ) from None
        except ValueError as error:
            raise DataFault(
                path, f"is no JSON ({error})", "check it out again, or export it"
            ) from None
        if digest != metadata.get("model-sha256"):
            raise DataFault(
                path,
                "names another model.tflite than the one beside it",
                "check both out again, or export them",
            )
        bundles.append(Bundle(path.parent, metadata))
    return bundles


def evaluate_motor(program, bundles, recordings, data):
    """Figures; and the distances to the threshold [recordings, windows] for the picture."""
    samples = recordings.volts.shape[1]
    shortest = max(bundle.window_samples for bundle in bundles)
    if samples < shortest:
        raise DataFault(
            pathlib.Path(data) / "adi_motor" / "recordings.npy",
            f"recordings have {samples} samples, a window needs {shortest}",
            "give longer recordings",
        )
    machines = [f"motor-{row:04d}" for row in range(len(recordings))]
    spacing = round(samples / MOTOR_RATE_HZ * judge.SECOND_NS) + judge.PAUSE_NS
    starts = [judge.EPOCH_NS + row * spacing for row in range(len(recordings))]
    margins, features, trips = {}, {}, [[] for _ in machines]
    for bundle in bundles:
        configuration = stop_rules.motor_configuration(bundle.folder, machines, bundle.axis)
        judged = judge.judge(
            program, configuration, motor_blocks(recordings, machines, starts, bundle.axis)
        )
        windows = [windows_of(program, judged, machine, bundle, samples) for machine in machines]
        scores = np.array([[window.score or 0.0 for window in row] for row in windows])
        margins[bundle.metadata["name"]] = logit(scores) - logit(bundle.metadata["threshold"])
        features[bundle.axis] = {
            name: np.array([[window.features[name] for window in row] for row in windows])
            for name in BASELINES
        }
        for row, machine in enumerate(machines):
            trips[row] += [
                ((trip.at_ns - starts[row]) / judge.SECOND_NS, bundle.metadata["name"])
                for trip in judged.trips.get(machine, [])
            ]
    counts = {margin.shape for margin in margins.values()}
    if len(counts) != 1:
        raise DataFault(
            bundles[0].folder.parent,
            "the bundles cut recordings into different windows",
            "export both with the same window and hop",
        )
    result, both = figures(
        recordings,
        margins,
        features,
        [min(one) if one else None for one in trips],
        samples / MOTOR_RATE_HZ,
    )
    trained_on = set().union(
        *(bundle.metadata["evaluation"].get("training-recordings", []) for bundle in bundles)
    )
    result["recordings"] = len(recordings)
    result["recordings-trained-on"] = sum(one in trained_on for one in fingerprints(recordings))
    return result, both


def motor_blocks(recordings, machines, starts, axis):
    for row, machine in enumerate(machines):
        signal = recordings.volts[row, :, MOTOR_AXES[axis]]
        yield from judge.blocks_of(
            stop_rules.sensor(machine, axis), starts[row], MOTOR_RATE_HZ, signal
        )


def windows_of(program, judged, machine, bundle, samples):
    sensor = stop_rules.sensor(machine, bundle.axis)
    windows = judged.windows.get(sensor, [])
    expected = (samples - bundle.window_samples) // bundle.hop_samples + 1
    if len(windows) != expected:
        raise DataFault(
            program,
            f"judge gave {len(windows)} windows of {sensor}, {expected} are in the recording",
            "does it take the bundle's window and hop?",
            judge.EXIT_SOFTWARE,
        )
    # A window with a step of the rest level is no vote of a bundle that looks for one.
    is_judged = bundle.metadata["input"].get("step-max") is None
    if is_judged and any(window.score is None for window in windows):
        raise DataFault(
            program,
            f"judge gave no score for a window of {sensor}",
            "see what it logs about the bundle",
            judge.EXIT_SOFTWARE,
        )
    return windows


def logit(score):
    score = np.clip(np.asarray(score, dtype=float), SCORE_MARGIN, 1 - SCORE_MARGIN)
    return np.log(score / (1 - score))


def figures(recordings, margins, features, trips, seconds):
    both = np.max(list(margins.values()), axis=0)
    windows = both.shape[1]
    # A window is abnormal at the threshold, too.
    alarms = both >= 0
    abnormal = np.repeat((recordings.abnormal == 1)[:, None], windows, axis=1)

    def of(rows, scores=both, alarms=alarms):
        healthy_seconds = seconds * int((recordings.abnormal[rows] == 0).sum())
        stopped = np.array([trip is not None for trip in trips])[rows]
        faulty = recordings.abnormal[rows] == 1
        return {
            **window_figures(
                scores[rows].ravel(), alarms[rows].ravel(), abnormal[rows].ravel(), healthy_seconds
            ),
            "recordings-healthy-stopped": int(stopped[~faulty].sum()),
            "recordings-healthy": int((~faulty).sum()),
            "recordings-abnormal-stopped": int(stopped[faulty].sum()),
            "recordings-abnormal": int(faulty.sum()),
        }

    healthy = recordings.abnormal == 0
    every = np.ones(len(recordings), dtype=bool)
    conditions = {f"{rpm:g} rpm": recordings.rpm == rpm for rpm in sorted(set(recordings.rpm))}
    conditions |= {f"{load:g} lb": recordings.load == load for load in sorted(set(recordings.load))}
    conditions |= {
        f"{rpm:g} rpm, {load:g} lb": (recordings.rpm == rpm) & (recordings.load == load)
        for rpm, load in sorted(set(zip(recordings.rpm.tolist(), recordings.load.tolist())))
    }
    result = {
        "all": of(every),
        "by-condition": {name: of(rows) for name, rows in conditions.items()},
        # Each kind against every healthy window.
        "by-kind": {
            str(kind): of(healthy | (recordings.kind == kind))
            for kind in sorted(set(recordings.kind[~healthy]))
        },
        "by-model": {
            name: {
                "auc": auc(margin.ravel(), abnormal.ravel()),
                "recall": float((margin >= 0)[abnormal].mean()) if abnormal.any() else None,
                "false-windows": int((margin >= 0)[~abnormal].sum()),
            }
            for name, margin in margins.items()
        },
        "baselines": {
            f"{name} of {axis}": {
                "auc": auc(values.ravel(), abnormal.ravel()),
                "recall-at-1 %": recall_at(values.ravel(), abnormal.ravel(), 0.01),
            }
            for axis, table in features.items()
            for name, values in table.items()
        },
        "by-recording": [
            {
                "name": recordings.name[row],
                "rpm": float(recordings.rpm[row]),
                "load-lb": float(recordings.load[row]),
                "kind": str(recordings.kind[row]),
                "windows": windows,
                "alarms": int(alarms[row].sum()),
                "lowest-margin": float(both[row].min()),
                "highest-margin": float(both[row].max()),
                "auc-against-healthy": (
                    auc_against(both, row, healthy) if not healthy[row] else None
                ),
                "stopped-after-s": None if trips[row] is None else round(trips[row][0], 3),
                "stopped-by": None if trips[row] is None else trips[row][1],
            }
            for row in range(len(recordings))
        ],
    }
    return result, both


def auc_against(scores, row, healthy):
    rows = healthy.copy()
    rows[row] = True
    labels = np.repeat((np.arange(len(healthy)) == row)[:, None], scores.shape[1], axis=1)
    return auc(scores[rows].ravel(), labels[rows].ravel())
