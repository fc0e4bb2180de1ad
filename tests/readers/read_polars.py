"""Reads every table of lakes with polars: read_polars.py LAKE…, see canonical.py."""

import sys

import polars

from canonical import arrow_texts, print_lakes


def read(folder):
    table = polars.read_delta(folder).to_arrow()
    return table.column_names, arrow_texts(table)


print_lakes(sys.argv[1:], read)
