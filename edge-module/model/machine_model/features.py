"""Features of one vibration window: the same numbers as edge-core's `features.rs`.

The formulas, their sources and the defined answers for flat windows stand there; the golden file holds the two
implementations to each other.
"""

import numpy as np

# Version of the definitions below. A bundle names the one it was trained with. 2 adds `rms-steady` and `line` to 1 and
# changes nothing of it.
FEATURE_DEFINITION = 2
# Added to each band's energy before the logarithm, in square units of the sample.
BAND_ENERGY_EPSILON = 1e-12
# Added to the weighted power of a line before the logarithm, in square units of the sample.
LINE_POWER_EPSILON = 1e-14
# Frequency at which a line's power counts as it is. The force of an imbalance grows with the square of the speed, its power
# with the fourth; weighted by the third, one limit holds from 10 to 50 Hz.
LINE_REFERENCE_HZ = 10.0
LINE_EXPONENT = 3
# `rms-steady` is the 7th smallest RMS of ten parts: a burst that touches up to three of them does not move it.
STEADY_PARTS = 10
STEADY_RANK = 7
SCALAR_NAMES = ("rms", "peak", "crest-factor", "kurtosis", "rms-steady")


def band_name(index):
    return f"band-{index:02d}"


def log_spaced_edges(low_hz, high_hz, bands):
    """Edges of `bands` bands, each wider than the one before by the same factor."""
    return [low_hz * (high_hz / low_hz) ** (index / bands) for index in range(bands + 1)]


class Spectrum:
    """Plans once, then turns windows into power per bin, one-sided, in square units of the sample."""

    def __init__(self, window_samples, sample_rate_hz):
        # Periodic Hann window.
        self.taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
        self.frequencies_hz = np.arange(window_samples // 2 + 1) * sample_rate_hz / window_samples
        one_sided = np.full(self.frequencies_hz.size, 2.0)
        one_sided[0] = 1.0
        if window_samples % 2 == 0:
            one_sided[-1] = 1.0
        self.scale = one_sided / (window_samples * np.sum(self.taper**2))

    def power(self, centred):
        """Power of windows without their mean, shape [..., window_samples] to [..., bins]."""
        return np.abs(np.fft.rfft(centred * self.taper, axis=-1)) ** 2 * self.scale

    def band_energies(self, power, band_edges_hz):
        """Sum of the power in each band: lower edge included, upper not; frequencies above half the rate are in none."""
        band_of_bin = (
            np.searchsorted(np.asarray(band_edges_hz), self.frequencies_hz, side="right") - 1
        )
        bands = [
            power[..., band_of_bin == band].sum(axis=-1) for band in range(len(band_edges_hz) - 1)
        ]
        return np.stack(bands, axis=-1)

    def line(self, power, low_hz, high_hz):
        """ln of the strongest line at low_hz <= f < high_hz: a local maximum with its neighbours, (10 Hz / f)^3."""
        last = self.frequencies_hz.size - 1
        bins = np.arange(1, last)
        inside = (self.frequencies_hz[bins] >= low_hz) & (self.frequencies_hz[bins] < high_hz)
        bins = bins[inside]
        if bins.size == 0:
            raise ValueError(f"no frequency of the window lies from {low_hz} to {high_hz} Hz")
        below, here, above = power[..., bins - 1], power[..., bins], power[..., bins + 1]
        # Drift and part of a step fall from bin to bin and have no local maximum here.
        is_line = (here >= below) & (here >= above)
        weight = (LINE_REFERENCE_HZ / self.frequencies_hz[bins]) ** LINE_EXPONENT
        strongest = np.where(is_line, (below + here + above) * weight, 0.0).max(axis=-1)
        return np.log(strongest + LINE_POWER_EPSILON)


def centre(windows):
    """Windows without their mean, in f64."""
    windows = np.asarray(windows, dtype=np.float64)
    return windows - windows.mean(axis=-1, keepdims=True)


def steady_rms(centred):
    """The 7th smallest RMS of ten consecutive parts; the plain RMS of windows shorter than ten samples."""
    samples = centred.shape[-1]
    length = samples // STEADY_PARTS
    if length == 0:
        return np.sqrt(np.mean(centred**2, axis=-1))
    parts = centred[..., : length * STEADY_PARTS].reshape(*centred.shape[:-1], STEADY_PARTS, length)
    return np.sort(np.sqrt(np.mean(parts**2, axis=-1)), axis=-1)[..., STEADY_RANK - 1]


class FeatureExtractor:
    """Plans once, then turns windows (last axis = samples, in the sensor's unit) into feature arrays."""

    def __init__(self, window_samples, sample_rate_hz, band_edges_hz, line_hz=None):
        self.window_samples = window_samples
        self.band_edges_hz = list(band_edges_hz)
        self.line_hz = line_hz
        self.spectrum = Spectrum(window_samples, sample_rate_hz)
        line = ["line"] if line_hz is not None else []
        bands = [band_name(index) for index in range(max(0, len(self.band_edges_hz) - 1))]
        self.names = [*SCALAR_NAMES, *line, *bands]

    def extract(self, windows):
        """Feature arrays of windows of shape [..., window_samples]: shape [..., len(names)]."""
        centred = centre(windows)
        peak = np.abs(centred).max(axis=-1)
        # Relative to the peak, so that no power of a tiny sample underflows.
        unit = centred / np.where(peak > 0, peak, 1.0)[..., None]
        second = np.mean(unit**2, axis=-1)
        fourth = np.mean(unit**4, axis=-1)
        flat = peak == 0
        safe = np.where(flat, 1.0, second)
        rms = peak * np.sqrt(second)
        crest = np.where(flat, 0.0, 1.0 / np.sqrt(safe))
        kurtosis = np.where(flat, 0.0, fourth / safe**2)
        columns = [rms, peak, crest, kurtosis, steady_rms(unit) * peak]
        power = self.spectrum.power(centred)
        if self.line_hz is not None:
            columns.append(self.spectrum.line(power, *self.line_hz))
        parts = [np.stack(columns, axis=-1)]
        if len(self.band_edges_hz) > 1:
            energies = self.spectrum.band_energies(power, self.band_edges_hz)
            parts.append(np.log(energies + BAND_ENERGY_EPSILON))
        return np.concatenate(parts, axis=-1)
