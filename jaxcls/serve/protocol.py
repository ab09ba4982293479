"""The Open Inference Protocol, version 2, that KServe and Triton speak: tensors in JSON or binary.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and, for binary tensors, Triton's extension: the JSON header's length stands in the HTTP header
`Inference-Header-Content-Length`, the tensors follow it.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

HEADER = "inference-header-content-length"
IMAGES, ENCODED, PROBABILITIES = "images", "encoded", "probabilities"
EXTENSIONS = ["binary_tensor_data"]
LENGTH = 4  # bytes before each entry of a binary BYTES tensor
LARGEST = 2**31 - 1  # size of a dimension
LONGEST = 256  # characters of an id


class Asked(NamedTuple):
    """A request for inference."""

    id: str
    pixels: np.ndarray | None  # uint8 [B, H, W, C]
    encoded: list[bytes | str] | None  # files of images, a text is base64
    outputs: Mapping[str, bool]  # name of an output -> whether it is to be binary


def metadata(name: str, shape: Sequence[int], classes: int) -> dict[str, Any]:
    """Returns what a model takes and gives: `images` or `encoded`, and `probabilities`."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": "jaxcls",
        "inputs": [
            {"name": IMAGES, "datatype": "UINT8", "shape": [-1, *shape]},
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes]}],
    }


def parse(body: bytes, header: str | None, shape: Sequence[int], most: int) -> Asked:
    """Returns what is asked for.

    Args:
      body: of the request.
      header: the value of `HEADER`, if there is one.
      shape: [H, W, C] that the network takes.
      most: images.

    Raises:
      ValueError: it is no such request; the message says why.
    """
    length = len(body)
    if header is not None:
        length = int(header) if re.fullmatch(r"[0-9]{1,12}", header) else -1
        if not 0 <= length <= len(body):
            raise ValueError(f"{HEADER}: {header[:40]!r} is no length of this body")
    told = read_json(body[:length])
    inputs = told.get("inputs") if isinstance(told, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ValueError(f'"inputs": give one, {IMAGES!r} or {ENCODED!r}')
    [given] = inputs
    rest = body[length:]
    size = _parameters(given).get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(rest)):
        raise ValueError(f'"binary_data_size": {size!r}, but {len(rest)} bytes follow the header')
    if size is None and rest:
        raise ValueError(f"{len(rest)} bytes follow the header, and no input has them")
    name, kind = given.get("name"), given.get("datatype")
    sizes = given.get("shape")
    whole = isinstance(sizes, list) and 0 < len(sizes) <= 4
    if not whole or not all(type(n) is int and 0 <= n <= LARGEST for n in sizes):
        raise ValueError('"shape": write whole numbers')
    if math.prod(sizes[:1]) > most:
        raise ValueError(f"{sizes[0]} images, more than {most}")
    binary = rest if size is not None else None
    if (name, kind) == (IMAGES, "UINT8"):
        found = _pixels(given.get("data"), binary, sizes, shape), None
    elif (name, kind) == (ENCODED, "BYTES"):
        found = None, _encoded(given.get("data"), binary, sizes)
    else:
        raise ValueError(f"no input {name!r} of {kind!r}: {IMAGES!r} is UINT8, {ENCODED!r} BYTES")
    given_id = told.get("id", "")
    if not isinstance(given_id, str) or len(given_id) > LONGEST:
        raise ValueError(f'"id": write a text of at most {LONGEST} characters')
    return Asked(given_id, *found, _outputs(told))


def read_json(body: bytes) -> Any:
    """Returns what a text in JSON says.

    Raises:
      ValueError: it is none.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        raise ValueError("the body is no JSON") from e


def _parameters(told: Mapping[str, Any]) -> Mapping[str, Any]:
    found = told.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise ValueError('"parameters": write an object')
    return found or {}


def _pixels(data: Any, binary: bytes | None, sizes: list[int], shape: Sequence[int]) -> np.ndarray:
    if len(sizes) != 4 or sizes[1:] != list(shape) or not sizes[0]:
        raise ValueError(f'"shape": {sizes}, but {IMAGES!r} are [B, {", ".join(map(str, shape))}]')
    if binary is not None:
        pixels = np.frombuffer(binary, np.uint8)
    else:
        if not isinstance(data, list):
            raise ValueError('"data": write whole numbers from 0 to 255')
        try:  # of objects: texts or large numbers would take the memory of the longest each
            pixels = np.array(data, object).reshape(-1)
        except ValueError as e:
            raise ValueError('"data": rows of different lengths') from e
        kinds = set(map(type, pixels))
        if list in kinds:
            raise ValueError('"data": rows of different lengths')
        if kinds != {int} or not 0 <= min(pixels) <= max(pixels) <= 255:
            raise ValueError('"data": write whole numbers from 0 to 255')
        pixels = pixels.astype(np.uint8)
    if pixels.size != math.prod(sizes):
        raise ValueError(f"{pixels.size} numbers, but the shape {sizes} has {math.prod(sizes)}")
    return pixels.reshape(sizes)


def _encoded(data: Any, binary: bytes | None, sizes: list[int]) -> list[bytes | str]:
    count, found = math.prod(sizes), []
    if binary is not None:
        at = 0
        while at < len(binary) and len(found) <= count:
            size = int.from_bytes(binary[at : at + LENGTH], "little")
            if at + LENGTH + size > len(binary):
                raise ValueError(f"{ENCODED!r}: an entry of {size} bytes is cut off")
            found.append(binary[at + LENGTH : at + LENGTH + size])
            at += LENGTH + size
    elif isinstance(data, list) and all(isinstance(x, str) for x in data):
        found = data
    else:
        raise ValueError('"data": write a list of texts, files of images in base64')
    if len(found) != count or not found:
        raise ValueError(f"{len(found)} images, but the shape is {sizes}")
    return found


def decode_base64(text: str) -> bytes:
    """Returns the bytes of a text, which may be a data URL.

    Raises:
      ValueError: it is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # programs write lines
    except (binascii.Error, ValueError) as e:
        raise ValueError("an image that is no base64") from e


def _outputs(told: Mapping[str, Any]) -> dict[str, bool]:
    every = bool(_parameters(told).get("binary_data_output", False))
    asked = told.get("outputs") or [{"name": PROBABILITIES}]
    output = asked[0] if isinstance(asked, list) and len(asked) == 1 else None
    name = output.get("name") if isinstance(output, dict) else None
    if name != PROBABILITIES:
        raise ValueError(f'"outputs": no output {name!r}: there is one, {PROBABILITIES!r}')
    return {name: bool(_parameters(output).get("binary_data", every))}


def answer(name: str, asked: Asked, probabilities: np.ndarray) -> tuple[bytes, dict[str, str], str]:
    """Returns body, headers and content type of a response."""
    rows = np.ascontiguousarray(probabilities, "<f4")
    output = {"name": PROBABILITIES, "datatype": "FP32", "shape": list(rows.shape)}
    binary = b""
    if asked.outputs[PROBABILITIES]:
        binary = rows.tobytes()
        output["parameters"] = {"binary_data_size": len(binary)}
    else:
        output["data"] = rows.ravel().tolist()
    told = {"model_name": name, "model_version": "1", "outputs": [output]}
    header = json.dumps(told | ({"id": asked.id} if asked.id else {})).encode()
    if not binary:
        return header, {}, "application/json"
    return header + binary, {HEADER: str(len(header))}, "application/octet-stream"
