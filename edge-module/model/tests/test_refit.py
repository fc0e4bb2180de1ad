import unittest

import numpy as np

from machine_model.refit import (
    Example,
    Linear,
    choose_threshold,
    fit,
    folds,
    newton,
    refit,
    vote_level,
)


def example(number, abnormal, features, group=None):
    every = np.ones(len(features), dtype=bool)
    name = f"t{number}"
    return Example(name, "m", group or name, number, abnormal, np.asarray(features), every, every)


def clouds(count, distance, width=3):
    """Trips of six windows, in turn healthy and abnormal, apart by so much in the first feature."""
    random = np.random.default_rng(1)
    return [
        example(
            number,
            bool(number % 2),
            random.standard_normal((6, width)) + np.eye(width)[0] * distance * (number % 2),
        )
        for number in range(count)
    ]


class Refit(unittest.TestCase):
    def test_votes_decide_as_the_edge_module_counts_them(self):
        def check(logits, expected):
            self.assertEqual(vote_level(logits), expected)

        check([], -np.inf)
        check([5, 5], -np.inf)
        check([5, 4, 3], 3)
        check([9, 0, 8, 0, 7], 7)
        # Three of five running: the three highest lie too far apart.
        check([9, 0, 0, 0, 0, 8, 0, 7], 0)
        check([1, 2, 3, 4, 5, 6], 4)

    def test_a_level_is_the_highest_threshold_that_trips(self):
        random = np.random.default_rng(2)
        for _ in range(200):
            logits = np.round(random.standard_normal(random.integers(3, 12)), 1)
            level = vote_level(logits)
            for threshold in np.unique(logits):
                alarms = logits >= threshold
                counts = [alarms[max(0, end - 5) : end].sum() for end in range(1, len(logits) + 1)]
                self.assertEqual(max(counts) >= 3, threshold <= level)

    def test_newton_ends_at_the_minimum_however_wrong_the_start_is(self):
        random = np.random.default_rng(3)
        for size in (0.1, 10.0, 1000.0):
            design = np.column_stack([random.standard_normal((80, 4)) * 5, np.ones(80)])
            labels = (random.random(80) < 0.5).astype(float)
            weight, precision = np.full(80, 0.3), np.full(5, 0.7)
            centre = random.standard_normal(5) * size
            weights, bias = newton(design, labels, weight, centre, precision)
            values = np.append(weights, bias)
            probability = 1 / (1 + np.exp(-np.clip(design @ values, -700, 700)))
            gradient = design.T @ (weight * (probability - labels)) + precision * (values - centre)
            self.assertLess(np.abs(gradient).max(), 1e-4)

    def test_few_trips_move_the_weights_less_than_many(self):
        # Trips that say the opposite of the weights in force.
        current = Linear(np.array([-1.0, 0.5, 0.0]), 0.0, 0.0)
        moved = [
            np.linalg.norm(fit(current, clouds(count, 3.0), np.ones(3)).weights - current.weights)
            for count in (2, 8, 64)
        ]
        self.assertEqual(moved, sorted(moved))
        self.assertLess(moved[0], moved[2] / 1.5)

    def test_a_shape_stays_without_a_level(self):
        current = Linear(np.array([-1.0, 0.5, 0.5]), 0.0, 0.0)
        found = refit(current, clouds(20, 3.0), np.ones(3))
        self.assertLess(abs(found.weights.sum()), 1e-6)

    def test_windows_that_do_not_teach_change_nothing(self):
        current, examples = Linear(np.array([1.0, 0.5, 0.0]), 0.0, 0.0), clouds(12, 2.0)
        before = fit(current, examples, np.ones(3))
        for one in examples[:4]:
            one.teaches[3:] = False
        some = fit(current, examples, np.ones(3))
        for one in examples[:4]:
            one.features[3:] += 100.0
        after = fit(current, examples, np.ones(3))
        np.testing.assert_array_equal(after.weights, some.weights)
        self.assertFalse(np.array_equal(before.weights, some.weights))

    def test_a_group_lies_in_one_fold_and_every_fold_has_both_kinds(self):
        examples = [
            example(number, number % 4 == 0, np.zeros((3, 2)), group=f"g{number // 2}")
            for number in range(40)
        ]
        parts = folds(examples)
        self.assertEqual(sorted(index for part in parts for index in part), list(range(40)))
        for part in parts:
            rest = {examples[index].group for index in range(40) if index not in part}
            self.assertFalse(rest & {examples[index].group for index in part})
            self.assertEqual({examples[index].abnormal for index in part}, {True, False})

    def test_the_threshold_keeps_what_is_found_and_then_saves_false_alarms(self):
        def check(abnormal, healthy, found, expected, current=0.0):
            levels = np.array([*abnormal, *healthy], dtype=float)
            labels = np.arange(len(levels)) < len(abnormal)
            chosen = choose_threshold(levels, labels, found, current)
            self.assertAlmostEqual(chosen, expected)

        # The middle of a narrow gap.
        check([4, 5, 6], [0, 1, 2], 3, 3.0)
        # In a wide one, as near to the one in force as its room allows.
        check([14, 15], [0, 1], 2, 3.0)
        check([14, 15], [0, 1], 2, 7.0, current=7.0)
        check([14, 15], [0, 1], 2, 12.0, current=20.0)
        # One of three was never found: it need not be, if that saves a false alarm.
        check([1, 5, 6], [0, 2, 3], 2, 4.0)
        # It must be found.
        check([1, 5, 6], [0, 2, 3], 3, 0.5)
        # And is, where that costs nothing.
        check([3, 5, 6], [0, 1, 2], 2, 2.5)
        # Nothing is healthy, or nothing is found at all.
        check([4, 5], [], 2, 0.0)
        check([4, 5], [], 2, 2.0, current=9.0)
        check([-np.inf, 5], [-np.inf, 1], 1, 3.0)
        check([-np.inf], [-np.inf], 0, 1.5, current=1.5)
