"""Records in protobuf, as JSON text of the same record: `decode` checks both alike.

Reads the wire format itself (https://protobuf.dev/programming-guides/encoding/): the messages are few, and Spark's own reader wants a
compiled descriptor beside the .proto files of shared-proto. Runs in Python workers, for batches that hold protobuf only.
"""

import base64
import json
import math
import struct
from datetime import datetime, timedelta, timezone

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
QUALITIES = (None, "good", "uncertain", "bad")
EVENT_TYPES = (
    "", "trip", "stop-confirmed", "stop-not-confirmed", "reset", "reset-refused", "sensor-fault", "sensor-recovered", "model-changed",
    "model-refused", "ledger", "gap", "started", "stopped", "alarm", "alarm-cleared", "moved-while-tripped", "trip-suppressed",
    "shelved", "unshelved", "settings-changed", "settings-refused", "gap-closed", "learning-started", "baseline-learnt",
    "learning-refused")
VERDICTS = ("", "confirmed", "false-alarm", "part-replaced", "note")
SAMPLES_I16, SAMPLES_F32 = "samples_i16", "samples_f32"
# Field number: name and type.
READING = {
    1: ("sensor_id", "text"), 2: ("timestamp", "time"), 3: ("metric_type", "text"), 4: ("value", "double"), 5: ("machine_id", "text"),
    6: ("unit", "text"), 7: ("quality", "enum"), 8: ("device_id", "text"), 9: ("generation", "uint"), 10: ("sequence", "uint"),
    11: ("historical", "bool"), 12: ("features", "map"),
}
MACHINE_EVENT = {
    1: ("event_type", "enum"), 2: ("machine_id", "text"), 3: ("timestamp", "time"), 4: ("device_id", "text"), 5: ("generation", "uint"),
    6: ("sequence", "uint"), 7: ("historical", "bool"), 8: ("cause", "text"), 9: ("rule", "text"), 10: ("sensor_id", "text"),
    11: ("metric_type", "text"), 12: ("value", "double"), 13: ("limit", "double"), 14: ("score", "double"), 15: ("model", "text"),
    16: ("command_latency_micros", "uint"), 17: ("confirmation_latency_micros", "uint"), 18: ("first_sequence", "uint"),
    19: ("last_sequence", "uint"), 20: ("record_count", "uint"), 21: ("detail", "text"), 22: ("rule_version", "text"),
    23: ("trip_id", "text"), 24: ("operator", "text"), 25: ("delivered_sequence", "uint"), 26: ("waveform_sequences", "text"),
    27: ("contributions", "text"),
}
OUTCOME = {
    1: ("outcome_id", "text"), 2: ("verdict", "enum"), 3: ("machine_id", "text"), 4: ("timestamp", "time"), 5: ("alert_id", "text"),
    6: ("trip_id", "text"), 7: ("sensor_id", "text"), 8: ("ticket_id", "text"), 9: ("part", "text"), 10: ("note", "text"),
    11: ("reported_by", "text"),
}
DEAD_LETTER = {
    1: ("reason", "text"), 2: ("detail", "text"), 3: ("source", "text"), 4: ("timestamp", "time"), 5: ("device_id", "text"),
    6: ("generation", "uint"), 7: ("sequence", "uint"), 8: ("raw_base64", "bytes"), 9: ("raw_length", "uint"),
}
WAVEFORM = {
    1: ("machine_id", "text"), 2: ("sensor_id", "text"), 3: ("first_sample", "time"), 4: ("sample_rate_hz", "double"),
    5: ("scale", "double"), 6: ("unit", "text"), 7: (SAMPLES_I16, "raw"), 8: (SAMPLES_F32, "floats"), 9: ("trip_id", "text"),
    10: ("device_id", "text"), 11: ("generation", "uint"), 12: ("sequence", "uint"), 13: ("piece", "uint"),
}
MESSAGES = {"readings": READING, "machine-events": MACHINE_EVENT, "outcomes": OUTCOME, "dead-letters": DEAD_LETTER, "waveforms": WAVEFORM}
WIRE = {"text": BYTES, "time": FIXED64, "double": FIXED64, "uint": VARINT, "enum": VARINT, "bool": VARINT, "map": BYTES, "bytes": BYTES,
        "raw": BYTES, "floats": BYTES}
# Fields that JSON has in every record. Elsewhere an empty text says nothing.
REQUIRED = {
    "readings": {"sensor_id": "", "metric_type": ""}, "machine-events": {"machine_id": ""}, "outcomes": {"machine_id": ""},
    "dead-letters": {"reason": "", "detail": "", "source": "", "raw_base64": "", "raw_length": 0},
    "waveforms": {"machine_id": "", "sensor_id": ""},
}
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Malformed(Exception):
    """Not protobuf of its message."""


class Refused(Exception):
    """Protobuf, but no record: reason and detail."""


def varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Malformed("a number that does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & (2**64 - 1), at
        shift += 7


def fields(data):
    """Field number, wire type and value of each field, in order."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise Malformed("a field without a number")
        if wire == VARINT:
            value, at = varint(data, at)
        elif wire in (FIXED64, FIXED32):
            end = at + (8 if wire == FIXED64 else 4)
            value, at = data[at:end], end
        elif wire == BYTES:
            length, at = varint(data, at)
            value, at = data[at:at + length], at + length
        else:
            raise Malformed(f"the wire type {wire}")
        if at > len(data):
            raise Malformed("a field that does not end")
        yield field, wire, value


def text(value):
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a text that is not UTF-8") from error


def double(name, value):
    number = struct.unpack("<d", value)[0]
    if not math.isfinite(number):
        raise Refused("not-finite", f"field `{name}` is {number}, which is not a finite number")
    return number


def time(micros):
    """RFC 3339 of microseconds since 1970."""
    try:
        moment = EPOCH + timedelta(microseconds=micros)
    except OverflowError as error:
        raise Refused("timestamp", f"timestamp {micros} is out of the calendar") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + f".{moment.microsecond:06d}Z"


def entry(value):
    name, number = "", 0.0
    for field, wire, part in fields(value):
        if (field, wire) == (1, BYTES):
            name = text(part)
        elif (field, wire) == (2, FIXED64):
            number = double("features", part)
        elif field in (1, 2):
            raise Malformed("an entry of another type")
    return name, number


def floats(value):
    """The packed samples of a FloatSamples, as they are: 32 bits each, little-endian."""
    packed = b""
    for field, wire, part in fields(value):
        if field == 1 and wire in (BYTES, FIXED32):
            packed += part
        elif field == 1:
            raise Malformed("samples of another type")
    if len(packed) % 4:
        raise Malformed("a sample that does not end")
    return packed


def read(message, data):
    """The message as names and values of JSON."""
    record = {}
    for field, wire, value in fields(data):
        if field not in message:
            continue
        name, kind = message[field]
        if wire != WIRE[kind]:
            raise Malformed(f"field `{name}` has the wire type {wire}")
        if kind == "text":
            record[name] = text(value)
        elif kind == "time":
            record[name] = time(struct.unpack("<q", value)[0])
        elif kind == "double":
            record[name] = double(name, value)
        elif kind == "bool":
            record[name] = value != 0
        elif kind == "bytes":
            record[name] = base64.b64encode(value).decode()
        elif kind == "map":
            key, number = entry(value)
            record.setdefault(name, {})[key] = number
        elif kind == "floats":
            record.pop(SAMPLES_I16, None)
            record[name] = record.get(name, b"") + floats(value)
        elif kind == "raw":
            record.pop(SAMPLES_F32, None)
            record[name] = value
        else:
            record[name] = value
    return record


def word(record, name, words, is_required):
    """The word of an enum's number."""
    number = record.pop(name, 0)
    if not 0 <= number < len(words) or (is_required and number == 0):
        raise Refused("unknown-value", f"field `{name}` has the unknown value {number}")
    if words[number]:
        record[name] = words[number]


def scaled(record):
    """Samples of either form as numbers of 32 bits, little-endian, in base64."""
    scale = record.pop("scale", 1.0)
    counts, packed = record.pop(SAMPLES_I16, None), record.pop(SAMPLES_F32, None)
    if counts is None and packed is None:
        raise Refused("missing-field", "field `samples` is missing")
    narrow = struct.unpack("<f", struct.pack("<f", scale))[0] if abs(scale) < 3.4e38 else math.inf
    if not (math.isfinite(narrow) and narrow > 0):
        raise Refused("waveform", "waveform block: the scale is no positive number")
    if counts is not None and len(counts) % 2:
        raise Refused("waveform", "waveform block: an odd number of bytes")
    if counts is not None:
        samples = struct.unpack(f"<{len(counts) // 2}h", counts)
    else:
        samples = struct.unpack(f"<{len(packed) // 4}f", packed)
    if not samples:
        raise Refused("waveform", "waveform block: no samples")
    try:
        data = struct.pack(f"<{len(samples)}f", *(sample * narrow for sample in samples))
    except OverflowError as error:
        raise Refused("not-finite", "field `samples` has a number that is not finite") from error
    if not all(map(math.isfinite, struct.unpack(f"<{len(samples)}f", data))):
        raise Refused("not-finite", "field `samples` has a number that is not finite")
    record["sample_count"], record["samples_base64"] = len(samples), base64.b64encode(data).decode()


def as_json(kind, data):
    """JSON text of a record, or nothing, and then reason and detail."""
    try:
        given = read(MESSAGES[kind], data)
        record = REQUIRED[kind] | {name: value for name, value in given.items() if value != "" or name in REQUIRED[kind]}
        if kind == "readings":
            word(record, "quality", QUALITIES, False)
        elif kind == "machine-events":
            word(record, "event_type", EVENT_TYPES, True)
        elif kind == "outcomes":
            word(record, "verdict", VERDICTS, True)
        elif kind == "waveforms":
            scaled(record)
        stamp = "first_sample" if kind == "waveforms" else "timestamp"
        if stamp not in record:
            raise Refused("missing-field", f"field `{stamp}_micros` is missing")
        return json.dumps(record, ensure_ascii=False), None, None
    except Malformed as error:
        return None, "protobuf", f"not a record in protobuf: {error}"
    except Refused as error:
        return None, *error.args
