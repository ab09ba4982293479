"""What the routes take and answer, for programs: OpenAPI 3.1."""

from collections.abc import Mapping, Sequence
from typing import Any

import jaxcls

BINARY = {"schema": {"type": "string", "format": "binary"}}
BASE64 = {"type": "string", "contentEncoding": "base64"}
OBJECT = {"application/json": {"schema": {"type": "object"}}}
NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
REASONS = {
    "400": "it cannot be read: no image, several in one, no such tensor",
    "404": "there is no such model",
    "408": "the body is not sent in time",
    "413": "too large, or too many images",
    "415": "the body is packed",
    "500": "the network failed",
    "503": "too many requests, or no answer in time: try again",
}
REFUSED = {
    status: {
        "description": reason,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}}},
    }
    for status, reason in REASONS.items()
}


def _post(
    summary: str,
    takes: Mapping[str, Any],
    gives: Mapping[str, Any],
    parameters: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    answers = {"200": {"description": "the answer", "content": gives}} | REFUSED
    body = {"required": True, "content": takes}
    told = {"summary": summary, "requestBody": body, "responses": answers}
    return {"post": told | ({"parameters": [*parameters]} if parameters else {})}


def _get(summary: str, kind: str = "application/json", named: bool = False) -> dict[str, Any]:
    schema = {"type": "object" if kind == "application/json" else "string"}
    told = {"description": summary, "content": {kind: {"schema": schema}}}
    answers = {"200": told} | ({"404": REFUSED["404"]} if named else {})
    return {
        "get": {"summary": summary, "responses": answers}
        | ({"parameters": [NAME]} if named else {})
    }


def _query(name: str, kind: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "required": False, "schema": kind}


MODEL = _query("model", {"type": "string"}, "the first one without it")
TOP = _query("top", {"type": "integer", "minimum": 1, "default": 5}, "classes, at most")
TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"enum": ["images", "encoded"]},
        "datatype": {"enum": ["UINT8", "BYTES"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array"},
        "parameters": {
            "type": "object",
            "properties": {"binary_data_size": {"type": "integer"}},
        },
    },
}
SCHEMAS = {
    "Refused": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
    "Answers": {
        "type": "object",
        "required": ["model", "predictions"],
        "properties": {
            "model": {"type": "string"},
            "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Answer"}},
        },
    },
    "Answer": {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {"type": "string"},
            "classes": {"type": "array", "items": {"type": "string"}},
            "probabilities": {"type": "array", "items": {"type": "number"}},
            "decision": {
                "description": "the class, null for none of them; of several classes a list",
                "type": ["string", "null", "array"],
                "items": {"type": "string"},
            },
            "error": {"type": "string"},
        },
    },
}
ENCODED = {
    "type": "object",
    "properties": {"image": BASE64, "images": {"type": "array", "items": BASE64}},
}
FORM = {"schema": {"type": "object", "properties": {"image": BINARY["schema"]}}}
INFER = _post(
    "Open Inference Protocol, version 2",
    {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "inputs": {"type": "array", "items": TENSOR, "minItems": 1, "maxItems": 1},
                },
            }
        },
        "application/octet-stream": BINARY,
    },
    OBJECT | {"application/octet-stream": BINARY},
    [NAME],
)
OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "jaxcls", "version": jaxcls.__version__},
    "components": {"schemas": SCHEMAS},
    "paths": {
        "/": _get("A page to drop an image on", "text/html"),
        "/predict": _post(
            "What images show",
            {
                "image/*": BINARY,
                "application/octet-stream": BINARY,
                "multipart/form-data": FORM,
                "application/json": {"schema": ENCODED},
            },
            {"application/json": {"schema": {"$ref": "#/components/schemas/Answers"}}},
            [MODEL, TOP],
        ),
        "/explain": _post(
            "Where the network looked", {"image/*": BINARY}, {"image/jpeg": BINARY}, [MODEL]
        ),
        "/health": _get("Whether it lives"),
        "/ready": _get("Whether it answers"),
        "/models": _get("What is served"),
        "/metrics": _get("Figures for Prometheus", "text/plain"),
        "/openapi.json": _get("This"),
        "/v2": _get("Name and version of the server"),
        "/v2/health/live": _get("Whether it lives"),
        "/v2/health/ready": _get("Whether it answers"),
        "/v2/models/{model}": _get("What a model takes and gives", named=True),
        "/v2/models/{model}/ready": _get("Whether a model answers", named=True),
        "/v2/models/{model}/infer": INFER,
        "/v2/models/{model}/versions/1": _get("What a model takes and gives", named=True),
        "/v2/models/{model}/versions/1/ready": _get("Whether a model answers", named=True),
        "/v2/models/{model}/versions/1/infer": INFER,
    },
}
