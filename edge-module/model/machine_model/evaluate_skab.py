"""The pump: each run by itself, by the monitor in `skab.py`. Scalars once a second, so nothing for a model of vibration."""

import numpy as np

from .figures import FALSE_ALARM_LIMITS, auc, f1_and_false_alarms, per_hour, recall_at
from .skab import LEARNING_ROWS, monitor


def evaluate_skab(runs):
    judged = [(run, *monitor(run.channels)) for run in runs]
    labelled = [one for one in judged if one[0].labelled]
    return {
        "all-files": pooled(judged),
        "labelled-files": pooled(labelled) if labelled else None,
        "by-run": {
            run.name: {**pooled([(run, distance, alarms)]), "labelled": run.labelled}
            for run, distance, alarms in judged
        },
    }


def pooled(judged):
    """Rows of these runs together; rows that teach raise no alarm and are left out of all but the first two figures."""
    alarms = np.concatenate([alarms for _, _, alarms in judged])
    abnormal = np.concatenate([run.abnormal for run, _, _ in judged])
    after = np.concatenate([np.arange(len(run.abnormal)) >= LEARNING_ROWS for run, _, _ in judged])
    distance = np.concatenate([distance for _, distance, _ in judged])
    f1, false_alarms = f1_and_false_alarms(alarms, abnormal)
    _, after_learning = f1_and_false_alarms(alarms[after], abnormal[after])
    false = int((alarms & ~abnormal).sum())
    return {
        "rows": len(alarms),
        "rows-abnormal": int(abnormal.sum()),
        "f1": f1,
        "false-row-rate": false_alarms,
        "false-row-rate-after-learning": after_learning,
        "recall": float(alarms[abnormal].mean()) if abnormal.any() else None,
        "auc": auc(distance[after], abnormal[after]),
        "recall-at-false-alarms": {
            f"{100 * rate:g} %": recall_at(distance[after], abnormal[after], rate)
            for rate in FALSE_ALARM_LIMITS
        },
        "false-rows": false,
        # A row is a second.
        "false-rows-per-machine-hour": per_hour(false, float((~abnormal & after).sum())),
    }
