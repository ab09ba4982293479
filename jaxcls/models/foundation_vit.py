"""Image encoders that were pre-trained without labels: CLIP, MoCo v3, MAE, BEiTv2, CAE, EVA.

Radford et al. 2021, CLIP (https://arxiv.org/abs/2103.00020); Chen et al. 2021, MoCo v3
(https://arxiv.org/abs/2104.02057); He et al. 2021, MAE (https://arxiv.org/abs/2111.06377); Peng et
al. 2022, BEiTv2 (https://arxiv.org/abs/2208.06366); Chen et al. 2022, CAE
(https://arxiv.org/abs/2202.03026); Fang et al. 2022, EVA (https://arxiv.org/abs/2211.07636). They
are ViTs that differ by a LayerNorm before the blocks (CLIP), tables of relative positions and
factors of channels (BEiTv2, CAE). "embedding" are the features times a matrix, what CLIP compares
with texts; a classifier does not use it.

As in PaddleClas: patches are cut without a bias, all have such a matrix, CLIP's activation is the
exact GELU, and CLIP_vit_base_patch16_224 is classified by the first patch, not by the class token
(`token`). Unlike it: MAE_vit_huge_patch14 is classified by the mean of the patches, as its authors
do, where PaddleClas's own code fails; EVA has a classifier, too.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from jaxcls.models.layers import Classifier, drop_path_rates
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import (
    Block,
    LayerNorm,
    RelativeBias,
    TokenStem,
    Value,
    cells,
    column,
    normal_02,
)

Array = jax.Array


class Neck(nn.Module):
    """LayerNorm of one token, or of the mean of the patches -> features, and their embedding."""

    c: Ctx
    token: int | None  # None: the mean
    epsilon: float
    embedding: int | None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array | None]:
        c = self.c
        norm = LayerNorm(c, self.epsilon, name="norm")
        if self.token is None:
            x = LayerNorm(c, name="fc_norm")(norm(x)[:, 1:].mean(1))
        else:
            x = norm(x[:, self.token])
        x = x.astype(c.head_dtype)
        if self.embedding is None:
            return x, None
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        matrix = Value(c, (x.shape[-1], self.embedding), init, name="embed")()
        return x, x @ matrix.astype(c.head_dtype)


class FoundationViT(nn.Module):
    """Patches and a class token, blocks, LayerNorm, classifier."""

    sized: ClassVar[bool] = True  # parameters depend on the size of the images
    looked: ClassVar[str] = "stage3"  # after it, the class token alone counts in the end
    c: Ctx
    num_classes: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072  # features inside the MLPs
    patch: int = 16
    epsilon: float = 1e-5  # of LayerNorm
    pre_norm: bool = False  # a LayerNorm before the blocks
    positions: bool = True
    relative: bool = False  # tables of relative positions and factors of channels
    token: int | None = 0  # that is classified; None: the mean of the patches
    embedding: int | None = 512  # features of "embedding"; None: there is none

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        table = None
        if self.relative:
            table = partial(
                RelativeBias,
                heads=self.heads,
                window=cells(images, self.patch),
                class_token=True,
                init=nn.initializers.zeros,
            )
        stem = TokenStem(
            c,
            self.width,
            self.patch,
            positions=self.positions,
            bias=False,
            epsilon=self.epsilon if self.pre_norm else None,
            name="stem",
        )
        neck, embeddings = Neck(c, self.token, self.epsilon, self.embedding, name="neck"), []

        def pooled(x: Array) -> Array:
            x, embedding = neck(x)
            embeddings.append(embedding)
            return x

        out = column(
            c,
            images,
            patch=self.patch,
            before=1,
            stem=stem,
            blocks=[
                partial(
                    Block,
                    heads=self.heads,
                    hidden=self.hidden,
                    epsilon=self.epsilon,
                    drop_path=rate,
                    gamma=0.1 if self.relative else None,
                    relative=table,
                )
                for rate in drop_path_rates(c, (self.depth,), from_zero=True)[0]
            ],
            pooled=pooled,
            head=Classifier(c, self.num_classes, kernel_init=normal_02, name="head"),
        )
        return out if self.embedding is None else out | {"embedding": embeddings[0]}


LARGE = {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096}
P14, P32 = {"patch": 14}, {"patch": 32}
CLIP = {"pre_norm": True}
BEIT = {"relative": True, "epsilon": 1e-6, "positions": False}
ROWS = {  # name -> switches, input size
    "CLIP_vit_base_patch32_224": (CLIP | P32, 224),
    "CLIP_vit_base_patch16_224": (CLIP | {"token": 1}, 224),
    "CLIP_vit_large_patch14_336": (CLIP | LARGE | P14, 336),
    "CLIP_vit_large_patch14_224": (CLIP | LARGE | P14, 224),
    "BEiTv2_vit_base_patch16_224": (BEIT, 224),
    "BEiTv2_vit_large_patch16_224": (BEIT | LARGE, 224),
    "CAE_vit_base_patch16_224": (BEIT | {"positions": True}, 224),
    "EVA_vit_giant_patch14": (P14 | {"width": 1408, "depth": 40, "heads": 16, "hidden": 6144}, 224),
    "MOCOV3_vit_small": ({"width": 384, "hidden": 1536}, 224),
    "MOCOV3_vit_base": ({}, 224),
    "MAE_vit_huge_patch14": (
        P14 | {"width": 1280, "depth": 32, "heads": 16, "hidden": 5120, "token": None},
        224,
    ),
    "MAE_vit_large_patch16": (LARGE, 224),
    "MAE_vit_base_patch16": ({}, 224),
}
SPECS = {name: Spec(FoundationViT, kw, size) for name, (kw, size) in ROWS.items()}
