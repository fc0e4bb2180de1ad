"""Reads the manifests of the cloud side for the tests, with the readers of those who take them: schemas of Kubernetes, KEDA and the
Prometheus operator, the model of Compose, the grammar of Bicep.

    cloud.py yaml FILE…         the documents of each YAML file; a key given twice is an error
    cloud.py kubernetes FILE…   what is wrong with the objects in each, as texts
    cloud.py compose FILE…      the same for Compose files
    cloud.py bicep FOLDER…      the same for the Bicep files below each folder
    cloud.py bicep-facts FILE…  text of the parameters, variables, resources, modules and outputs of each Bicep file

Each prints a JSON list with one answer for each argument.
"""

import json
import pathlib
import re
import sys

import yaml

KUBERNETES_VERSION = "1.37.0"
# Kinds of operators, and the package with their models.
OPERATOR_KINDS = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
# Has no schema in any package: what of it is read here is looked at by hand.
KINDS_BY_HAND = {("secrets-store.csi.x-k8s.io/v1", "SecretProviderClass")}
SECRET_CLASS_KEYS = {"provider", "parameters", "secretObjects"}


class Strict(yaml.SafeLoader):
    """A key that stands twice is an error, as it is for Kubernetes."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def documents(path):
    found = yaml.load_all(pathlib.Path(path).read_text(), Loader=Strict)
    return [document for document in found if document is not None]


# ---- Kubernetes ----


def name_of(document):
    return f"{document.get('kind')} {document.get('metadata', {}).get('name')}"


def unknown_keys(given, kept, path):
    """Keys that a model has left out, since it does not know them."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}.{key}"
            else:
                yield from unknown_keys(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list):
        for index, (one, other) in enumerate(zip(given, kept)):
            yield from unknown_keys(one, other, f"{path}[{index}]")


def operator_faults(document, module):
    import importlib

    model = getattr(importlib.import_module(module), document["kind"], None)
    if model is None:
        return [f"{name_of(document)}: no such kind in {document['apiVersion']}"]
    try:
        read = model.model_validate(document)
    except ValueError as error:
        return [f"{name_of(document)}: {error}"]
    kept = json.loads(read.model_dump_json(by_alias=True, exclude_unset=True))
    return [f"{name_of(document)}: {key} is not known" for key in unknown_keys(document, kept, "")]


def secret_class_faults(document):
    spec = document.get("spec", {})
    faults = [f"{name_of(document)}: spec.{key} is not known" for key in spec.keys() - SECRET_CLASS_KEYS]
    objects = yaml.load(spec.get("parameters", {}).get("objects", ""), Loader=Strict) or {}
    named = set()
    for text in objects.get("array", []):
        found = yaml.load(text, Loader=Strict)
        if not {"objectName", "objectType"} <= found.keys() <= {"objectName", "objectType", "objectAlias"}:
            faults.append(f"{name_of(document)}: an object has the keys {sorted(found)}")
        named.add(found.get("objectAlias", found.get("objectName")))
    if not named:
        faults.append(f"{name_of(document)}: names no object")
    for secret in spec.get("secretObjects", []):
        for data in secret["data"]:
            if data["objectName"] not in named:
                faults.append(f"{name_of(document)}: {data['objectName']} is no object of it")
    return faults


def kubernetes_faults(path):
    import kubernetes_validate

    faults = []
    for document in documents(path):
        version, kind = document.get("apiVersion"), document.get("kind")
        if version in OPERATOR_KINDS:
            faults += operator_faults(document, OPERATOR_KINDS[version])
        elif (version, kind) in KINDS_BY_HAND:
            faults += secret_class_faults(document)
        else:
            try:
                kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                faults.append(f"{name_of(document)}: {'.'.join(map(str, error.path))}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError as error:
                faults.append(f"{name_of(document)}: {error}")
    return faults


# ---- Compose ----

# What somebody who starts it gives.
COMPOSE_VARIABLES = {"REGISTRY": "registry.example.com", "VERSION": "0.1.0"}


def compose_faults(path):
    import compose_spec

    documents(path)
    faults = []

    def value(found):
        if found[1] not in COMPOSE_VARIABLES:
            faults.append(f"the variable {found[1]} is given by nobody")
        return COMPOSE_VARIABLES.get(found[1], "")

    filled = re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", value, pathlib.Path(path).read_text())
    try:
        compose_spec.PyCompose.from_yaml(filled).validate()
    except ValueError as error:
        faults.append(str(error))
    return faults


# ---- Bicep ----

# Built-in roles: "Azure built-in roles" on Microsoft Learn.
ROLES = {
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": "Storage Table Data Contributor",
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": "Storage Blob Data Reader",
    "2b629674-e913-4c01-ae53-ef4638d8f975": "Azure Event Hubs Data Sender",
    "4633458b-17de-408a-b874-0445c86b69e6": "Key Vault Secrets User",
    "7f951dda-4ed3-4680-a7ca-43fe172d538d": "AcrPull",
    "a638d3c7-ab3a-418d-83e6-5f17a39d4fde": "Azure Event Hubs Data Receiver",
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": "Storage Blob Data Contributor",
}
# Of the language, as far as these files need them.
FUNCTIONS = set(
    "any concat empty environment guid json listKeys loadJsonContent loadTextContent replace resourceGroup resourceId"
    " subscription subscriptionResourceId union uniqueString".split()
)
DECORATORS = {"description", "minLength", "maxLength", "minValue", "maxValue", "allowed"}
GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RESOURCE_TYPE = re.compile(r"(Microsoft\.[A-Za-z]+/[A-Za-z/]+)@(\d{4}-\d\d-\d\d(?:-preview)?)")
DECLARATIONS = {
    "parameter_declaration": "parameters",
    "variable_declaration": "variables",
    "resource_declaration": "resources",
    "module_declaration": "modules",
    "output_declaration": "outputs",
}


def parser():
    import tree_sitter
    import tree_sitter_bicep

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bicep.language()))


def text(node):
    return node.text.decode()


def every(node):
    yield node
    for child in node.children:
        yield from every(child)


def plain_string(node):
    """The text of a string without interpolation."""
    return "".join(text(child) for child in node.named_children if child.type != "interpolation")


class Bicep:
    """One file."""

    def __init__(self, path):
        self.path = path
        self.root = parser().parse(path.read_bytes()).root_node
        self.declared = {kind: {} for kind in DECLARATIONS.values()}
        for node in every(self.root):
            if node.type in DECLARATIONS:
                self.declared[DECLARATIONS[node.type]][text(node.named_children[0])] = node

    def at(self, node, what):
        return f"{self.path}:{node.start_point[0] + 1}: {what}"

    def required_parameters(self):
        """Those without a default: no value behind their type."""
        nodes = self.declared["parameters"].items()
        return {name for name, node in nodes if not any(child.type == "=" for child in node.children)}

    def syntax_faults(self):
        for node in every(self.root):
            if node.type == "ERROR" or node.is_missing:
                yield self.at(node, f"is no Bicep: {text(node)[:40]!r}")

    def name_faults(self):
        names = set().union(*self.declared.values())
        for kind, nodes in self.declared.items():
            for name, node in nodes.items():
                if kind not in ("outputs", "resources", "modules") and not self.is_used(name, node):
                    yield self.at(node, f"{name} is not used")
        for node in every(self.root):
            if node.type != "identifier" or is_declaration_or_key(node):
                continue
            name = text(node)
            if node.parent.type == "call_expression" and node.parent.child_by_field_name("function") == node:
                known = FUNCTIONS | DECORATORS
                if name not in known and not is_method(node):
                    yield self.at(node, f"{name} is no function that these files use")
            elif name not in names and name not in loop_names(node):
                yield self.at(node, f"{name} is not declared")

    def is_used(self, name, declaration):
        first = declaration.named_children[0]
        return any(
            node.type == "identifier" and text(node) == name and node != first and not is_declaration_or_key(node)
            for node in every(self.root)
        )

    def role_faults(self):
        for node in every(self.root):
            if node.type == "string_content":
                for found in GUID.findall(text(node)):
                    if found not in ROLES:
                        yield self.at(node, f"{found} is no role of the list")

    def type_faults(self, versions):
        """One version of each resource type, so that two files do not speak of it in two ways."""
        for name, node in self.declared["resources"].items():
            written = plain_string(node.named_children[1])
            found = RESOURCE_TYPE.fullmatch(written)
            is_nested = any(parent.type == "resource_declaration" for parent in ancestors(node))
            if found is None:
                if not is_nested:
                    yield self.at(node, f"{name}: {written!r} is no type with a version")
            elif versions.setdefault(found[1], found[2]) != found[2]:
                yield self.at(node, f"{name}: {found[1]} has the version {versions[found[1]]} elsewhere")

    def module_faults(self):
        for name, node in self.declared["modules"].items():
            target = self.path.parent / plain_string(node.named_children[1])
            if not target.is_file():
                yield self.at(node, f"{name}: {target} is missing")
                continue
            module = Bicep(target)
            given = set(keys_of(property_of(body_of(node), "params")))
            for parameter in given - module.declared["parameters"].keys():
                yield self.at(node, f"{name} has no parameter {parameter}")
            for parameter in module.required_parameters() - given:
                yield self.at(node, f"{name} needs the parameter {parameter}")
            for output in self.outputs_used(name) - module.declared["outputs"].keys():
                yield self.at(node, f"{name} has no output {output}")

    def outputs_used(self, module):
        pattern = re.compile(rf"\b{module}!?\.outputs\.(\w+)")
        return set(pattern.findall(text(self.root)))

    def file_faults(self):
        for found in re.finditer(r"load(?:Text|Json)Content\('([^']+)'\)", text(self.root)):
            if not (self.path.parent / found[1]).is_file():
                yield f"{self.path}: {found[1]} is missing"

    def secret_faults(self):
        """Outputs and parameters are kept in the history of deployments."""
        for name, node in self.declared["outputs"].items():
            if re.search(r"listKeys|listSecrets|ConnectionString|primaryKey", text(node)):
                yield self.at(node, f"the output {name} tells a secret")
        for name, node in self.declared["parameters"].items():
            if re.search(r"(?i)password|connectionstring|accesskey|token$", name):
                yield self.at(node, f"the parameter {name} takes a secret")


def ancestors(node):
    while node.parent is not None:
        node = node.parent
        yield node


def is_declaration_or_key(node):
    parent = node.parent
    if parent.type in DECLARATIONS or parent.type in ("loop_variable", "loop_enumerator", "decorator"):
        return parent.named_children[0] == node
    return parent.type == "object_property" and parent.named_children[0] == node


def is_method(node):
    return node.parent.child_by_field_name("object") is not None


def loop_names(node):
    """Names that a loop around the node gives."""
    names = set()
    for outer in ancestors(node):
        if outer.type == "for_statement":
            for child in every(outer.named_children[0]):
                if child.type == "identifier" or not child.named_children:
                    names.add(text(child))
    return names


def body_of(declaration):
    """The object of a declaration, also behind a condition or a loop."""
    for node in every(declaration):
        if node.type == "object":
            return node
    return None


def property_of(body, name):
    for node in body.named_children if body else []:
        if node.type == "object_property" and text(node.named_children[0]) == name:
            return node.named_children[1]
    return None


def keys_of(body):
    return [text(node.named_children[0]) for node in body.named_children if node.type == "object_property"] if body else []


def parameter_file_faults(path):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("//")]
    using = re.fullmatch(r"using '([^']+)'", lines[0])
    if using is None or not (path.parent / using[1]).is_file():
        return [f"{path}: the first line names no file that is there"]
    template = Bicep(path.parent / using[1])
    faults, given = [], set()
    for line in lines[1:]:
        found = re.fullmatch(r"param (\w+) = (?:'[^']*'|true|false|-?\d+|\[\])", line)
        if found is None:
            faults.append(f"{path}: {line!r} gives no parameter")
        elif found[1] not in template.declared["parameters"]:
            faults.append(f"{path}: {found[1]} is no parameter of {using[1]}")
        else:
            given.add(found[1])
    missing = template.required_parameters() - given
    return faults + [f"{path}: {name} is not given" for name in sorted(missing)]


def bicep_faults(folder):
    faults, versions = [], {}
    for path in sorted(pathlib.Path(folder).rglob("*.bicep")):
        file = Bicep(path)
        faults += [*file.syntax_faults()]
        faults += [*file.name_faults(), *file.role_faults(), *file.type_faults(versions)]
        faults += [*file.module_faults(), *file.file_faults(), *file.secret_faults()]
    for path in sorted(pathlib.Path(folder).rglob("*.bicepparam")):
        faults += parameter_file_faults(path)
    return faults


def bicep_facts(path):
    file = Bicep(pathlib.Path(path))
    return {
        kind: {name: text(node) for name, node in nodes.items()} for kind, nodes in file.declared.items()
    }


COMMANDS = {
    "yaml": documents,
    "kubernetes": kubernetes_faults,
    "compose": compose_faults,
    "bicep": bicep_faults,
    "bicep-facts": bicep_facts,
}

if __name__ == "__main__":
    print(json.dumps([COMMANDS[sys.argv[1]](path) for path in sys.argv[2:]]))
