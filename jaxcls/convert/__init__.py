"""Weights of other code bases."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jaxcls import models
from jaxcls.config import choose
from jaxcls.convert import engine


def from_paddle(
    name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    head: bool = True,
    in_channels: int = 3,
    **build_overrides,
) -> dict[str, Any]:
    """Returns {"params": ..., "batch_stats": ...} from PaddleClas's tensors of the model `name`.

    Args:
      name: one of `jaxcls.models.names()`.
      arrays: PaddleClas's state dict; convolutions OIHW, linear weights [in, out].
      head: whether to convert the classifiers; without them, fine-tuning makes new ones.
      in_channels: of the images that the weights are for.
      **build_overrides: arguments of `jaxcls.models.build`, such as `num_classes`.

    Raises:
      ValueError: lists tensors that are missing, unmatched, of another shape or no finite floats.
    """
    return engine.convert(
        name,
        arrays,
        rules(name).paddle,
        engine.PADDLE_LEAVES,
        engine.paddle_layout,
        head=head,
        in_channels=in_channels,
        **build_overrides,
    )


def from_torch(
    name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    head: bool = True,
    in_channels: int = 3,
    **build_overrides,
) -> dict[str, Any]:
    """Returns {"params": ..., "batch_stats": ...} from the tensors of a timm or torchvision model.

    Where that model computes something else than PaddleClas's of the same tensors, arguments of
    `jaxcls.models.build` make them equal: they have to be given here, and again wherever the
    result is used. The error says which. Tensors cannot tell a model from variants that differ in
    nothing else: those of resnetaa50 or resnetblur50, for example, pass for resnet50's.

    Args:
      name: one of `jaxcls.models.names()`.
      arrays: the state dict; convolutions OIHW, linear weights [out, in].
      head: whether to convert the classifier; without it, fine-tuning makes a new one.
      in_channels: of the images that the weights are for.
      **build_overrides: arguments of `jaxcls.models.build`, such as `num_classes`.

    Raises:
      ValueError: lists tensors that are missing, unmatched, of another shape or no finite floats;
        or names what the network has another way and which arguments it needs, or that there are
        none.
    """
    torch_sources, module = rules(name).torch_sources, models.build(name, **build_overrides)
    with engine.building(name, **build_overrides):
        sources = torch_sources(module)
    return engine.convert_torch(
        name,
        arrays,
        sources,
        head=head,
        in_channels=in_channels,
        **build_overrides,
    )


def rules(name: str) -> ModuleType:
    """Returns the rules for weights of the model `name`, which its family has.

    They are `paddle`, an `engine.Rule`, and `torch_sources`, module -> `engine.Source`s.
    """
    family = models.family_of(choose("model", name, models.MODELS))
    return importlib.import_module(f"jaxcls.convert.{family}")
