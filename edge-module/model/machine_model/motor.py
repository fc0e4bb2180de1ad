"""The two models of the motor, trained and cross-validated: the shape of Z's spectrum, and the strongest slow line of X.

Everything here takes rows of recordings (groups), never windows: see `splits.py`. README.md says how the form was chosen.
"""

from dataclasses import dataclass

import numpy as np

from .features import BAND_ENERGY_EPSILON, Spectrum, centre, log_spaced_edges
from .figures import auc, first_with_votes
from .recordings import MOTOR_AXES, MOTOR_RATE_HZ, DataFault
from .splits import SCHEMES, by_speed, family, splits
from .synthetic import standstill_signals

SEED = 20260301
WINDOW_SAMPLES = 32_768
HOP_SAMPLES = 2048
# Largest distance of the means of a window's halves: three times what the recordings reach (0.33 mV), a tenth of a step that
# makes a line of its own (10 mV).
STEP_MAX_V = 0.001
VOTES, VOTES_OF = 3, 5
FALSE_ALARM_RATE = 0.01

SHAPE_AXIS, LINE_AXIS = "Z", "X"
BANDS = 16
# The upper edge lies just above half the rate, so that the last bin belongs to the last band.
BAND_EDGES_HZ = [round(edge, 3) for edge in log_spaced_edges(40.0, 10_000.1, BANDS)]
LINE_HZ = [6.0, 70.0]
# What the line is for. All other kinds are the shape's; to it an imbalance is a healthy bearing, and so a negative.
LINE_FAMILY = "imbalance"

# Frequency axes of the training: the bands' edges times these, so that it does not matter where a tone falls in its band.
TRAINING_SCALES = (0.8, 0.9, 1.0, 1.1, 1.25)
# Frequency axes that negatives are tried at when the threshold is chosen.
THRESHOLD_SCALES = (0.75, 0.85, 0.95, 1.05, 1.15, 1.3)
SCALES = tuple(sorted({*TRAINING_SCALES, *THRESHOLD_SCALES}))
UNSCALED = SCALES.index(1.0)
# Weight of the likelihood against half the sum of the squared coefficients.
LIKELIHOOD_WEIGHT = 0.1
STANDSTILL_SIGNALS = 16

DECIBEL = 10.0 / np.log(10.0)
# Decibels above the line's threshold that count as much as one logit of the shape's.
LINE_DECIBELS_PER_LOGIT = 2.0
# Above the loudest that is no imbalance, where training has no imbalance.
LINE_ROOM_DECIBELS = 1.0


@dataclass(frozen=True)
class Shape:
    """weights · (ln band energies - their mean) + bias, a logit; abnormal at or above `threshold`."""

    weights: np.ndarray
    bias: float
    threshold: float

    def logits(self, energies):
        return relative(energies) @ self.weights + self.bias


@dataclass(frozen=True)
class Models:
    """Both models: the shape, and the threshold of the line in its own unit (ln)."""

    shape: Shape
    line_threshold: float

    def margins(self, windows, rows):
        """Distance to the threshold of both, in logits: [recordings, windows] each; above 0 is abnormal."""
        shape = self.shape.logits(windows.energies[list(rows), :, UNSCALED]) - self.shape.threshold
        return shape, line_logits(windows.line[list(rows)], self.line_threshold)


class Windows:
    """Every window of the recordings: band energies of Z at each scale, the line of X."""

    def __init__(self, recordings):
        self.recordings = recordings
        samples = recordings.volts.shape[1]
        if samples < WINDOW_SAMPLES:
            what = f"recordings have {samples} samples, a window has {WINDOW_SAMPLES}"
            raise DataFault("adi_motor/recordings.npy", what, "train on longer recordings")
        spectrum = Spectrum(WINDOW_SAMPLES, MOTOR_RATE_HZ)
        energies, lines = [], []
        for volts in recordings.volts:
            energies.append(scaled_energies(spectrum, cut(volts[:, MOTOR_AXES[SHAPE_AXIS]])))
            power = spectrum.power(centre(cut(volts[:, MOTOR_AXES[LINE_AXIS]])))
            lines.append(spectrum.line(power, *LINE_HZ))
        # [recordings, windows, scales, bands] and [recordings, windows].
        self.energies, self.line = np.array(energies), np.array(lines)
        still = standstill_signals(STANDSTILL_SIGNALS, samples, MOTOR_RATE_HZ, SEED)
        self.standstill = np.concatenate(
            [scaled_energies(spectrum, cut(signal)) for signal in still]
        )[:, UNSCALED]
        is_line = np.array([family(kind) == LINE_FAMILY for kind in recordings.kind])
        self.is_imbalance = (recordings.abnormal == 1) & is_line
        self.is_shape_fault = (recordings.abnormal == 1) & ~is_line

    def sums(self, rows):
        """Energies of each bearing or shaft fault plus those of the healthy motor at its speed and load, if it is in rows.

        A fault in the healthy assembly, as far as these recordings can show one; without it the shape learns to
        recognise the assembly. Powers add where signals are not related.
        """
        records, added = self.recordings, []
        for row in rows:
            if not self.is_shape_fault[row]:
                continue
            healthy = [
                other
                for other in rows
                if records.abnormal[other] == 0
                and records.rpm[other] == records.rpm[row]
                and records.load[other] == records.load[row]
            ]
            if healthy:
                shifted = np.roll(self.energies[healthy[0]], -(self.energies.shape[1] // 2), axis=0)
                added.append(self.energies[row] + shifted)
        return np.concatenate(added) if added else np.empty((0, *self.energies.shape[2:]))


def cut(signal):
    """Overlapping windows of a signal, as the edge cuts them."""
    starts = range(0, len(signal) - WINDOW_SAMPLES + 1, HOP_SAMPLES)
    return np.stack([signal[start : start + WINDOW_SAMPLES] for start in starts])


def scaled_energies(spectrum, windows):
    power = spectrum.power(centre(windows))
    edges = np.asarray(BAND_EDGES_HZ)
    return np.stack([spectrum.band_energies(power, edges * scale) for scale in SCALES], axis=1)


def relative(energies):
    """ln of the energies minus its own mean: the level, which grows with speed, taken out."""
    logarithms = np.log(energies + BAND_ENERGY_EPSILON)
    return logarithms - logarithms.mean(axis=-1, keepdims=True)


def line_logits(line, threshold):
    return (line - threshold) * DECIBEL / LINE_DECIBELS_PER_LOGIT


def fit_shape(windows, rows):
    """Weights and bias from these recordings; the threshold comes from `choose_thresholds`."""
    return logistic(*shape_examples(windows, rows))


def shape_examples(windows, rows):
    """What the shape is fitted to: inputs without their level, and 1 for abnormal."""
    rows = list(rows)
    faults = [row for row in rows if windows.is_shape_fault[row]]
    others = [row for row in rows if not windows.is_shape_fault[row]]
    if not faults or not others:
        raise DataFault(
            "adi_motor/recordings.csv",
            "has no bearing or shaft fault, or nothing else, in a part of the training",
            "train on recordings of both at two speeds or more",
        )
    sums = windows.sums(rows)
    inputs, abnormal = [], []
    for scale in (SCALES.index(scale) for scale in TRAINING_SCALES):
        for energies, label in (
            (flat(windows.energies[faults])[:, scale], 1.0),
            (sums[:, scale], 1.0),
            (flat(windows.energies[others])[:, scale], 0.0),
        ):
            inputs.append(relative(energies))
            abnormal.append(np.full(len(energies), label))
    # A machine at rest is not abnormal. As many windows as these keep it well below; more cost recall of faults.
    inputs.append(relative(windows.standstill))
    abnormal.append(np.zeros(len(windows.standstill)))
    return np.concatenate(inputs), np.concatenate(abnormal)


def flat(energies):
    """[recordings, windows, ...] to [all windows, ...]."""
    return energies.reshape(-1, *energies.shape[2:])


def logistic(inputs, abnormal):
    """Logistic regression with squared penalty on standardised inputs, both classes of the same weight: Newton's method."""
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    design = np.column_stack([(inputs - mean) / deviation, np.ones(len(inputs))])
    weight = class_weights(abnormal)
    penalty = np.ones(design.shape[1])
    penalty[-1] = 0.0
    values = np.zeros(design.shape[1])
    for _ in range(50):
        probability = sigmoid(design @ values)
        gradient = design.T @ (weight * (probability - abnormal)) + penalty * values
        curvature = (
            design * (weight * probability * (1 - probability))[:, None]
        ).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        # A long step of Newton's method can overshoot where the curvature is small.
        values = values - step * min(1.0, 4.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    weights = values[:-1] / deviation
    return Shape(weights, float(values[-1] - weights @ mean), np.nan)


def class_weights(abnormal):
    """Weight of each window, so that both classes weigh alike."""
    share = np.where(abnormal == 1, abnormal.mean(), 1 - abnormal.mean())
    return LIKELIHOOD_WEIGHT * 0.5 / share


def sigmoid(logit):
    return 1.0 / (1.0 + np.exp(-np.asarray(logit, dtype=np.float64)))


def choose_shape_threshold(windows, rows):
    """The threshold, and the scores it was chosen by: of speeds that the scoring model never saw.

    The middle between what the negatives exceed in 1 of 100 (on scaled frequency axes, too) and what the faults (also
    added to the healthy motor) reach in 99 of 100; at least what 0.5 % of the real negatives exceed.
    """
    negatives, scaled, positives = [], [], []
    for split in by_speed(windows.recordings, tuple(rows)):
        model = fit_shape(windows, split.train)
        test = list(split.test)
        faults = [row for row in test if windows.is_shape_fault[row]]
        others = [row for row in test if not windows.is_shape_fault[row]]
        negatives.append(model.logits(flat(windows.energies[others])[:, UNSCALED]))
        scaled += [
            model.logits(flat(windows.energies[others])[:, SCALES.index(scale)])
            for scale in THRESHOLD_SCALES
        ]
        positives.append(model.logits(flat(windows.energies[faults])[:, UNSCALED]))
        positives.append(model.logits(windows.sums(split.test)[:, UNSCALED]))
    negatives, positives = np.concatenate(negatives), np.concatenate(positives)
    low = np.quantile(np.concatenate([negatives, *scaled]), 1 - FALSE_ALARM_RATE)
    high = np.quantile(positives, FALSE_ALARM_RATE)
    threshold = max(np.quantile(negatives, 0.995) + 1e-3, (low + high) / 2)
    return float(threshold), negatives, positives


def choose_line_threshold(windows, rows):
    """The middle, in decibels, between the healthy windows' 99th percentile and the imbalances' first."""
    rows = list(rows)
    recordings = windows.recordings
    healthy = windows.line[[row for row in rows if recordings.abnormal[row] == 0]].ravel()
    imbalance = windows.line[[row for row in rows if windows.is_imbalance[row]]].ravel()
    low = np.quantile(healthy, 1 - FALSE_ALARM_RATE)
    if imbalance.size:
        return float((low + np.quantile(imbalance, FALSE_ALARM_RATE)) / 2)
    others = windows.line[[row for row in rows if windows.is_shape_fault[row]]].ravel()
    if others.size:
        low = max(low, np.quantile(others, 1 - FALSE_ALARM_RATE))
    return float(low + LINE_ROOM_DECIBELS / DECIBEL)


def line_false_alarms(windows, rows):
    """Share of healthy windows above a threshold that never saw their speed."""
    above = []
    for split in by_speed(windows.recordings, tuple(rows)):
        healthy = [row for row in split.test if windows.recordings.abnormal[row] == 0]
        above.append(windows.line[healthy].ravel() >= choose_line_threshold(windows, split.train))
    return float(np.concatenate(above).mean())


def commissioning_margins(windows, rows, models):
    """How far each threshold lies above the highest healthy logit, of the shape and of the line.

    The threshold of a machine is set as far above the highest logit learnt on it. The shape's healthy windows are scored
    by models that never saw their speed, since a model never saw the machine that it is commissioned on either: scores
    of the training are lower. Of the line nothing is fitted to healthy windows but the threshold, so nothing is held out.
    """
    rows = list(rows)
    of = lambda some: [row for row in some if windows.recordings.abnormal[row] == 0]
    held_out = np.concatenate(
        [
            fit_shape(windows, split.train).logits(
                flat(windows.energies[of(split.test)])[:, UNSCALED]
            )
            for split in by_speed(windows.recordings, tuple(rows))
        ]
    )
    line = line_logits(windows.line[of(rows)], models.line_threshold)
    return models.shape.threshold - float(held_out.max()), -float(line.max())


def fit(windows, rows):
    """Both models with their thresholds, from these recordings alone."""
    threshold, _, _ = choose_shape_threshold(windows, rows)
    shape = fit_shape(windows, rows)
    return Models(Shape(shape.weights, shape.bias, threshold), choose_line_threshold(windows, rows))


def cross_validate(windows):
    """Every scheme: weights and thresholds from the training side of each split, judged by the other."""
    return {scheme: judge_scheme(windows, scheme) for scheme in SCHEMES}


def judge_scheme(windows, scheme):
    recordings = windows.recordings
    models, folds, everything = {}, [], []
    for split in splits(recordings, scheme):
        if split.train not in models:
            models[split.train] = fit(windows, split.train)
        shape, line = models[split.train].margins(windows, split.test)
        rows = np.array(split.test)
        folds.append((split.name, rows, shape, line))
        everything.append(fold_figures(windows, rows, shape, line))
    rows = np.concatenate([rows for _, rows, _, _ in folds])
    shape = np.concatenate([shape for _, _, shape, _ in folds])
    line = np.concatenate([line for _, _, _, line in folds])
    return {
        "folds": len(folds),
        **fold_figures(windows, rows, shape, line),
        "spread-over-folds": spread(everything),
        "recall-by-kind": {
            str(kind): rounded((np.maximum(shape, line)[recordings.kind[rows] == kind] > 0).mean())
            for kind in sorted(set(recordings.kind[rows][recordings.abnormal[rows] == 1]))
        },
        "by-fold": {name: figures for (name, _, _, _), figures in zip(folds, everything)},
    }


def fold_figures(windows, rows, shape, line):
    """What the models say of recordings they never saw; `shape` and `line` are distances to the thresholds."""
    both = np.maximum(shape, line)
    abnormal = windows.recordings.abnormal[rows] == 1
    per_window = np.repeat(abnormal, both.shape[1])
    tripped = np.array([first_with_votes(one > 0, VOTES, VOTES_OF) is not None for one in both])
    room = lambda values, of: rounded(of(values)) if values.size else None
    return {
        "windows-healthy": int((~per_window).sum()),
        "windows-abnormal": int(per_window.sum()),
        "auc": rounded(auc(both.ravel(), per_window)),
        "recall": rounded((both[abnormal] > 0).mean()) if abnormal.any() else None,
        "false-window-rate": rounded((both[~abnormal] > 0).mean()) if (~abnormal).any() else None,
        "recordings-healthy": int((~abnormal).sum()),
        "recordings-healthy-tripped": int(tripped[~abnormal].sum()),
        "recordings-abnormal": int(abnormal.sum()),
        "recordings-abnormal-tripped": int(tripped[abnormal].sum()),
        "room": {
            "shape-highest-negative-logits": room(shape[~windows.is_shape_fault[rows]], np.max),
            "shape-lowest-fault-logits": room(shape[windows.is_shape_fault[rows]], np.min),
            "line-highest-healthy-db": room(line[~abnormal] * LINE_DECIBELS_PER_LOGIT, np.max),
            "line-lowest-imbalance-db": room(
                line[windows.is_imbalance[rows]] * LINE_DECIBELS_PER_LOGIT, np.min
            ),
        },
    }


def spread(folds):
    """Lowest, highest and standard deviation over folds."""
    result = {}
    for key in ("recall", "false-window-rate", "auc"):
        values = np.array([fold[key] for fold in folds if fold[key] is not None])
        if values.size:
            result[key] = {
                "lowest": rounded(values.min()),
                "highest": rounded(values.max()),
                "deviation": rounded(values.std()),
            }
    return result


def rounded(value):
    return None if value is None else round(float(value), 4)
