import tempfile
import unittest
from pathlib import Path

import numpy as np

from machine_model import motor
from machine_model.recordings import load_motor

from .synthetic_data import motor_folder


class Motor(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as folder:
            recordings = load_motor(motor_folder(Path(folder), speeds=(600, 1200, 2400)))
        cls.windows = motor.Windows(recordings)

    def test_held_out_groups_are_told_apart_where_it_is_easy(self):
        found = motor.judge_scheme(self.windows, "speed")
        self.assertEqual(
            (found["recall"], found["false-window-rate"], found["folds"]), (1.0, 0.0, 3)
        )
        self.assertEqual(found["recordings-abnormal-tripped"], found["recordings-abnormal"])

    def test_a_second_run_gives_the_same_numbers(self):
        rows = range(len(self.windows.recordings))
        one, two = motor.fit(self.windows, rows), motor.fit(self.windows, rows)
        np.testing.assert_array_equal(one.shape.weights, two.shape.weights)
        self.assertEqual(
            (one.shape.bias, one.shape.threshold, one.line_threshold),
            (two.shape.bias, two.shape.threshold, two.line_threshold),
        )

    def test_a_held_out_speed_changes_nothing_of_what_was_learnt(self):
        recordings = self.windows.recordings
        rows = tuple(row for row in range(len(recordings)) if recordings.rpm[row] != 600)
        before = motor.fit(self.windows, rows)
        held = recordings.rpm == 600
        energies, line = self.windows.energies[held].copy(), self.windows.line[held].copy()
        self.windows.energies[held] *= 7
        self.windows.line[held] += 3
        after = motor.fit(self.windows, rows)
        self.windows.energies[held], self.windows.line[held] = energies, line
        np.testing.assert_array_equal(before.shape.weights, after.shape.weights)
        self.assertEqual(
            (before.shape.threshold, before.line_threshold),
            (after.shape.threshold, after.line_threshold),
        )

    def test_level_does_not_change_the_shape(self):
        model = motor.fit_shape(self.windows, range(len(self.windows.recordings)))
        energies = self.windows.energies[0, :, motor.UNSCALED]
        np.testing.assert_allclose(model.logits(energies), model.logits(energies * 1e4), atol=1e-3)

    def test_logistic_regression_is_at_its_optimum(self):
        random = np.random.default_rng(2)
        inputs = random.standard_normal((200, 3))
        abnormal = (inputs @ [1.0, -2.0, 0.0] + random.standard_normal(200) > 1).astype(float)
        model = motor.logistic(inputs, abnormal)
        scaled = (inputs - inputs.mean(axis=0)) / (inputs.std(axis=0) + 1e-6)
        share = np.where(abnormal == 1, abnormal.mean(), 1 - abnormal.mean())
        error = (
            (motor.sigmoid(inputs @ model.weights + model.bias) - abnormal)
            * motor.LIKELIHOOD_WEIGHT
            * 0.5
            / share
        )
        gradient = scaled.T @ error + model.weights * (inputs.std(axis=0) + 1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-8)
        self.assertAlmostEqual(error.sum(), 0, places=8)
