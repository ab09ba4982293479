"""Weights of other code bases."""

import importlib
import re
from collections.abc import Mapping, Sequence
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
        {key: array for key, array in arrays.items() if not is_unused(name, key)},
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


def to_torch(
    name: str, variables: Mapping[str, Any], *, package: str = "timm", **build_overrides
) -> dict[str, np.ndarray]:
    """Returns the state dict of the timm or torchvision model that computes what ours does.

    `from_torch` makes the same variables of it, bit for bit. BatchNorms' `num_batches_tracked`,
    which PyTorch does not need, is not in it.

    Args:
      name: one of `jaxcls.models.names()`.
      variables: {"params": ..., "batch_stats": ...}, with the classifier.
      package: "timm" or "torchvision".
      **build_overrides: arguments of `jaxcls.models.build`, such as `num_classes`.

    Raises:
      ValueError: there is no such model; the message says why, and what would have to be set.
    """
    module = models.build(name, **build_overrides)
    source = engine.source_of(name, module, _there(name, module, package), package)
    return engine.to_torch(variables, module, source)


def torch_names(
    name: str, layers: Sequence[tuple[str, ...]], *, package: str = "timm", **build_overrides
) -> list[str]:
    """Returns what layers of ours, such as ("head", "fc"), are called there; see `to_torch`."""
    module = models.build(name, **build_overrides)
    rule = engine.source_of(name, module, _there(name, module, package), package).rule
    return [rule(layer, module) for layer in layers]


def timm_model(name: str, **build_overrides) -> tuple[str, dict[str, Any]]:
    """Returns name and arguments of `timm.create_model` for what computes the same as ours.

    Args:
      name, **build_overrides: of `jaxcls.models.build`.

    Raises:
      ValueError: there is no such model; the message says why, and what would have to be set.
    """
    module = models.build(name, **build_overrides)
    known = models.MODELS[name].alias_of or name
    sources = _there(name, module, "timm")
    sources = [s for s in sources if callable(s.timm) or known in s.timm]
    source = engine.source_of(name, module, sources, "timm")
    if callable(source.timm):
        found = source.timm(module)
    else:
        plain = models.build(name, num_classes=module.num_classes, **source.needs)
        found = (source.timm[known], {}) if module.clone(c=plain.c) == plain else None
    if not found:
        raise ValueError(f"{name} with these options is not among {source.names}")
    return found


def _there(name: str, module: Any, package: str) -> list[engine.Source]:
    """Returns the sources of a package that ours could be exported to."""
    try:
        sources = rules(name).torch_sources(module)
    except ValueError as e:  # advice on the way in is none on the way back
        raise ValueError(re.split("[:;] convert", str(e))[0]) from e
    return [source for source in sources if package in source.names and not source.refused]


def is_unused(name: str, key: str) -> bool:
    """Returns whether PaddleClas's tensor `key` of the model `name` computes nothing."""
    unused = getattr(rules(name), "UNUSED", None)
    return unused is not None and bool(unused.search(key))


def rules(name: str) -> ModuleType:
    """Returns the rules for weights of the model `name`, which its family has.

    They are `paddle`, an `engine.Rule`, and `torch_sources`, module -> `engine.Source`s; some have
    `UNUSED`, which matches the names of PaddleClas's tensors that compute nothing.
    """
    family = models.family_of(choose("model", name, models.MODELS))
    return importlib.import_module(f"jaxcls.convert.{family}")
