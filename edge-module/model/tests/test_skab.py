import unittest

import numpy as np

from machine_model.recordings import SKAB_CHANNELS
from machine_model.skab import LEARNING_ROWS, monitor, trailing_mean


def steady(rows):
    return 1.0 + 0.01 * np.random.default_rng(4).standard_normal((rows, len(SKAB_CHANNELS)))


class Monitor(unittest.TestCase):
    def test_a_run_too_short_to_learn_from_raises_nothing(self):
        for rows in (1, LEARNING_ROWS):
            self.assertFalse(monitor(steady(rows))[1].any())

    def test_a_change_alarms_and_its_end_ends_the_alarm(self):
        channels = steady(1000)
        channels[600:700, 0] *= 1.6
        alarms = monitor(channels)[1]
        self.assertFalse(alarms[:600].any())
        self.assertTrue(alarms[610:700].all())
        self.assertFalse(alarms[720:].any())

    def test_a_slow_change_is_followed(self):
        channels = steady(3000)
        channels[:, 0] *= np.exp(np.maximum(0, np.arange(3000) - 500) * 2e-4)
        self.assertFalse(monitor(channels)[1].any())

    def test_nothing_is_learnt_from_what_comes_later(self):
        channels = steady(1000)
        changed = channels.copy()
        changed[800:] *= 3
        np.testing.assert_array_equal(monitor(channels)[0][:800], monitor(changed)[0][:800])

    def test_trailing_mean_takes_fewer_rows_at_the_beginning(self):
        np.testing.assert_allclose(
            trailing_mean(np.array([[1.0], [3.0], [5.0], [7.0]]), 2).ravel(), [1, 2, 4, 6]
        )
