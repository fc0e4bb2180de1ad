"""The report as text."""


def text(result):
    parts = [goals(result["goals"])]
    if "adi_motor" in result:
        parts.append(motor(result["adi_motor"], result["bundles"]))
    if "femto" in result:
        parts.append(femto(result["femto"]))
    if "skab" in result:
        parts.append(skab(result["skab"]))
    return "\n".join(parts)


def goals(entries):
    word = {True: "reached", False: "MISSED", None: "not in these recordings"}
    rows = [
        [entry["goal"], entry["wanted"], number(entry["found"]), word[entry["reached"]]]
        for entry in entries
    ]
    return heading("Goals") + table(["goal", "wanted", "found", ""], rows)


WINDOW_COLUMNS = [
    "",
    "healthy",
    "abnormal",
    "AUC",
    "recall",
    "at 0.1 %",
    "at 1 %",
    "at 5 %",
    "false",
    "a machine-hour",
]


def window_row(name, figures):
    at = figures["recall-at-false-alarms"]
    false = f"{figures['false-windows']} = {percent(figures['false-window-rate'])}"
    return [
        name,
        figures["windows-healthy"],
        figures["windows-abnormal"],
        number(figures["auc"]),
        percent(figures["recall"]),
        *(percent(value) for value in at.values()),
        false,
        number(figures["false-windows-per-machine-hour"]),
    ]


def caution(figures):
    bound = figures["false-window-rate-below-95"]
    if bound is None:
        return "No healthy window: nothing is known of false alarms.\n"
    return (
        f"{figures['false-windows']} false of {figures['windows-healthy']} healthy windows: "
        f"with 95 % confidence the rate is below {percent(bound)}, were the windows independent.\n"
    )


def stops(figures):
    return (
        f"Stopped: {figures['recordings-abnormal-stopped']} of {figures['recordings-abnormal']} abnormal recordings, "
        f"{figures['recordings-healthy-stopped']} of {figures['recordings-healthy']} healthy ones.\n"
    )


def motor(result, bundles):
    out = heading("adi_motor: windows, and stops by votes, through the edge module")
    for bundle in bundles:
        out += (
            f"{bundle['name']} {bundle['version']} on axis {bundle['axis']}, "
            f"threshold {bundle['threshold']:g}, sha256 {bundle['model-sha256'][:12]}\n"
        )
    if result["recordings-trained-on"]:
        out += (
            f"{result['recordings-trained-on']} of {result['recordings']} recordings are ones that the "
            "bundles were trained on: these figures flatter. edge-module/model/README.md has those of held-out groups.\n"
        )
    out += (
        "A window is abnormal if either says so; `at` is the recall at a level that so many of these "
        "healthy windows exceed.\n\n"
    )
    rows = [window_row("all", result["all"])]
    rows += [window_row(name, figures) for name, figures in result["by-condition"].items()]
    rows += [window_row(kind, figures) for kind, figures in result["by-kind"].items()]
    out += table(WINDOW_COLUMNS, rows) + "\n" + stops(result["all"]) + caution(result["all"]) + "\n"
    rows = [
        [name, number(one["auc"]), percent(one["recall"]), one["false-windows"]]
        for name, one in result["by-model"].items()
    ]
    out += table(["by itself, all kinds", "AUC", "recall", "false"], rows) + "\n"
    rows = [
        [name, number(one["auc"]), percent(one["recall-at-1 %"])]
        for name, one in result["baselines"].items()
    ]
    out += table(["baseline", "AUC", "recall at 1 %"], rows) + "\n"
    rows = [
        [
            one["name"],
            f"{one['rpm']:g}",
            f"{one['load-lb']:g}",
            one["kind"],
            f"{one['alarms']}/{one['windows']}",
            number(one["auc-against-healthy"]),
            f"{one['lowest-margin']:.2f}",
            f"{one['highest-margin']:.2f}",
            (
                "-"
                if one["stopped-after-s"] is None
                else f"{one['stopped-after-s']:.2f} s by {one['stopped-by']}"
            ),
        ]
        for one in result["by-recording"]
    ]
    columns = ["recording", "rpm", "lb", "kind", "alarms", "AUC", "lowest", "highest", "stopped"]
    return (
        out
        + table(columns, rows)
        + "lowest, highest: distance to the threshold in logits, above 0 is abnormal\n"
    )


def femto(result):
    out = heading("femto: limit on rms-steady, stops through the edge module")
    out += (
        "Snapshots are judged as if each came ten seconds after the one before. Windows: normal and\n"
        "late-normal against the last 40 s; what has no label counts for nothing. A machine-hour is\n"
        "time of the bearing, not of the snapshots.\n\n"
    )
    rows = [window_row("all", result["all"])]
    rows += [window_row(name, figures) for name, figures in result["by-bearing"].items()]
    # Votes change stops, not windows: one line for all baselines.
    name, figures = next(iter(result["baselines"].items()))
    rows.append(window_row(name.split(",")[0], figures))
    out += table(WINDOW_COLUMNS, rows) + "\n" + caution(result["all"]) + "\n"
    names = list(result["by-bearing"])
    rows = [
        [
            "edge module",
            *(number(one["lead-s"]) for one in result["by-bearing"].values()),
            result["all"]["false-trips"],
        ]
    ]
    rows += [
        [name, *(number(one["lead-s"][bearing]) for bearing in names), one["false-trips"]]
        for name, one in result["baselines"].items()
    ]
    out += table(["lead in s", *names, "false trips"], rows) + "\n"
    rows = [
        [name, number(one["highest-healthy-g"]), number(one["lowest-abnormal-g"])]
        for name, one in result["by-bearing"].items()
    ]
    return out + table(["level in g", "highest healthy", "lowest abnormal"], rows)


def skab(result):
    out = heading("skab: monitor of the evaluation, each run by itself")
    columns = [
        "",
        "rows",
        "abnormal",
        "F1",
        "recall",
        "false",
        "after learning",
        "a machine-hour",
        "AUC",
        "at 0.1 %",
        "at 1 %",
        "at 5 %",
    ]
    row = lambda name, one: [
        name,
        one["rows"],
        one["rows-abnormal"],
        number(one["f1"]),
        percent(one["recall"]),
        percent(one["false-row-rate"]),
        percent(one["false-row-rate-after-learning"]),
        number(one["false-rows-per-machine-hour"]),
        number(one["auc"]),
        *(percent(value) for value in one["recall-at-false-alarms"].values()),
    ]
    rows = [row("all files", result["all-files"])]
    if result["labelled-files"]:
        rows.append(row("labelled files", result["labelled-files"]))
    rows += [
        row(name if one["labelled"] else f"{name} *", one) for name, one in result["by-run"].items()
    ]
    return out + table(columns, rows) + "* no labels in the file: taken as healthy throughout\n"


def heading(words):
    return f"{words}\n{'=' * len(words)}\n"


def table(columns, rows):
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = []
    for row in cells:
        first, *others = row
        line = first.ljust(widths[0]) + "".join(
            f"  {cell.rjust(width)}" for cell, width in zip(others, widths[1:])
        )
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def number(value):
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def percent(value):
    return "-" if value is None else f"{100 * value:.2f} %"
