"""A converted checkpoint: what `config.init.checkpoint` takes."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxcls import convert, weights
from jaxcls.data import ops
from jaxcls.network import Network

CONVERT = {"paddle": convert.from_paddle, "torch": convert.from_torch}


def write(
    folder: str | os.PathLike,
    name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    style: str,
    num_classes: int,
    image: Mapping[str, Any],
    head: bool,
    options: Mapping[str, Any],
    source: Mapping[str, Any],
) -> str:
    """Converts tensors into a new folder; returns what is in it, as a line.

    Args:
      name: of our model.
      arrays: their tensors.
      style: who named them, one of `CONVERT`.
      num_classes: in the file.
      image: `ops.Image` of the weights; of other channels than 3 its mean and std do not count.
      head: whether the file has the classifier, and it is wanted.
      options: of `models.build`.
      source: what is kept of where they are from.

    Raises:
      ValueError: these are not the weights of that network, or the folder exists.
    """
    variables = CONVERT[style](name, arrays, num_classes=num_classes, head=head, **options)
    channels = options.get("in_channels", 3)
    if channels != 3:
        image = {**image, "mean": (0.5,) * channels, "std": (0.5,) * channels}
    network = Network(
        name=name,
        options={key: value for key, value in options.items() if key != "in_channels"},
        num_classes=num_classes if head else 0,
        class_names=(),
        image=ops.Image(**image),
        precision="float32",
    )
    meta = {"network": network.described(), "source": {**source, "style": style}}
    weights.export(folder, variables, meta)
    sizes = [np.size(x) for x in jax.tree.leaves(variables["params"])]
    return f"{folder}: {name}, {len(sizes)} tensors, {sum(sizes):,} parameters"
