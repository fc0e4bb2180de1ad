"""Settings: the file of the aggregator, of which this job reads what it needs.

`[kafka]` (brokers, topics, record-bytes-max), `[lake]` (location, keeps-readings), `[counting]` and `[[rules]]` mean what they mean there.
What this job does not do (`[alerts]`, `[gaps]` and so on) is left alone. Brokers' security has other names in Java: see `--option`.
"""

import re
import tomllib
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from lake_pipeline.refusal import Refusal
from lake_pipeline.rules import Rule, rules_of

READINGS, MACHINE_EVENTS, DEAD_LETTERS = "readings", "machine-events", "dead-letters"
OUTCOMES, WAVEFORMS = "outcomes", "waveforms"
# Key of `[kafka.topics]`, and what lies in the topic.
KINDS = {
    "temperature": READINGS, "pressure": READINGS, "vibration": READINGS, "machine-events": MACHINE_EVENTS,
    "dead-letters": DEAD_LETTERS, "outcomes": OUTCOMES, "waveforms": WAVEFORMS,
}
# As in cloud-aggregator/config/default.toml; a test compares.
DEFAULTS = {
    "kafka": {"brokers": "127.0.0.1:9092", "record-bytes-max": 1048576, "topics": {name: name for name in KINDS}},
    "lake": {"location": "lake", "keeps-readings": True},
    "counting": {
        "allowed-lateness": "1m", "idle-timeout": "2m", "closed-window-retention": "1d", "future-limit": "5m",
        "oldest-event-time": "2000-01-01T00:00:00Z",
    },
    "rules": [{
        "name": "temperature-above-100", "filter": "metric_type = temperature and value > 100", "window": "1m", "slide": "1m",
        "by": "sensor", "threshold": "count > 5", "output-mode": "append", "severity": 2,
    }],
}
UNITS = {"us": 1, "ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}


@dataclass(frozen=True)
class Settings:
    """What the job does. Times are microseconds."""

    brokers: str
    topics: dict[str, str]
    record_bytes_max: int
    location: str
    allowed_lateness: int
    idle_timeout: int
    retention: int
    future_limit: int
    oldest_event_time: int
    rules: tuple[Rule, ...]


def micros(text, key):
    """A duration such as "1m" or "1h 30m", in microseconds."""
    parts = re.findall(r"(\d+)\s*([a-z]+)", text) if isinstance(text, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != re.sub(r"\s", "", text):
        raise Refusal(f'{key}: {text!r} is no duration such as "30s"')
    unknown = [unit for _, unit in parts if unit not in UNITS]
    if unknown:
        raise Refusal(f"{key}: {unknown[0]!r} is no unit of time here: {', '.join(UNITS)}")
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def instant(text, key):
    """Microseconds since 1970 of a text such as 2000-01-01T00:00:00Z."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Refusal(f"{key}: {text!r} is not RFC 3339 such as 2000-01-01T00:00:00Z")
    since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (since.days * 86400 + since.seconds) * 10**6 + since.microseconds


def load(text):
    """Settings of the text of a file."""
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refusal(f"the configuration is no TOML: {error}") from error
    kafka = DEFAULTS["kafka"] | given.get("kafka", {})
    lake = DEFAULTS["lake"] | given.get("lake", {})
    counting = DEFAULTS["counting"] | given.get("counting", {})
    names = DEFAULTS["kafka"]["topics"] | given.get("kafka", {}).get("topics", {})
    unknown = sorted(set(names) - set(KINDS))
    if unknown:
        raise Refusal(f"kafka.topics.{unknown[0]} is not known: {', '.join(KINDS)}")
    topics = {name: KINDS[key] for key, name in names.items() if name}
    if not topics:
        raise Refusal("kafka.topics: every topic is switched off, there is nothing to read")
    if lake["keeps-readings"] is not True:
        raise Refusal("lake.keeps-readings is false: this job counts from `telemetry`, it has to keep readings")

    def duration(key):
        return micros(counting[key], f"counting.{key}")

    return Settings(
        brokers=kafka["brokers"], topics=topics, record_bytes_max=int(kafka["record-bytes-max"]),
        location=lake["location"].rstrip("/"), allowed_lateness=duration("allowed-lateness"),
        idle_timeout=duration("idle-timeout"), retention=duration("closed-window-retention"),
        future_limit=duration("future-limit"),
        oldest_event_time=instant(counting["oldest-event-time"], "counting.oldest-event-time"),
        rules=rules_of(given.get("rules", DEFAULTS["rules"]), micros))


def replaced(settings, changes):
    """The same with some values others."""
    changed = replace(settings, **changes)
    return replace(changed, location=changed.location.rstrip("/"))
