"""What networks are put together with: blocks to stages, and these to a network."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxcls.models.spec import Ctx

Array = jax.Array

Factory = Callable[..., nn.Module]  # of a block; called as factory(c, name="block1")


def global_mean(x: Array, c: Ctx) -> Array:
    """Returns the mean over the image, in `c.head_dtype`: [B, H, W, D] -> [B, D]."""
    return x.astype(c.head_dtype).mean((1, 2))


def stages_of(depths: Iterable[int], block: Callable[[int, int], Factory]) -> list[list[Factory]]:
    """Returns the blocks of each stage: block(i, j) is block j of stage i, both from 0."""
    return [[block(i, j) for j in range(depth)] for i, depth in enumerate(depths)]


class Stage(nn.Module):
    """Blocks one after the other, after a pool where there is one."""

    c: Ctx
    blocks: tuple[Factory, ...]
    pool: Callable[[Any], Any] | None = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.pool is not None:
            x = self.pool(x)
        for i, block in enumerate(self.blocks, 1):
            x = block(self.c, name=f"block{i}")(x)
        return x


def remat(cls: type[nn.Module], c: Ctx) -> type[nn.Module]:
    """Returns the class of a stage, recomputed in the backward pass where `c.remat` says so."""
    return nn.remat(cls) if c.remat else cls


def run_stages(
    c: Ctx, x: Any, stages: Sequence[Sequence[Factory]], pool: Callable[[Any], Any] | None = None
) -> list[Any]:
    """Returns the features after each stage; `pool` is between the stages."""
    features = []
    for i, blocks in enumerate(stages, 1):
        x = remat(Stage, c)(c, tuple(blocks), pool if features else None, name=f"stage{i}")(x)
        features.append(x)
    return features


def outputs(
    c: Ctx, features: Sequence[Array], x: Array, head: Callable[[Array], Array]
) -> dict[str, Array]:
    """Returns what a network does: {"stage1": ..., "pre_logits": [B, D], "logits": [B, K]}.

    Args:
      c: the context.
      features: after each stage.
      x: what the head sees, [B, D], or [B, H, W, D] to be averaged.
      head: pre_logits -> logits.
    """
    out = {f"stage{i}": after for i, after in enumerate(features, 1)}
    out["pre_logits"] = x if x.ndim == 2 else global_mean(x, c)
    return out | {"logits": head(out["pre_logits"])}


def forward(
    c: Ctx,
    images: Array,
    *,
    stem: Callable[[Array], Array],
    stages: Sequence[Sequence[Factory]],
    pool: Callable[[Array], Array] | None = None,
    neck: Callable[[Array], Array] | None = None,
    head: Callable[[Array], Array],
) -> dict[str, Array]:
    """Returns the outputs of a network that is stem, stages, neck, mean over the image and head.

    It is called in a compact method, with modules that have their names. See `run_stages` and
    `outputs`.
    """
    features = run_stages(c, stem(images.astype(c.feature_dtype)), stages, pool)
    return outputs(c, features, features[-1] if neck is None else neck(features[-1]), head)
