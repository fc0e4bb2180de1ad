"""A model of one layer fitted anew to judged trips: weights held to the ones in force, and a place for the threshold.

A trip counts as one, however many windows it has, and both classes count alike. The weights are the maximum of the
likelihood with a Gaussian prior round the weights in force, in units of a healthy machine's deviation: few trips move them
little, many move them far. With the recordings that the model was trained on, these take the prior's place. A model of one
feature (the line) keeps its slope; only its threshold moves.

The threshold is chosen by levels of trips that the scoring weights never saw: no fewer confirmed trips than the model in
force finds, then as few false alarms as can be, then as near to the one in force as the gap allows. It moves by way of
the bias, so that the bundle's `threshold`, which settings may override, keeps its meaning.
"""

from dataclasses import dataclass

import numpy as np

from . import motor

# Precision of the prior of each weight, on features divided by their deviation: as much as some trips know of it.
PRIOR_PRECISION = 1.0
FOLDS = 5
# Logits between the threshold and the nearest trips; less where the gap has no room for it. As commissioning's margins.
ROOM_LOGITS = 2.0
# Newton's method: steps, and shares of a step that are tried.
NEWTON_STEPS = 200
STEP_MIN, STEP_GAIN, STEP_END = 1e-12, 1e-4, 1e-10
PRECISION_MIN = 1e-9
LOGIT_MAX = 700.0
# Weights that add up to less than this take the level out.
SHAPE_SUM_MAX = 1e-3


@dataclass(frozen=True)
class Example:
    """A trip or a recording: features [windows, features] in the order of the model's input, f32 taken as f64."""

    name: str
    machine: str
    group: str
    at_us: int
    abnormal: bool
    features: np.ndarray
    # Which windows teach: of a confirmed trip those that led to it.
    teaches: np.ndarray
    # Those that count in the votes: a window with a step of the rest level does not.
    votes: np.ndarray


@dataclass(frozen=True)
class Linear:
    """weights · features + bias, a logit; abnormal at or above `threshold`."""

    weights: np.ndarray
    bias: float
    threshold: float

    @property
    def is_level(self):
        return len(self.weights) == 1

    @property
    def is_shape(self):
        return not self.is_level and abs(self.weights.sum()) < SHAPE_SUM_MAX

    def logits(self, features):
        return np.asarray(features) @ self.weights + self.bias

    def level(self, example):
        """The highest threshold at which this example would trip; -inf if at none."""
        return vote_level(self.logits(example.features[example.votes]))

    def moved(self, logits):
        """The same with its threshold so much higher, by way of the bias."""
        return Linear(self.weights, self.bias - logits, self.threshold)

    def rounded(self):
        """As the f32 of the model's file hold it."""
        narrow = lambda values: np.asarray(values, dtype=np.float32).astype(np.float64)
        return Linear(narrow(self.weights), float(narrow(self.bias)), self.threshold)


def vote_level(logits, votes=motor.VOTES, of=motor.VOTES_OF):
    """The highest level that `votes` of some `of` windows running reach."""
    logits = np.asarray(logits, dtype=np.float64)
    best = -np.inf
    for end in range(votes, len(logits) + 1):
        best = max(best, np.sort(logits[max(0, end - of) : end])[-votes])
    return float(best)


def refit(current, examples, scale, bench=None, anchors=()):
    """The candidate: weights by all examples, its threshold by levels from weights that never saw the trip.

    `scale` is the deviation of each feature. `bench` gives the recordings of the model's own training; `anchors` are
    examples that the model must not forget, which place the threshold and teach nothing.
    """
    examples, anchors = list(examples), list(anchors)
    judged = examples + (bench.examples if bench else [])
    levels = np.full(len(judged), -np.inf)
    for fold in folds(judged):
        train = [one for index, one in enumerate(judged) if index not in fold]
        model = fit(current, train, scale, bench)
        for index in fold:
            levels[index] = model.level(judged[index])
    final = fit(current, judged, scale, bench)
    placing = np.concatenate([levels, [final.level(one) for one in anchors]])
    abnormal = np.array([one.abnormal for one in judged + anchors])
    found = sum(
        one.abnormal and current.level(one) >= current.threshold for one in judged + anchors
    )
    threshold = choose_threshold(placing, abnormal, int(found), current.threshold)
    return final.moved(threshold - current.threshold).rounded()


def folds(examples):
    """Indices of examples in up to FOLDS parts: a group lies in one, and each part has its share of both classes."""
    groups = {}
    for index, one in enumerate(examples):
        groups.setdefault(one.group, []).append(index)
    has_abnormal = lambda name: any(examples[index].abnormal for index in groups[name])
    order = sorted(groups, key=lambda name: (has_abnormal(name), min(groups[name])))
    count = min(FOLDS, len(order))
    return [
        {index for name in order[part::count] for index in groups[name]} for part in range(count)
    ]


def fit(current, examples, scale, bench=None):
    """Weights and bias by these examples; the threshold is that of the model in force, and not yet chosen."""
    if current.is_level:
        return current
    own = [one for one in examples if bench is None or one not in bench]
    inputs, labels, weight = weighted(own)
    centre, bias, precision = current.weights, current.bias, PRIOR_PRECISION * scale**2
    bias_precision = PRIOR_PRECISION
    if bench is not None:
        taught = [one for one in examples if one in bench]
        bench_inputs, bench_labels, bench_weight = bench.inputs(taught)
        # The trips weigh together as much as the recordings.
        weight = weight * bench_weight.sum() / max(weight.sum(), 1e-300)
        inputs = np.concatenate([inputs, bench_inputs])
        labels = np.concatenate([labels, bench_labels])
        weight = np.concatenate([weight, bench_weight])
        centre, bias, bias_precision = np.zeros_like(centre), 0.0, 0.0
    if current.is_shape:
        inputs = inputs - inputs.mean(axis=-1, keepdims=True)
    weights, bias = newton(
        np.column_stack([inputs, np.ones(len(inputs))]),
        labels,
        weight,
        np.append(centre, bias),
        np.append(precision, bias_precision),
    )
    if current.is_shape:
        # Inputs without their mean cannot tell a common part of the weights; the model must not see the level.
        weights = weights - weights.mean()
    return Linear(weights, bias, current.threshold)


def weighted(examples):
    """Windows that teach, their labels and weights: each example weighs as one of its class, both classes alike."""
    width = examples[0].features.shape[1]
    inputs, labels, weight = [np.empty((0, width))], [np.empty(0)], [np.empty(0)]
    for abnormal in (False, True):
        chosen = [one for one in examples if one.abnormal == abnormal and one.teaches.any()]
        for one in chosen:
            windows = one.features[one.teaches]
            share = len(examples) / 2 / len(chosen) / len(windows)
            inputs.append(windows)
            labels.append(np.full(len(windows), float(abnormal)))
            weight.append(np.full(len(windows), share))
    return np.concatenate(inputs), np.concatenate(labels), np.concatenate(weight)


def newton(design, labels, weight, centre, precision):
    """Minimum of the weighted logistic loss plus half the precision times the squared distance from the centre."""

    def loss(values):
        logits = design @ values
        # ln(1 + e^logit) - label logit, without overflow.
        losses = np.logaddexp(0.0, logits) - labels * logits
        return weight @ losses + 0.5 * precision @ (values - centre) ** 2

    values = centre.astype(np.float64).copy()
    for _ in range(NEWTON_STEPS):
        probability = motor.sigmoid(np.clip(design @ values, -LOGIT_MAX, LOGIT_MAX))
        gradient = design.T @ (weight * (probability - labels)) + precision * (values - centre)
        curvature = (design * (weight * probability * (1 - probability))[:, None]).T @ design
        step = np.linalg.solve(curvature + np.diag(precision + PRECISION_MIN), gradient)
        before, length = loss(values), 1.0
        # Where trips lie far on the wrong side the curvature is next to nothing, and a whole step goes much too far.
        while loss(values - length * step) > before - STEP_GAIN * length * (gradient @ step):
            length /= 2
            if length < STEP_MIN:
                return values[:-1], float(values[-1])
        values = values - length * step
        if np.abs(length * step).max() < STEP_END:
            break
    return values[:-1], float(values[-1])


def choose_threshold(levels, abnormal, found, current):
    """As few false alarms as can be among thresholds that find so many of the abnormal; near to the current one.

    A threshold in the middle of a wide gap would miss faults that are smaller than those of these trips.
    """
    finite = np.unique(levels[np.isfinite(levels)])
    if finite.size == 0:
        return current
    beyond = 2 * ROOM_LOGITS + max(finite[-1] - current, current - finite[0], 0.0)
    edges = np.concatenate([[finite[0] - beyond], finite, [finite[-1] + beyond]])
    best = None
    for low, high in zip(edges, edges[1:]):
        # Within (low, high] nothing changes.
        hits = int((levels[abnormal] >= high).sum())
        false = int((levels[~abnormal] >= high).sum())
        # If unseen trips are found worse than by the model in force, as many as can be found.
        rank = (min(hits, found), -false, hits)
        if best is None or rank >= best[0]:
            room = min(ROOM_LOGITS, (high - low) / 2)
            best = (rank, np.clip(current, low + room, high - room))
    return float(best[1])
