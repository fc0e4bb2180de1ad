"""Holds the Power BI project against the views that it reads: check_power_bi.py ROOT, the repository.

Every table reads a view and has its columns in their types; relationships, measures and visuals name only what is there; files name
each other as Power BI Desktop looks for them.
"""

import json
import pathlib
import re
import sys

import check_synapse
import synapse
import tmdl
from synapse import Fault, ensure

FOLDER = "deployment-manifests/cloud/power-bi"
PROJECT = "PredictiveMaintenance"
TYPES = {"VARCHAR": "string", "BIGINT": "int64", "INTEGER": "int64", "DOUBLE": "double", "DATE": "dateTime", "TIMESTAMP": "dateTime",
         "BOOLEAN": "boolean"}
# Made in the model: every day, and of the view's rows each machine once.
CALENDAR = {"date": "dateTime", "month": "string"}
# What a visual may be given, by role; those that it must have.
ROLES = {"lineChart": ({"Category", "Y"}, {"Category", "Y", "Series"}),
         "clusteredColumnChart": ({"Category", "Y"}, {"Category", "Y", "Series"}),
         "card": ({"Values"}, {"Values"}), "slicer": ({"Values"}, {"Values"}), "tableEx": ({"Values"}, {"Values"})}
ALSO_IN_DAX = re.compile(r"'([^']+)'\[([^\]]+)\]|\b([A-Za-z]\w*)\[([^\]]+)\]|(?<![\w'\]])\[([^\]]+)\]")


def source_of(name, table, expressions):
    """Text of a table's query, after looking at what it calls."""
    partitions = table.of("partition")
    ensure(list(partitions) == [name], f"{name}: partitions {list(partitions)}")
    partition = partitions[name]
    ensure(partition.expression == "m" and partition.properties.get("mode") == "import", f"{name}: {partition.expression}")
    query = partition.properties["source"]
    for called in re.findall(r"Sql\.Database\((\w+), (\w+)\)", query):
        ensure(called == ("Server", "Database"), f"{name}: connects to {called}")
    ensure("FirstDay" in query, f"{name}: reads all days")
    for parameter in ("Server", "Database", "DaysBack", "FirstDay"):
        ensure(parameter in expressions, f"there is no expression {parameter}")
    return query


def check_table(name, table, expressions, connection):
    """A table's columns are those of its view."""
    query = source_of(name, table, expressions)
    view = re.search(r'Source\{\[Schema = "(\w+)", Item = "(\w+)"\]\}\[Data\]', query)
    if view is None:
        ensure(name == "Date", f"{name}: reads no view")
        due = CALENDAR
    else:
        there = synapse.described(connection, ".".join(view.groups()))
        chosen = re.search(r"Table\.SelectColumns\(\w+, \{([^}]*)\}\)", query)
        chosen = re.findall(r'"(\w+)"', chosen.group(1)) if chosen else list(there)
        ensure(set(chosen) <= set(there), f"{name}: the view has no {sorted(set(chosen) - set(there))}")
        ensure("date" in there and "each [date] >= FirstDay" in query, f"{name}: reads all days")
        due = {column: TYPES[there[column]] for column in chosen}
    columns = table.of("column")
    ensure(list(columns) == list(due), f"{name}: columns {sorted(set(columns) ^ set(due)) or 'in another order'}")
    for column, made in columns.items():
        ensure(made.properties.get("sourceColumn") == column, f"{name}[{column}] reads {made.properties.get('sourceColumn')}")
        kind = made.properties.get("dataType")
        ensure(kind == due[column], f"{name}[{column}] is {kind}, {due[column]} is due")
    ensure(table.description, f"{name} has no description")


def check_measures(tables):
    """Measures name columns and measures that are there, and have names of their own."""
    measures = {}
    for name, table in tables.items():
        for measure, made in table.of("measure").items():
            ensure(measure not in measures, f"two measures {measure}")
            lower = [column.lower() for column in table.of("column")]
            ensure(measure.lower() not in lower, f"{name}: a measure and a column {measure}")
            ensure(made.properties.get("formatString"), f"{measure} has no format")
            measures[measure] = made
    for measure, made in measures.items():
        ensure(made.expression.count("(") == made.expression.count(")"), f"{measure}: parentheses")
        for quoted, column, plain, other, alone in ALSO_IN_DAX.findall(made.expression):
            table, column = quoted or plain, column or other
            if alone:
                ensure(alone in measures and alone != measure, f"{measure}: there is no measure {alone}")
            else:
                ensure(table in tables and column in tables[table].of("column"), f"{measure}: there is no {table}[{column}]")
    return measures


def check_relationships(tables, relationships):
    """Every fact reaches the days, and the machines if it has one."""
    related = set()
    for relationship in relationships.values():
        ends = []
        for end in ("fromColumn", "toColumn"):
            named = re.fullmatch(rf"({tmdl.NAME})\.({tmdl.NAME})", relationship.properties.get(end, ""))
            ensure(named, f"relationship {relationship.name}: {end} {relationship.properties.get(end)}")
            table, column = map(tmdl.unquoted, named.groups())
            ensure(table in tables and column in tables[table].of("column"), f"relationship: there is no {table}[{column}]")
            ends.append((table, column))
        (table, column), (dimension, key) = ends
        ensure("isKey" in tables[dimension].of("column")[key].properties, f"relationship: {dimension}[{key}] is no key")
        kinds = [tables[name].of("column")[of].properties["dataType"] for name, of in ends]
        ensure(kinds[0] == kinds[1], f"relationship: {ends} are {kinds}")
        related.add((table, column, dimension))
    due = {(table, column, dimension) for dimension, column in (("Date", "date"), ("Machine", "machine_id"))
           for table in tables if table not in ("Date", "Machine") and column in tables[table].of("column")}
    ensure(related == due, f"relationships differ: {sorted(related ^ due)}")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def check_field(place, projection, tables):
    (kind, field), = projection["field"].items()
    table, name = field["Expression"]["SourceRef"]["Entity"], field["Property"]
    ensure(table in tables, f"{place}: there is no table {table}")
    ensure(kind in ("Column", "Measure") and name in tables[table].of(kind.lower()), f"{place}: there is no {kind} {table}[{name}]")
    ensure(projection.get("queryRef", f"{table}.{name}") == f"{table}.{name}", f"{place}: queryRef {projection.get('queryRef')}")
    return kind


def check_visual(path, page, tables):
    visual = read(path)
    place = f"{page['displayName']}, {path.parent.name}"
    ensure(visual["name"] == path.parent.name, f"{place}: its folder has another name, and would be skipped")
    at = visual["position"]
    ensure(at["x"] + at["width"] <= page["width"] and at["y"] + at["height"] <= page["height"], f"{place}: hangs over the page")
    kind = visual["visual"]["visualType"]
    ensure(kind in ROLES, f"{place}: no visual {kind}")
    required, allowed = ROLES[kind]
    roles = visual["visual"]["query"]["queryState"]
    ensure(required <= set(roles) <= allowed, f"{place}: a {kind} with {sorted(roles)}")
    for role, state in roles.items():
        kinds = {check_field(place, projection, tables) for projection in state["projections"]}
        ensure(kinds == {"Measure"} or role not in ("Y",), f"{place}: {role} without a measure")
    for sort in visual["visual"]["query"].get("sortDefinition", {}).get("sort", []):
        check_field(place, sort, tables)
    return at


def check_report(folder, tables):
    """Files of the report, and what its visuals show. Gives the number of visuals."""
    definition = folder / f"{PROJECT}.Report/definition"
    reference = read(folder / f"{PROJECT}.Report/definition.pbir")["datasetReference"]["byPath"]["path"]
    ensure((folder / f"{PROJECT}.Report" / reference / "definition.pbism").is_file(), f"definition.pbir names {reference}")
    report = read(folder / f"{PROJECT}.pbip")["artifacts"][0]["report"]["path"]
    ensure((folder / report / "definition.pbir").is_file(), f"the .pbip names {report}")
    pages = read(definition / "pages/pages.json")
    folders = sorted(path.parent.name for path in definition.glob("pages/*/page.json"))
    ensure(sorted(pages["pageOrder"]) == folders and pages["activePageName"] in folders, f"pages.json names {pages['pageOrder']}")
    count = 0
    for name in folders:
        page = read(definition / f"pages/{name}/page.json")
        ensure(page["name"] == name, f"page {name}: its folder has another name, and would be skipped")
        visuals = [check_visual(path, page, tables) for path in sorted((definition / f"pages/{name}").glob("visuals/*/visual.json"))]
        for index, one in enumerate(visuals):
            for other in visuals[:index]:
                apart = (one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
                         or one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"])
                ensure(apart, f"{page['displayName']}: two visuals overlap: {one} {other}")
        count += len(visuals)
    return count


def check(root):
    """All of it. Gives tables, measures and visuals."""
    folder = synapse.folder_of(root / FOLDER)
    connection = synapse.connect(synapse.views(root / check_synapse.FOLDER), {})
    model = tmdl.read_model(folder / f"{PROJECT}.SemanticModel/definition")
    tables = model["table"]
    for name, table in tables.items():
        check_table(name, table, model["expression"], connection)
    measures = check_measures(tables)
    check_relationships(tables, model["relationship"])
    return len(tables), len(measures), check_report(folder, tables)


def main():
    try:
        tables, measures, visuals = check(pathlib.Path(sys.argv[1]))
    except Fault as fault:
        raise SystemExit(f"{FOLDER}: {fault}") from None
    print(f"{tables} tables, {measures} measures and {visuals} visuals name what is there")


if __name__ == "__main__":
    main()
