"""MobileViT, MobileViTV2 and MobileViTV3.

Mehta and Rastegari 2021, MobileViT (https://arxiv.org/abs/2110.02178): inverted residuals, and
blocks in which pixels of the same place in 2 x 2 patches attend to each other. Mehta and Rastegari
2022 (https://arxiv.org/abs/2206.02680): attention that is linear in the number of patches. Wadekar
and Chaurasia 2022, MobileViTv3 (https://arxiv.org/abs/2209.15159): local features and attention
fused by a 1x1 convolution, and a shortcut; `_x*` are those of V2. Grids that patches do not fill
are stretched for the attention; those of linear attention stay so, as in timm.

As in PaddleClas, MobileViT's grids are shrunk again by taking the nearest place; not with
`nearest=False`, as in timm. Unlike there, nothing is dropped inside the attention blocks.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.layers import (
    Classifier,
    Conv,
    ConvBN,
    InvertedResidual,
    Stem,
    drop_path_rates,
    forward,
    round_to_8,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import Block, LayerNorm

Array = jax.Array
PATCH = 2
LINEAR = ("v2", "v3_linear")
silu = nn.silu


def stretched(x: Array) -> Array:
    """Returns a grid that patches fill, linear between places, of which corners stay corners."""
    matrices = []
    for n in x.shape[1:3]:
        at = np.linspace(0, n - 1, -(-n // PATCH) * PATCH)
        matrices.append(np.maximum(1 - np.abs(at[:, None] - np.arange(n)), 0).astype(np.float32))
    if all(len(m) == m.shape[1] for m in matrices):
        return x
    return jnp.einsum("hi,wj,bijd->bhwd", *matrices, x.astype(np.float32)).astype(x.dtype)


class LinearAttention(nn.Module):
    """Attention to one sum over patches: [B, P, N, D] -> the same, P pixels of N patches."""

    c: Ctx
    hidden: int  # features inside the MLP

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, d = self.c, x.shape[-1]
        conv = partial(Conv, c, bias=True)
        norm = partial(LayerNorm, c, whole=True)
        y = conv(1 + 2 * d, name="qkv")(norm(name="norm1")(x))
        q, k, v = jnp.split(y, (1, 1 + d), -1)
        weights = nn.softmax(q.astype(jnp.promote_types(q.dtype, jnp.float32)), 2).astype(k.dtype)
        seen = (k * weights).sum(2, keepdims=True)
        x += conv(d, name="proj")(nn.relu(v) * seen)
        y = silu(conv(self.hidden, name="fc1")(norm(name="norm2")(x)))
        return x + conv(d, name="fc2")(y)


class MobileViTBlock(nn.Module):
    """Convolutions around attention between patches."""

    c: Ctx
    kind: str
    width: int  # of the attention
    layers: int
    nearest: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features, kind = self.c, x.shape[-1], self.kind
        if kind in LINEAR:
            x = stretched(x)
        groups = 1 if kind == "v1" else features
        near = ConvBN(c, features, 3, groups=groups, act=silu, name="conv1")(x)
        near = Conv(c, self.width, name="conv2")(near)
        y = self.between_patches(near)
        act = None if kind in LINEAR else silu
        if kind == "v3_linear":
            y = jnp.concatenate([y, near], -1)
        y = ConvBN(c, features, act=act, name="conv3")(y)
        if kind == "v1":
            return ConvBN(c, features, 3, act=silu, name="conv4")(jnp.concatenate([x, y], -1))
        if kind == "v3":
            y = ConvBN(c, features, act=silu, name="conv4")(jnp.concatenate([near, y], -1))
        return y if kind == "v2" else x + y

    def between_patches(self, x: Array) -> Array:
        """Returns what the layers make of a grid."""
        b, *shape, d = x.shape
        p, (h, w) = PATCH, (-(-n // PATCH) for n in shape)
        if (h * p, w * p) != tuple(shape):
            x = jax.image.resize(x, (b, h * p, w * p, d), "linear", antialias=False)
        x = x.reshape(b, h, p, w, p, d).transpose(0, 2, 4, 1, 3, 5)
        linear = self.kind in LINEAR
        x = x.reshape(b, p * p, h * w, d) if linear else x.reshape(-1, h * w, d)
        for i in range(1, self.layers + 1):
            if linear:
                layer = LinearAttention(self.c, 2 * d // 16 * 16, name=f"layer{i}")
            else:
                options = {"epsilon": 1e-5, "drop_path": self.drop_path, "act": silu}
                layer = Block(self.c, 4, 2 * d, **options, name=f"layer{i}")
            x = layer(x)
        epsilon = 1e-6 if self.kind == "v1" else 1e-5
        x = LayerNorm(self.c, epsilon, whole=linear, name="norm")(x)
        x = x.reshape(b, p, p, h, w, d).transpose(0, 3, 1, 4, 2, 5).reshape(b, h * p, w * p, d)
        if (h * p, w * p) != tuple(shape):
            if self.nearest:
                rows, columns = (
                    [i * n * p // m for i in range(m)] for n, m in zip((h, w), shape, strict=True)
                )
                return x[:, jnp.array(rows)][:, :, jnp.array(columns)]
            x = jax.image.resize(x, (b, *shape, d), "linear", antialias=False)
        return x


class MobileViT(nn.Module):
    """Stem, two stages of inverted residuals, three with attention, neck, head."""

    c: Ctx
    num_classes: int
    kind: str  # "v1", "v2", "v3", or V3's with linear attention, "v3_linear"
    stem: int
    widths: tuple[int, ...]  # of the stages
    attention: tuple[int, ...]  # widths inside those with attention
    expand: int
    layers: tuple[int, ...] = (2, 4, 3)  # of attention
    repeats: int = 3  # of stage2
    last: int | None = None  # features of the neck; None: there is none
    nearest: bool = False
    own_dropout: float = 0.0

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        depths = (1, self.repeats, *(2 for _ in self.attention))
        rates = drop_path_rates(c, depths)
        inputs = (self.stem, *self.widths)

        def block(i: int, j: int) -> partial:
            if i > 1 and j:
                return partial(
                    MobileViTBlock,
                    kind=self.kind,
                    width=self.attention[i - 2],
                    layers=self.layers[i - 2],
                    nearest=self.nearest,
                    drop_path=rates[i][j],
                )
            return partial(
                InvertedResidual,
                expanded=round_to_8(inputs[i + (j > 0)] * self.expand),
                features=self.widths[i],
                stride=2 if i and not j else 1,
                act=silu,
                drop_path=rates[i][j],
            )

        neck = None if self.last is None else ConvBN(c, self.last, act=silu, name="neck")
        return forward(
            c,
            images,
            stem=Stem(c, ((self.stem, 3, 2),), pool=False, act=silu, name="stem"),
            stages=stages_of(depths, block),
            neck=neck,
            head=Classifier(c, self.num_classes, dropout=self.own_dropout, name="head"),
        )


V1 = {"kind": "v1", "stem": 16, "nearest": True, "own_dropout": 0.1}
V3 = {"kind": "v3", "stem": 16, "own_dropout": 0.1}
L2 = {"layers": (2, 2, 3)}


def row(widths: tuple, attention: tuple, expand: int, last: int) -> dict[str, object]:
    """Returns the arguments of a size."""
    return {"widths": widths, "attention": attention, "expand": expand, "last": last}


def linear(kind: str, width: float) -> dict[str, object]:
    """Returns the arguments of a width of V2."""
    scaled = tuple(round_to_8(n * width) for n in (128, 256, 384, 512, 128, 192, 256))
    first = max(16, int(64 * width + 8) // 16 * 16)
    return {
        "kind": kind,
        "stem": max(16, round_to_8(min(64, 32 * width))),
        "widths": (first, *scaled[:4]),
        "attention": scaled[4:],
        "expand": 2,
        "repeats": 2,
    }


A_XXS, A_XS, A_S = (64, 80, 96), (96, 120, 144), (144, 192, 240)
XXS3 = V3 | row((16, 24, 64, 80, 128), A_XXS, 2, 512)
XS3 = V3 | row((32, 48, 96, 160, 160), A_XS, 4, 640)
S3 = V3 | row((32, 64, 128, 256, 320), A_S, 4, 960)
ROWS = {
    "MobileViT_XXS": V1 | row((16, 24, 48, 64, 80), A_XXS, 2, 320),
    "MobileViT_XS": V1 | row((32, 48, 64, 80, 96), A_XS, 4, 384),
    "MobileViT_S": V1 | row((32, 64, 96, 128, 160), A_S, 4, 640),
    "MobileViTV2_x0_5": linear("v2", 0.5),
    "MobileViTV2_x0_75": linear("v2", 0.75),
    "MobileViTV2_x1_0": linear("v2", 1.0),
    "MobileViTV2_x1_25": linear("v2", 1.25),
    "MobileViTV2_x1_5": linear("v2", 1.5),
    "MobileViTV2_x1_75": linear("v2", 1.75),
    "MobileViTV2_x2_0": linear("v2", 2.0),
    "MobileViTV3_XXS": XXS3,
    "MobileViTV3_XS": XS3,
    "MobileViTV3_S": S3,
    "MobileViTV3_XXS_L2": XXS3 | L2,
    "MobileViTV3_XS_L2": XS3 | L2,
    "MobileViTV3_S_L2": S3 | L2,
    "MobileViTV3_x0_5": linear("v3_linear", 0.5),
    "MobileViTV3_x0_75": linear("v3_linear", 0.75),
    "MobileViTV3_x1_0": linear("v3_linear", 1.0),
}
SPECS = {name: Spec(MobileViT, arguments, 256) for name, arguments in ROWS.items()}
