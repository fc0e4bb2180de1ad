"""The report of a candidate: report.json, report.txt, report.png."""

import json

import numpy as np

from .lake import LEFT_OUT
from .picture import ABNORMAL_COLOUR, HEALTHY_COLOUR, LIMIT_COLOUR
from .report import heading, number, percent, table


def write(out, result, plot=None):
    words = text(result)
    (out / "report.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    (out / "report.txt").write_text(words)
    files = ["report.txt", "report.json"]
    if plot is not None:
        draw(out / "report.png", *plot)
        files.append("report.png")
    print(words, end="")
    print(f"\nwritten to {out}: {', '.join(files)}")


def text(result):
    parts = [decision(result), of_lake(result["lake"])]
    if "training" in result:
        parts.append(of_training(result["training"]))
    if "comparison" in result:
        parts += [of_comparison(result["comparison"]), of_memory(result["remembered"])]
    return "\n".join(parts)


def decision(result):
    model, verdict = result["model"], result["decision"]
    out = heading(f"A candidate for {model['name']} {model['version']}")
    if verdict["accepted"]:
        written = result["written"]
        out += f"It is not worse: {written['folder']}, packed as {written['file']}\n"
        out += f"sha256 {written['sha256']}\n"
        before, after = result["comparison"]["current"], result["comparison"]["candidate"]
        counts = ("confirmed-found", "false-alarms-repeated")
        if all(before[name] == after[name] for name in counts):
            out += "Nor is it better: both decide the held-out trips alike.\n"
        return out
    word = "REFUSED" if "comparison" in result else "TOO LITTLE to learn from"
    return (
        out
        + f"{word} (exit code {verdict['exit-code']}), no bundle is written:\n"
        + "".join(f"- {reason}\n" for reason in verdict["reasons"])
    )


def of_lake(lake):
    out = heading("Trips that people have judged")
    rows = [
        ["confirmed, part replaced", lake["confirmed"], lake["windows-abnormal"]],
        ["false alarm", lake["false-alarms"], lake["windows-healthy"]],
    ]
    out += table(["used", "trips", "windows"], rows)
    if lake["from"]:
        out += f"{lake['machines']} machines, {lake['from'][:10]} to {lake['to'][:10]}\n"
    rows = [[count, LEFT_OUT[name]] for name, count in lake["left-out"].items()]
    if rows:
        out += "\nLeft out:\n" + "".join(f"{count:>7}  {words}\n" for count, words in rows)
    return out


def of_training(training):
    learnt, held = training["learnt-from"], training["held-out"]
    rows = [
        ["learnt from", learnt["confirmed"], learnt["false-alarms"]],
        ["held out, the newest", held["confirmed"], held["false-alarms"]],
    ]
    return (
        heading("Training")
        + f"With {training['with']}.\n"
        + table(["trips", "confirmed", "false alarms"], rows)
    )


def of_comparison(comparison):
    out = heading(f"Held-out trips, by {comparison['judged-by']}")
    row = lambda name, one: [
        name,
        f"{one['confirmed-found']} of {one['confirmed']}",
        percent(one["recall"]),
        f"{one['false-alarms-repeated']} of {one['false-alarms']}",
        number(one["windows-auc"]),
        percent(one["false-window-rate"]),
    ]
    columns = ["", "confirmed found", "recall", "false alarms again", "AUC", "false windows"]
    rows = [
        row("model in force", comparison["current"]),
        row("candidate", comparison["candidate"]),
    ]
    out += table(columns, rows)
    after = comparison["candidate"]
    out += (
        f"So few trips say of the candidate, with 95 % confidence: recall above "
        f"{percent(after['recall-above-95'])}, of such false alarms below "
        f"{percent(after['false-alarms-repeated-below-95'])} again.\n"
    )
    out += f"{comparison['machines-not-learnt-from']} machines of these gave nothing to learn from.\n\n"
    if comparison["trips-known-to-current"]:
        out += (
            f"{comparison['trips-known-to-current']} of them may be ones that the model in force "
            "has learnt from: its figures flatter.\n\n"
        )
    said = lambda one: f"{'trips' if one['trips'] else 'no'} {number(one['level'])}"
    rows = [
        [
            one["trip"],
            one["machine"],
            one["at"][:19],
            one["found"],
            said(one["current"]),
            said(one["candidate"]),
        ]
        for one in comparison["trips"]
    ]
    out += table(["trip", "machine", "at", "found", "in force", "candidate"], rows)
    return out + "numbers: how far the votes lie above the threshold, in logits\n"


def of_memory(kept):
    found, above = kept["abnormal-found"], kept["healthy-above"]
    rows = [
        [name, f"{found[key]} of {kept['abnormal']}", f"{above[key]} of {kept['healthy']}"]
        for name, key in (("model in force", "current"), ("candidate", "candidate"))
    ]
    out = heading(f"What the model was made with: {kept['of']}")
    out += table(["", "abnormal found", "healthy above"], rows)
    if not kept["counts"]:
        out += (
            "The model judges a level, and this is the level of another machine: it decides nothing. But\n"
            "where the candidate finds less of it, think before other machines get this bundle; a level\n"
            "that differs by machine is what commissioning learns.\n"
        )
    return out


def draw(path, examples, levels):
    """Each held-out trip's level under both models; above the line it would trip."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    places = {"current": 0.0, "candidate": 1.0}
    lowest = min((v for one in levels.values() for v in one if np.isfinite(v)), default=0.0)
    shown = {name: np.where(np.isfinite(one), one, lowest) for name, one in levels.items()}
    for index, one in enumerate(examples):
        colour = ABNORMAL_COLOUR if one.abnormal else HEALTHY_COLOUR
        values = [shown[name][index] for name in places]
        axis.plot(list(places.values()), values, ".-", color=colour, linewidth=0.7)
    axis.axhline(0, color=LIMIT_COLOUR, linewidth=1)
    axis.set_xticks(list(places.values()), ["model in force", "candidate"])
    axis.set_xlim(-0.3, 1.3)
    axis.set_ylabel("logits above the threshold")
    axis.set_title(
        "Held-out trips: confirmed (orange), false alarms (blue); above the line it trips"
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
