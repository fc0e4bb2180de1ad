import contextlib
import hashlib
import io
import json
import os
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import numpy as np

from machine_model import bundle as bundles
from machine_model import dense, feedback, judge, lake
from machine_model.__main__ import main
from machine_model.candidate import OneSided, load_bundle, next_version
from machine_model.feedback import EXIT_REFUSED, EXIT_TOO_LITTLE, Split, groups_of, split_newest
from machine_model.recordings import EXIT_DATA, EXIT_NO_INPUT, DataFault

from . import lake_data
from .lake_data import DAY_US, LINE, SECOND_US, START_US, LakeData
from .synthetic_data import motor_folder

BUNDLES = Path(__file__).parents[1] / "bundles"
SHAPE_BUNDLE, LINE_BUNDLE = BUNDLES / "motor-shape-v2", BUNDLES / "motor-line-v1"
needs_deltalake = unittest.skipIf(lake_data.write_deltalake is None, "deltalake is not installed")


class Case(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def train(self, rows, *more, model=SHAPE_BUNDLE, out="out"):
        """Exit code, report, what was complained of."""
        tables = self.folder / "lake"
        if not tables.exists():
            tables.mkdir()
            rows.write(tables)
        out = self.folder / out
        arguments = ["train", "--lake", str(tables), "--model", str(model), "--out", str(out)]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main([*arguments, *map(str, more)])
        report = out / "report.json"
        found = json.loads(report.read_text()) if report.is_file() else None
        return code, found, errors.getvalue()

    def files(self, out="out"):
        out = self.folder / out
        return {
            str(path.relative_to(out)): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file()
        }


@needs_deltalake
class FromTheLake(Case):
    def test_harmless_noise_is_no_alarm_any_more_and_faults_are_found(self):
        code, report, errors = self.train(lake_data.judged_lake())
        self.assertEqual((code, errors), (0, ""), report)
        before, after = report["comparison"]["current"], report["comparison"]["candidate"]
        self.assertEqual((before["recall"], after["recall"]), (1.0, 1.0))
        self.assertEqual((before["false-alarms-repeated"], after["false-alarms-repeated"]), (3, 0))
        self.assertEqual(report["remembered"]["abnormal-found"]["candidate"], 4)
        self.assertEqual(report["remembered"]["healthy-above"]["candidate"], 0)
        # Three of three and none of three say this much.
        self.assertAlmostEqual(after["recall-above-95"], 0.05 ** (1 / 3), places=3)
        self.assertAlmostEqual(
            after["false-alarms-repeated-below-95"], 1 - 0.05 ** (1 / 3), places=3
        )
        files = self.files()
        self.assertEqual(
            set(files),
            {
                "motor-shape-2.0.1/bundle.json",
                "motor-shape-2.0.1/model.tflite",
                "motor-shape-2.0.1.tar",
                "report.json",
                "report.txt",
                "report.png",
            },
        )
        packed = hashlib.sha256(files["motor-shape-2.0.1.tar"]).hexdigest()
        self.assertEqual(report["written"]["sha256"], packed)

    def test_the_bundle_says_what_it_is_and_answers_as_it_says(self):
        self.train(lake_data.judged_lake())
        written = load_bundle(self.folder / "out" / "motor-shape-2.0.1")
        metadata, before = written.metadata, load_bundle(SHAPE_BUNDLE).metadata
        self.assertEqual(metadata["version"], "2.0.1")
        # Names of keys are those that the edge module knows; it refuses others.
        self.assertEqual(set(metadata), set(before))
        self.assertEqual(metadata["threshold"], before["threshold"])
        self.assertEqual(metadata["evaluation"]["candidate-of"]["version"], "2.0.0")
        self.assertNotIn("press-1", json.dumps(metadata))
        self.assertLessEqual(abs(written.layer.weights.sum()), 1e-5)
        tests = metadata["self-test"]["scores"]
        found = 1 / (1 + np.exp(-written.layer.logits([one["features"] for one in tests])))
        np.testing.assert_allclose(found, [one["score"] for one in tests], atol=1e-6)
        above = [one["score"] >= metadata["threshold"] for one in tests]
        self.assertTrue(any(above) and not all(above))
        self.assertEqual(metadata["self-test"]["windows"], before["self-test"]["windows"])

    def test_a_second_run_gives_the_same_bytes(self):
        rows = lake_data.judged_lake()
        self.train(rows, out="one")
        self.train(rows, out="two")
        self.assertEqual(self.files("one"), self.files("two"))

    def test_what_is_held_out_changes_nothing_of_the_model(self):
        models = []
        for name, newest in (("one", 0), ("two", 50)):
            rows = lake_data.judged_lake(5, 5)
            for number in range(newest, newest + 3):
                rows.trip(lake_data.fault(number), "confirmed")
                rows.trip(lake_data.harmless(number), "false-alarm")
            (self.folder / name).mkdir()
            rows.write(self.folder / name)
            if (self.folder / "lake").exists():
                (self.folder / "lake").rename(self.folder / "before")
            (self.folder / name).rename(self.folder / "lake")
            code, report, _ = self.train(None, out=f"out-{name}")
            self.assertEqual((code, report["training"]["held-out"]["confirmed"]), (0, 3))
            models.append(self.files(f"out-{name}")["motor-shape-2.0.1/model.tflite"])
        self.assertEqual(*models)

    def test_a_candidate_that_is_there_is_not_written_over(self):
        rows = lake_data.judged_lake()
        self.train(rows)
        before = self.files()
        code, _, errors = self.train(rows)
        self.assertEqual(code, EXIT_DATA)
        self.assertIn("is there already", errors)
        self.assertEqual(self.files(), before)

    def test_labels_that_lie_are_refused(self):
        rows = LakeData()
        for number in range(12):
            rows.trip(lake_data.fault(number), "false-alarm")
            rows.trip(lake_data.harmless(number), "confirmed")
        # The newest, which are held out, are told rightly.
        for number in range(12, 18):
            rows.trip(lake_data.fault(number), "confirmed")
            rows.trip(lake_data.harmless(number), "false-alarm")
        code, report, _ = self.train(rows)
        self.assertEqual(code, EXIT_REFUSED)
        comparison = report["comparison"]
        self.assertLess(comparison["candidate"]["recall"], comparison["current"]["recall"])
        self.assertIn("confirmed trips", report["decision"]["reasons"][0])
        self.assertEqual(set(self.files()), {"report.json", "report.txt", "report.png"})

    def test_lies_about_what_the_model_was_made_with_are_refused_even_without_exception(self):
        metadata = load_bundle(SHAPE_BUNDLE).metadata
        edges, rows = metadata["features"]["band-edges-hz"], LakeData()
        faults = [one["features"] for one in metadata["self-test"]["scores"] if one["score"] > 0.9]
        for number in range(10):
            for vector in faults[:2]:
                rows.trip(lake_data.like(vector, edges, number), "false-alarm")
            rows.trip(lake_data.harmless(number), "confirmed")
        code, report, _ = self.train(rows)
        self.assertEqual(code, EXIT_REFUSED, report["remembered"])
        self.assertEqual(report["comparison"]["current"]["false-alarms-repeated"], 6)
        self.assertIn("forgets", " ".join(report["decision"]["reasons"]))

    def test_a_model_that_the_edge_module_would_not_take_is_refused_with_its_figures(self):
        one_sided = unittest.mock.patch.object(
            feedback, "write_candidate", side_effect=OneSided("calls all the same")
        )
        with one_sided:
            code, report, _ = self.train(lake_data.judged_lake(5, 5), "--edge-module", "/bin/true")
        self.assertEqual(code, EXIT_REFUSED)
        self.assertEqual(report["decision"]["reasons"], ["calls all the same"])
        self.assertEqual(report["comparison"]["candidate"]["confirmed"], 2)

    def test_too_little_says_what_is_missing(self):
        code, report, _ = self.train(lake_data.judged_lake(confirmed=7, false_alarms=4))
        self.assertEqual(code, EXIT_TOO_LITTLE)
        self.assertEqual(len(report["decision"]["reasons"]), 1)
        self.assertIn("4 false alarms", report["decision"]["reasons"][0])
        self.assertEqual(set(self.files()), {"report.json", "report.txt"})

    def test_trips_of_one_run_of_a_machine_count_once(self):
        rows = LakeData()
        for number in range(8):
            rows.trip(
                lake_data.fault(number), "confirmed", at_us=START_US + number * 60 * SECOND_US
            )
            rows.trip(lake_data.harmless(number), "false-alarm")
        code, report, _ = self.train(rows)
        self.assertEqual(code, EXIT_TOO_LITTLE)
        self.assertEqual(report["lake"]["confirmed"], 8)
        self.assertIn("1 confirmed", report["decision"]["reasons"][0])

    def test_nobody_has_said_anything_yet(self):
        rows = LakeData()
        rows.trip(lake_data.fault(1))
        code, report, _ = self.train(rows)
        self.assertEqual(code, EXIT_TOO_LITTLE)
        self.assertEqual(report["lake"]["left-out"], {"without-outcome": 1})

    def test_the_line_moves_its_threshold_alone(self):
        rows = LakeData()
        for number in range(6):
            rows.trip(lake_data.swaying(number, 1.0), "part-replaced", model=LINE)
            rows.trip(lake_data.swaying(number, 0.3), "false-alarm", model=LINE)
        code, report, _ = self.train(rows, model=LINE_BUNDLE)
        self.assertEqual(code, 0, report)
        before = load_bundle(LINE_BUNDLE)
        after = load_bundle(self.folder / "out" / "motor-line-1.0.1")
        self.assertEqual(after.layer.weights.tolist(), before.layer.weights.tolist())
        self.assertLess(after.layer.bias, before.layer.bias)
        comparison = report["comparison"]
        self.assertEqual(comparison["current"]["false-alarms-repeated"], 2)
        self.assertEqual(comparison["candidate"]["false-alarms-repeated"], 0)
        self.assertEqual(comparison["candidate"]["recall"], 1.0)

    def test_with_the_recordings_of_its_training(self):
        kinds = ("healthy", "imbalance_light", "outer_race_light")
        data = motor_folder(self.folder / "data", speeds=(600, 1200, 2400), kinds=kinds).parent
        code, report, errors = self.train(lake_data.judged_lake(), "--data", data)
        self.assertEqual((code, errors), (0, ""), report)
        self.assertEqual(report["remembered"]["of"], "recordings")
        self.assertEqual(report["comparison"]["candidate"]["false-alarms-repeated"], 0)
        self.assertEqual(report["comparison"]["candidate"]["recall"], 1.0)

    def test_a_candidate_of_a_candidate_names_what_its_parent_has_learnt(self):
        rows = lake_data.judged_lake()
        self.train(rows)
        parent = self.folder / "out" / "motor-shape-2.0.1"
        code, report, _ = self.train(rows, model=parent, out="again")
        self.assertEqual(code, 0, report)
        self.assertEqual(report["model"]["version"], "2.0.1")
        self.assertEqual(report["comparison"]["trips-known-to-current"], 0)
        origin = load_bundle(self.folder / "again" / "motor-shape-2.0.2").metadata["training-data"]
        self.assertEqual(origin["origin"].count("refitted"), 1)

    def test_the_edge_module_decides_where_it_is_named(self):
        """A judge by which everything trips: then the candidate is no better, and not worse."""

        def everything(_program, _configuration, blocks):
            judged = judge.Judged()
            for machine in {block.sensor.split("/")[0] for block in blocks}:
                judged.trips[machine] = [judge.Trip(machine, "score", None, 0)]
            return judged

        with unittest.mock.patch.object(judge, "judge", everything):
            code, report, _ = self.train(lake_data.judged_lake(), "--edge-module", "/bin/true")
        self.assertEqual(code, 0)
        comparison = report["comparison"]
        self.assertEqual(comparison["judged-by"], "edge-module judge")
        self.assertEqual(comparison["candidate"]["false-alarms-repeated"], 3)
        self.assertEqual(comparison["votes-that-agree"], {"current": 6, "candidate": 3})

    @unittest.skipUnless(os.environ.get("EDGE_MODULE_BIN"), "EDGE_MODULE_BIN is not set")
    def test_the_edge_module_takes_the_candidate_and_decides_as_these_votes(self):
        program = os.environ["EDGE_MODULE_BIN"]
        code, report, errors = self.train(lake_data.judged_lake(), "--edge-module", program)
        self.assertEqual((code, errors), (0, ""), report)
        self.assertEqual(report["comparison"]["votes-that-agree"], {"current": 6, "candidate": 6})
        self.assertEqual(report["comparison"]["candidate"]["false-alarms-repeated"], 0)


@needs_deltalake
class Labels(Case):
    def labelled(self, rows, name="motor-shape"):
        tables = lake.Lake(rows.write(self.folder))
        return tables, lake.labelled_trips(tables, name)

    def test_an_outcome_corrected_later_counts_by_its_newest_row(self):
        rows = LakeData()
        name = rows.trip(lake_data.fault(1), "confirmed")
        at_us = START_US + DAY_US
        rows.outcome(f"ticket-{name}", "false-alarm", "press-1", name, at_us)
        # An older row that came later; and one of the same moment, told by its offset.
        rows.outcome(f"ticket-{name}", "confirmed", "press-1", name, at_us - 5)
        other = rows.trip(lake_data.fault(2), "false-alarm")
        rows.outcome(
            f"ticket-{other}", "part-replaced", "press-1", other, rows.outcomes[-1]["timestamp"]
        )
        _, found = self.labelled(rows)
        self.assertEqual([one.abnormal for one in found.trips], [False, True])

    def test_what_a_person_takes_back_with_a_note_is_not_used(self):
        rows = LakeData()
        name = rows.trip(lake_data.fault(1), "confirmed")
        rows.outcome(f"ticket-{name}", "note", "press-1", name, START_US + DAY_US)
        _, found = self.labelled(rows)
        self.assertEqual((found.trips, dict(found.left_out)), ([], {"without-outcome": 1}))

    def test_outcomes_that_cannot_be_used_are_counted(self):
        rows = LakeData()
        name = rows.trip(lake_data.fault(1), "confirmed")
        rows.outcome("second", "false-alarm", "press-1", name, START_US)
        rows.outcome("nothing", "confirmed", "press-1", None, START_US)
        rows.outcome("unknown", "confirmed", "press-1", "no-such-trip", START_US)
        rows.trip(lake_data.fault(2), "confirmed", machine="pump", model="other@1.0.0")
        _, found = self.labelled(rows)
        self.assertEqual(found.trips, [])
        self.assertEqual(
            +found.left_out,
            {
                "outcomes-disagree": 1,
                "outcome-without-trip": 1,
                "outcome-of-unknown-trip": 1,
                "sensor-of-another-model": 1,
            },
        )

    def test_an_outcome_of_an_alert_is_one_of_its_trip(self):
        rows = LakeData()
        name = rows.trip(lake_data.fault(1))
        alert = {"alert_id": "a1", "machine_id": "press-1", "trip_id": name, "fired_at": START_US}
        rows.alerts.append(alert)
        rows.outcome("one", "confirmed", "press-1", None, START_US, alert="a1")
        _, found = self.labelled(rows)
        self.assertEqual([one.trip_id for one in found.trips], [name])

    def test_a_limit_of_a_sensor_that_the_model_scores_counts_too(self):
        rows = LakeData()
        rows.trip(lake_data.fault(1), "confirmed")
        rows.trips[0]["cause"] = "limit"
        _, found = self.labelled(rows)
        self.assertEqual([one.cause for one in found.trips], ["limit"])

    def reasons(self, rows):
        tables, found = self.labelled(rows)
        examples = feedback.examples_of(tables, found, load_bundle(SHAPE_BUNDLE))
        return len(examples), dict(+found.left_out)

    def test_samples_of_another_form_are_left_out_and_counted(self):
        rows = LakeData()
        signal = lake_data.fault(1)
        rows.trip(signal, "confirmed", rate=25_600.0)
        rows.trip(signal, "confirmed", rate=20_010.0)
        rows.trip(signal, "confirmed", unit="g")
        rows.trip(signal, "confirmed", unit=None)
        rows.trip(signal[: lake_data.WINDOW_SAMPLES], "confirmed")
        broken = signal.copy()
        broken[7] = np.nan
        rows.trip(broken, "confirmed")
        name = rows.trip(signal, "confirmed")
        rows.waveforms[-1]["sample_count"] += 1
        name = rows.trip(signal, "confirmed")
        rows.waveforms = [one for one in rows.waveforms if one["trip_id"] != name]
        rows.trip(signal, "confirmed")
        for one in rows.waveforms[-3:]:
            one["first_sample"] += 3600 * SECOND_US
        self.assertEqual(
            self.reasons(rows),
            (
                2,
                {
                    "other-rate": 1,
                    "other-unit": 1,
                    "too-short": 1,
                    "damaged-samples": 2,
                    "without-waveform": 1,
                    "other-time": 1,
                },
            ),
        )

    def test_pieces_that_came_twice_are_taken_once_and_a_gap_ends_a_window(self):
        rows = LakeData()
        signal = lake_data.fault(1)
        rows.trip(signal, "confirmed")
        rows.waveforms += rows.waveforms[:2]
        rows.trip(signal, "confirmed")
        rows.waveforms[-2]["first_sample"] += 1000
        tables, found = self.labelled(rows)
        whole, _ = lake.runs_of(tables, found.trips[0], 20_000.0, "V")
        self.assertEqual([len(run.samples) for run in whole], [len(signal)])
        np.testing.assert_array_equal(whole[0].samples, signal)
        parted, _ = lake.runs_of(tables, found.trips[1], 20_000.0, "V")
        self.assertEqual(len(parted), 2)

    def test_names_with_quotes_are_names(self):
        rows = LakeData()
        rows.trip(lake_data.fault(1), "confirmed", machine="o'press", trip_id="x' OR '1'='1")
        rows.trip(lake_data.fault(2), "confirmed", machine="o'press", at_us=START_US + SECOND_US)
        tables, found = self.labelled(rows)
        runs, _ = lake.runs_of(tables, found.trips[0], 20_000.0, "V")
        np.testing.assert_array_equal(runs[0].samples, lake_data.fault(1))

    def test_only_windows_that_led_to_a_confirmed_trip_teach(self):
        rows = LakeData()
        long = np.tile(lake_data.fault(1), 3)
        rows.trip(long, "confirmed")
        rows.trip(long, "false-alarm")
        tables, found = self.labelled(rows)
        fault, false = feedback.examples_of(tables, found, load_bundle(SHAPE_BUNDLE))
        span = 4 * lake_data.HOP_SAMPLES + lake_data.WINDOW_SAMPLES + lake_data.RATE_HZ
        self.assertEqual(fault.votes.sum(), len(fault.votes))
        self.assertEqual(fault.teaches.sum(), np.ceil(span / lake_data.HOP_SAMPLES))
        self.assertEqual(false.teaches.sum(), len(false.votes))


class Sides(unittest.TestCase):
    def trips(self):
        random = np.random.default_rng(3)
        times = np.sort(random.integers(0, 20 * DAY_US, 80))
        # Every other one follows its neighbour within minutes.
        times[1::2] = times[::2] + 200 * SECOND_US
        return [
            lake.Trip(f"m{index // 2 % 3}", f"t{index}", "s", int(time), bool(index % 3), "", "")
            for index, time in enumerate(times)
        ]

    def examples(self):
        trips = self.trips()
        empty = np.empty((0, 1)), np.empty(0, dtype=bool), np.empty(0, dtype=bool)
        return [
            feedback.Example(one.trip_id, one.machine, group, one.at_us, one.abnormal, *empty)
            for one, group in zip(trips, groups_of(trips))
        ]

    def test_no_trip_and_no_run_of_a_machine_is_on_both_sides(self):
        examples = self.examples()
        split = split_newest(examples)
        self.assertEqual(len(split.train) + len(split.held_out), len(examples))
        for key in ("name", "group"):
            sides = [{getattr(one, key) for one in side} for side in (split.train, split.held_out)]
            self.assertFalse(sides[0] & sides[1])
        for abnormal in (True, False):
            of = lambda side: [one.at_us for one in side if one.abnormal == abnormal]
            share = len(of(split.held_out)) / len(of(examples))
            self.assertTrue(0.3 <= share < 0.5, share)

    def test_the_newest_of_each_kind_are_held_out(self):
        split = split_newest(self.examples())
        for abnormal in (True, False):
            newest = max(one.at_us for one in split.train if one.abnormal == abnormal)
            of_kind = [one for one in split.held_out if one.abnormal == abnormal]
            # What is older came along with a run of its machine.
            self.assertGreater(np.median([one.at_us for one in of_kind]), newest)

    def test_a_side_without_a_kind_is_told(self):
        examples = self.examples()
        healthy = [one for one in examples if not one.abnormal]
        found = feedback.lacks_a_kind(Split(tuple(healthy), ()))
        self.assertEqual(len(found), 3)
        self.assertIn("no confirmed trips are left to learn from", found[0])
        self.assertEqual(feedback.lacks_a_kind(split_newest(examples)), [])

    def test_a_run_on_both_sides_is_refused(self):
        examples = self.examples()
        self.assertEqual(examples[0].group, examples[1].group)
        with self.assertRaisesRegex(ValueError, "both sides"):
            Split((examples[0],), (examples[1],))


class Decision(unittest.TestCase):
    def check(self, before, after, is_accepted, remembered=(4, 0), counts=True):
        """`before` and `after`: confirmed trips found and false alarms repeated, of ten each."""
        figures = lambda found, repeated: {
            "confirmed": 10,
            "confirmed-found": found,
            "false-alarms": 10,
            "false-alarms-repeated": repeated,
        }
        kept = {
            "of": "vectors",
            "counts": counts,
            "abnormal": 4,
            "abnormal-found": {"current": 4, "candidate": remembered[0]},
            "healthy": 7,
            "healthy-above": {"current": 0, "candidate": remembered[1]},
        }
        comparison = {"current": figures(*before), "candidate": figures(*after)}
        found = feedback.decide({"comparison": comparison, "remembered": kept})
        self.assertEqual(found["accepted"], is_accepted, found)
        self.assertEqual(found["exit-code"], 0 if is_accepted else EXIT_REFUSED)
        self.assertEqual(bool(found["reasons"]), not is_accepted)

    def test_what_is_worse_is_refused(self):
        self.check((8, 5), (8, 5), True)
        self.check((8, 5), (8, 4), True)
        self.check((8, 5), (9, 7), True)
        self.check((8, 5), (8, 6), False)
        self.check((8, 5), (7, 0), False)

    def test_what_forgets_is_refused_where_that_can_be_told(self):
        self.check((8, 5), (8, 0), False, remembered=(3, 0))
        self.check((8, 5), (8, 0), False, remembered=(4, 1))
        self.check((8, 5), (8, 0), True, remembered=(3, 1), counts=False)


class BadInput(Case):
    def check(self, code, *words, **more):
        found, _, errors = self.train(LakeData(), **more)
        self.assertEqual(found, code, errors)
        self.assertEqual(errors.count("\n"), 1, errors)
        for word in words:
            self.assertIn(word, errors)

    def test_a_model_of_more_layers(self):
        self.check(EXIT_DATA, "motor-v1", "one dense layer", model=BUNDLES / "motor-v1")

    def test_a_model_that_is_not_there(self):
        self.check(EXIT_NO_INPUT, "nowhere", "does not exist", model=self.folder / "nowhere")

    @needs_deltalake
    def test_a_folder_without_tables(self):
        self.check(EXIT_NO_INPUT, "machine_events", "does not exist")

    def test_a_lake_that_is_not_there(self):
        (self.folder / "lake").write_text("a file")
        self.check(EXIT_NO_INPUT, "lake", "does not exist")

    def test_model_and_out_are_needed(self):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(main(["train", "--lake", str(self.folder)]), EXIT_DATA)
        self.assertIn("--model", errors.getvalue())

    def test_versions_that_cannot_be_counted_up(self):
        bundle = load_bundle(SHAPE_BUNDLE)
        for version, wanted in (("1.0.9", "1.0.10"), ("1.0", None), ("1.0.x", None)):
            bundle.metadata["version"] = version
            if wanted:
                self.assertEqual(next_version(bundle), wanted)
            else:
                with self.assertRaisesRegex(DataFault, "1.2.3"):
                    next_version(bundle)


class OneLayer(unittest.TestCase):
    def test_committed_models_answer_as_their_self_tests_say(self):
        for folder in (SHAPE_BUNDLE, LINE_BUNDLE):
            bundle = load_bundle(folder)
            tests = bundle.metadata["self-test"]["scores"]
            found = bundle.layer.logits([one["features"] for one in tests])
            scores = 1 / (1 + np.exp(-found))
            np.testing.assert_allclose(scores, [one["score"] for one in tests], atol=2e-6)

    def test_the_same_numbers_give_the_same_file_and_others_only_change_them(self):
        layer = load_bundle(SHAPE_BUNDLE).layer
        self.assertEqual(layer.with_numbers(layer.weights, layer.bias).content, layer.content)
        other = layer.with_numbers(layer.weights * 2, 3.5)
        self.assertEqual(other.weights.tolist(), (layer.weights * 2).tolist())
        self.assertEqual((other.bias, len(other.content)), (3.5, len(layer.content)))
        with self.assertRaises(ValueError):
            layer.with_numbers(layer.weights * np.nan, 0.0)

    def test_files_that_are_cut_or_changed_are_refused_and_never_crash(self):
        content = load_bundle(SHAPE_BUNDLE).layer.content
        random = np.random.default_rng(4)
        damaged = [content[:length] for length in range(0, len(content), 7)]
        for _ in range(2000):
            one = bytearray(content)
            one[random.integers(len(one))] = random.integers(256)
            damaged.append(bytes(one))
        for one in damaged:
            with contextlib.suppress(DataFault):
                self.assertEqual(len(dense.read(one, "model").weights), 16)

    @unittest.skipUnless(os.environ.get("WITH_TENSORFLOW"), "WITH_TENSORFLOW is not set")
    def test_tensorflow_answers_alike(self):
        random = np.random.default_rng(5)
        layer = load_bundle(SHAPE_BUNDLE).layer.with_numbers(random.standard_normal(16), 0.5)
        vectors = random.standard_normal((50, 16)) * 5 - 14
        found = bundles.run(layer.content, vectors)
        np.testing.assert_allclose(found, layer.logits(vectors), atol=1e-3)
