import unittest

import numpy as np

from machine_model.figures import (
    auc,
    f1_and_false_alarms,
    first_with_votes,
    per_hour,
    recall_at,
    upper_bound,
    window_figures,
)


class Figures(unittest.TestCase):
    def test_auc_equals_the_share_of_pairs_in_order(self):
        random = np.random.default_rng(3)
        scores, abnormal = random.integers(0, 20, 200), random.integers(0, 2, 200).astype(bool)
        pairs = scores[abnormal][:, None] - scores[~abnormal][None]
        self.assertAlmostEqual(
            auc(scores, abnormal), (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
        )

    def test_one_class_alone_has_no_auc_and_no_recall_at_a_limit(self):
        self.assertIsNone(auc([1, 2], [True, True]))
        self.assertIsNone(recall_at([1, 2], [False, False], 0.01))

    def test_recall_at_a_limit_lets_as_many_healthy_windows_through(self):
        scores = np.concatenate([np.arange(100), [98.5, 99.5, 97.5]])
        abnormal = np.arange(103) >= 100
        self.assertAlmostEqual(recall_at(scores, abnormal, 0.001), 1 / 3)
        self.assertAlmostEqual(recall_at(scores, abnormal, 0.01), 2 / 3)
        self.assertAlmostEqual(recall_at(scores, abnormal, 0.05), 1.0)

    def test_false_alarms_per_machine_hour(self):
        self.assertEqual(per_hour(3, 1800), 6)
        self.assertIsNone(per_hour(3, 0))
        found = window_figures(
            [0, 1, 2, 3], [False, True, True, True], [False, False, True, True], 7200
        )
        self.assertEqual(
            (found["false-windows"], found["false-windows-per-machine-hour"]), (1, 0.5)
        )
        self.assertEqual((found["recall"], found["false-window-rate"]), (1.0, 0.5))

    def test_no_false_alarm_of_many_still_leaves_room_for_some(self):
        self.assertAlmostEqual(upper_bound(0, 740), 1 - 0.05 ** (1 / 740), places=6)
        self.assertAlmostEqual(upper_bound(3, 10), 0.6066, places=3)
        self.assertAlmostEqual(upper_bound(10, 10), 1.0, places=6)
        self.assertIsNone(upper_bound(0, 0))

    def test_votes_count_the_last_windows_only(self):
        self.assertEqual(first_with_votes([0, 1, 0, 1, 0, 1], 3, 5), 5)
        self.assertIsNone(first_with_votes([1, 0, 0, 0, 0, 1, 1], 3, 5))
        self.assertEqual(first_with_votes([0, 0, 1], 1, 1), 2)
        self.assertEqual(first_with_votes([1, 1], 2, 3), 1)

    def test_f1_over_rows(self):
        f1, false = f1_and_false_alarms([1, 1, 0, 0, 1], [1, 1, 1, 0, 0])
        self.assertAlmostEqual(f1, 4 / 6)
        self.assertAlmostEqual(false, 0.5)
        self.assertIsNone(f1_and_false_alarms([0], [0])[0])
