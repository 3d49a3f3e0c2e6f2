"""The page of an OpenAPI document: plain HTML without scripts, so it needs no other host."""

import json
from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("pelagos.jobs.serving", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page_of(document: dict[str, Any]) -> str:
    """Return the page."""
    shown = _TEMPLATES.get_template("interface.html.j2")
    schemas = document.get("components", {}).get("schemas", {})
    operations = [
        {"path": path, "method": method.upper(), **operation}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return shown.render(
        info=document["info"], operations=operations, schemas=schemas, type_of=_type
    )


def _type(schema: dict[str, Any]) -> str:
    """Return a schema in words.

    >>> _type({"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]})
    'number or list of number'
    """
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any" if not schema else json.dumps(schema)))
