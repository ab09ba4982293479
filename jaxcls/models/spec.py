"""What a model is made from: a row in a family's table, and the context that all blocks share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

Dtype = Any


@dataclasses.dataclass(frozen=True)
class Ctx:
    """What every block must know and none should decide. The root sets `train` and hands it down.

    A further setting of all networks is one field here and one line in `conv.py` or `layers.py`.
    """

    train: bool = False
    dtype: Dtype = jnp.float32  # operands of convolutions and matrix products
    feature_dtype: Dtype = jnp.float32  # what flows from layer to layer
    param_dtype: Dtype = jnp.float32
    norm_dtype: Dtype = jnp.float32  # BatchNorm's arithmetic and running statistics
    head_dtype: Dtype = jnp.float32  # pooled features, classifier and logits
    bn_momentum: float = 0.9  # share of the running statistics that a training step keeps
    bn_epsilon: float = 1e-5
    bn_group: int | None = None  # images that share statistics in training; None: the whole batch
    frozen: Callable[[str], bool] | None = None  # BatchNorm path -> keeps its running statistics
    dropout: float | None = None  # before the classifier; None: the network's own rate
    downscale: bool | None = None  # see layers.Dropout; None: as PaddleClas trained the network
    drop_path: float | None = None  # of the last residual branch; None: the network's own rate
    bottleneck: int | None = (
        None  # features of a linear layer before the classifier; None: no layer
    )
    folded: bool = False  # BatchNorm into the convolution before it, see `layers.fold`
    quantise: bool = False  # train as `export.quantise` stores it, see `layers.quantised`
    by_platform: bool = False  # depthwise convolutions as a platform is fast at, see `layers.Conv`
    platform: str | None = None  # that programs are for, see `conv.unfused`; None: what is here
    kernels: bool = True  # attention by the kernels of the device there is, see transformer.attend
    remat: bool = False  # recompute each stage in the backward pass instead of keeping its inside

    def replace(self, **changes) -> "Ctx":
        """Returns a copy with `changes`."""
        return dataclasses.replace(self, **changes)


CTX_FIELDS = frozenset(f.name for f in dataclasses.fields(Ctx)) - {"train"}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A row of a family's table: `cls(**kwargs)`, trained at `size` x `size` pixels."""

    cls: Callable[..., Any]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 224
    alias_of: str = ""  # the name whose network this is: other weights and `size`, or a new name

    def alias(self, name: str, size: int | None = None) -> "Spec":
        """Returns the row of other weights, or of another name, of this network called `name`."""
        return dataclasses.replace(self, size=size or self.size, alias_of=name)
