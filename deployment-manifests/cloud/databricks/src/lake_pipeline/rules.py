"""Rules: from the `[[rules]]` of the aggregator to conditions of SQL.

The grammar of filters is that of cloud-aggregator/RULES.md. Nothing of a rule's text reaches SQL unchecked: fields and signs come from
the lists here, texts are quoted, numbers are parsed.
"""

import math
import re
from dataclasses import dataclass

from lake_pipeline.refusal import Refusal

TEXT_FIELDS = ("metric_type", "sensor_id", "machine_id", "unit", "quality", "device_id")
COMPARISONS = ("=", "!=", ">", ">=", "<", "<=")
AGGREGATES = ("count", "rate", "mean", "max", "min", "rate-of-change")
KEYS = ("name", "filter", "window", "slide", "by", "threshold", "output-mode", "severity")
REQUIRED = ("name", "filter", "window", "threshold", "severity")
NAME_BYTES_MAX, FILTER_BYTES_MAX, TERMS_MAX, DEPTH_MAX, WINDOWS_MAX = 64, 4096, 256, 32, 1440
WINDOW_MAX_MICROS = 366 * 86400 * 10**6
TOKEN = re.compile(r"\s*(?:(?P<sign>[()]|!=|>=|<=|[=><])|'(?P<text>(?:[^']|'')*)'|(?P<word>[A-Za-z0-9_./:+\-\u0080-\U0010ffff]+))")


@dataclass(frozen=True)
class Rule:
    """What makes a window an anomaly. `may_match` is `condition` where only the metric type is known yet."""

    name: str
    condition: str
    may_match: str
    window: int
    slide: int
    by: str
    aggregate: str
    comparison: str
    limit: float

    @property
    def windows_of_a_reading(self):
        """In how many windows a reading is, at most."""
        return -(-self.window // self.slide)


def quoted(text):
    """A text of SQL. Spark reads backslashes as escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def number(text):
    """A finite number of a text, or nothing."""
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def double(value):
    """A number of SQL, all of its digits."""
    return f"CAST('{value!r}' AS DOUBLE)"


class Filter:
    """Reads one filter."""

    def __init__(self, text, place):
        self.place, self.terms, self.tokens, at = place, 0, [], 0
        if len(text.encode()) > FILTER_BYTES_MAX:
            raise self.refusal(f"has more than {FILTER_BYTES_MAX} bytes: make several rules of it")
        while text[at:].strip():
            found = TOKEN.match(text, at)
            if found is None:
                raise self.refusal(f"at {at}: {text[at:].strip()[0]!r} is no field, comparison, number or text")
            self.tokens.append((found.lastgroup, found.group(found.lastgroup)))
            at = found.end()

    def refusal(self, what):
        return Refusal(f"{self.place}.filter {what}")

    def take(self):
        if not self.tokens:
            raise self.refusal("ends where a field, a comparison, a number or a text should be")
        return self.tokens.pop(0)

    def is_next(self, kind, text):
        return bool(self.tokens) and self.tokens[0][0] == kind and self.tokens[0][1].lower() == text

    def read(self):
        """The whole condition, and what is left of it where only the metric type is known."""
        both = self.expression(0)
        if self.tokens:
            raise self.refusal(f'has {self.tokens[0][1]!r} where "and", "or" or its end should be')
        return both

    def expression(self, depth):
        return self.joined("or", lambda: self.joined("and", lambda: self.term(depth)))

    def joined(self, word, part):
        parts = [part()]
        while self.is_next("word", word):
            self.take()
            parts.append(part())
        sides = zip(*parts)
        return tuple("(" + f" {word.upper()} ".join(side) + ")" if len(parts) > 1 else side[0] for side in sides)

    def term(self, depth):
        kind, field = self.take()
        if (kind, field) == ("sign", "("):
            if depth >= DEPTH_MAX:
                raise self.refusal(f"has more than {DEPTH_MAX} parentheses inside one another: write it flatter")
            both = self.expression(depth + 1)
            if self.take() != ("sign", ")"):
                raise self.refusal('lacks a ")"')
            return both
        self.terms += 1
        if self.terms > TERMS_MAX:
            raise self.refusal(f"has more than {TERMS_MAX} comparisons: make several rules of it")
        (sign_kind, sign), (operand_kind, operand) = self.take(), self.take()
        if kind != "word" or sign_kind != "sign" or sign not in COMPARISONS or operand_kind == "sign":
            raise self.refusal(f"has {field} {sign} {operand} where a comparison such as value > 100 should be")
        if field in TEXT_FIELDS:
            if sign not in ("=", "!="):
                raise self.refusal(f"asks {field} {sign}: it is a text and knows = and != alone")
            condition = f"coalesce({field} {sign} {quoted(operand.replace(chr(39) * 2, chr(39)))}, false)"
            return condition, condition if field == "metric_type" else "true"
        value = number(operand) if operand_kind == "word" else None
        if value is None:
            raise self.refusal(f"holds {field} against {operand!r}, which is no number")
        if field == "value":
            column = "value"
        elif field.startswith("features.") and len(field) > len("features."):
            column = f"try_element_at(features, {quoted(field.removeprefix('features.'))})"
        else:
            raise self.refusal(f"asks for {field!r}: readings have {', '.join(TEXT_FIELDS)}, value and features.NAME")
        return f"coalesce({column} {sign} {double(value)}, false)", "true"


def rule_of(given, place, micros):
    """One rule of its table."""
    if not isinstance(given, dict):
        raise Refusal(f"{place} is no table")
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise Refusal(f"{place}.{unknown[0]} is not known: {', '.join(KEYS)}")
    missing = [key for key in REQUIRED if key not in given]
    if missing:
        raise Refusal(f"{place}.{missing[0]} is missing, every rule needs it")
    name = given["name"]
    if not isinstance(name, str) or not name.strip() or len(name.encode()) > NAME_BYTES_MAX:
        raise Refusal(f"{place}.name has to have 1 to {NAME_BYTES_MAX} bytes")
    mode = given.get("output-mode", "append")
    if mode != "append":
        raise Refusal(f'{place}.output-mode: rule {name!r} has "{mode}"; the Spark job knows "append" alone, the others need the '
                      "aggregator")
    by = given.get("by", "sensor")
    if by not in ("sensor", "machine"):
        raise Refusal(f'{place}.by: {by!r} is neither "sensor" nor "machine"')
    window = micros(given["window"], f"{place}.window")
    slide = micros(given["slide"], f"{place}.slide") if "slide" in given else window
    if not 10**6 <= window <= WINDOW_MAX_MICROS:
        raise Refusal(f"{place}.window has to be from 1 s to 366 days")
    if not 0 < slide <= window or -(-window // slide) > WINDOWS_MAX:
        raise Refusal(f"{place}.slide has to be at most the window, and a reading in at most {WINDOWS_MAX} windows")
    threshold = re.fullmatch(r"\s*([a-z-]+)\s*(>=|<=|>|<)\s*(\S+)\s*", str(given["threshold"]))
    limit = number(threshold[3]) if threshold else None
    if threshold is None or threshold[1] not in AGGREGATES or limit is None:
        raise Refusal(f'{place}.threshold: {given["threshold"]!r} is not such as "count > 5": one of {", ".join(AGGREGATES)}, '
                      "> >= < or <=, a number")
    condition, may_match = Filter(str(given["filter"]), place).read()
    return Rule(name, condition, may_match, window, slide, by, threshold[1], threshold[2], limit)


def rules_of(given, micros):
    """All rules, each name once."""
    if not isinstance(given, list):
        raise Refusal("rules is no list of tables [[rules]]")
    rules = tuple(rule_of(rule, f"rules[{place}]", micros) for place, rule in enumerate(given))
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Refusal(f"rules: the name {twice[0]!r} comes twice")
    return rules
