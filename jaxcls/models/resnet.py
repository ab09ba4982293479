"""ResNet and its B, C and D variants.

He et al. 2015, Deep residual learning (https://arxiv.org/abs/1512.03385), with the stride in the
3x3 convolution; He et al. 2018, Bag of tricks (https://arxiv.org/abs/1812.01187): `_vc` replaces
the 7x7 stem by three 3x3 convolutions, `_vd` also halves the shortcut by a mean before its 1x1
convolution. As in PaddleClas, the first block of every stage has a convolution in its shortcut,
also where the shapes would not need one (stage1 of ResNet18 and ResNet34).
"""

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    avg_pool_halve,
    drop_path_rates,
    global_mean,
    max_pool,
    stage,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Shortcut(nn.Module):
    """1x1 convolution of a block's input; `mean` halves by a 2x2 mean rather than by a stride."""

    c: Ctx
    features: int
    stride: int
    mean: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        stride = self.stride
        if self.mean and stride == 2:
            x, stride = avg_pool_halve(x), 1
        return ConvBN(self.c, self.features, stride=stride, name="conv1")(x)


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    c: Ctx
    width: int
    stride: int
    project: bool
    mean_short: bool
    drop_path: float
    expansion = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = ConvBN(self.c, self.width, 3, self.stride, act=nn.relu, name="conv1")(x)
        y = ConvBN(self.c, self.width, 3, name="conv2")(y)
        if self.project:
            x = Shortcut(self.c, self.width, self.stride, self.mean_short, name="short")(x)
        return nn.relu(x + DropPath(self.c, self.drop_path, name="drop_path")(y))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the last has four times the width."""

    c: Ctx
    width: int
    stride: int
    project: bool
    mean_short: bool
    drop_path: float
    expansion = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        out = self.width * self.expansion
        y = ConvBN(self.c, self.width, act=nn.relu, name="conv1")(x)
        y = ConvBN(self.c, self.width, 3, self.stride, act=nn.relu, name="conv2")(y)
        y = ConvBN(self.c, out, name="conv3")(y)
        if self.project:
            x = Shortcut(self.c, out, self.stride, self.mean_short, name="short")(x)
        return nn.relu(x + DropPath(self.c, self.drop_path, name="drop_path")(y))


class Stem(nn.Module):
    """ "conv7": one 7x7 convolution; "conv3": three 3x3; both end at a quarter of the size.

    "small" is one 3x3 convolution that keeps the size, for images of up to about 64 pixels.
    """

    c: Ctx
    kind: str
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        convs = {
            "conv7": ((self.width, 7, 2),),
            "conv3": ((self.width // 2, 3, 2), (self.width // 2, 3, 1), (self.width, 3, 1)),
            "small": ((self.width, 3, 1),),
        }
        if self.kind not in convs:
            raise ValueError(f"stem={self.kind!r}: choose one of {', '.join(convs)}")
        for i, (features, kernel, stride) in enumerate(convs[self.kind], 1):
            x = ConvBN(self.c, features, kernel, stride, act=nn.relu, name=f"conv{i}")(x)
        return x if self.kind == "small" else max_pool(x, 3, 2, 1)


class Stage(nn.Module):
    """Blocks of one width; the first has the stride and the projecting shortcut."""

    c: Ctx
    block: type[nn.Module]
    width: int
    stride: int
    mean_short: bool
    drop_paths: tuple[float, ...]  # one for each block

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, drop_path in enumerate(self.drop_paths):
            x = self.block(
                self.c,
                self.width,
                stride=1 if i else self.stride,
                project=i == 0,
                mean_short=self.mean_short,
                drop_path=drop_path,
                name=f"block{i + 1}",
            )(x)
        return x


class ResNet(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    block: type[nn.Module]
    depths: tuple[int, ...]
    width: int = 64
    stem: str = "conv7"
    mean_short: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        x = Stem(c, self.stem, self.width, name="stem")(images.astype(c.feature_dtype))
        out = {}
        for i, rates in enumerate(drop_path_rates(c, self.depths)):
            x = out[f"stage{i + 1}"] = stage(Stage, c)(
                c,
                self.block,
                self.width * 2**i,
                stride=2 if i else 1,
                mean_short=self.mean_short,
                drop_paths=tuple(rates),
                name=f"stage{i + 1}",
            )(x)
        out["pre_logits"] = global_mean(x, c)
        out["logits"] = Classifier(c, self.num_classes, name="head")(out["pre_logits"])
        return out


DEPTHS = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 12, 48, 3)),
}
VARIANTS = {
    "": ({}, (18, 34, 50, 101, 152)),
    "_vc": ({"stem": "conv3"}, (50,)),
    "_vd": ({"stem": "conv3", "mean_short": True}, (18, 34, 50, 101, 152, 200)),
}
SPECS = {
    f"ResNet{n}{variant}": Spec(ResNet, {"block": DEPTHS[n][0], "depths": DEPTHS[n][1], **switches})
    for variant, (switches, depths) in VARIANTS.items()
    for n in depths
}
