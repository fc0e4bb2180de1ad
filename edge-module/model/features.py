"""Features of one vibration window: the same numbers as edge-core's `features.rs`.

The formulas, their sources and the defined answers for flat windows stand there; `golden.py` writes the file
that holds the two implementations to each other.
"""

import numpy as np

# Version of the definitions below. A bundle names the one it was trained with; the edge refuses any other.
FEATURE_DEFINITION = 1
# Added to each band's energy before the logarithm, in square units of the sample.
BAND_ENERGY_EPSILON = 1e-12
SCALAR_NAMES = ("rms", "peak", "crest-factor", "kurtosis")


def band_name(index):
    return f"band-{index:02d}"


def log_spaced_edges(low_hz, high_hz, bands):
    """Edges of `bands` bands, each wider than the one before by the same factor."""
    return [low_hz * (high_hz / low_hz) ** (index / bands) for index in range(bands + 1)]


class FeatureExtractor:
    """Plans once, then turns windows (last axis = samples, in volts) into feature arrays."""

    def __init__(self, window_samples, sample_rate_hz, band_edges_hz):
        self.window_samples = window_samples
        self.names = [*SCALAR_NAMES, *(band_name(i) for i in range(len(band_edges_hz) - 1))]
        # Periodic Hann window.
        self.taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
        bins = np.arange(window_samples // 2 + 1) * sample_rate_hz / window_samples
        self.band_of_bin = np.searchsorted(np.asarray(band_edges_hz), bins, side="right") - 1
        self.bands = len(band_edges_hz) - 1
        one_sided = np.full(bins.size, 2.0)
        one_sided[0] = 1.0
        if window_samples % 2 == 0:
            one_sided[-1] = 1.0
        self.bin_scale = one_sided / (window_samples * np.sum(self.taper**2))

    def extract(self, windows):
        """Feature arrays of windows of shape [..., window_samples]: shape [..., len(names)]."""
        centred = np.asarray(windows, dtype=np.float64)
        centred = centred - centred.mean(axis=-1, keepdims=True)
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
        power = np.abs(np.fft.rfft(centred * self.taper, axis=-1)) ** 2 * self.bin_scale
        energies = np.stack(
            [power[..., self.band_of_bin == band].sum(axis=-1) for band in range(self.bands)], axis=-1
        )
        scalars = np.stack([rms, peak, crest, kurtosis], axis=-1)
        return np.concatenate([scalars, np.log(energies + BAND_ENERGY_EPSILON)], axis=-1)
