"""ResNet and what grew from it: the B, C and D variants, ResNeXt, squeeze-excite, ACNet.

He et al. 2015, Deep residual learning (https://arxiv.org/abs/1512.03385), with the stride in the
3x3 convolution; He et al. 2018, Bag of tricks (https://arxiv.org/abs/1812.01187): `_vc` replaces
the 7x7 stem by three 3x3 convolutions, `_vd` also halves the shortcut by a mean before its 1x1
convolution. Xie et al. 2016, ResNeXt (https://arxiv.org/abs/1611.05431): `_32x4d` has 32 groups of
4 channels in the first stage; `_wsl` are the wide ones of Mahajan et al. 2018
(https://arxiv.org/abs/1805.00932). Hu et al. 2017, squeeze-and-excitation
(https://arxiv.org/abs/1709.01507). Ding et al. 2019, ACNet (https://arxiv.org/abs/1908.03930).

As in PaddleClas, and unlike the papers: the first block of every stage has a convolution in its
shortcut, also where the shapes would not need one (stage1 of ResNet18 and ResNet34; not with
`project_first=False`, as in the paper); SENet154_vd is a plain SE-ResNeXt152 64x4d of the D
variant, without that network's narrower 1x1 convolutions, 3x3 shortcuts and dropout; ACNet's 7x7
stem is asymmetric too.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    LinearSqueezeExcite,
    Shortcut,
    drop_path_rates,
    forward,
    resnet_stem,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class AsymmetricConvBN(ConvBN):
    """ACNet in training: the sum of a k x k, a k x 1 and a 1 x k `ConvBN`."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k = self.kernel
        x = sum(
            ConvBN(self.c, self.features, kernel, self.stride, groups=self.groups, name=name)(x)
            for name, kernel in {"square": k, "vertical": (k, 1), "horizontal": (1, k)}.items()
        )
        return x if self.act is None else self.act(x)


def fused(c: Ctx, *shape: Any, **options: Any) -> ConvBN:
    """Returns ACNet deployed: one convolution with a bias, see `layers.fold`."""
    return ConvBN(c.replace(folded=True), *shape, **options)


CONVS = {"plain": ConvBN, "asymmetric": AsymmetricConvBN, "fused": fused}


class Block(nn.Module):
    """A residual block; `branch` is up to the kind."""

    c: Ctx
    width: int
    stride: int
    project: bool
    drop_path: float
    conv: type[nn.Module]  # of the kernels larger than 1
    mean_short: bool
    groups: int
    group_width: int
    se: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.branch(x)
        if self.se:
            y = LinearSqueezeExcite(self.c, max(y.shape[-1] // 16, 1), name="se")(y)
        if self.project or x.shape != y.shape:
            x = Shortcut(self.c, y.shape[-1], self.stride, self.mean_short, name="short")(x)
        return nn.relu(x + DropPath(self.c, self.drop_path, name="drop_path")(y))

    @property
    def inner(self) -> int:
        """Channels of the grouped convolution."""
        return self.width * self.groups * self.group_width // 64


class Basic(Block):
    """Two 3x3 convolutions."""

    def branch(self, x: Array) -> Array:
        groups = self.groups
        x = self.conv(self.c, self.inner, 3, self.stride, groups=groups, act=nn.relu, name="conv1")(
            x
        )
        return self.conv(self.c, self.width, 3, groups=groups, name="conv2")(x)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions; the last has four times the width."""

    def branch(self, x: Array) -> Array:
        x = ConvBN(self.c, self.inner, act=nn.relu, name="conv1")(x)
        x = self.conv(
            self.c, self.inner, 3, self.stride, groups=self.groups, act=nn.relu, name="conv2"
        )(x)
        return ConvBN(self.c, self.width * 4, name="conv3")(x)


class ResNet(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    block: type[Block]
    depths: tuple[int, ...]
    width: int = 64
    stem: str = "conv7"
    stem_width: int | None = None  # None: `width`
    mean_short: bool = False
    groups: int = 1
    group_width: int = 64  # channels of a group where the stage's width is 64
    se: bool = False
    project_first: bool = True  # False: stage1 has no convolution in its shortcut if none is needed
    conv: str = "plain"  # ACNet: "asymmetric" to train, "fused" for what `layers.fold` makes of it

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        if self.conv not in CONVS:
            raise ValueError(f"conv={self.conv!r}: choose one of {', '.join(CONVS)}")
        conv = fused if self.c.folded else CONVS[self.conv]
        rates = drop_path_rates(c, self.depths)
        block = lambda i, j: partial(
            self.block,
            width=self.width * 2**i,
            stride=2 if i and not j else 1,
            project=not j and (i > 0 or self.project_first),
            drop_path=rates[i][j],
            conv=conv,
            mean_short=self.mean_short,
            groups=self.groups,
            group_width=self.group_width,
            se=self.se,
        )
        return forward(
            c,
            images,
            stem=resnet_stem(c, self.stem, self.stem_width or self.width, conv),
            stages=stages_of(self.depths, block),
            head=Classifier(c, self.num_classes, name="head"),
        )


DEPTHS = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    154: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 12, 48, 3)),
}
VD = {"stem": "conv3", "mean_short": True}
SE = {"se": True}
WIDE_STEM = {"stem_width": 128}
X32, X64, X8D, X16D, X32D, X48D = (
    {"groups": groups, "group_width": width}
    for groups, width in ((32, 4), (64, 4), (32, 8), (32, 16), (32, 32), (32, 48))
)
SERIES = {  # names -> depths, switches
    "ResNet{}": ((18, 34, 50, 101, 152), {}),
    "ResNet{}_vc": ((50,), {"stem": "conv3"}),
    "ResNet{}_vd": ((18, 34, 50, 101, 152, 200), VD),
    "ResNeXt{}_32x4d": ((50, 101, 152), X32),
    "ResNeXt{}_64x4d": ((50, 101, 152), X64),
    "ResNeXt{}_vd_32x4d": ((50, 101, 152), VD | X32),
    "ResNeXt{}_vd_64x4d": ((50, 101, 152), VD | X64),
    "ResNeXt{}_32x8d_wsl": ((101,), X8D),
    "ResNeXt{}_32x16d_wsl": ((101,), X16D),
    "ResNeXt{}_32x32d_wsl": ((101,), X32D),
    "ResNeXt{}_32x48d_wsl": ((101,), X48D),
    "SE_ResNet{}_vd": ((18, 34, 50), VD | SE),
    "SE_ResNeXt{}_32x4d": ((50, 101), X32 | SE),
    "SE_ResNeXt{}_vd_32x4d": ((50,), VD | X32 | SE | WIDE_STEM),
    "SENet{}_vd": ((154,), VD | X64 | SE | WIDE_STEM),
    "ResNet{}_ACNet": ((50,), {"conv": "asymmetric"}),
    "ResNet{}_ACNet_deploy": ((50,), {"conv": "fused"}),
}
SPECS = {
    series.format(n): Spec(ResNet, {"block": DEPTHS[n][0], "depths": DEPTHS[n][1], **switches})
    for series, (depths, switches) in SERIES.items()
    for n in depths
}
ALIASES = {  # other weights of a network -> that network, input size
    "ResNet50_vd_v2": ("ResNet50_vd", 224),
    "ResNet50_vd_ssld": ("ResNet50_vd", 224),
    "ResNet50_vd_ssld_v2": ("ResNet50_vd", 224),
    "Fix_ResNet50_vd_ssld_v2": ("ResNet50_vd", 320),
    "Fix_ResNet50_vd_ssld": ("ResNet50_vd", 320),  # today's name of these weights
    "ResNet34_vd_ssld": ("ResNet34_vd", 224),
    "ResNet101_vd_ssld": ("ResNet101_vd", 224),
    "Fix_ResNeXt101_32x48d_wsl": ("ResNeXt101_32x48d_wsl", 320),
}
SPECS |= {alias: SPECS[name].alias(name, size) for alias, (name, size) in ALIASES.items()}
