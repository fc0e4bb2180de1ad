"""Seeded synthetic signals: nothing of a recording is in them."""

import numpy as np

# Label and seed of the signals in a bundle's self-test.
SELF_TEST_SIGNALS = (("shaft harmonics and noise", 11), ("impulses on a resonance", 12))


def synthetic_signal(label, samples, sample_rate_hz, seed):
    """A signal in volts around 0.9 V, as f32."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / sample_rate_hz
    noise = 0.002 * random.standard_normal(samples)
    if label == "shaft harmonics and noise":
        signal = sum(0.01 / order * np.sin(2 * np.pi * 330.0 * order * time + order) for order in (1, 2, 3))
    elif label == "impulses on a resonance":
        signal = np.zeros(samples)
        for start in np.arange(0.001, time[-1], 0.0037):
            after = np.clip(time - start, 0, None)
            signal += 0.05 * np.exp(-after * 900) * np.sin(2 * np.pi * 3200 * after)
    elif label == "flat":
        signal, noise = np.zeros(samples), 0.0
    elif label == "white noise":
        signal, noise = np.zeros(samples), 0.1 * random.standard_normal(samples)
    elif label == "tiny":
        signal, noise = np.zeros(samples), 1e-12 * random.standard_normal(samples)
        return (signal + noise).astype(np.float32)
    else:
        raise ValueError(f"no signal is called {label!r}")
    return (0.9 + signal + noise).astype(np.float32)


def standstill_windows(count, samples, seed):
    """A sensor on a machine at rest: its own noise at levels from 0.01 to 1 mV, in steps of the converter, or nothing."""
    random = np.random.default_rng(seed)
    windows = []
    for index in range(count):
        level = 10 ** random.uniform(-5, -3)
        noise = level * random.standard_normal(samples) if index % 6 else np.zeros(samples)
        windows.append(0.9 + np.round(noise / 3e-5) * 3e-5)
    return np.array(windows, dtype=np.float32)
