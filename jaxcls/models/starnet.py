"""StarNet: two 1x1 convolutions of the same features are multiplied.

Ma et al. 2024, Rewrite the stars (https://arxiv.org/abs/2403.19967). As in the authors' code,
convolutions before BatchNorm have biases too; BatchNorm stands alone before the mean over the
image.
"""

from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    Norm,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Block(nn.Module):
    """7x7 depthwise, two 1x1 and their product, 1x1, 7x7; with `down` a 3x3 at stride 2 before."""

    c: Ctx
    width: int
    expand: int
    down: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, width = self.c, self.width
        if self.down:
            x = ConvBN(c, width, 3, 2, bias=True, name="down")(x)
        y = ConvBN(c, width, 7, groups=width, bias=True, name="conv1")(x)
        left = Conv(c, self.expand * width, bias=True, name="conv2")(y)
        right = Conv(c, self.expand * width, bias=True, name="conv3")(y)
        y = ConvBN(c, width, bias=True, name="conv4")(nn.relu6(left) * right)
        y = Conv(c, width, 7, groups=width, bias=True, name="conv5")(y)
        return x + DropPath(c, self.drop_path, name="drop_path")(y)


class StarNet(nn.Module):
    """Stem at stride 2, four stages, BatchNorm, head."""

    c: Ctx
    num_classes: int
    width: int
    depths: tuple[int, ...]
    expand: int = 4

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, from_zero=True)
        block = lambda i, j: partial(
            Block,
            width=self.width * 2**i,
            expand=self.expand,
            down=not j,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images,
            stem=ConvBN(c, 32, 3, 2, act=nn.relu6, bias=True, name="stem"),
            stages=stages_of(self.depths, block),
            neck=Norm(c, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    f"StarNet_{size}": Spec(StarNet, {"width": width, "depths": depths})
    for size, width, depths in (
        ("S1", 24, (2, 2, 8, 3)),
        ("S2", 32, (1, 2, 6, 2)),
        ("S3", 32, (2, 2, 8, 4)),
        ("S4", 32, (3, 3, 12, 5)),
    )
}
