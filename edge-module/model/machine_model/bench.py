"""The recordings that the motor's models were trained on, as examples beside the trips of a lake."""

import numpy as np

from . import motor
from .features import BAND_ENERGY_EPSILON, band_name
from .recordings import MOTOR_RATE_HZ, DataFault
from .refit import Example

MACHINE = "test bench"


class Bench:
    """Each recording as an example; what the shape is taught of it comes from `motor`, scaled axes and sums included."""

    def __init__(self, recordings, metadata):
        self.is_line = is_line(metadata)
        self.windows = motor.Windows(recordings)
        self.rows = {}
        self.examples = []
        for row in range(len(recordings)):
            is_other = self.windows.is_shape_fault[row]
            # A bearing's fault may or may not make a line: it says nothing of the line's threshold.
            if self.is_line and is_other:
                continue
            name = f"{MACHINE}, {recordings.name[row]}, row {row}"
            self.rows[name] = row
            self.examples.append(self._example(name, recordings, row))

    def __contains__(self, example):
        return example.name in self.rows

    def inputs(self, examples):
        """Inputs, labels and weights of these recordings, as `motor` trains the shape."""
        rows = [self.rows[one.name] for one in examples]
        inputs, labels = motor.shape_examples(self.windows, rows)
        return inputs, labels, motor.class_weights(labels)

    def _example(self, name, recordings, row):
        if self.is_line:
            features = self.windows.line[row][:, None]
            abnormal = self.windows.is_imbalance[row]
        else:
            energies = self.windows.energies[row, :, motor.UNSCALED]
            features = np.log(energies + BAND_ENERGY_EPSILON)
            abnormal = self.windows.is_shape_fault[row]
        every = np.ones(len(features), dtype=bool)
        return Example(
            name,
            MACHINE,
            f"{MACHINE}, {recordings.rpm[row]:g} rpm",
            0,
            bool(abnormal),
            features.astype(np.float32).astype(np.float64),
            every,
            every,
        )


def is_line(metadata):
    """Which of the motor's two models a bundle is; refuses one of another form."""
    features, window = metadata["features"], metadata["input"]
    is_window = (window["sample-rate-hz"], window["window-samples"], window["hop-samples"]) == (
        MOTOR_RATE_HZ,
        motor.WINDOW_SAMPLES,
        motor.HOP_SAMPLES,
    )
    bands = [band_name(index) for index in range(motor.BANDS)]
    if is_window and features["order"] == ["line"] and features.get("line-hz") == motor.LINE_HZ:
        return True
    if (
        is_window
        and features["order"] == bands
        and features["band-edges-hz"] == motor.BAND_EDGES_HZ
    ):
        return False
    raise DataFault(
        "--data",
        "has the recordings of motor-shape and motor-line, the bundle has other windows or features",
        "leave --data out",
    )
