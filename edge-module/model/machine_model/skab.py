"""The monitor of the pump's runs, for `evaluate` alone: nothing learnt from these files is shipped.

Each run by itself. The first rows teach level and spread of three channels; after them a row is abnormal while a channel is
further from its baseline than its spread, or than a change that matters. While there is no alarm the baseline follows.
"""

import numpy as np

from .recordings import SKAB_CHANNELS

LEARNING_ROWS = 400
SMOOTHING_ROWS = 10
SPREAD_QUANTILE = 0.95
# Channel and the least change that matters, as a ratio (ln): 15 % of vibration, 1.5 % of flow.
CHANNELS = (
    ("Accelerometer1RMS", 0.15),
    ("Accelerometer2RMS", 0.15),
    ("Volume Flow RateRMS", 0.015),
)
ALARM_ON, ALARM_OFF = 1.0, 0.7
FOLLOWING_ROWS = 200.0


def monitor(channels):
    """Distance from the baseline, and whether that is an alarm, per row of one run; rows that teach raise none."""
    rows = len(channels)
    distance, alarms = np.zeros(rows), np.zeros(rows, dtype=bool)
    if rows <= LEARNING_ROWS:
        return distance, alarms
    columns = [SKAB_CHANNELS.index(name) for name, _ in CHANNELS]
    smooth = trailing_mean(np.log(np.maximum(channels[:, columns], 1e-6)), SMOOTHING_ROWS)
    taught = smooth[:LEARNING_ROWS]
    baseline = np.median(taught, axis=0)
    deviation = np.abs(taught[SMOOTHING_ROWS:] - baseline)
    scale = np.maximum(
        np.quantile(deviation, SPREAD_QUANTILE, axis=0), [floor for _, floor in CHANNELS]
    )
    alarm = False
    for row in range(LEARNING_ROWS, rows):
        difference = smooth[row] - baseline
        distance[row] = np.abs(difference / scale).max()
        alarm = bool(distance[row] > (ALARM_OFF if alarm else ALARM_ON))
        alarms[row] = alarm
        if not alarm:
            baseline = baseline + difference / FOLLOWING_ROWS
    return distance, alarms


def trailing_mean(values, rows):
    """Mean of the last `rows` values, of fewer at the beginning."""
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - rows)
    return (total[end] - total[start]) / (end - start)[:, None]
