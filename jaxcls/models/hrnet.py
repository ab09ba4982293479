"""HRNet for classification: branches of four sizes side by side, exchanging features all along.

Wang et al. 2019, Deep high-resolution representation learning for visual recognition
(https://arxiv.org/abs/1908.07919); `_W18` has 18 channels in the branch of the largest size.
`SE_` has squeeze-and-excitation (https://arxiv.org/abs/1709.01507) in every residual branch.
`stage2` to `stage4` of the outputs are the features of the branch of the largest size, a quarter of
the image's.

As in PaddleClas, and unlike the authors' code, the neck's convolutions have no bias beside their
BatchNorm. Where the image's sides are no multiples of 32, which both refuse, what is enlarged to a
larger branch is cut to its size.
"""

from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    LinearSqueezeExcite,
    Stem,
    drop_path_rates,
    outputs,
    run_stages,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Basic(nn.Module):
    """Two 3x3 convolutions and the identity."""

    c: Ctx
    width: int
    se: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = ConvBN(self.c, self.width, 3, act=nn.relu, name="conv1")(x)
        y = ConvBN(self.c, self.width, 3, name="conv2")(y)
        if self.se:
            y = LinearSqueezeExcite(self.c, max(y.shape[-1] // 16, 1), name="se")(y)
        return nn.relu(x + DropPath(self.c, self.drop_path, name="drop_path")(y))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the last has four times the width."""

    c: Ctx
    width: int
    project: bool
    se: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = ConvBN(self.c, self.width, act=nn.relu, name="conv1")(x)
        y = ConvBN(self.c, self.width, 3, act=nn.relu, name="conv2")(y)
        y = ConvBN(self.c, self.width * 4, name="conv3")(y)
        if self.se:
            y = LinearSqueezeExcite(self.c, max(y.shape[-1] // 16, 1), name="se")(y)
        if self.project:
            x = ConvBN(self.c, self.width * 4, name="short")(x)
        return nn.relu(x + DropPath(self.c, self.drop_path, name="drop_path")(y))


class Down(nn.Module):
    """3x3 convolutions that each halve the size; the last may change the width."""

    c: Ctx
    features: int
    times: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(1, self.times):
            x = ConvBN(self.c, x.shape[-1], 3, 2, act=nn.relu, name=f"conv{i}")(x)
        return ConvBN(self.c, self.features, 3, 2, name=f"conv{self.times}")(x)


class Up(nn.Module):
    """1x1 convolution, enlarged to `size` by repeating pixels."""

    c: Ctx
    features: int
    times: int  # of doubling
    size: tuple[int, int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvBN(self.c, self.features, name="conv1")(x)
        x = x.repeat(2**self.times, axis=1).repeat(2**self.times, axis=2)
        return x[:, : self.size[0], : self.size[1]]


class Exchange(nn.Module):
    """Basic blocks in each branch; then each branch becomes the sum of all, brought to its size."""

    c: Ctx
    widths: tuple[int, ...]  # of each branch, the largest size first
    drop_paths: tuple[float, ...]  # one for each basic block of a branch
    grow: bool  # before all, make a further branch from the last
    se: bool

    @nn.compact
    def __call__(self, xs: Array | list[Array]) -> list[Array]:
        c = self.c
        if self.grow:
            n = len(self.widths)
            last = xs if n == 2 else xs[-1]
            if n == 2:  # what stage1 gives is no branch yet
                xs = [ConvBN(c, self.widths[0], 3, act=nn.relu, name="transition1")(last)]
            new = ConvBN(c, self.widths[-1], 3, 2, act=nn.relu, name=f"transition{n}")(last)
            xs = [*xs, new]
        ys = []
        for i, (x, width) in enumerate(zip(xs, self.widths, strict=True), 1):
            for j, drop_path in enumerate(self.drop_paths, 1):
                x = Basic(c, width, self.se, drop_path, name=f"branch{i}_{j}")(x)
            ys.append(x)
        out = []
        for i, (y, width) in enumerate(zip(ys, self.widths, strict=True)):
            total = y
            for j, other in enumerate(ys):
                name = f"from{j + 1}_to{i + 1}"
                if j < i:
                    total += Down(c, width, i - j, name=name)(other)
                elif j > i:
                    total += Up(c, width, j - i, y.shape[1:3], name=name)(other)
            out.append(nn.relu(total))
        return out


class Neck(nn.Module):
    """Widens each branch, then sums them from the largest size down to the smallest."""

    c: Ctx
    se: bool

    @nn.compact
    def __call__(self, xs: list[Array]) -> Array:
        c = self.c
        widths = (32, 64, 128, 256)
        first, *others = (
            Bottleneck(c, width, True, self.se, drop_path=0.0, name=f"branch{i}")(x)
            for i, (width, x) in enumerate(zip(widths, xs, strict=True), 1)
        )
        y = first
        for i, x in enumerate(others, 1):
            y = x + ConvBN(c, x.shape[-1], 3, 2, act=nn.relu, name=f"down{i}")(y)
        return ConvBN(c, 2048, act=nn.relu, name="conv1")(y)


class HRNet(nn.Module):
    """Stem, bottlenecks, three stages of two, three and four branches, neck, head."""

    c: Ctx
    num_classes: int
    width: int  # of the branch of the largest size; the next ones double it
    exchanges: tuple[int, ...] = (1, 4, 3)  # in stage2, stage3, ...
    se: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        first, *others = drop_path_rates(c, (4, *(4 * n for n in self.exchanges)))
        bottlenecks = [
            partial(Bottleneck, width=64, project=j == 0, se=self.se, drop_path=rate)
            for j, rate in enumerate(first)
        ]
        exchange = lambda i, j: partial(
            Exchange,
            widths=tuple(self.width * 2**branch for branch in range(i + 2)),
            drop_paths=tuple(others[i][4 * j : 4 * j + 4]),
            grow=j == 0,
            se=self.se,
        )
        stages = [bottlenecks, *stages_of(self.exchanges, exchange)]
        x = Stem(c, ((64, 3, 2), (64, 3, 2)), pool=False, name="stem")(
            images.astype(c.feature_dtype)
        )
        one, *several = run_stages(c, x, stages)
        largest = [one, *(branches[0] for branches in several)]
        head = Classifier(c, self.num_classes, name="head")
        return outputs(c, largest, Neck(c, self.se, name="neck")(several[-1]), head)


SPECS = {
    f"HRNet_W{width}_C": Spec(HRNet, {"width": width}) for width in (18, 30, 32, 40, 44, 48, 60, 64)
}
SPECS["SE_HRNet_W64_C"] = Spec(HRNet, {"width": 64, "se": True})
SPECS |= {
    f"{name}_ssld": SPECS[name].alias(name)
    for name in ("HRNet_W18_C", "HRNet_W48_C", "SE_HRNet_W64_C")
}
