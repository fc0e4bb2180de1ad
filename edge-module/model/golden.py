"""Writes ../core/tests/golden/features.json: the features of seeded signals, for the test of the Rust side."""

import json
import pathlib

from features import FEATURE_DEFINITION, FeatureExtractor, log_spaced_edges
from synthetic import synthetic_signal

# Window, rate, bands; a window of a length that is no power of two and an odd one are among them.
CASES = (
    ("shaft harmonics and noise", 512, 20_000.0, log_spaced_edges(80.0, 10_000.1, 8), 1),
    ("impulses on a resonance", 500, 25_600.0, log_spaced_edges(100.0, 12_800.1, 6), 2),
    ("white noise", 255, 8_000.0, [0.0, 1000.0, 2000.0, 4000.1], 3),
    ("flat", 64, 20_000.0, [0.0, 5000.0, 10_000.1], 4),
    ("tiny", 128, 20_000.0, [0.0, 5000.0, 10_000.1], 5),
)


def main():
    cases = []
    for label, window, rate, edges, seed in CASES:
        samples = synthetic_signal(label, window, rate, seed)
        extractor = FeatureExtractor(window, rate, edges)
        values = extractor.extract(samples[None])[0]
        cases.append({
            "label": label,
            "sample-rate-hz": rate,
            "band-edges-hz": edges,
            "samples": [float(sample) for sample in samples],
            "features": {name: float(value) for name, value in zip(extractor.names, values)},
        })
    path = pathlib.Path(__file__).parent.parent / "core" / "tests" / "golden" / "features.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"definition": FEATURE_DEFINITION, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
