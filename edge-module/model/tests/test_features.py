import json
import unittest

import numpy as np

from machine_model.features import (
    FEATURE_DEFINITION,
    FeatureExtractor,
    Spectrum,
    centre,
    steady_rms,
)
from machine_model.golden import PATH, golden


class Golden(unittest.TestCase):
    def test_features_equal_those_of_the_golden_file(self):
        file = json.loads(PATH.read_text())
        self.assertEqual(file["definition"], FEATURE_DEFINITION)
        for case in file["cases"]:
            samples = np.array(case["samples"], dtype=np.float32)
            extractor = FeatureExtractor(
                len(samples), case["sample-rate-hz"], case["band-edges-hz"], case.get("line-hz")
            )
            found = dict(zip(extractor.names, extractor.extract(samples[None])[0]))
            self.assertEqual(set(found), set(case["features"]), case["label"])
            for name, expected in case["features"].items():
                self.assertAlmostEqual(
                    found[name],
                    expected,
                    delta=1e-9 * max(1, abs(expected)),
                    msg=f"{case['label']}: {name}",
                )

    def test_the_file_is_what_the_command_would_write(self):
        file, fresh = json.loads(PATH.read_text()), golden()
        self.assertEqual(
            [case["samples"] for case in file["cases"]],
            [case["samples"] for case in fresh["cases"]],
        )
        self.assertEqual(
            [case.get("line-hz") for case in file["cases"]],
            [case.get("line-hz") for case in fresh["cases"]],
        )


class Line(unittest.TestCase):
    def line(self, signal, low, high, rate=400.0):
        spectrum = Spectrum(len(signal), rate)
        return float(spectrum.line(spectrum.power(centre(signal)), low, high))

    def test_one_imbalance_weighs_alike_at_all_speeds_if_its_power_grows_with_the_third_power(self):
        time = np.arange(400) / 400.0
        levels = [
            self.line((hz / 10) ** 1.5 * np.sin(2 * np.pi * hz * time), 6, 70)
            for hz in (10, 30, 50)
        ]
        self.assertLess(max(levels) - min(levels), 0.01)
        # Hann spreads a sine over three bins; its power over the window's is 1.
        self.assertAlmostEqual(levels[0], np.log(0.5), places=2)

    def test_a_falling_spectrum_has_no_line_and_an_empty_range_is_refused(self):
        time = np.arange(400) / 400.0
        nothing = np.log(1e-14)
        self.assertAlmostEqual(self.line(np.exp(-40 * time), 12, 60), nothing)
        with self.assertRaises(ValueError):
            self.line(np.sin(time), 20.1, 20.3)
        self.assertAlmostEqual(self.line(np.ones(400), 6, 70), nothing)

    def test_the_upper_limit_is_excluded_and_the_lower_included(self):
        signal = np.sin(2 * np.pi * 30 * np.arange(400) / 400.0)
        self.assertGreater(self.line(signal, 30, 31), -10)
        self.assertLess(self.line(signal, 6, 30), -10)


class Steady(unittest.TestCase):
    def test_a_burst_in_three_of_ten_parts_does_not_move_it_and_one_in_four_does(self):
        # The mean stays, so that the parts without a burst stay as they are.
        quiet = np.tile([1.0, -1.0], 500)
        for parts, expected in ((3, 1.0), (4, 10.0)):
            signal = quiet.copy()
            signal[200 : 200 + 100 * parts] *= 10
            self.assertAlmostEqual(float(steady_rms(signal)), expected)

    def test_what_is_left_over_after_ten_parts_is_left_out(self):
        signal = np.concatenate([np.tile([1.0, -1.0], 10), np.full(9, 50.0)])
        self.assertAlmostEqual(float(steady_rms(signal)), 1.0)

    def test_short_windows_give_the_plain_rms(self):
        self.assertAlmostEqual(float(steady_rms(np.array([3.0, -3.0, 3.0, -3.0]))), 3.0)
