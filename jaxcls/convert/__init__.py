"""Weights of other code bases."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcls import models
from jaxcls.config import choose
from jaxcls.convert import (
    alexnet,
    darknet,
    densenet,
    dpn,
    efficientnet,
    engine,
    googlenet,
    hrnet,
    inception_v4,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    res2net,
    resnet,
    shufflenet_v2,
    squeezenet,
    vgg,
    xception,
)

RULES = {
    "resnet": resnet,
    "res2net": res2net,
    "hrnet": hrnet,
    "darknet": darknet,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3": mobilenet_v3,
    "googlenet": googlenet,
    "inception_v4": inception_v4,
    "xception": xception,
    "dpn": dpn,
    "densenet": densenet,
    "shufflenet_v2": shufflenet_v2,
    "efficientnet": efficientnet,
    "squeezenet": squeezenet,
    "alexnet": alexnet,
    "vgg": vgg,
}


def from_paddle(name: str, arrays: Mapping[str, np.ndarray], **build_overrides) -> dict[str, Any]:
    """Returns {"params": ..., "batch_stats": ...} from PaddleClas's tensors of the model `name`.

    Args:
      name: one of `jaxcls.models.names()`.
      arrays: PaddleClas's state dict; convolutions OIHW, linear weights [in, out].
      **build_overrides: arguments of `jaxcls.models.build`, such as `num_classes`.

    Raises:
      ValueError: lists every tensor that is missing, unmatched or of another shape.
    """
    rules = RULES[models.family_of(choose("model", name, models.MODELS))]
    return engine.convert(
        name,
        arrays,
        rules.paddle,
        engine.PADDLE_LEAVES,
        engine.from_paddle_layout,
        **build_overrides,
    )
