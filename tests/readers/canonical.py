"""The same text for a row, whichever library has read it, and a checksum over all rows of a table.

Each reader prints a JSON object a line and lake:

    {"lake": FOLDER, "tables": {NAME: {"rows": 3, "distinct": 3, "columns": [...], "checksum": "31b8acc654429b31"}}}

The text of a row: `name=value` of the columns that are not null, by name, with U+001F between them. A double is its 64 bits in
hexadecimal, a date its days and a timestamp its microseconds since 1970, bytes are hexadecimal, maps and structs `{name=value,…}` by
name. The hash of a row is the first 8 bytes of the SHA-256 of its text; the checksum the sum of the hashes modulo 2^64: the order of
rows does not matter, one that is missing, twice or different does. What is null has no part in it, so that a column that is added changes no checksum.
"""

import hashlib
import json
import os
import struct

SEPARATOR = "\x1f"


def bits(value):
    return struct.pack(">d", value).hex()


def entries(pairs):
    return "{" + ",".join(f"{name}={text}" for name, text in sorted(pairs)) + "}"


class Checksum:
    """Over the rows of one table."""

    def __init__(self):
        self.rows = 0
        self.sum = 0
        self.hashes = set()

    def add(self, texts):
        """A row: its columns' texts by name, None for null."""
        text = SEPARATOR.join(f"{name}={value}" for name, value in sorted(texts.items()) if value is not None)
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        self.rows += 1
        self.sum = (self.sum + number) % 2**64
        self.hashes.add(number)

    def answer(self, columns):
        return {"rows": self.rows, "distinct": len(self.hashes), "columns": sorted(columns), "checksum": f"{self.sum:016x}"}


def tables_of(lake):
    """Names of a lake's tables and their folders."""
    folders = {name: os.path.join(lake, name) for name in sorted(os.listdir(lake))}
    return {name: path for name, path in folders.items() if os.path.isdir(os.path.join(path, "_delta_log"))}


def arrow_texts(table):
    """Texts of each row of an Arrow table, by column."""
    import pyarrow as pa

    def column_texts(column):
        kind = column.type
        if pa.types.is_timestamp(kind):
            return map(number, column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64()).to_pylist())
        if pa.types.is_date32(kind):
            return map(number, column.cast(pa.int32()).to_pylist())
        return (arrow_text(kind, value) for value in column.to_pylist())

    def number(value):
        return None if value is None else str(value)

    columns = [(name, list(column_texts(table.column(name)))) for name in table.column_names]
    for index in range(table.num_rows):
        yield {name: texts[index] for name, texts in columns}


def arrow_text(kind, value):
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_boolean(kind):
        return "true" if value else "false"
    if pa.types.is_integer(kind):
        return str(value)
    if pa.types.is_floating(kind):
        return bits(value)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return value
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return value.hex()
    if pa.types.is_timestamp(kind):
        return str(micros(value))
    if pa.types.is_map(kind):
        return entries((key, arrow_text(kind.item_type, item)) for key, item in value if item is not None)
    if pa.types.is_struct(kind):
        fields = ((field.name, arrow_text(field.type, value[field.name])) for field in kind)
        return entries((name, text) for name, text in fields if text is not None)
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        # A library without maps: a list of their entries.
        item = kind.value_type.field("value").type
        return entries((pair["key"], arrow_text(item, pair["value"])) for pair in value)
    raise SystemExit(f"no table of the lake has the type {kind}")


def micros(moment):
    """Microseconds since 1970 of a datetime with zone, without the detour over a float."""
    import datetime

    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def print_lakes(lakes, read):
    """Prints a line for each lake; `read` gives the columns of a table's folder and its rows' texts."""
    for lake in lakes:
        answers = {}
        for name, folder in tables_of(lake).items():
            checksum = Checksum()
            columns, rows = read(folder)
            for texts in rows:
                checksum.add(texts)
            answers[name] = checksum.answer(columns)
        print(json.dumps({"lake": lake, "tables": answers}), flush=True)
