import hashlib
import json
import math
import tempfile
import unittest
from pathlib import Path

import numpy as np

from machine_model import bundle, motor
from machine_model.recordings import load_motor
from machine_model.splits import by_speed

from .synthetic_data import motor_folder

BUNDLES = Path(__file__).parents[1] / "bundles"


def logit(score):
    return math.log(score / (1.0 - score))


def committed(name):
    return json.loads((BUNDLES / name / "bundle.json").read_text())


class Margins(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as folder:
            recordings = load_motor(motor_folder(Path(folder), speeds=(600, 1200, 2400)))
        cls.windows = motor.Windows(recordings)
        cls.rows = range(len(recordings))
        cls.models = motor.fit(cls.windows, cls.rows)
        cls.healthy = np.flatnonzero(recordings.abnormal == 0)

    def test_lead_from_the_highest_healthy_window_to_the_threshold(self):
        shape, line = motor.commissioning_margins(self.windows, self.rows, self.models)
        highest = -math.inf
        for split in by_speed(self.windows.recordings, tuple(self.rows)):
            model = motor.fit_shape(self.windows, split.train)
            for row in set(split.test) & set(self.healthy):
                energies = self.windows.energies[row, :, motor.UNSCALED]
                highest = max(highest, model.logits(energies).max())
        self.assertAlmostEqual(highest + shape, self.models.shape.threshold)
        room = self.models.line_threshold - self.windows.line[self.healthy].max()
        self.assertAlmostEqual(line, room * motor.DECIBEL / motor.LINE_DECIBELS_PER_LOGIT)

    def test_of_the_line_does_not_look_at_abnormal_windows(self):
        _, before = motor.commissioning_margins(self.windows, self.rows, self.models)
        abnormal = self.windows.recordings.abnormal == 1
        line = self.windows.line[abnormal].copy()
        self.windows.line[abnormal] += 20.0
        _, after = motor.commissioning_margins(self.windows, self.rows, self.models)
        self.windows.line[abnormal] = line
        self.assertEqual(before, after)

    def test_that_the_edge_refuses_are_not_written(self):
        def check(margin, is_allowed):
            table = {"margin-logit": margin, "judges-level": True}
            model = {"name": "motor-line", "commissioning": table}
            if is_allowed:
                self.assertEqual(bundle.commissioning(model), table)
            else:
                with self.assertRaisesRegex(SystemExit, "motor-line: the threshold lies"):
                    bundle.commissioning(model)

        for margin in (0.01, 2.2, 50.0):
            check(margin, True)
        for margin in (-1.0, 0.0, 0.0099, 50.0001, math.inf, math.nan):
            check(margin, False)


class CommittedBundles(unittest.TestCase):
    def test_keep_the_models_that_they_name(self):
        for name in ("motor-line-v1", "motor-shape-v2", "motor-v1"):
            content = (BUNDLES / name / "model.tflite").read_bytes()
            self.assertEqual(hashlib.sha256(content).hexdigest(), committed(name)["model-sha256"])

    def test_say_whether_they_judge_a_level(self):
        found = {
            name: committed(name)["commissioning"]["judges-level"]
            for name in ("motor-line-v1", "motor-shape-v2", "motor-v1")
        }
        self.assertEqual(
            found, {"motor-line-v1": True, "motor-shape-v2": False, "motor-v1": False}
        )

    def test_have_margins_that_follow_from_their_own_figures(self):
        line = committed("motor-line-v1")
        room_db = line["evaluation"]["threshold-chosen-on"]["room-below-db"]
        margin = line["commissioning"]["margin-logit"]
        self.assertAlmostEqual(margin, room_db / motor.LINE_DECIBELS_PER_LOGIT, places=4)
        # The shape's negatives are the healthy windows and the imbalances.
        shape = committed("motor-shape-v2")
        room = shape["evaluation"]["threshold-chosen-on"]["room-below-logits"]
        self.assertGreaterEqual(shape["commissioning"]["margin-logit"], room)
        # Of the first model only the scores of its training are known.
        first = committed("motor-v1")
        highest = max(one["score-max"] for one in first["healthy-reference"].values())
        margin = first["commissioning"]["margin-logit"]
        self.assertAlmostEqual(margin, logit(first["threshold"]) - logit(highest), places=4)
