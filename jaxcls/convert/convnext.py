"""Names of the layers of ConvNeXt in PaddleClas, timm and torchvision."""

from collections.abc import Callable
from typing import Any

from jaxcls.convert import engine

FROM = "downsample_layers"  # in PaddleClas, one before each stage


def named(
    outside: dict[str, str],
    stem: str,
    down: Callable[[int], str],
    block: Callable[[int, int], str],
    inside: dict[str, str],
) -> engine.Rule:
    """Returns the rule of a code base.

    Args:
      outside: names of neck and head.
      stem: name of it.
      down: of what is before a stage, counted from 0.
      block: stage, block -> name.
      inside: names of a block's layers, where they are others.
    """

    def rule(layer: engine.Layer, module: Any) -> str:
        del module
        if layer[0] in outside:
            return outside[layer[0]]
        if layer[0] == "stem":
            return f"{stem}.{('proj', 'norm').index(layer[1])}"
        stage, number = (n - 1 for n in engine.numbers(*layer[:2]))
        role = layer[2]
        if role.startswith("down"):
            return f"{down(stage)}.{('down_norm', 'down').index(role)}"
        return f"{block(stage, number)}.{inside.get(role, role)}"

    return rule


paddle = named(  # and the authors' code
    {"head": "head", "neck": "norm"},
    f"{FROM}.0",
    lambda stage: f"{FROM}.{stage}",
    lambda stage, block: f"stages.{stage}.{block}",
    {"fc1": "pwconv1", "fc2": "pwconv2"},
)
timm = named(
    {"head": "head.fc", "neck": "head.norm"},
    "stem",
    lambda stage: f"stages.{stage}.downsample",
    lambda stage, block: f"stages.{stage}.blocks.{block}",
    {"dwconv": "conv_dw", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
)
torchvision = named(  # in whose list stages and what halves take turns
    {"head": "classifier.2", "neck": "classifier.0"},
    "features.0",
    lambda stage: f"features.{2 * stage}",
    lambda stage, block: f"features.{2 * stage + 1}.{block}",
    {"dwconv": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5",
     "gamma": "layer_scale"},
)  # fmt: skip


def with_two_axes(arrays: engine.Arrays) -> engine.Arrays:
    """Returns the tensors with torchvision's axes of factors of channels, [C, 1, 1]."""
    scale = lambda key: key.endswith("layer_scale")
    return {key: a[:, None, None] if scale(key) else a for key, a in arrays.items()}


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's convnext_*",
            timm,
            timm={
                f"ConvNeXt_{name}": f"convnext_{name.partition('_')[0]}"
                for name in ("tiny", "small", "base_224", "base_384", "large_224", "large_384")
            },
        ),
        engine.Source("torchvision's convnext_*", torchvision, complete=with_two_axes),
        engine.Source("the authors' convnext_*", paddle),
    )
