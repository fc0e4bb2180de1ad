"""Seeded synthetic signals: nothing of a recording is in them."""

import numpy as np

# Label and seed of the signals in a bundle's self-test.
SELF_TEST_SIGNALS = (("shaft harmonics and noise", 11), ("impulses on a resonance", 12))
# Steps of the converter in the recordings, in volts.
CONVERTER_STEP_V = 3e-5
REST_LEVEL_V = 0.9


def synthetic_signal(label, samples, sample_rate_hz, seed):
    """A signal in volts around 0.9 V, as f32."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / sample_rate_hz
    noise = 0.002 * random.standard_normal(samples)
    if label == "shaft harmonics and noise":
        signal = sum(
            0.01 / order * np.sin(2 * np.pi * 330.0 * order * time + order) for order in (1, 2, 3)
        )
    elif label == "impulses on a resonance":
        signal = np.zeros(samples)
        for start in np.arange(0.001, time[-1], 0.0037):
            after = np.clip(time - start, 0, None)
            signal += 0.05 * np.exp(-after * 900) * np.sin(2 * np.pi * 3200 * after)
    elif label == "slow shaft":
        signal = 0.02 * np.sin(2 * np.pi * 17.3 * time) + 0.01 * np.sin(2 * np.pi * 34.6 * time + 1)
    elif label == "falling spectrum":
        # A decay: its power falls from bin to bin, without a local maximum.
        signal, noise = 0.1 * np.exp(-time * 40), 0.0
    elif label == "burst":
        signal = np.zeros(samples)
        signal[samples // 3 : samples // 3 + samples // 12] = 0.3
    elif label == "flat":
        signal, noise = np.zeros(samples), 0.0
    elif label == "white noise":
        signal, noise = np.zeros(samples), 0.1 * random.standard_normal(samples)
    elif label == "tiny":
        signal, noise = np.zeros(samples), 1e-12 * random.standard_normal(samples)
        return (signal + noise).astype(np.float32)
    else:
        raise ValueError(f"no signal is called {label!r}")
    return (REST_LEVEL_V + signal + noise).astype(np.float32)


def standstill_signals(count, samples, sample_rate_hz, seed):
    """A sensor on a machine at rest, 0.01 to 0.5 mV: noise, hum of the mains, slow noise, converter steps; or nothing."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / sample_rate_hz
    signals = []
    for index in range(count):
        level = 10 ** random.uniform(-5, -3.3)
        signal = level * random.standard_normal(samples)
        if index % 5 == 1:
            hum_hz = random.choice([50.0, 60.0, 100.0, 120.0])
            signal += (
                level
                * random.uniform(0.3, 3)
                * np.sin(2 * np.pi * hum_hz * time + random.uniform(0, 6))
            )
        elif index % 5 == 2:
            signal += 0.02 * np.cumsum(signal)
        elif index % 5 == 3:
            signal = np.round(signal / CONVERTER_STEP_V) * CONVERTER_STEP_V
        elif index % 5 == 4:
            signal = np.zeros(samples)
        signals.append(REST_LEVEL_V + signal)
    return np.array(signals, dtype=np.float32)
