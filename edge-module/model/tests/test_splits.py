import tempfile
import unittest
from pathlib import Path

from machine_model.recordings import load_motor
from machine_model.splits import SCHEMES, Split, by_speed, family, groups, splits

from .synthetic_data import motor_folder

KINDS = ("healthy", "imbalance_light", "imbalance_heavy", "inner_race_light", "bent_shaft")


class Splits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as folder:
            cls.recordings = load_motor(
                motor_folder(Path(folder), speeds=(600, 1200, 2400), kinds=KINDS)
            )

    def test_severities_are_one_kind(self):
        self.assertEqual(family("inner_race_heavy"), family("inner_race_light"))
        self.assertEqual(family("bent_shaft"), "bent_shaft")

    def test_no_group_is_on_both_sides(self):
        for scheme, attributes in SCHEMES.items():
            for split in splits(self.recordings, scheme):
                self.assertFalse(set(split.train) & set(split.test))
                for attribute in attributes:
                    sides = [
                        groups(self.recordings, attribute, side)
                        for side in (split.train, split.test)
                    ]
                    self.assertFalse(sides[0] & sides[1], f"{scheme}: {split.name}")

    def test_every_abnormal_recording_is_judged_once_in_each_scheme(self):
        for scheme in SCHEMES:
            judged = [row for split in splits(self.recordings, scheme) for row in split.test]
            abnormal = [row for row in judged if self.recordings.abnormal[row] == 1]
            self.assertEqual(
                sorted(abnormal),
                [row for row in range(len(self.recordings)) if self.recordings.abnormal[row] == 1],
            )

    def test_schemes_have_as_many_splits_as_groups(self):
        self.assertEqual(
            [len(splits(self.recordings, scheme)) for scheme in SCHEMES], [3, 6, 9, 18]
        )

    def test_a_split_with_a_group_on_both_sides_is_refused(self):
        with self.assertRaisesRegex(ValueError, "speed"):
            Split("wrong", self.recordings, ("speed",), (0, 1), (2,))
        with self.assertRaisesRegex(ValueError, "recordings on both sides"):
            Split("wrong", self.recordings, (), (0, 1), (1,))

    def test_inner_splits_hold_out_each_speed_of_the_part(self):
        part = [row for row in range(len(self.recordings)) if self.recordings.rpm[row] != 600]
        self.assertEqual(
            [split.name for split in by_speed(self.recordings, part)], ["1200", "2400"]
        )
