"""What Kubernetes and JobSet publish about the fields of launch/kubernetes.yaml and jobset.yaml.

    python tests/published.py CRD    # in an environment with kubernetes-validate, of 110 MB
    python tests/published.py        # prints what is wrong with the two files

CRD is config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset. The first
writes golden/launch/fields.json: for each place of our files the fields that may stand there, with
type and permitted values, and those that must; of Kubernetes 1.37 and JobSet's main of August 2026.
"""

import json
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FILES = ("kubernetes.yaml", "jobset.yaml")
FIELDS = ROOT / "tests" / "golden" / "launch" / "fields.json"
TYPES = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list}


def documents() -> list[dict]:
    """Returns the objects of our files."""
    texts = [(ROOT / "launch" / name).read_text() for name in FILES]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def problems(value, place: str, fields: dict) -> list[str]:
    """Returns what is wrong with a value, by what is published about its place."""
    if isinstance(value, list):
        return [text for item in value for text in problems(item, f"{place}[]", fields)]
    if not isinstance(value, dict) or place not in fields:
        return []
    known, found = fields[place], []
    found += [f"{place}: {name} is missing" for name in known["required"] if name not in value]
    for name, item in value.items():
        if name not in known["fields"]:
            found.append(f"{place}: there is no {name}")
            continue
        types, values = known["fields"][name]
        if types and type(item) not in map(TYPES.get, types):
            found.append(f"{place}.{name}: {item!r} is none of {types}")
        if values and item not in values:
            found.append(f"{place}.{name}: {item!r} is none of {values}")
        found += problems(item, f"{place}.{name}", fields)
    return found


def of_schema(value, schema: dict, place: str, resolve) -> dict:
    """Returns what a JSON schema says about the places of a value."""
    schema = resolve(schema)
    if isinstance(value, list):
        parts = [of_schema(item, schema["items"], f"{place}[]", resolve) for item in value]
        return {key: entry for part in parts for key, entry in part.items()}
    if not isinstance(value, dict) or not schema.get("properties"):
        return {}
    properties = {name: resolve(entry) for name, entry in schema["properties"].items()}
    fields = {}
    for name, entry in properties.items():
        types = entry.get("type") or ["integer", "string"] * ("x-kubernetes-int-or-string" in entry)
        types = [types] if isinstance(types, str) else [t for t in types if t != "null"]
        fields[name] = [types, entry.get("enum", [])]
    found = {place: {"fields": fields, "required": schema.get("required", [])}}
    for name in value.keys() & properties.keys():
        found |= of_schema(value[name], properties[name], f"{place}.{name}", resolve)
    return found


def write(crd: str) -> None:
    """Writes golden/launch/fields.json."""
    import kubernetes_validate

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    folder /= "v1.37.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]

    def resolve(schema):
        while "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        return schema

    published = {
        kind: json.loads((folder / name).read_text())
        for kind, name in (("Service", "service-v1.json"), ("Job", "job-batch-v1.json"))
    }
    versions = yaml.safe_load(Path(crd).read_text())["spec"]["versions"]
    published["JobSet"] = next(v for v in versions if v["name"] == "v1alpha2")["schema"][
        "openAPIV3Schema"
    ]
    found = {}
    for document in documents():
        kind = document["kind"]
        found |= of_schema(document, published[kind], kind, resolve)
    lines = [f"{json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found)]
    FIELDS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def check() -> list[str]:
    """Returns what is wrong with our files."""
    fields = json.loads(FIELDS.read_text())
    return [text for d in documents() for text in problems(d, d["kind"], fields)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(sys.argv[1])
    for text in check():
        print(text)
