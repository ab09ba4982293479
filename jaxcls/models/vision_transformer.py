"""ViT and DeiT.

Dosovitskiy et al. 2020, An image is worth 16x16 words (https://arxiv.org/abs/2010.11929); Touvron
et al. 2020, Training data-efficient image transformers (https://arxiv.org/abs/2012.12877): the same
network, trained otherwise. `_distilled` has a second token with a classifier of its own, which was
taught by RegNetY-16GF; the answer is the mean of both classifiers. Its "pre_logits" are the
features of both tokens side by side. As in PaddleClas, and unlike DeiT's own code, training too
sees the mean alone.

ViT_small_patch16_224 is not the paper's: 8 blocks of the width of ViT_base, with 8 heads, narrower
MLPs, no bias of queries, keys and values, and products divided by the root of the width of all
heads together.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import Classifier, drop_path_rates
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import Block, LayerNorm, TokenStem, column, normal_02

Array = jax.Array


class Heads(nn.Module):
    """The mean of a classifier of each token: features side by side [B, 2 D] -> [B, K]."""

    c: Ctx
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = zip(("cls", "dist"), jnp.split(x, 2, -1), strict=True)
        classifier = partial(Classifier, self.c, self.num_classes, kernel_init=normal_02)
        return sum(classifier(name=name)(y) for name, y in parts) / 2


class VisionTransformer(nn.Module):
    """Patches and class tokens, blocks, LayerNorm, classifier of the class tokens."""

    sized: ClassVar[bool] = True  # parameters depend on the size of the images
    looked: ClassVar[str] = "stage3"  # after it, the class token alone counts in the end
    c: Ctx
    num_classes: int
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    qkv_bias: bool = True
    scale: float | None = None  # of the products of queries and keys; None: 1 / sqrt(width of one)
    epsilon: float = 1e-6  # of LayerNorm
    distilled: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        tokens = ("cls_token", "dist_token") if self.distilled else ("cls_token",)
        blocks = [
            partial(
                Block,
                heads=self.heads,
                hidden=self.width * self.mlp_ratio,
                qkv_bias=self.qkv_bias,
                scale=self.scale,
                epsilon=self.epsilon,
                drop_path=rate,
            )
            for rate in drop_path_rates(c, (self.depth,), from_zero=True)[0]
        ]
        norm = LayerNorm(c, self.epsilon, name="neck")
        if self.distilled:
            head = Heads(c, self.num_classes, name="head")
        else:
            head = Classifier(c, self.num_classes, kernel_init=normal_02, name="head")
        return column(
            c,
            images,
            patch=self.patch,
            before=len(tokens),
            stem=TokenStem(c, self.width, self.patch, tokens, name="stem"),
            blocks=blocks,
            pooled=lambda x: norm(x[:, : len(tokens)]).reshape(x.shape[0], -1),
            head=head,
        )


TINY = {"width": 192, "heads": 3}
SMALL = {"width": 384, "heads": 6}
LARGE = {"width": 1024, "depth": 24, "heads": 16}
P32 = {"patch": 32}
DISTILLED = {"distilled": True}
LEGACY = {"depth": 8, "heads": 8, "mlp_ratio": 3, "qkv_bias": False, "scale": 768**-0.5}
ROWS = {  # name -> switches, input size
    "ViT_small_patch16_224": (LEGACY | {"epsilon": 1e-5}, 224),
    "ViT_base_patch16_224": ({}, 224),
    "ViT_base_patch16_384": ({}, 384),
    "ViT_base_patch32_384": (P32, 384),
    "ViT_large_patch16_224": (LARGE, 224),
    "ViT_large_patch16_384": (LARGE, 384),
    "ViT_large_patch32_384": (LARGE | P32, 384),
    "DeiT_tiny_patch16_224": (TINY, 224),
    "DeiT_small_patch16_224": (SMALL, 224),
    "DeiT_base_patch16_224": ({}, 224),
    "DeiT_base_patch16_384": ({}, 384),
    "DeiT_tiny_distilled_patch16_224": (TINY | DISTILLED, 224),
    "DeiT_small_distilled_patch16_224": (SMALL | DISTILLED, 224),
    "DeiT_base_distilled_patch16_224": (DISTILLED, 224),
    "DeiT_base_distilled_patch16_384": (DISTILLED, 384),
}
SPECS = {name: Spec(VisionTransformer, kw, size) for name, (kw, size) in ROWS.items()}
