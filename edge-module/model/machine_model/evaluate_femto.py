"""The bearings: snapshots through `edge-module judge` with the limit on `rms-steady`; lead before failure."""

import numpy as np

from . import femto, judge, stop_rules
from .figures import first_with_votes, per_hour, window_figures
from .recordings import FEMTO_AXES, FEMTO_RATE_HZ, DataFault

# The baseline: a limit on plain RMS, with votes.
RMS_LIMIT_G = 0.96
RMS_VOTES = ((1, 1), (3, 5))


def evaluate_femto(program, bearings):
    """Figures; and for the picture the judged level per snapshot of each bearing."""
    machines = [f"bearing-{index:03d}" for index in range(len(bearings))]
    starts, at = [], judge.EPOCH_NS
    for bearing in bearings:
        starts.append(at)
        at += len(bearing.samples) * rhythm_ns() + judge.PAUSE_NS
    configuration = stop_rules.femto_configuration(machines)
    judged = judge.judge(program, configuration, femto_blocks(bearings, machines, starts))
    levels, by_bearing, per_window = [], {}, []
    for bearing, machine, start in zip(bearings, machines, starts):
        steady, rms = (
            features_of(program, judged, machine, start, bearing, name)
            for name in (femto.LIMIT_FEATURE, "rms")
        )
        levels.append(steady)
        first = stopped_at(judged, machine, start, bearing)
        by_bearing[bearing.name] = bearing_figures(bearing, steady, rms, first)
        per_window.append((bearing, steady, rms))
    figures = pooled(per_window, steady_of, femto.LIMIT_G)
    false_trips = sum(one["false-trip"] for one in by_bearing.values())
    return {
        "all": {**figures, **false_trip_figures(false_trips, figures)},
        "by-bearing": by_bearing,
        "baselines": {
            f"rms above {RMS_LIMIT_G} g, {votes} of {of}": baseline(per_window, votes, of)
            for votes, of in RMS_VOTES
        },
    }, levels


def rhythm_ns():
    return stop_rules.FEMTO_RHYTHM_S * judge.SECOND_NS


def femto_blocks(bearings, machines, starts):
    for bearing, machine, start in zip(bearings, machines, starts):
        for row, snapshot in enumerate(bearing.samples):
            for channel, axis in enumerate(FEMTO_AXES):
                yield judge.Block(
                    stop_rules.sensor(machine, axis),
                    start + row * rhythm_ns(),
                    FEMTO_RATE_HZ,
                    snapshot[:, channel],
                )


def features_of(program, judged, machine, start, bearing, name):
    """The higher value of both axes per snapshot."""
    values = np.full((len(bearing.samples), len(FEMTO_AXES)), np.nan)
    for channel, axis in enumerate(FEMTO_AXES):
        for window in judged.windows.get(stop_rules.sensor(machine, axis), []):
            if name not in window.features:
                raise DataFault(
                    program,
                    f"judge gives no feature {name}",
                    "use the edge-module of this version",
                    judge.EXIT_SOFTWARE,
                )
            row = round((window.start_ns - start) / rhythm_ns())
            if 0 <= row < len(values):
                values[row, channel] = window.features[name]
    if np.isnan(values).any():
        raise DataFault(
            program,
            f"judge gave no window for {int(np.isnan(values).sum())} snapshots of {bearing.name}",
            "see what it logs",
            judge.EXIT_SOFTWARE,
        )
    return values.max(axis=1)


def stopped_at(judged, machine, start, bearing):
    """The snapshot that the first trip fell on or after; and the seconds it came after it."""
    trips = judged.trips.get(machine, [])
    if not trips:
        return None
    since = trips[0].at_ns - start
    row = min(since // rhythm_ns(), len(bearing.samples) - 1)
    return int(row), (since - row * rhythm_ns()) / judge.SECOND_NS


def bearing_figures(bearing, steady, rms, first):
    alarms = steady > femto.LIMIT_G
    lead = None if first is None else max(0.0, float(bearing.seconds_to_end[first[0]]) - first[1])
    return {
        **window_figures_of(bearing, steady, alarms),
        "fails": bool(bearing.abnormal.any()),
        "lead-s": lead,
        "false-trip": bool(first is not None and bearing.healthy[first[0]]),
        "highest-healthy-g": (
            float(steady[bearing.healthy].max()) if bearing.healthy.any() else None
        ),
        "lowest-abnormal-g": (
            float(steady[bearing.abnormal].min()) if bearing.abnormal.any() else None
        ),
    }


def window_figures_of(bearing, scores, alarms):
    """Windows without a label count for nothing here."""
    labelled = bearing.healthy | bearing.abnormal
    return window_figures(
        scores[labelled], alarms[labelled], bearing.abnormal[labelled], healthy_seconds(bearing)
    )


def healthy_seconds(bearing):
    """The machine time that the healthy snapshots stand for: from the first to the last, not only the tenths recorded."""
    at = bearing.seconds_from_start[bearing.healthy]
    return float(at.max() - at.min()) if at.size else 0.0


def steady_of(_bearing, steady, _rms):
    return steady


def rms_of(_bearing, _steady, rms):
    return rms


def pooled(per_window, of, limit):
    labels = [bearing.healthy | bearing.abnormal for bearing, _, _ in per_window]
    scores = np.concatenate([of(*one)[keep] for one, keep in zip(per_window, labels)])
    abnormal = np.concatenate([one[0].abnormal[keep] for one, keep in zip(per_window, labels)])
    return window_figures(
        scores, scores > limit, abnormal, sum(healthy_seconds(one[0]) for one in per_window)
    )


def baseline(per_window, votes, of):
    """A plain limit with votes, over the same windows."""
    leads, false_trips = {}, 0
    for bearing, _, rms in per_window:
        alarms = rms > RMS_LIMIT_G
        first = first_with_votes(alarms, votes, of)
        leads[bearing.name] = None if first is None else float(bearing.seconds_to_end[first])
        # As if it began in good health: votes of the run-in do not count.
        false_trips += first_with_votes(alarms[bearing.healthy], votes, of) is not None
    figures = pooled(per_window, rms_of, RMS_LIMIT_G)
    return {**figures, **false_trip_figures(false_trips, figures), "lead-s": leads}


def false_trip_figures(false_trips, figures):
    seconds = figures["healthy-machine-hours"] * 3600.0
    return {
        "false-trips": false_trips,
        "false-trips-per-machine-hour": per_hour(false_trips, seconds),
    }
