"""Writes ../core/tests/golden/features.json: the features of seeded signals, for the test of the Rust side."""

import json
import pathlib

from .features import FEATURE_DEFINITION, FeatureExtractor, log_spaced_edges
from .synthetic import synthetic_signal

PATH = pathlib.Path(__file__).parents[2] / "core" / "tests" / "golden" / "features.json"
# Window, rate, bands, seed, where `line` looks (None: there is no such feature). Lengths that are no power of two, odd ones
# and one too short for `rms-steady` are among them.
CASES = (
    ("shaft harmonics and noise", 512, 20_000.0, log_spaced_edges(80.0, 10_000.1, 8), 1, None),
    ("impulses on a resonance", 500, 25_600.0, log_spaced_edges(100.0, 12_800.1, 6), 2, None),
    ("white noise", 255, 8_000.0, [0.0, 1000.0, 2000.0, 4000.1], 3, None),
    ("flat", 64, 20_000.0, [0.0, 5000.0, 10_000.1], 4, [300.0, 5000.0]),
    ("tiny", 128, 20_000.0, [0.0, 5000.0, 10_000.1], 5, None),
    # A line inside; the same signal where it only falls, so that no bin is a local maximum; one bin alone.
    ("slow shaft", 400, 400.0, [0.0, 50.0, 200.1], 6, [6.0, 70.0]),
    ("falling spectrum", 400, 400.0, [0.0, 50.0, 200.1], 7, [12.0, 60.0]),
    ("slow shaft", 401, 400.0, [0.0, 50.0, 200.1], 8, [20.05, 21.0]),
    # Up to the last bin, which is never one of them, of an even and of an odd window.
    ("white noise", 64, 400.0, [], 9, [0.0, 1000.0]),
    ("white noise", 63, 400.0, [], 10, [0.0, 1000.0]),
    # Too short for ten parts: `rms-steady` is `rms`.
    ("white noise", 9, 400.0, [0.0, 100.0, 200.1], 11, [6.0, 200.0]),
    ("burst", 256, 25_600.0, [0.0, 6400.0, 12_800.1], 12, None),
)


def golden():
    """The content of the golden file."""
    cases = []
    for label, window, rate, edges, seed, line_hz in CASES:
        samples = synthetic_signal(label, window, rate, seed)
        extractor = FeatureExtractor(window, rate, edges, line_hz)
        values = extractor.extract(samples[None])[0]
        cases.append(
            {
                "label": label,
                "sample-rate-hz": rate,
                "band-edges-hz": edges,
                **({"line-hz": line_hz} if line_hz is not None else {}),
                "samples": [float(sample) for sample in samples],
                "features": {name: float(value) for name, value in zip(extractor.names, values)},
            }
        )
    return {"definition": FEATURE_DEFINITION, "cases": cases}


def write():
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(json.dumps(golden(), indent=1) + "\n")
    print(f"wrote {PATH}")
