"""The bundle in force, and the one that may follow it: the same form, other numbers, a version further."""

import copy
import hashlib
import json
import pathlib
from dataclasses import dataclass

import numpy as np

from . import dense, motor, pack
from .bundle import MARGIN_LOGIT_MAX, MARGIN_LOGIT_MIN
from .features import FEATURE_DEFINITION
from .recordings import DataFault
from .refit import Example, Linear

# A deviation below this would make a prior that lets a weight go anywhere.
DEVIATION_MIN = 0.05
# What was written with a score has this many digits.
SCORE_DIGITS, THRESHOLD_DIGITS, MARGIN_DIGITS = 6, 6, 4
TRIP_LABEL = "trip, "
KEPT_KEYS = ("name", "version", "model-sha256", "threshold")


class OneSided(Exception):
    """A model that the edge module would refuse: all vectors of its self-test lie on one side of its threshold."""


@dataclass(frozen=True)
class Bundle:
    """The model in force: what is written of it, and its layer."""

    folder: pathlib.Path
    metadata: dict
    layer: dense.Dense

    @property
    def name(self):
        return self.metadata["name"]

    @property
    def judges_level(self):
        return self.metadata.get("commissioning", {}).get("judges-level", False)

    def summary(self):
        return {key: self.metadata[key] for key in KEPT_KEYS}

    def linear(self):
        threshold = self.metadata["threshold"]
        return Linear(
            self.layer.weights, self.layer.bias, float(np.log(threshold / (1 - threshold)))
        )

    def deviations(self, examples):
        """Deviation of each input: of healthy windows where the bundle was calibrated, else of the trips' windows."""
        known = self.metadata.get("calibration", {}).get("deviation", {})
        order = self.metadata["features"]["order"]
        found = np.concatenate([one.features for one in examples]).std(axis=0)
        return np.array(
            [max(known.get(name, found[index]), DEVIATION_MIN) for index, name in enumerate(order)]
        )

    def anchors(self):
        """The vectors of the self-test as examples that the votes decide: each stands for as many windows as it takes."""
        examples = []
        for number, one in enumerate(self.metadata["self-test"]["scores"]):
            # What was said of a trip may be corrected.
            if one["label"].startswith(TRIP_LABEL):
                continue
            features = np.asarray(one["features"], dtype=np.float32).astype(np.float64)
            features = np.repeat(features[None], motor.VOTES, axis=0)
            every = np.ones(motor.VOTES, dtype=bool)
            name, abnormal = f"vector {number}", one["score"] >= self.metadata["threshold"]
            examples.append(Example(name, name, name, 0, abnormal, features, every, every))
        return examples


def load_bundle(folder):
    """A bundle that can be refitted: of one layer, its files belonging together."""
    content = {name: pack.read(folder / name) for name in (pack.METADATA_FILE, pack.MODEL_FILE)}
    pack.check_model(folder, content)
    path = folder / pack.METADATA_FILE
    metadata = json.loads(content[pack.METADATA_FILE])
    layer = dense.read(content[pack.MODEL_FILE], folder / pack.MODEL_FILE)
    try:
        definition = metadata["features"]["definition"]
        width, threshold = len(metadata["features"]["order"]), metadata["threshold"]
        bundle = Bundle(folder, metadata, layer)
        bundle.summary(), bundle.anchors(), next_version(bundle)
        metadata["input"]["window-samples"], metadata["input"]["sample-rate-hz"]
    except (KeyError, TypeError) as error:
        raise DataFault(path, f"is no bundle ({error!r})", "export the bundle again") from None
    if not 1 <= definition <= FEATURE_DEFINITION:
        what = f"has features of definition {definition}, known are 1 to {FEATURE_DEFINITION}"
        raise DataFault(path, what, "use the version of this program that made it")
    if width != len(layer.weights) or not 0 < threshold < 1:
        what = f"names {width} features and threshold {threshold}, the model takes {len(layer.weights)}"
        raise DataFault(path, what, "export the bundle again")
    return bundle


def next_version(bundle):
    """1.2.3 becomes 1.2.4."""
    version = bundle.metadata["version"]
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        path = bundle.folder / pack.METADATA_FILE
        raise DataFault(path, f"version is {version!r}", "give it the form 1.2.3")
    return ".".join([*parts[:2], str(int(parts[2]) + 1)])


def write_candidate(folder, bundle, candidate, split, result):
    """The folder of a bundle; `result` has the figures that are known by now."""
    layer = bundle.layer.with_numbers(candidate.weights, candidate.bias)
    metadata = copy.deepcopy(bundle.metadata)
    metadata["version"] = next_version(bundle)
    metadata["model-sha256"] = hashlib.sha256(layer.content).hexdigest()
    comparison = result.get("comparison")
    if comparison:
        metadata["false-alarm-rate"] = comparison["candidate"]["false-window-rate"]
    metadata["evaluation"] = evaluation(bundle, result)
    metadata["training-data"] = training_data(bundle, result)
    metadata["self-test"]["scores"] = self_test_scores(bundle, layer, split)
    # Its scores were those of the model before, and the recordings that gave them are not here.
    metadata["healthy-reference"] = {"false-alarms": reference(bundle, layer, split)}
    if "commissioning" in metadata:
        margin = commissioning_margin(bundle, candidate)
        metadata["commissioning"]["margin-logit"] = margin
    folder.mkdir(parents=True, exist_ok=True)
    (folder / pack.MODEL_FILE).write_bytes(layer.content)
    (folder / pack.METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n")


def evaluation(bundle, result):
    """What people read of it. Machines and trips by name stand in the report alone: a bundle travels."""
    before = bundle.metadata["evaluation"]
    comparison = result.get("comparison", {})
    return {
        "candidate-of": bundle.summary(),
        "lake": result["lake"],
        "training": result["training"],
        "comparison": {key: value for key, value in comparison.items() if key != "trips"},
        "remembered": result["remembered"],
        # `evaluate` says which of its recordings a bundle or its ancestors were trained on.
        "training-recordings": before.get("training-recordings", []),
    }


def training_data(bundle, result):
    before, lake = bundle.metadata["training-data"], result["lake"]
    own = (
        f"{lake['confirmed']} confirmed trips and {lake['false-alarms']} false alarms of "
        f"{lake['machines']} machines, {lake['from'][:10]} to {lake['to'][:10]}"
    )
    origin, licence = before["origin"], before["licence"]
    # The next candidate's trips are those of this one and newer ones.
    origin = origin.split("; refitted to ")[0]
    licence = licence.removesuffix("; the trips are the plant's own")
    return {
        "origin": f"{origin}; refitted to {own}",
        "licence": f"{licence}; the trips are the plant's own",
    }


def self_test_scores(bundle, layer, split):
    """The vectors of before with the new scores, and the clearest window of each kind that was learnt from."""
    tests = [
        {"label": one["label"], "features": one["features"]}
        for one in bundle.metadata["self-test"]["scores"]
        if not one["label"].startswith(TRIP_LABEL)
    ]
    for abnormal, label, chosen in (
        (False, f"{TRIP_LABEL}false alarm", np.argmin),
        (True, f"{TRIP_LABEL}confirmed", np.argmax),
    ):
        windows = np.concatenate(
            [one.features[one.teaches] for one in split.train if one.abnormal == abnormal]
        )
        vector = windows[chosen(layer.logits(windows))]
        tests.append({"label": label, "features": [float(value) for value in vector]})
    for one in tests:
        score = motor.sigmoid(layer.logits(one["features"]))
        one["score"] = round(float(score), SCORE_DIGITS)
    above = [one["score"] >= bundle.metadata["threshold"] for one in tests]
    if all(above) or not any(above):
        raise OneSided("calls all that it is tested by the same, healthy and abnormal")
    return tests


def reference(bundle, layer, split):
    """The windows of false alarms that were learnt from: what looks like a fault here and is none."""
    windows = np.concatenate([one.features[one.votes] for one in split.train if not one.abnormal])
    names = bundle.metadata["features"]["order"]
    scores = motor.sigmoid(layer.logits(windows))
    rounded = lambda values: {name: round(float(value), 5) for name, value in zip(names, values)}
    return {
        "mean": rounded(windows.mean(axis=0)),
        "deviation": rounded(windows.std(axis=0)),
        "score-median": round(float(np.median(scores)), 5),
        "score-max": round(float(scores.max()), 5),
    }


def commissioning_margin(bundle, candidate):
    """The margin in force, or less: how far the threshold lies above the highest healthy vector of the self-test.

    A smaller margin sets a machine's own threshold lower, which misses nothing. Of a level the vectors say nothing.
    """
    margin = bundle.metadata["commissioning"]["margin-logit"]
    healthy = [one for one in bundle.anchors() if not one.abnormal]
    if healthy and not bundle.judges_level:
        room = candidate.threshold - max(candidate.logits(one.features).max() for one in healthy)
        margin = min(margin, room)
    return round(float(np.clip(margin, MARGIN_LOGIT_MIN, MARGIN_LOGIT_MAX)), MARGIN_DIGITS)
