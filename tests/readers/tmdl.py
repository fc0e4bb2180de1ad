"""Reads TMDL, the text form of a Power BI model: objects by indentation, as its documentation describes the language
(learn.microsoft.com, "Tabular Model Definition Language"), as far as the project here uses it.
"""

import dataclasses
import re

from synapse import Fault, ensure

KINDS = {"database", "model", "table", "column", "measure", "partition", "expression", "relationship", "annotation", "ref"}
NAME = r"'(?:[^']|'')*'|[\w-]+"


@dataclasses.dataclass
class Object:
    kind: str
    name: str
    expression: str | None
    description: str
    properties: dict = dataclasses.field(default_factory=dict)
    children: list = dataclasses.field(default_factory=list)

    def of(self, kind):
        return {child.name: child for child in self.children if child.kind == kind}


def unquoted(name):
    return name[1:-1].replace("''", "'") if name.startswith("'") else name


def depth_of(line):
    return len(line) - len(line.lstrip("\t"))


def block(lines, at, depth):
    """Lines of an expression: all that are deeper, and where the next one is."""
    end = at
    while end < len(lines) and (not lines[end].strip() or depth_of(lines[end]) > depth):
        end += 1
    return "\n".join(lines[at:end]).strip("\n"), end


def parse(path):
    """Objects of a file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    roots, stack, about, at = [], [], [], 0
    while at < len(lines):
        line, place = lines[at], f"{path.name}:{at + 1}"
        at += 1
        if not line.strip():
            continue
        ensure(not line.lstrip("\t").startswith(" "), f"{place}: indented by spaces")
        depth, text = depth_of(line), line.strip()
        if text.startswith("///"):
            about.append(text[3:].strip())
            continue
        ensure(depth <= len(stack), f"{place}: indented too far")
        del stack[depth:]
        header = re.fullmatch(rf"({'|'.join(KINDS)})(?: (table )?({NAME}))?(?:\s*=\s*(.*))?", text)
        if header and not re.match(r"\w+:", text):
            kind, _, name, value = header.groups()
            if value == "":
                # One level deeper than the properties of the object.
                value, at = block(lines, at, depth + 1)
                ensure(value, f"{place}: no expression")
            made = Object(kind, unquoted(name or ""), value, " ".join(about))
            (stack[-1].children if stack else roots).append(made)
            stack.append(made)
        else:
            ensure(stack and depth == len(stack), f"{place}: a property of nothing: {text}")
            name, colon, value = text.partition(":")
            if not colon and "=" in text:
                name, _, value = text.partition("=")
                if not value.strip():
                    value, at = block(lines, at, depth)
            name = name.strip()
            ensure(re.fullmatch(r"\w+", name), f"{place}: no property: {text}")
            ensure(name not in stack[-1].properties, f"{place}: {name} is there twice")
            stack[-1].properties[name] = value.strip("\n") if "\n" in value else value.strip() or True
        about = []
    return roots


def read_model(folder):
    """Tables, expressions, relationships and references of a model's definition."""
    roots = [root for path in sorted(folder.rglob("*.tmdl")) for root in parse(path)]
    model = [root for root in roots if root.kind == "model"]
    ensure(len(model) == 1, f"{len(model)} models")
    found = {kind: {} for kind in ("table", "expression", "relationship")}
    for root in roots:
        if root.kind in found:
            if root.name in found[root.kind]:
                raise Fault(f"{root.kind} {root.name} is there twice")
            found[root.kind][root.name] = root
    referred = [root.name for root in roots if root.kind == "ref"]
    ensure(sorted(referred) == sorted(found["table"]), f"the model refers to {sorted(set(referred) ^ set(found['table']))}")
    return found
