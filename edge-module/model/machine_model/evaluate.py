"""Judges recordings by what is committed: bundles, thresholds, votes, limits. Trains nothing."""

import json
import pathlib

from . import judge
from .evaluate_femto import evaluate_femto
from .evaluate_motor import evaluate_motor, load_bundles
from .evaluate_skab import evaluate_skab
from .recordings import DataFault, load_femto, load_motor, load_skab, present

RECALL_MIN, FALSE_WINDOWS_MAX = 0.97, 0.01
LEAD_MIN_S, FEMTO_FALSE_WINDOWS_MAX = 30.0, 0.003
F1_MIN, FALSE_ROWS_MAX = 0.80, 0.13


def run(data, out, bundles, edge_module=None):
    """Writes report.txt, report.json and report.png to `out` and prints the text."""
    from . import picture, report

    sets = present(data)
    loaders = {"adi_motor": load_motor, "femto": load_femto, "skab": load_skab}
    # Everything is read before anything is judged: a fault shows at once.
    loaded = {name: loaders[name](pathlib.Path(data) / name) for name in sets}
    prepare(out)
    result = {"goals": [], "bundles": []}
    if "adi_motor" in loaded or "femto" in loaded:
        program = judge.program(edge_module)
    if "adi_motor" in loaded:
        motor_bundles = load_bundles(bundles)
        result["bundles"] = [bundle.summary() for bundle in motor_bundles]
        result["adi_motor"], motor_plot = evaluate_motor(
            program, motor_bundles, loaded["adi_motor"], data
        )
        result["goals"] += motor_goals(result["adi_motor"]["all"])
    if "femto" in loaded:
        result["femto"], femto_plot = evaluate_femto(program, loaded["femto"])
        result["goals"] += femto_goals(result["femto"])
    if "skab" in loaded:
        result["skab"] = evaluate_skab(loaded["skab"])
        result["goals"] += skab_goals(result["skab"]["all-files"])
    text = report.text(result)
    (out / "report.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    (out / "report.txt").write_text(text)
    picture.draw(
        out / "report.png",
        motor=(loaded["adi_motor"], motor_plot) if "adi_motor" in loaded else None,
        femto=(
            (loaded["femto"], femto_plot, result["femto"]["by-bearing"])
            if "femto" in loaded
            else None
        ),
        skab=result.get("skab"),
    )
    print(text, end="")
    print(f"\nwritten to {out}: report.txt, report.json, report.png")


def prepare(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataFault(
            out, f"cannot be made ({error.strerror})", "name a folder that can be written", 73
        ) from None


def motor_goals(figures):
    return [
        goal(
            "adi_motor: recall of abnormal windows",
            f">= {RECALL_MIN}",
            figures["recall"],
            lambda found: found >= RECALL_MIN,
        ),
        goal(
            "adi_motor: false windows",
            f"<= {FALSE_WINDOWS_MAX:.0%}",
            figures["false-window-rate"],
            lambda found: found <= FALSE_WINDOWS_MAX,
        ),
    ]


def femto_goals(result):
    failures = [bearing for bearing in result["by-bearing"].values() if bearing["fails"]]
    leads = [bearing["lead-s"] for bearing in failures]
    shortest = None if not leads else 0.0 if None in leads else min(leads)
    healthy = [bearing for bearing in result["by-bearing"].values() if bearing["windows-healthy"]]
    return [
        goal(
            "femto: shortest lead before a failure, s",
            f">= {LEAD_MIN_S:g}",
            shortest,
            lambda found: found >= LEAD_MIN_S,
        ),
        goal(
            "femto: false windows",
            f"<= {FEMTO_FALSE_WINDOWS_MAX:.1%}",
            result["all"]["false-window-rate"],
            lambda found: found <= FEMTO_FALSE_WINDOWS_MAX,
        ),
        goal(
            "femto: trips of healthy bearings",
            "0",
            sum(one["false-trip"] for one in healthy) if healthy else None,
            lambda found: found == 0,
        ),
    ]


def skab_goals(figures):
    return [
        goal("skab: F1", f">= {F1_MIN:.2f}", figures["f1"], lambda found: found >= F1_MIN),
        goal(
            "skab: false rows after learning",
            f"<= {FALSE_ROWS_MAX:.0%}",
            figures["false-row-rate-after-learning"],
            lambda found: found <= FALSE_ROWS_MAX,
        ),
    ]


def goal(name, wanted, found, holds):
    """`reached` is None where these recordings cannot tell."""
    return {
        "goal": name,
        "wanted": wanted,
        "found": found,
        "reached": None if found is None else bool(holds(found)),
    }
