"""PP-HGNet, for GPUs: 3x3 convolutions one after the other, all of which a 1x1 convolution sees.

PaddleClas's own (https://github.com/PaddlePaddle/PaddleClas), after Lee et al. 2019, VoVNet
(https://arxiv.org/abs/1904.09730): PPHGNet has a gate behind that convolution; PPHGNetV2 has two of
them and no gate, 1x1 and depthwise convolutions in stages 3 and 4, and a learnable factor and
offset of the features, one for all channels, behind each ReLU of B0 to B3. The dropout scales in
evaluation (`Dropout.downscale`).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    Padding,
    Stem,
    drop_path_rates,
    forward,
    global_mean,
    max_pool,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Affine(nn.Module):
    """One factor and one offset for all features."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        factor = self.param("factor", nn.initializers.ones, (1,), self.c.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (1,), self.c.param_dtype)
        return x * factor.astype(x.dtype) + bias.astype(x.dtype)


class Unit(nn.Module):
    """Convolution, or with `light` a 1x1 and a depthwise one, ReLU and, where wanted, `Affine`."""

    c: Ctx
    features: int
    kernel: int = 1
    stride: int = 1
    padding: Padding | None = None
    light: bool = False
    affine: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features = self.c, self.features
        if self.light:
            x = ConvBN(c, features, name="conv1")(x)
            conv = ConvBN(c, features, self.kernel, groups=features, name="conv2")
        else:
            conv = ConvBN(c, features, self.kernel, self.stride, self.padding, name="conv1")
        x = nn.relu(conv(x))
        return Affine(c, name="affine")(x) if self.affine else x


class Gate(nn.Module):
    """Each channel times a gate in [0, 1] that sees all channels' means through one layer."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Conv(self.c, x.shape[-1], bias=True, name="conv1")(x.mean((1, 2), keepdims=True))
        return x * nn.sigmoid(y)


class Block(nn.Module):
    """Convolutions one after the other, and 1x1 convolutions of all that they give."""

    c: Ctx
    inner: int
    features: int
    layers: int
    kernel: int
    drop_path: float
    down: bool  # after a depthwise convolution that halves the size
    identity: bool
    light: bool
    affine: bool
    gate: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.down:
            x = ConvBN(c, x.shape[-1], 3, 2, groups=x.shape[-1], name="down")(x)
        unit = partial(Unit, c, affine=self.affine)
        seen = [x]
        for i in range(1, self.layers + 1):
            layer = unit(self.inner, self.kernel, light=self.light, name=f"layer{i}")
            seen.append(layer(seen[-1]))
        y = jnp.concatenate(seen, -1)
        if self.gate:
            y = Gate(c, name="gate")(unit(self.features, name="out1")(y))
        else:
            y = unit(self.features // 2, name="out1")(y)
            y = unit(self.features, name="out2")(y)
        return x + DropPath(c, self.drop_path, name="drop_path")(y) if self.identity else y


class StemV2(nn.Module):
    """3x3 convolution, 2x2 maxima and convolutions side by side, 3x3 and 1x1 convolution."""

    c: Ctx
    inner: int
    features: int
    affine: bool
    zeros: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = partial(Unit, self.c, affine=self.affine)
        x = unit(self.inner, 3, 2, name="unit1")(x)
        y = unit(self.inner // 2, 2, padding=((0, 1), (0, 1)), name="unit2a")(x)
        y = unit(self.inner, 2, padding=((0, 1), (0, 1)), name="unit2b")(y)
        beyond = {} if self.zeros else {"constant_values": -jnp.inf}
        x = max_pool(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), **beyond), 2, 1)
        x = unit(self.inner, 3, 2, name="unit3")(jnp.concatenate([x, y], -1))
        return unit(self.features, name="unit4")(x)


class Neck(nn.Module):
    """Mean over the image and a 1x1 convolution."""

    c: Ctx
    features: int
    affine: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = global_mean(x, self.c)[:, None, None]
        x = nn.relu(Conv(self.c, self.features, name="conv1")(x))
        x = Affine(self.c, name="affine")(x) if self.affine else x
        return x[:, 0, 0]


class PPHGNet(nn.Module):
    """Stem to a quarter of the size, stages, neck, head."""

    c: Ctx
    num_classes: int
    stem: tuple[int, ...]
    stages: tuple[tuple[int, int, int], ...]  # inner and outer features, blocks of each stage
    layers: int  # of each block
    v2: bool = False
    affine: bool = False
    dropout: float = 0.0
    zeros: bool = False  # the maxima in the stem of V2 see zeros beyond the border, as in timm
    last: int = 2048  # features before the classifier

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        if self.v2:
            stem = StemV2(c, *self.stem, self.affine, self.zeros, name="stem")
        else:
            convs = tuple((n, 3, 1 if i else 2) for i, n in enumerate(self.stem))
            stem = Stem(c, convs, name="stem")
        depths = [blocks for _, _, blocks in self.stages]
        rates = drop_path_rates(c, depths)
        block = lambda i, j: partial(
            Block,
            inner=self.stages[i][0],
            features=self.stages[i][1],
            layers=self.layers,
            kernel=5 if self.v2 and i > 1 else 3,
            drop_path=rates[i][j],
            down=i > 0 and j == 0,
            identity=j > 0,
            light=self.v2 and i > 1,
            affine=self.affine,
            gate=not self.v2,
        )
        head = Classifier(c, self.num_classes, dropout=self.dropout, downscale=True, name="head")
        return forward(
            c,
            images,
            stem=stem,
            stages=stages_of(depths, block),
            neck=Neck(c, self.last, self.affine, name="neck"),
            head=head,
        )


ROWS = {  # stem, stages, layers of a block
    "PPHGNet_tiny": ((48, 48, 96), ((96, 224, 1), (128, 448, 1), (160, 512, 2), (192, 768, 1)), 5),
    "PPHGNet_small": (
        (64, 64, 128),
        ((128, 256, 1), (160, 512, 1), (192, 768, 2), (224, 1024, 1)),
        6,
    ),
    "PPHGNet_base": (
        (96, 96, 160),
        ((192, 320, 1), (224, 640, 2), (256, 960, 3), (288, 1280, 2)),
        7,
    ),
    "PPHGNetV2_B0": ((16, 16), ((16, 64, 1), (32, 256, 1), (64, 512, 2), (128, 1024, 1)), 3),
    "PPHGNetV2_B1": ((24, 32), ((32, 64, 1), (48, 256, 1), (96, 512, 2), (192, 1024, 1)), 3),
    "PPHGNetV2_B2": ((24, 32), ((32, 96, 1), (64, 384, 1), (128, 768, 3), (256, 1536, 1)), 4),
    "PPHGNetV2_B3": ((24, 32), ((32, 128, 1), (64, 512, 1), (128, 1024, 3), (256, 2048, 1)), 5),
    "PPHGNetV2_B4": ((32, 48), ((48, 128, 1), (96, 512, 1), (192, 1024, 3), (384, 2048, 1)), 6),
    "PPHGNetV2_B5": ((32, 64), ((64, 128, 1), (128, 512, 2), (256, 1024, 5), (512, 2048, 2)), 6),
    "PPHGNetV2_B6": ((48, 96), ((96, 192, 2), (192, 512, 3), (384, 1024, 6), (768, 2048, 3)), 6),
}
SWITCHES = {"PPHGNet_base": {"dropout": 0.2}}
SWITCHES |= {f"PPHGNetV2_B{i}": {"v2": True, "affine": i < 4} for i in range(7)}
SPECS = {
    name: Spec(
        PPHGNet, {"stem": stem, "stages": stages, "layers": layers, **SWITCHES.get(name, {})}
    )
    for name, (stem, stages, layers) in ROWS.items()
}
SPECS |= {f"{name}_ssld": SPECS[name].alias(name) for name in list(SPECS)[:3]}
