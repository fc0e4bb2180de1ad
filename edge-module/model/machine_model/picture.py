"""The report as one picture: a panel for each data set."""

import numpy as np

from .femto import LIMIT_G

HEALTHY_COLOUR, ABNORMAL_COLOUR, LIMIT_COLOUR = "#2b6cb0", "#c05621", "#444444"


def draw(path, motor=None, femto=None, skab=None):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        (draw_one, content)
        for draw_one, content in ((draw_motor, motor), (draw_femto, femto), (draw_skab, skab))
        if content
    ]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(12, 4.6 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (draw_one, content) in zip(axes[:, 0], panels):
        draw_one(axis, *content) if isinstance(content, tuple) else draw_one(axis, content)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_motor(axis, recordings, margins):
    """Each window's distance to the threshold, by kind and speed."""
    groups = sorted(
        set(zip(recordings.abnormal.tolist(), recordings.kind.tolist(), recordings.rpm.tolist()))
    )
    random = np.random.default_rng(0)
    for place, (abnormal, kind, rpm) in enumerate(groups):
        rows = (recordings.abnormal == abnormal) & (recordings.kind == kind)
        values = margins[rows & (recordings.rpm == rpm)].ravel()
        colour = ABNORMAL_COLOUR if abnormal else HEALTHY_COLOUR
        axis.plot(
            place + random.uniform(-0.25, 0.25, values.size),
            values,
            ".",
            color=colour,
            markersize=5,
        )
    axis.axhline(0, color=LIMIT_COLOUR, linewidth=1)
    axis.set_xticks(
        range(len(groups)),
        [f"{kind}\n{rpm:g} rpm" for _, kind, rpm in groups],
        rotation=90,
        fontsize=7,
    )
    axis.set_ylabel("logits above the threshold")
    axis.set_title("adi_motor: windows; above the line is abnormal")


def draw_femto(axis, bearings, levels, figures):
    """The judged level over the time that is left; a triangle where the edge module stopped the machine."""
    for bearing, level in zip(bearings, levels):
        (line,) = axis.plot(
            np.maximum(bearing.seconds_to_end, 5),
            level,
            ".-",
            markersize=2,
            linewidth=0.7,
            label=bearing.name,
        )
        lead = figures[bearing.name]["lead-s"]
        if lead is not None:
            axis.plot(
                max(lead, 5),
                LIMIT_G,
                "v",
                color=line.get_color(),
                markersize=8,
                markeredgecolor="black",
            )
    axis.axhline(LIMIT_G, color=LIMIT_COLOUR, linewidth=1)
    axis.axvline(30, color=LIMIT_COLOUR, linewidth=1, linestyle=":")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.invert_xaxis()
    axis.set_xlabel("seconds to the end (dotted: 30 s)")
    axis.set_ylabel("rms-steady, g")
    axis.legend(fontsize=7, ncols=2, loc="upper left")
    axis.set_title("femto: level of the worse axis, the limit, and stops (triangles)")


def draw_skab(axis, result):
    """F1 and false rows of each run."""
    runs = result["by-run"]
    place = np.arange(len(runs))
    f1 = [one["f1"] or 0.0 for one in runs.values()]
    false = [one["false-row-rate-after-learning"] or 0.0 for one in runs.values()]
    axis.bar(place - 0.2, f1, 0.4, color=HEALTHY_COLOUR, label="F1")
    axis.bar(place + 0.2, false, 0.4, color=ABNORMAL_COLOUR, label="false rows after learning")
    axis.set_xticks(place, list(runs), rotation=90, fontsize=7)
    axis.set_ylim(0, 1.18)
    axis.legend(fontsize=8, ncols=2, loc="upper left")
    axis.set_title("skab: runs")
