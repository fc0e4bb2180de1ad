"""Which recordings a model may see and which it is judged by.

The only way to part data here is by group: a split takes recordings and names of groups, never windows, so windows of one
recording cannot come to lie on both sides. What is held out (a speed, a kind, healthy recordings at a load) is on one side.
"""

from dataclasses import dataclass

import numpy as np

# What each scheme holds out at the same time.
SCHEMES = {
    "speed": ("speed",),
    "kind x load": ("kind", "healthy-load"),
    "speed x kind": ("speed", "kind"),
    "speed x kind x load": ("speed", "kind", "healthy-load"),
}


def family(kind):
    """The fault without its severity: `inner_race_light` and `inner_race_heavy` are one kind; held out together."""
    for severity in ("_light", "_heavy", "_medium"):
        kind = kind.removesuffix(severity)
    return kind


@dataclass(frozen=True)
class Split:
    """Rows of the recordings to train on and to judge by. Refuses a group that is on both sides."""

    name: str
    recordings: object
    held_out: tuple
    train: tuple
    test: tuple

    def __post_init__(self):
        if set(self.train) & set(self.test):
            raise ValueError(f"split {self.name!r} has recordings on both sides")
        for attribute in self.held_out:
            left = groups(self.recordings, attribute, self.train)
            both = left & groups(self.recordings, attribute, self.test)
            if both:
                raise ValueError(
                    f"split {self.name!r} has {attribute} {sorted(both)} on both sides"
                )


def groups(recordings, attribute, rows):
    """The groups of these recordings; a recording may have none (a healthy one has no kind)."""
    rows = list(rows)
    healthy = recordings.abnormal[rows] == 0
    if attribute == "speed":
        return set(recordings.rpm[rows].tolist())
    if attribute == "kind":
        return {family(kind) for kind in recordings.kind[rows][~healthy].tolist()}
    if attribute == "healthy-load":
        return set(recordings.load[rows][healthy].tolist())
    raise ValueError(f"recordings have no groups called {attribute!r}")


def splits(recordings, scheme):
    """Every split of a scheme: each group of each of its attributes is held out once, in all combinations."""
    attributes = SCHEMES[scheme]
    everything = range(len(recordings))
    values = [sorted(groups(recordings, attribute, everything)) for attribute in attributes]
    result = []
    for chosen in _combinations(values):
        held = dict(zip(attributes, chosen))
        train = tuple(row for row in everything if not _touches(recordings, row, held))
        test = tuple(row for row in everything if _is_judged(recordings, row, held))
        if train and test:
            name = ", ".join(
                f"{value:g}" if not isinstance(value, str) else value for value in chosen
            )
            result.append(Split(name, recordings, attributes, train, test))
    return result


def by_speed(recordings, rows):
    """The inner splits of a threshold: each speed among these recordings held out once."""
    for speed in sorted(groups(recordings, "speed", rows)):
        train = tuple(row for row in rows if recordings.rpm[row] != speed)
        test = tuple(row for row in rows if recordings.rpm[row] == speed)
        if train and test:
            yield Split(f"{speed:g}", recordings, ("speed",), train, test)


def _touches(recordings, row, held):
    """Whether a recording belongs to a group that is held out."""
    return any(value in groups(recordings, attribute, [row]) for attribute, value in held.items())


def _is_judged(recordings, row, held):
    """Healthy ones and those of the held-out kind, at the held-out speed and load."""
    healthy = recordings.abnormal[row] == 0
    if "speed" in held and recordings.rpm[row] != held["speed"]:
        return False
    if "kind" in held and not healthy and family(recordings.kind[row]) != held["kind"]:
        return False
    return "healthy-load" not in held or recordings.load[row] == held["healthy-load"]


def _combinations(values):
    return (
        np.array(np.meshgrid(*values, indexing="ij"), dtype=object)
        .reshape(len(values), -1)
        .T.tolist()
    )
