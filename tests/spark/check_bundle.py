"""Checks the bundle of deployment-manifests/cloud/databricks without Spark: check_bundle.py WORKSPACE [--mutations].

Its jobs are read by the types of `databricks-bundles`, which refuse fields and values that Databricks has not. What they refer to is
there, variables are declared and used, no secret stands in it, its Python compiles, its settings have the defaults of the aggregator,
and what it writes has the columns of the contract. With --mutations each of these is broken once, and has to be noticed.
"""

import argparse
import ast
import copy
import json
import os
import re
import sys
import tomllib

import yaml
from databricks.bundles.jobs import Job

BUNDLE = "deployment-manifests/cloud/databricks"
CONTRACT = "cloud-aggregator/contract/lake.odcs.json"
DEFAULTS = "cloud-aggregator/config/default.toml"
REFERENCE = re.compile(r"\$\{([^}]*)\}")
JOB_REFERENCE = re.compile(r"\{\{([^}]*)\}\}")
KNOWN_REFERENCES = {"workspace.file_path", "bundle.name", "bundle.target"}
SECRET = re.compile(r"(?i)(AccountKey=|SharedAccessKey=|sig=[A-Za-z0-9%]{20}|password\s*[=:]\s*.?[A-Za-z0-9]|dapi[0-9a-f]{32}|-----BEGIN)")


class Wrong(Exception):
    """What is wrong with the bundle."""


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def load(root):
    """Everything that is looked at, as values that a mutation may change."""
    folder = os.path.join(root, BUNDLE)
    resources = sorted(name for name in os.listdir(os.path.join(folder, "resources")))
    sources = os.path.join(folder, "src/lake_pipeline")
    return {
        "root": root, "bundle": yaml.safe_load(read(os.path.join(folder, "databricks.yml"))),
        "resources": {name: yaml.safe_load(read(os.path.join(folder, "resources", name))) for name in resources},
        "project": tomllib.loads(read(os.path.join(folder, "pyproject.toml"))),
        "python": {name: read(os.path.join(sources, name)) for name in sorted(os.listdir(sources)) if name.endswith(".py")},
        "contract": read(os.path.join(root, CONTRACT)), "defaults": read(os.path.join(root, DEFAULTS)),
        "readme": read(os.path.join(folder, "README.md")),
    }


def jobs_of(given):
    """Jobs by name, each read by Databricks' own types."""
    jobs = {}
    for file, content in given["resources"].items():
        if set(content) != {"resources"} or set(content["resources"]) != {"jobs"}:
            raise Wrong(f"{file} has other resources than jobs")
        for name, job in content["resources"]["jobs"].items():
            if name in jobs:
                raise Wrong(f"the job {name} is there twice")
            try:
                jobs[name] = Job.from_dict(job)
            except (ValueError, TypeError, KeyError) as error:
                raise Wrong(f"{file}: {name}: {error}") from error
    return jobs


def texts(value):
    """All texts of a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(key)
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def check_variables(given):
    declared = set(given["bundle"]["variables"])
    used = set()
    for text in [*texts(given["resources"]), *texts(given["bundle"])]:
        for reference in REFERENCE.findall(text):
            if reference.startswith("var."):
                used.add(reference.removeprefix("var."))
            elif reference not in KNOWN_REFERENCES:
                raise Wrong(f"${{{reference}}} is nothing that the bundle knows")
    if used - declared:
        raise Wrong(f"the variable {sorted(used - declared)[0]} is not declared")
    if declared - used:
        raise Wrong(f"the variable {sorted(declared - used)[0]} is not used")
    for name, variable in given["bundle"]["variables"].items():
        if not variable.get("description"):
            raise Wrong(f"the variable {name} has no description")
    for target, content in given["bundle"]["targets"].items():
        unknown = set(content.get("variables", ())) - declared
        if unknown:
            raise Wrong(f"target {target} sets {sorted(unknown)[0]}, which is not declared")
    # What has no default has to be given: the README names each.
    for name, variable in given["bundle"]["variables"].items():
        if "default" not in variable and f"--var {name}=" not in given["readme"]:
            raise Wrong(f"the README does not say that {name} has to be given")


def options_of(given, command):
    """Options of a command of the program, by its own text."""
    tree = ast.parse(given["python"]["command.py"])
    parsers, parents, options = {}, {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            call = node.value
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            inherited = [element.id for element in keywords["parents"].elts] if "parents" in keywords else []
            if isinstance(call.func, ast.Attribute) and call.func.attr == "add_parser":
                parsers[call.args[0].value], parents[node.targets[0].id] = node.targets[0].id, inherited
            elif isinstance(call.func, ast.Attribute) and call.func.attr == "ArgumentParser":
                parents.setdefault(node.targets[0].id, inherited)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            options.setdefault(node.func.value.id, {})[node.args[0].value] = any(
                keyword.arg == "required" for keyword in node.keywords)
    if command not in parsers:
        raise Wrong(f"the program has no command {command}")
    found = {}
    for name in [parsers[command], *parents[parsers[command]]]:
        found |= options.get(name, {})
    return found


def check_jobs(given, jobs):
    project = given["project"]["project"]
    scripts = project["scripts"]
    for name, job in jobs.items():
        parameters = {parameter.name for parameter in job.parameters}
        clusters = {cluster.job_cluster_key for cluster in job.job_clusters}
        environments = {environment.environment_key for environment in job.environments}
        if job.max_concurrent_runs != 1:
            raise Wrong(f"{name} may run twice at once: two runs of one checkpoint damage it")
        for task in job.tasks:
            wheel = task.python_wheel_task
            if wheel is None or wheel.package_name != project["name"] or wheel.entry_point not in scripts:
                raise Wrong(f"{name} runs something else than {project['name']}")
            if (task.job_cluster_key in clusters) == (task.environment_key in environments):
                raise Wrong(f"{name} has to name a cluster or an environment that it has")
            command, *rest = wheel.parameters
            known = options_of(given, command)
            flags = [parameter.partition("=")[0] for parameter in rest]
            for flag in flags:
                if flag not in known:
                    raise Wrong(f"{name} gives {command} the option {flag}, which it has not")
            for flag, is_required in known.items():
                if is_required and flag not in flags:
                    raise Wrong(f"{name} gives {command} no {flag}")
            for parameter in rest:
                for reference in JOB_REFERENCE.findall(parameter):
                    if reference.removeprefix("job.parameters.") not in parameters:
                        raise Wrong(f"{name} refers to {reference}, which it has not")
                path = re.fullmatch(r"--contract=\$\{workspace\.file_path\}/(.*)", parameter)
                if parameter.startswith("--contract") and (path is None or not os.path.exists(os.path.join(given["root"], path[1]))):
                    raise Wrong(f"{name}: {parameter} is not there")
    entry = scripts["lake-pipeline"].split(":")
    if f"def {entry[1]}(" not in given["python"].get(entry[0].removeprefix("lake_pipeline.") + ".py", ""):
        raise Wrong(f"the entry point {scripts['lake-pipeline']} is not there")


def check_files(given):
    folder = os.path.join(given["root"], BUNDLE)
    for path in given["bundle"]["sync"]["paths"]:
        if not os.path.isdir(os.path.join(folder, path)):
            raise Wrong(f"sync.paths: {path} is not there")
    if given["bundle"]["include"] != ["resources/*.yml"] or not all(name.endswith(".yml") for name in given["resources"]):
        raise Wrong("not every resource is included")
    for name, text in given["python"].items():
        try:
            compile(text, name, "exec")
        except SyntaxError as error:
            raise Wrong(f"{name}: {error}") from error
        long = [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 140]
        if long or "\t" in text or not text.endswith("\n"):
            raise Wrong(f"{name}: line {long[:1]} is too long, or it has tabs or no last line end")
    for text in [*texts(given["resources"]), *texts(given["bundle"]), *given["python"].values(), given["readme"]]:
        if SECRET.search(text):
            raise Wrong(f"a secret stands in {text[:40]!r}")


def module(given, name):
    """A module of the job that needs no Spark."""
    sys.path.insert(0, os.path.join(given["root"], BUNDLE, "src"))
    sys.dont_write_bytecode = True
    return __import__(f"lake_pipeline.{name}", fromlist=[name])


def check_settings(given):
    """The job's own defaults are those of the aggregator's file."""
    settings = module(given, "settings")
    file = tomllib.loads(given["defaults"])
    for table, values in settings.DEFAULTS.items():
        if table == "rules":
            if file["rules"] != values:
                raise Wrong(f"default rules: {values} here, {file['rules']} there")
            continue
        for key, value in values.items():
            if file[table].get(key) != value:
                raise Wrong(f"default of {table}.{key}: {value!r} here, {file[table].get(key)!r} there")
    settings.load(given["defaults"])


def check_columns(given):
    """What `decode` and `windows` make is what the contract has, no more and no less."""
    contract = json.loads(given["contract"])
    tables = {table["name"]: [column["name"] for column in table["properties"]] for table in contract["schema"]}
    made = columns_of(given)
    for table, found in made.items():
        expected = set(tables[table])
        if found - expected or expected - found:
            raise Wrong(f"{table}: {sorted(found ^ expected)} is in one of contract and job alone")
    tree = module(given, "contract").load(given["contract"])
    if set(tree) != set(made):
        raise Wrong(f"tables {sorted(set(tree) ^ set(made))}")


def columns_of(given):
    """Columns by table, from the text of the job: names of `shape.columns` and of the rows of `anomalies` and `dead_letters`."""
    tree = ast.parse(given["python"]["decode.py"])
    constants = {target.id: node.value for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
                 if isinstance(target, ast.Name)}

    def names(node):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                yield from [key.value] if isinstance(key, ast.Constant) else names(value)
        elif isinstance(node, ast.BinOp):
            yield from names(node.left)
            yield from names(node.right)
        elif isinstance(node, ast.DictComp):
            yield from names(node.generators[0].iter)
        elif isinstance(node, ast.Name) and node.id in constants:
            yield from names(constants[node.id])
        elif isinstance(node, ast.Name) and node.id == "optional":
            yield from ("alert_id", *names(constants["OUTCOME_LIMITS"]), "note")
        elif isinstance(node, (ast.Tuple, ast.List)):
            yield from (element.value for element in node.elts)

    shapes = {}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for node in ast.walk(function):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Attribute) and target.attr == "columns" and isinstance(node, (ast.Assign, ast.AugAssign)):
                shapes.setdefault(function.name, set()).update(names(node.value))
    source = set(names(constants["SOURCE"]))
    aliases = set(re.findall(r'alias\("(\w+)"\)', given["python"]["windows.py"].split("return news.select(")[1]))
    plain = set(re.findall(r'(?<=[\s(])"(\w+)"(?=[,)])', given["python"]["windows.py"].split("return news.select(")[1]))
    aggregated = {name for name in plain if name not in ("kind", "id", "start", "end", "sensor", "int", "timestamp")}
    letters = given["python"]["pipeline.py"].split("def letters(")[1].split("\n\n\n")[0]
    letter = set(re.findall(r'alias\("(\w+)"\)', letters)) | {"reason", "detail", "device_id", "generation", "sequence", "raw_length",
                                                              "content_type", "received_at"} | source
    reading = shapes["reading"] | source | {"date"}
    return {
        "telemetry": reading, "late_readings": reading | {"received_at"}, "machine_events": shapes["machine_event"] | source | {"date", "received_at"},
        "outcomes": shapes["outcome"] | source | {"date", "received_at"}, "waveforms": shapes["waveform"] | source | {"date", "received_at"},
        "dead_letters": letter, "anomalies": (aliases | aggregated) - {"start", "end"},
    }


def check(given):
    jobs = jobs_of(given)
    check_variables(given)
    check_files(given)
    check_jobs(given, jobs)
    check_settings(given)
    check_columns(given)
    return jobs


def job(given, file):
    return next(iter(given["resources"][file]["resources"]["jobs"].values()))


def replace(given, name, old, new):
    if old not in given["python"][name]:
        raise Wrong(f"{name} has no {old!r}: the change changes nothing")
    given["python"][name] = given["python"][name].replace(old, new, 1)


STREAM, DRAIN = "lake_pipeline.job.yml", "lake_drain.job.yml"
# Each breaks something, and the word has to be in what is said of it.
MUTATIONS = {
    "tusks": lambda given: job(given, STREAM).update(tusks=[]),
    "int()": lambda given: job(given, STREAM).update(max_concurrent_runs="many"),
    "may run twice": lambda given: job(given, DRAIN).update(max_concurrent_runs=2),
    "is not declared": lambda given: given["bundle"]["variables"].pop("brokers"),
    "is not used": lambda given: given["bundle"]["variables"].update(spare={"description": "x", "default": "x"}),
    "has no description": lambda given: given["bundle"]["variables"]["lake"].pop("description"),
    "which is not declared": lambda given: given["bundle"]["targets"]["dev"]["variables"].update(nodes="1"),
    "nothing that the bundle knows": lambda given: job(given, STREAM).update(name="${workspace.user}"),
    "something else than": lambda given: job(given, STREAM)["tasks"][0]["python_wheel_task"].update(entry_point="main"),
    "a cluster or an environment": lambda given: job(given, STREAM)["tasks"][0].update(job_cluster_key="other"),
    "which it has not": lambda given: job(given, STREAM)["tasks"][0]["python_wheel_task"]["parameters"].append("--speed=9"),
    "no --checkpoint": lambda given: job(given, DRAIN)["tasks"][0]["python_wheel_task"]["parameters"].remove("--checkpoint=${var.checkpoint}"),
    "no command": lambda given: job(given, DRAIN)["tasks"][0]["python_wheel_task"]["parameters"].__setitem__(0, "go"),
    "refers to": lambda given: job(given, DRAIN).update(parameters=[]),
    "sync.paths": lambda given: given["bundle"]["sync"]["paths"].append("../nowhere"),
    "a secret stands": lambda given: job(given, STREAM).update(description="SharedAccessKey=abc"),
    "decode.py": lambda given: given["python"].update({"decode.py": "def ("}),
    "is too long": lambda given: replace(given, "rules.py", "import math", "import math  # " + "x" * 150),
    "default of counting.allowed-lateness": lambda given: given.update(defaults=given["defaults"].replace('allowed-lateness = "1m"', 'allowed-lateness = "2m"')),
    "default rules": lambda given: given.update(defaults=given["defaults"].replace('threshold = "count > 5"', 'threshold = "count > 6"')),
    "telemetry": lambda given: replace(given, "decode.py", '"value": "d_value",', ""),
    "outcomes": lambda given: replace(given, "decode.py", '"verdict": "s_verdict", ', ""),
    "machine_events": lambda given: given.update(contract=given["contract"].replace('{"name": "operator"', '{"name": "person"')),
    "anomalies": lambda given: replace(given, "windows.py", '"max_value", "min_value", "mean_value", "rate_of_change", F.col', '"max_value", F.col'),
    "has version": lambda given: given.update(contract=given["contract"].replace('"version": "1.', '"version": "2.', 1)),
    "has to be given": lambda given: given.update(readme=given["readme"].replace("--var lake=", "--var lage=")),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace")
    parser.add_argument("--mutations", action="store_true")
    arguments = parser.parse_args()
    given = load(arguments.workspace)
    jobs = check(given)
    print(f"{len(jobs)} jobs: {', '.join(sorted(jobs))}")
    if not arguments.mutations:
        return
    for word, change in MUTATIONS.items():
        changed = copy.deepcopy(given)
        change(changed)
        try:
            check(changed)
        except Exception as error:  # noqa: BLE001: a refusal of the job's own modules counts too
            if word not in str(error):
                raise SystemExit(f"{word!r} was to be noticed, but: {error}") from error
            continue
        raise SystemExit(f"{word!r} was not noticed")
    print(f"{len(MUTATIONS)} changes are noticed")


main()
