"""Folders of the form that DATA.md describes, small and synthetic."""

import csv
import gzip

import numpy as np

from machine_model.recordings import SKAB_CHANNELS

MOTOR_SAMPLES = 36_864


def motor_folder(
    folder,
    speeds=(1200, 2400),
    kinds=("healthy", "imbalance_light", "outer_race_light"),
    loads=(0, 11),
):
    """Healthy: noise. Imbalance: a strong line at the shaft's frequency. Everything else: a tone at 3 kHz."""
    folder = folder / "adi_motor"
    folder.mkdir(parents=True)
    random = np.random.default_rng(5)
    time = np.arange(MOTOR_SAMPLES) / 20_000.0
    rows, arrays = [], []
    for rpm in speeds:
        for load in loads:
            for kind in kinds:
                signal = 100 * random.standard_normal((MOTOR_SAMPLES, 3))
                signal += (5 * (rpm / 600.0) ** 2 * np.sin(2 * np.pi * rpm / 60 * time))[:, None]
                if kind.startswith("imbalance"):
                    signal += (60 * (rpm / 600.0) ** 2 * np.sin(2 * np.pi * rpm / 60 * time))[
                        :, None
                    ]
                elif kind != "healthy":
                    signal += (300 * np.sin(2 * np.pi * 3000 * time))[:, None]
                rows.append(
                    [len(rows), f"{rpm}_{kind}_{load}", rpm, load, kind, int(kind != "healthy")]
                )
                arrays.append(signal)
    header = ["row", "source_name", "rpm", "extra_shaft_load_lb", "kind", "abnormal"]
    write_csv(folder / "recordings.csv", header, rows)
    np.save(folder / "recordings.npy", np.array(arrays).astype("<i2"))
    return folder


def femto_folder(folder, bearings=("bearing9_7",), rows=40):
    """Half a g, from the eighth snapshot before the end on three; one burst in good health."""
    folder = folder / "femto"
    folder.mkdir(parents=True)
    random = np.random.default_rng(6)
    table = []
    for name in bearings:
        level = np.where(np.arange(rows) < rows - 8, 0.5, 3.0)
        samples = random.standard_normal((rows, 2560, 2)) * level[:, None, None]
        samples[rows // 3, 1000:1250] *= 40.0
        np.save(
            folder / f"{name}.npy", np.round(samples / 0.0016).clip(-32768, 32767).astype("<i2")
        )
        for row in range(rows):
            to_end = (rows - 1 - row) * 10
            phase = (
                "abnormal" if to_end <= 40 else "normal" if 5 <= row < rows // 2 else "unlabelled"
            )
            table.append([name, row, row, row * 10, to_end, row / rows, phase])
    header = [
        "bearing",
        "row",
        "snapshot",
        "seconds_from_start",
        "seconds_to_end",
        "life_fraction",
        "phase",
    ]
    write_csv(folder / "snapshots.csv", header, table)
    return folder


def skab_folder(folder, rows=900, names=("leak_1", "anomaly-free_x")):
    """Steady, then twice the vibration for 200 rows in the files that have labels."""
    folder = folder / "skab"
    folder.mkdir(parents=True)
    random = np.random.default_rng(7)
    for name in names:
        labelled = not name.startswith("anomaly-free")
        channels = 1.0 + 0.02 * random.standard_normal((rows, len(SKAB_CHANNELS)))
        abnormal = np.zeros(rows, dtype=int)
        if labelled:
            abnormal[600:800] = 1
            channels[600:800, :2] *= 2
        header = ["datetime", *SKAB_CHANNELS] + (["anomaly", "changepoint"] if labelled else [])
        table = [
            [f"2020-01-01 00:{row // 60:02d}:{row % 60:02d}", *channels[row]]
            + ([float(abnormal[row]), 0.0] if labelled else [])
            for row in range(rows)
        ]
        with gzip.open(folder / f"{name}.csv.gz", "wt", newline="") as file:
            csv.writer(file, delimiter=";").writerows([header, *table])
    return folder


def write_csv(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
