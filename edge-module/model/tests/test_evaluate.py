import json
import tempfile
import tomllib
import unittest
import unittest.mock
from pathlib import Path

import numpy as np

from machine_model import evaluate_femto, evaluate_motor, judge
from machine_model.__main__ import HERE
from machine_model.evaluate import femto_goals, goal, motor_goals, skab_goals
from machine_model.evaluate_motor import Bundle
from machine_model.evaluate_skab import evaluate_skab
from machine_model.features import FeatureExtractor
from machine_model.recordings import DataFault, load_femto, load_motor, load_skab
from machine_model.stop_rules import (
    FEMTO_ON_DELAY_S,
    FEMTO_RHYTHM_S,
    femto_configuration,
    motor_configuration,
)

from .synthetic_data import femto_folder, motor_folder, skab_folder


class FakeJudge:
    """Answers as `edge-module judge` would: real features, a score that is 0.9 where a feature is above a level."""

    def __init__(self, window, hop, scored=None, trips=None):
        self.window, self.hop, self.scored, self.trips = window, hop, scored or {}, trips or []

    def __call__(self, _program, configuration, blocks):
        signals, starts = {}, {}
        for block in blocks:
            signals.setdefault(block.sensor, []).append(block)
        judged = judge.Judged()
        for sensor, parts in signals.items():
            for run in runs(parts):
                samples, rate = (
                    np.concatenate([part.samples for part in run]),
                    run[0].sample_rate_hz,
                )
                extractor = FeatureExtractor(
                    self.window, rate, [40.0, 2000.0, rate / 2], [6.0, 70.0]
                )
                for first in range(0, len(samples) - self.window + 1, self.hop):
                    values = extractor.extract(samples[None, first : first + self.window])[0]
                    features = dict(zip(extractor.names, map(float, values)))
                    start = run[0].start_ns + round(first / rate * judge.SECOND_NS)
                    name, level = self.scored.get(sensor.split("/")[1], (None, None))
                    score = None if name is None else 0.9 if features[name] > level else 0.1
                    window = judge.Window(
                        sensor,
                        start,
                        start + round(self.window / rate * judge.SECOND_NS),
                        features,
                        score,
                        None,
                    )
                    judged.windows.setdefault(sensor, []).append(window)
        for machine, at_ns in self.trips:
            judged.trips.setdefault(machine, []).append(judge.Trip(machine, "score", None, at_ns))
        return judged


def runs(blocks):
    """Blocks that follow each other without gap."""
    found = [[blocks[0]]]
    for before, block in zip(blocks, blocks[1:]):
        end = before.start_ns + len(before.samples) / before.sample_rate_hz * judge.SECOND_NS
        found[-1].append(block) if abs(block.start_ns - end) < 1000 else found.append([block])
    return found


def bundle(name, axis, threshold=0.5):
    return Bundle(
        Path("nowhere"),
        {
            "name": name,
            "version": "1",
            "axis": axis,
            "model-sha256": "",
            "threshold": threshold,
            "input": {"window-samples": 32_768, "hop-samples": 2048},
            "evaluation": {},
        },
    )


class Evaluation(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def test_motor_with_speeds_and_kinds_that_nobody_knows(self):
        recordings = load_motor(motor_folder(self.folder, speeds=(900, 2700)))
        bundles = [bundle("shape", "Z"), bundle("line", "X")]
        fake = FakeJudge(
            32_768,
            2048,
            {"z": ("band-01", -13.5), "x": ("line", -14.0)},
            trips=[("motor-0001", judge.EPOCH_NS + 64 * judge.SECOND_NS)],
        )
        with unittest.mock.patch.object(judge, "judge", fake):
            result, margins = evaluate_motor.evaluate_motor(
                "edge-module", bundles, recordings, self.folder
            )
        self.assertEqual(margins.shape, (12, 3))
        self.assertEqual(set(result["by-kind"]), {"imbalance_light", "outer_race_light"})
        self.assertIn("900 rpm, 11 lb", result["by-condition"])
        self.assertEqual(result["all"]["windows-healthy"], 12)
        self.assertAlmostEqual(result["all"]["healthy-machine-hours"], 4 * 36_864 / 20_000 / 3600)
        self.assertEqual(result["recordings-trained-on"], 0)
        self.assertEqual(result["all"]["recordings-abnormal-stopped"], 1)
        json.dumps(result, allow_nan=False)

    def test_motor_without_healthy_recordings_says_nothing_of_false_alarms(self):
        recordings = load_motor(motor_folder(self.folder, kinds=("outer_race_light",)))
        fake = FakeJudge(32_768, 2048, {"z": ("rms", 1.0)})
        with unittest.mock.patch.object(judge, "judge", fake):
            result, _ = evaluate_motor.evaluate_motor(
                "edge-module", [bundle("shape", "Z")], recordings, self.folder
            )
        self.assertIsNone(result["all"]["false-window-rate"])
        self.assertIsNone(motor_goals(result["all"])[1]["reached"])
        self.assertFalse(motor_goals(result["all"])[0]["reached"])

    def test_windows_that_are_missing_or_without_a_score_are_a_fault_of_the_program(self):
        recordings = load_motor(motor_folder(self.folder))
        for fake in (FakeJudge(32_768, 4096, {"z": ("rms", 1.0)}), FakeJudge(32_768, 2048)):
            with unittest.mock.patch.object(judge, "judge", fake), self.assertRaises(
                DataFault
            ) as raised:
                evaluate_motor.evaluate_motor(
                    "edge-module", [bundle("shape", "Z")], recordings, self.folder
                )
            self.assertEqual(raised.exception.code, judge.EXIT_SOFTWARE)

    def test_motor_recordings_shorter_than_a_window_are_refused(self):
        folder = motor_folder(self.folder)
        np.save(folder / "recordings.npy", np.load(folder / "recordings.npy")[:, :2000])
        with self.assertRaisesRegex(DataFault, "recordings.npy: recordings have 2000 samples"):
            evaluate_motor.evaluate_motor(
                "edge-module", [bundle("shape", "Z")], load_motor(folder), self.folder
            )

    def test_femto_lead_is_the_time_left_at_the_trip(self):
        bearings = load_femto(femto_folder(self.folder))
        # At the snapshot 34 of 40, five seconds after it came.
        trip = (
            "bearing-000",
            judge.EPOCH_NS + 34 * FEMTO_RHYTHM_S * judge.SECOND_NS + 5 * judge.SECOND_NS,
        )
        with unittest.mock.patch.object(judge, "judge", FakeJudge(2560, 2560, trips=[trip])):
            result, levels = evaluate_femto.evaluate_femto("edge-module", bearings)
        one = result["by-bearing"]["bearing9_7"]
        self.assertEqual((one["lead-s"], one["false-trip"], one["fails"]), (45.0, False, True))
        self.assertEqual(
            (one["windows-healthy"], one["windows-abnormal"], one["false-windows"]), (15, 5, 0)
        )
        self.assertAlmostEqual(one["healthy-machine-hours"], 140 / 3600)
        self.assertEqual(len(levels[0]), 40)
        # The burst of good health: plain RMS takes it for a failure.
        self.assertEqual(result["baselines"]["rms above 0.96 g, 1 of 1"]["false-trips"], 1)
        self.assertEqual(
            result["baselines"]["rms above 0.96 g, 3 of 5"]["lead-s"]["bearing9_7"], 50.0
        )
        self.assertTrue(all(entry["reached"] for entry in femto_goals(result)))

    def test_femto_that_is_not_stopped_or_stopped_in_good_health_misses_the_goals(self):
        bearings = load_femto(femto_folder(self.folder))
        for trips, missed in (
            ([], 0),
            ([("bearing-000", judge.EPOCH_NS + 100 * judge.SECOND_NS)], 2),
        ):
            with unittest.mock.patch.object(judge, "judge", FakeJudge(2560, 2560, trips=trips)):
                result, _ = evaluate_femto.evaluate_femto("edge-module", bearings)
            self.assertEqual(
                [entry["reached"] for entry in femto_goals(result)].index(False), missed
            )

    def test_skab_counts_rows_of_all_files(self):
        result = evaluate_skab(load_skab(skab_folder(self.folder)))
        self.assertEqual(result["all-files"]["rows"], 1800)
        self.assertEqual(result["labelled-files"]["rows"], 900)
        self.assertGreater(result["all-files"]["f1"], 0.9)
        self.assertIsNone(result["by-run"]["anomaly-free_x"]["f1"])
        self.assertTrue(all(entry["reached"] for entry in skab_goals(result["all-files"])))

    def test_a_goal_without_a_figure_is_neither_reached_nor_missed(self):
        self.assertIsNone(goal("x", ">= 1", None, lambda found: found >= 1)["reached"])
        self.assertFalse(goal("x", ">= 1", 0.5, lambda found: found >= 1)["reached"])


class Client(unittest.TestCase):
    def test_times_there_and_back(self):
        for time_ns in (judge.EPOCH_NS, judge.EPOCH_NS + 1, judge.EPOCH_NS + 1_638_400_000):
            self.assertEqual(judge.to_ns(judge.to_text(time_ns)), time_ns)
        self.assertEqual(judge.to_text(judge.EPOCH_NS), "2026-03-01T12:00:00Z")
        self.assertEqual(
            judge.to_ns("2026-03-01T12:00:00.5+00:00"), judge.EPOCH_NS + judge.SECOND_NS // 2
        )

    def test_blocks_follow_each_other_without_gap(self):
        samples = np.arange(45_000, dtype=np.float32)
        blocks = list(judge.blocks_of("m/z", judge.EPOCH_NS, 20_000.0, samples))
        self.assertEqual([len(block.samples) for block in blocks], [20_000, 20_000, 5000])
        self.assertEqual(blocks[2].start_ns, judge.EPOCH_NS + 2 * judge.SECOND_NS)
        header, body = judge.encode(blocks[2]).split(b"\n", 1)
        self.assertEqual(
            json.loads(header),
            {
                "sensor": "m/z",
                "start": "2026-03-01T12:00:02Z",
                "sample-rate-hz": 20_000.0,
                "samples": 5000,
            },
        )
        np.testing.assert_array_equal(np.frombuffer(body, dtype="<f4"), samples[40_000:])

    def test_output_that_is_not_understood_names_its_line(self):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            output.write_text(
                '{"trip":{"machine":"m","rule":"score","sensor":"m/z","at":"2026-03-01T12:00:00Z"}}\n{"window":{}}\n'
            )
            with self.assertRaisesRegex(DataFault, "line 2"):
                judge.parse("edge-module", output)

    def test_a_program_that_fails_is_named_with_what_it_said(self):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "edge-module"
            program.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 78\n")
            program.chmod(0o755)
            blocks = judge.blocks_of(
                "m/z", judge.EPOCH_NS, 20_000.0, np.zeros(200_000, dtype=np.float32)
            )
            with self.assertRaisesRegex(DataFault, "exit code 78: no such thing"):
                judge.judge(program, "", blocks)

    def test_configurations_are_toml_with_every_machine(self):
        folder = HERE / "bundles" / "motor-shape-v2"
        motor = tomllib.loads(motor_configuration(folder, ["a", "b"], "Z"))
        self.assertEqual([one["scored-sensors"] for one in motor["machines"]], [["a/z"], ["b/z"]])
        self.assertEqual(motor["model"]["bundle-dir"], str(folder.resolve()))
        femto = tomllib.loads(femto_configuration(["c"]))
        self.assertEqual(
            [limit["sensor"] for limit in femto["machines"][0]["limits"]],
            ["c/horizontal", "c/vertical"],
        )

    def test_the_delay_asks_for_two_snapshots_and_not_for_three(self):
        self.assertGreater(FEMTO_ON_DELAY_S, FEMTO_RHYTHM_S)
        self.assertLess(FEMTO_ON_DELAY_S, 2 * FEMTO_RHYTHM_S)


class CommittedBundles(unittest.TestCase):
    def test_are_complete_and_belong_to_their_models(self):
        for one in evaluate_motor.load_bundles(HERE / "bundles"):
            metadata = one.metadata
            scores = [
                test["score"] >= metadata["threshold"] for test in metadata["self-test"]["scores"]
            ]
            self.assertTrue(any(scores) and not all(scores))
            self.assertGreaterEqual(len(scores), 6)
            for test in metadata["self-test"]["windows"]:
                extractor = FeatureExtractor(
                    len(test["samples"]),
                    metadata["input"]["sample-rate-hz"],
                    test["band-edges-hz"],
                    test["line-hz"],
                )
                found = extractor.extract(np.array([test["samples"]], dtype=np.float32))[0]
                np.testing.assert_allclose(
                    found, [test["features"][name] for name in extractor.names], rtol=1e-9
                )
