"""A folder for timm: weights under PyTorch's names, and what timm has to know of them.

`timm.create_model("local-dir:FOLDER", pretrained=True)` opens it, to evaluate or to fine-tune.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from jaxcls import convert, models
from jaxcls.data import ops
from jaxcls.export.program import Program
from jaxcls.network import Network, Variables

# what timm's transforms call ours; evaluation takes "bilinear" for "random"
INTERPOLATION = {"area": "box", "random": "bilinear"}
RUN = """\
import json

import timm
import torch

model = timm.create_model("local-dir:timm", pretrained=True).eval()
with torch.inference_mode():
    logits = model(torch.from_numpy(images))
with open("network.json") as file:
    network = json.load(file)
scaled = logits / network["temperature"]
probabilities = scaled.sigmoid() if network["multi_label"] else scaled.softmax(-1)
"""
NOTE = """\
Here `images` are float32 [B, C, H, W], normalised. Of photographs
`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes them; it resizes
with Pillow, which is smoother than OpenCV where images become smaller.
"""


def check(network: Network) -> None:
    """Refuses a network that timm has not.

    Raises:
      ValueError: why, and which ones it has.
    """
    try:
        _model(network)
    except ValueError as e:
        there = set()
        for name in models.names():
            try:
                convert.timm_model(name)
            except ValueError:
                continue
            there.add(models.family_of(name))
        families = ", ".join(sorted(there))
        raise ValueError(
            f"--format=timm: {e} (as published, timm has those of the families {families}: "
            "python -m jaxcls.models)"
        ) from e


def folder(program: Program, path: Path, pixels: np.ndarray) -> None:
    """Writes model.safetensors and config.json; BatchNorms stay, so that it can be fine-tuned."""
    network, variables = program.loaded
    architecture, arguments = _model(network)
    arrays = convert.to_torch(
        network.name, variables, num_classes=network.num_classes, **network.options
    )
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    path.mkdir()
    (path / "model.safetensors").write_bytes(save(arrays, metadata={"format": "pt"}))
    told = described(network, variables)
    told |= {"architecture": architecture, "model_args": arguments}
    (path / "config.json").write_text(json.dumps(told, indent=1) + "\n")


def _model(network: Network) -> tuple[str, dict[str, Any]]:
    name, classes = network.name, network.num_classes
    architecture, arguments = convert.timm_model(name, num_classes=classes, **network.options)
    channels = network.image.channels
    return architecture, arguments | ({} if channels == 3 else {"in_chans": channels})


def described(network: Network, variables: Variables) -> dict[str, Any]:
    """Returns what config.json says beside the architecture."""
    image, classes = network.image, network.num_classes
    kernels = {path[:-1] for path, x in flatten_dict(variables["params"]).items() if x.ndim == 4}
    first = min(kernels, key=lambda path: (path[0] != "stem", path))  # VGG has no stem
    theirs = convert.torch_names(
        network.name, [first, ("head", "fc")], num_classes=classes, **network.options
    )
    told: dict[str, Any] = {"num_classes": classes}
    if len(network.class_names) == classes:
        told["label_names"] = list(network.class_names)
    return told | {
        "pretrained_cfg": {
            "input_size": [image.channels, image.shown, image.shown],
            "fixed_input_size": False,
            "interpolation": INTERPOLATION.get(image.interpolation, image.interpolation),
            "crop_pct": crop_share(image),
            "crop_mode": "center",
            "mean": list(image.mean),
            "std": list(image.std),
            "num_classes": classes,
            "first_conv": theirs[0],
            "classifier": theirs[1],
        }
    }


def crop_share(image: ops.Image) -> float:
    """Returns which part of the resized short side is shown, as timm rounds it."""
    resize = image.eval_resize or image.shown
    share = image.shown / resize
    return share if math.floor(image.shown / share) == resize else image.shown / (resize + 0.5)
