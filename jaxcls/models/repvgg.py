"""RepVGG: a plain column of 3x3 convolutions that is trained with branches beside them.

Ding et al. 2021, RepVGG (https://arxiv.org/abs/2101.03697): in training each layer is the sum of a
3x3 and a 1x1 convolution and, where the shapes allow it, of its input, each with BatchNorm. With
`folded` it is the one 3x3 convolution that these add up to; `layers.fold` makes its weights, and an
export has it. The published parameters and multiply-adds are of that form, those that
`python -m jaxcls.models` counts of the other. `g2` and `g4` are convolutions in groups in every
second layer; D2se is the authors' later one with squeeze-and-excitation after the sum.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    BranchedConvBN,
    Classifier,
    SqueezeExcite,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Block(nn.Module):
    """3x3 convolution and its branches."""

    c: Ctx
    features: int
    stride: int
    groups: int = 1
    se: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        same = self.stride == 1 and x.shape[-1] == self.features
        x = BranchedConvBN(
            self.c, self.features, (3, 1), self.stride, self.groups, same, name="conv1"
        )(x)
        if self.se:
            x = SqueezeExcite(self.c, self.features // 16, name="se")(x)
        return nn.relu(x)


class RepVGG(nn.Module):
    """Stem at stride 2, four stages, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    groups: int = 1  # of every second layer, counted from the stem
    se: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        block = lambda i, j: partial(
            Block,
            features=self.widths[i],
            stride=1 if j else 2,
            groups=self.groups if (1 + sum(self.depths[:i]) + j) % 2 == 0 else 1,
            se=self.se,
        )
        return forward(
            c,
            images,
            stem=Block(c, min(64, self.widths[0]), 2, se=self.se, name="stem"),
            stages=stages_of(self.depths, block),
            head=Classifier(c, self.num_classes, name="head"),
        )


A, B, D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
SPECS = {
    f"RepVGG_{name}": Spec(RepVGG, {"depths": depths, "widths": widths, **switches})
    for name, depths, widths, switches in (
        ("A0", A, (48, 96, 192, 1280), {}),
        ("A1", A, (64, 128, 256, 1280), {}),
        ("A2", A, (96, 192, 384, 1408), {}),
        ("B0", B, (64, 128, 256, 1280), {}),
        ("B1", B, (128, 256, 512, 2048), {}),
        ("B1g2", B, (128, 256, 512, 2048), {"groups": 2}),
        ("B1g4", B, (128, 256, 512, 2048), {"groups": 4}),
        ("B2", B, (160, 320, 640, 2560), {}),
        ("B2g4", B, (160, 320, 640, 2560), {"groups": 4}),
        ("B3", B, (192, 384, 768, 2560), {}),
        ("B3g4", B, (192, 384, 768, 2560), {"groups": 4}),
        ("D2se", D, (160, 320, 640, 2560), {"se": True}),
    )
}
