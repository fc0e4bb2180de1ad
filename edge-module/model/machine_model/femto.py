"""The limit of the bearings: chosen here from recordings, shipped nowhere as a model.

Used on every bearing as it stands below, so that `evaluate` has one stop rule; `train --femto` shows what
the recordings say.
"""

import numpy as np

from .features import centre, steady_rms
from .figures import first_with_votes, share

# RMS that a burst does not move, in g, of either axis; two snapshots running.
LIMIT_FEATURE = "rms-steady"
LIMIT_G = 1.0
VOTES = 2
# Highest of the normal windows that counts: as many may be above as false alarms are allowed.
NORMAL_QUANTILE = 0.997


def steady_level(bearing):
    """The higher `rms-steady` of both axes per snapshot, in g."""
    return steady_rms(centre(np.moveaxis(bearing.samples, -1, 1))).max(axis=1)


def limit_between(levels, bearings):
    """The geometric mean of the highest normal and the lowest abnormal level of these bearings."""
    normal = max(
        np.quantile(levels[one.name][one.healthy], NORMAL_QUANTILE)
        for one in bearings
        if one.healthy.any()
    )
    abnormal = min(levels[one.name][one.abnormal].min() for one in bearings if one.abnormal.any())
    return float(np.sqrt(normal * abnormal))


def leave_one_out(bearings):
    """Each bearing judged by the limit that the others give; and the limit of all."""
    levels = {bearing.name: steady_level(bearing) for bearing in bearings}
    table = {}
    for bearing in bearings:
        others = [other for other in bearings if other is not bearing]
        if not any(other.healthy.any() for other in others) or not any(
            other.abnormal.any() for other in others
        ):
            continue
        limit = limit_between(levels, others)
        alarms = levels[bearing.name] > limit
        first = first_with_votes(alarms, VOTES, VOTES)
        table[bearing.name] = {
            "limit-g": round(limit, 4),
            "false-window-rate": share(alarms[bearing.healthy]),
            "lead-s": None if first is None else float(bearing.seconds_to_end[first]),
            "highest-normal-g": rounded(levels[bearing.name][bearing.healthy], np.max),
            "lowest-abnormal-g": rounded(levels[bearing.name][bearing.abnormal], np.min),
        }
    usable = any(one.healthy.any() for one in bearings) and any(
        one.abnormal.any() for one in bearings
    )
    return {
        "limit-of-all-g": round(limit_between(levels, bearings), 4) if usable else None,
        "by-bearing": table,
    }


def rounded(values, of):
    return round(float(of(values)), 4) if values.size else None
