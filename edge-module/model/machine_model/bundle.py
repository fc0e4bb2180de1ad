"""Writes bundles: `model.tflite` and `bundle.json`, as `edge-module/src/scoring/metadata.rs` reads them."""

import contextlib
import hashlib
import io
import json
import os
import warnings

import numpy as np

from . import motor
from .features import (
    BAND_ENERGY_EPSILON,
    FEATURE_DEFINITION,
    LINE_POWER_EPSILON,
    SCALAR_NAMES,
    FeatureExtractor,
    band_name,
)
from .recordings import MOTOR_AXES, MOTOR_RATE_HZ, fingerprints
from .synthetic import SELF_TEST_SIGNALS, synthetic_signal

FORMAT = 1
SCORE_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-6
CONVERSION_TOLERANCE = 1e-3
# What the edge module takes as a margin.
MARGIN_LOGIT_MIN, MARGIN_LOGIT_MAX = 0.01, 50.0
SELF_TEST_SAMPLES = 256
SELF_TEST_EDGES_HZ = [100.0, 800.0, 3000.0, 10_000.1]
SELF_TEST_LINE_HZ = [100.0, 2000.0]
LICENCE = (
    "the data set's repository states none; Analog Devices' adi-model-zoo lists it as Apache 2.0"
)
ORIGIN = (
    "Analog Devices, Inc., CbM-Datasets, SampleMotorDataLimerick (SpectraQuest Machinery Fault Simulator), "
    "commit 805b33c0a05a: {recordings} recordings of 2 s, axis {axis}"
)
# Recordings whose middle window is in the self-test: kind and speed, without extra load where there is a choice.
SELF_TEST_RECORDINGS = (
    ("healthy", 600),
    ("healthy", 1800),
    ("healthy", 3000),
    ("inner_race_heavy", 600),
    ("inner_race_light", 1800),
    ("ball_light", 3000),
    ("bent_shaft", 1800),
    ("imbalance_light", 600),
    ("imbalance_light", 1800),
    ("imbalance_heavy", 3000),
)


def tensorflow():
    """TensorFlow with one thread and the same operations at each run; imported only by who needs it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    return tensorflow


def linear_model(weights, bias):
    """One dense layer without activation as TensorFlow Lite, float32.

    `from_concrete_functions` loses the weights under Keras 3; `from_keras_model` does not.
    """
    tf = tensorflow()
    tf.keras.utils.set_random_seed(motor.SEED)
    weights = np.asarray(weights, dtype=np.float32)
    inputs = tf.keras.layers.Input((len(weights),), batch_size=1, name="features")
    layer = tf.keras.layers.Dense(1, name="logit")
    model = tf.keras.Model(inputs, layer(inputs))
    layer.set_weights([weights[:, None], np.array([bias], dtype=np.float32)])
    # The converter tells on standard output where it put its own temporary files.
    with contextlib.redirect_stdout(io.StringIO()):
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def run(content, features):
    """Logits of feature vectors by the TensorFlow Lite interpreter."""
    with warnings.catch_warnings():
        # Its successor is another package; this version of TensorFlow, which is pinned, still has it.
        warnings.simplefilter("ignore")
        interpreter = tensorflow().lite.Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    logits = []
    for one in np.asarray(features, dtype=np.float32):
        interpreter.set_tensor(into["index"], one[None])
        interpreter.invoke()
        logits.append(float(interpreter.get_tensor(out["index"])[0, 0]))
    return np.array(logits)


def export(recordings, folder):
    """Trains on all recordings, cross-validates, writes both bundles; returns what it wrote."""
    windows = motor.Windows(recordings)
    models = motor.fit(windows, range(len(recordings)))
    _, negatives, positives = motor.choose_shape_threshold(windows, range(len(recordings)))
    evaluation = motor.cross_validate(windows)
    for scheme in evaluation.values():
        # Figures of each fold: `train` shows them.
        del scheme["by-fold"]
    bands = [band_name(index) for index in range(motor.BANDS)]
    shape = models.shape
    # Without their mean the bands lose their level; that is in the weights, so the graph is one layer.
    shape_weights = shape.weights - shape.weights.mean()
    slope = motor.DECIBEL / motor.LINE_DECIBELS_PER_LOGIT
    healthy_line = windows.line[recordings.abnormal == 0]
    shape_margin, line_margin = motor.commissioning_margins(
        windows, range(len(recordings)), models
    )
    return [
        write(
            folder / "motor-shape-v2",
            recordings,
            {
                "name": "motor-shape",
                "version": "2.0.0",
                "axis": motor.SHAPE_AXIS,
                "description": "Motor on a test bench, axis Z in volts: bearing and shaft faults, "
                "from the shape of the spectrum",
                "order": bands,
                "band-edges-hz": motor.BAND_EDGES_HZ,
                "line-hz": None,
                "weights": shape_weights,
                "bias": shape.bias,
                "threshold-logit": shape.threshold,
                "flat": np.full(motor.BANDS, np.log(BAND_ENERGY_EPSILON)),
                "false-alarm-rate": float((negatives >= shape.threshold).mean()),
                # The level is not in the shape: what is abnormal here is abnormal on another machine.
                "commissioning": {"margin-logit": shape_margin, "judges-level": False},
                "chosen-on": {
                    "negatives": len(negatives),
                    "faults": len(positives),
                    "room-below-logits": round(shape.threshold - float(negatives.max()), 4),
                    "room-above-logits": round(float(positives.min()) - shape.threshold, 4),
                },
                "evaluation": evaluation,
            },
        ),
        write(
            folder / "motor-line-v1",
            recordings,
            {
                "name": "motor-line",
                "version": "1.0.0",
                "axis": motor.LINE_AXIS,
                "description": "Motor on a test bench, axis X in volts: imbalance, "
                "from the strongest line of 6 to 70 Hz",
                "order": ["line"],
                "band-edges-hz": [],
                "line-hz": motor.LINE_HZ,
                "weights": np.array([slope]),
                "bias": -models.line_threshold * slope,
                "threshold-logit": 0.0,
                "flat": np.array([np.log(LINE_POWER_EPSILON)]),
                "false-alarm-rate": motor.line_false_alarms(windows, range(len(recordings))),
                # Volts of this sensor, mounting and motor: on another machine the threshold says nothing.
                "commissioning": {"margin-logit": line_margin, "judges-level": True},
                "chosen-on": {
                    "healthy": healthy_line.size,
                    "imbalance": int(windows.line[windows.is_imbalance].size),
                    "threshold-db": round(models.line_threshold * motor.DECIBEL, 4),
                    "room-below-db": round(
                        float(models.line_threshold - healthy_line.max()) * motor.DECIBEL, 4
                    ),
                    "room-above-db": round(
                        float(windows.line[windows.is_imbalance].min() - models.line_threshold)
                        * motor.DECIBEL,
                        4,
                    ),
                },
                "evaluation": evaluation,
            },
        ),
    ]


def write(folder, recordings, model):
    """One bundle; refuses a converted model that does not answer as the trained one."""
    extractor = FeatureExtractor(
        motor.WINDOW_SAMPLES, MOTOR_RATE_HZ, model["band-edges-hz"], model["line-hz"]
    )
    axis = MOTOR_AXES[model["axis"]]
    # [recordings, windows, features].
    features = np.array(
        [extractor.extract(motor.cut(volts[:, axis])) for volts in recordings.volts]
    )
    inputs = features[..., [extractor.names.index(name) for name in model["order"]]].astype(
        np.float32
    )
    flat = inputs.reshape(-1, inputs.shape[-1])
    content = linear_model(model["weights"], model["bias"])
    logits = run(content, flat)
    difference = np.abs(logits - (flat.astype(np.float64) @ model["weights"] + model["bias"])).max()
    if not difference < CONVERSION_TOLERANCE:
        raise SystemExit(
            f"{model['name']}: the converted model differs from the trained one by {difference}"
        )
    scores = motor.sigmoid(logits).reshape(inputs.shape[:2])
    reference = healthy_reference(recordings, extractor.names, features, scores)
    bundle = {
        "format": FORMAT,
        "name": model["name"],
        "version": model["version"],
        "description": model["description"],
        "axis": model["axis"],
        "model-sha256": hashlib.sha256(content).hexdigest(),
        "input": {
            "sample-rate-hz": MOTOR_RATE_HZ,
            "window-samples": motor.WINDOW_SAMPLES,
            "hop-samples": motor.HOP_SAMPLES,
            "unit": "V",
            # A low line is made of a step of the rest level, too.
            **({"step-max": motor.STEP_MAX_V} if model["line-hz"] else {}),
        },
        "features": {
            "definition": FEATURE_DEFINITION,
            "band-edges-hz": model["band-edges-hz"],
            **({"line-hz": model["line-hz"]} if model["line-hz"] else {}),
            "order": model["order"],
            "normalisation": "in-graph",
        },
        "output": "logit",
        "threshold": round(float(motor.sigmoid(model["threshold-logit"])), 6),
        "false-alarm-rate": round(model["false-alarm-rate"], 5),
        "evaluation": {
            "false-alarm-rate-aimed-at": motor.FALSE_ALARM_RATE,
            "threshold-chosen-on": model["chosen-on"],
            "both-models-together": model["evaluation"],
            # So that `evaluate` can tell which of its recordings were trained on.
            "training-recordings": fingerprints(recordings),
        },
        "training-data": {
            "origin": ORIGIN.format(recordings=len(recordings), axis=model["axis"]),
            "licence": LICENCE,
        },
        "calibration": calibration(recordings, extractor.names, features, model["order"]),
        "commissioning": commissioning(model),
        "self-test": {
            "score-tolerance": SCORE_TOLERANCE,
            "feature-tolerance": FEATURE_TOLERANCE,
            "scores": self_test_scores(recordings, inputs, content, model["flat"]),
            "windows": self_test_windows(),
        },
        "healthy-reference": reference,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(content)
    (folder / "bundle.json").write_text(json.dumps(bundle, indent=1) + "\n")
    return {
        "folder": str(folder),
        "bytes": len(content),
        "sha256": bundle["model-sha256"],
        "threshold": bundle["threshold"],
        "difference-of-conversion": float(difference),
        "calibration": bundle["calibration"],
    }


def self_test_scores(recordings, inputs, content, flat):
    """Feature vectors of real windows and of a flat one, with their scores."""
    vectors = []
    for kind, rpm in SELF_TEST_RECORDINGS:
        rows = np.flatnonzero((recordings.kind == kind) & (recordings.rpm == rpm))
        if rows.size:
            row = rows[np.argmin(recordings.load[rows])]
            label = f"{kind}, {rpm} rpm, {recordings.load[row]:g} lb"
            vectors.append((label, inputs[row, inputs.shape[1] // 2]))
    vectors.append(("flat window", flat.astype(np.float32)))
    scores = motor.sigmoid(run(content, [vector for _, vector in vectors]))
    return [
        {
            "label": label,
            "features": [float(value) for value in vector],
            "score": round(float(score), 6),
        }
        for (label, vector), score in zip(vectors, scores)
    ]


def self_test_windows():
    """Short synthetic signals with their features: is this the feature code that the model was trained with?"""
    tests = []
    for label, seed in SELF_TEST_SIGNALS:
        samples = synthetic_signal(label, SELF_TEST_SAMPLES, MOTOR_RATE_HZ, seed)
        extractor = FeatureExtractor(
            SELF_TEST_SAMPLES, MOTOR_RATE_HZ, SELF_TEST_EDGES_HZ, SELF_TEST_LINE_HZ
        )
        values = extractor.extract(samples[None])[0]
        tests.append(
            {
                "label": label,
                "samples": [float(sample) for sample in samples],
                "band-edges-hz": SELF_TEST_EDGES_HZ,
                "line-hz": SELF_TEST_LINE_HZ,
                "features": {name: float(value) for name, value in zip(extractor.names, values)},
            }
        )
    return tests


def healthy_reference(recordings, names, features, scores):
    """What a healthy window of each speed looks like: for whoever simulates one."""
    reference = {}
    for rpm in sorted(set(recordings.rpm[recordings.abnormal == 0])):
        rows = (recordings.rpm == rpm) & (recordings.abnormal == 0)
        reference[f"{rpm:g}-rpm"] = {
            **levels(names, features[rows]),
            "score-median": round(float(np.median(scores[rows])), 5),
            "score-max": round(float(scores[rows].max()), 5),
        }
    return reference


def calibration(recordings, names, features, order):
    """The healthy level of each feature over all conditions: what commissioning compares a machine with."""
    healthy = recordings.abnormal == 0
    chosen = [names.index(name) for name in dict.fromkeys([*SCALAR_NAMES, *order])]
    return {
        "recordings": int(healthy.sum()),
        "windows": int(healthy.sum()) * features.shape[1],
        **levels([names[index] for index in chosen], features[healthy][..., chosen]),
    }


def commissioning(model):
    """What the edge module needs to set a machine's own threshold; refuses a margin that it would refuse."""
    margin = round(model["commissioning"]["margin-logit"], 4)
    if not MARGIN_LOGIT_MIN <= margin <= MARGIN_LOGIT_MAX:
        raise SystemExit(
            f"{model['name']}: the threshold lies {margin} logits above the highest healthy window, "
            f"{MARGIN_LOGIT_MIN} to {MARGIN_LOGIT_MAX} are allowed"
        )
    return {**model["commissioning"], "margin-logit": margin}


def levels(names, features):
    values = features.reshape(-1, features.shape[-1])
    return {
        "mean": {name: round(float(value), 5) for name, value in zip(names, values.mean(axis=0))},
        "deviation": {
            name: round(float(value), 5) for name, value in zip(names, values.std(axis=0))
        },
    }
