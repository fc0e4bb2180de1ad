"""Arithmetic of the reports. Every figure is None where the data cannot give it."""

import numpy as np

FALSE_ALARM_LIMITS = (0.001, 0.01, 0.05)


def auc(scores, abnormal):
    """Probability that an abnormal window scores above a healthy one, ties count half (Mann-Whitney)."""
    scores, abnormal = np.asarray(scores, dtype=float), np.asarray(abnormal, dtype=bool)
    positive, negative = int(abnormal.sum()), int((~abnormal).sum())
    if positive == 0 or negative == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[abnormal].sum() - positive * (positive + 1) / 2) / (positive * negative))


def recall_at(scores, abnormal, false_alarms):
    """Share of abnormal windows above the level that at most this share of the healthy ones exceeds."""
    scores, abnormal = np.asarray(scores, dtype=float), np.asarray(abnormal, dtype=bool)
    if not abnormal.any() or abnormal.all():
        return None
    healthy = np.sort(scores[~abnormal])[::-1]
    level = (
        healthy[int(np.floor(false_alarms * len(healthy) + 1e-9))] if false_alarms < 1 else -np.inf
    )
    return float((scores[abnormal] > level).mean())


def share(alarms):
    alarms = np.asarray(alarms, dtype=bool)
    return float(alarms.mean()) if alarms.size else None


def per_hour(count, seconds):
    return count * 3600.0 / seconds if seconds > 0 else None


def upper_bound(count, total, confidence=0.95):
    """Highest rate that would show at most `count` of `total` with a probability of 5 %, were the windows independent."""
    if total == 0:
        return None
    low, high = count / total, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _binomial_at_most(count, total, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def first_with_votes(alarms, votes, of):
    """Index of the first window at which `votes` of the last `of` alarmed; None if never."""
    counts = np.convolve(np.asarray(alarms, dtype=int), np.ones(of, dtype=int))[: len(alarms)]
    hits = np.flatnonzero(counts >= votes)
    return int(hits[0]) if hits.size else None


def window_figures(scores, alarms, abnormal, healthy_seconds):
    """The figures of one set of windows; healthy_seconds is the machine time that the healthy ones stand for."""
    scores, alarms, abnormal = (
        np.asarray(scores, dtype=float),
        np.asarray(alarms, dtype=bool),
        np.asarray(abnormal, dtype=bool),
    )
    false = int(alarms[~abnormal].sum())
    return {
        "windows-healthy": int((~abnormal).sum()),
        "windows-abnormal": int(abnormal.sum()),
        "auc": auc(scores, abnormal),
        "recall-at-false-alarms": {
            f"{100 * rate:g} %": recall_at(scores, abnormal, rate) for rate in FALSE_ALARM_LIMITS
        },
        "recall": share(alarms[abnormal]),
        "false-windows": false,
        "false-window-rate": share(alarms[~abnormal]),
        "false-window-rate-below-95": upper_bound(false, int((~abnormal).sum())),
        "healthy-machine-hours": healthy_seconds / 3600.0,
        "false-windows-per-machine-hour": per_hour(false, healthy_seconds),
    }


def f1_and_false_alarms(alarms, abnormal):
    """F1 over points, and the share of healthy points that alarmed."""
    alarms, abnormal = np.asarray(alarms, dtype=bool), np.asarray(abnormal, dtype=bool)
    hits, false, missed = (
        int((alarms & abnormal).sum()),
        int((alarms & ~abnormal).sum()),
        int((~alarms & abnormal).sum()),
    )
    f1 = 2 * hits / (2 * hits + false + missed) if abnormal.any() else None
    return f1, share(alarms[~abnormal])


def _binomial_at_most(count, total, rate):
    if rate >= 1:
        return 1.0 if count >= total else 0.0
    # Sum of binomial terms, each from the one before, in logarithms so that none underflows on the way.
    log_term = total * np.log1p(-rate)
    terms = [log_term]
    for hits in range(1, count + 1):
        log_term += np.log((total - hits + 1) / hits) + np.log(rate) - np.log1p(-rate)
        terms.append(log_term)
    return float(np.exp(np.logaddexp.reduce(terms)))
