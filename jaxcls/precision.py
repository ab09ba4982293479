"""Precisions: what computes in which dtype, and the loss scale that float16 needs.

| name                | convolutions, matmuls | between layers | parameters | BatchNorm | head    |
|---------------------|-----------------------|----------------|------------|-----------|---------|
| float32 = O0        | float32               | float32        | float32    | float32   | float32 |
| O1, O1_bfloat16     | half                  | float32        | float32    | float32   | float32 |
| float16 = O2        | half                  | half           | float32    | float32   | float32 |
| bfloat16            | half                  | half           | float32    | float32   | float32 |
| O3, O3_bfloat16     | half                  | half           | half       | float32   | half    |
| float64             | float64               | float64        | float64    | float64   | float64 |

O0 to O3 are the levels of MindSpore's and Apex's mixed precision. What stays float32: in O1 all but
the operations of a list of safe ones; in O2 only what is unsafe in half precision (parameters, so
that small updates are not rounded away; BatchNorm; head and loss); in O3 nothing that passes from
layer to layer and no parameter. "BatchNorm" is its statistics and its arithmetic: its inputs and
outputs are what flows between layers, its scale and shift parameters.

The head, from the pooled features to the logits, departs from the levels' source, which casts the
classifier's matmul like any other in O1 and O2. Here it stays in float32: a logit of 20 is rounded
to 1/64 in float16 and to 1/8 in bfloat16, as much as what tells close classes apart, while the head
is 1 in 2,000 of ResNet50's multiply-adds.

In all of them the loss, the gradients after unscaling and the optimizer's state are float32
(float64 in float64). "auto" is bfloat16 on accelerators and float32 on a CPU.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxcls.config import choose, expect, taken

_F16, _BF16, _F32, _F64 = jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64

# name: (compute, between layers, parameters, BatchNorm, head)
DTYPES = {
    "float32": (_F32, _F32, _F32, _F32, _F32),
    "O0": (_F32, _F32, _F32, _F32, _F32),
    "O1": (_F16, _F32, _F32, _F32, _F32),
    "O1_bfloat16": (_BF16, _F32, _F32, _F32, _F32),
    "float16": (_F16, _F16, _F32, _F32, _F32),
    "O2": (_F16, _F16, _F32, _F32, _F32),
    "bfloat16": (_BF16, _BF16, _F32, _F32, _F32),
    "O3": (_F16, _F16, _F16, _F32, _F16),
    "O3_bfloat16": (_BF16, _BF16, _BF16, _F32, _BF16),
    "float64": (_F64, _F64, _F64, _F64, _F64),
}


def dtypes(name: str, key: str = "config.precision.name") -> dict[str, Any]:
    """Returns the fields of `models.spec.Ctx` for a precision that `DTYPES` has.

    Raises:
      ValueError: it is float64, without JAX's 64-bit mode.
    """
    if DTYPES[name][0] == _F64 and not jax.config.jax_enable_x64:
        raise ValueError(
            f'{key} = "float64": JAX computes in 64 bits only with JAX_ENABLE_X64=1 in the '
            "environment"
        )
    fields = ("dtype", "feature_dtype", "param_dtype", "norm_dtype", "head_dtype")
    return dict(zip(fields, DTYPES[name], strict=True))


def matmul(name: str) -> str:
    """Returns what `jax.default_matmul_precision` is to be."""
    # TF32 on GPUs and bfloat16 passes on TPUs are not float32; in half precision they suffice.
    return "default" if jnp.finfo(DTYPES[name][0]).bits == 16 else "highest"


class LossScale(struct.PyTreeNode):
    """The factor on the loss that keeps small float16 gradients from vanishing, and its counters.

    Part of the train state in every precision, so that skipped steps are counted in all of them.
    The rule is that of PyTorch's GradScaler and MindSpore's DynamicLossScaler. Flax's DynamicScale,
    which grows one step later, scales, unscales and updates in one call around one gradient;
    accumulating over micro-batches needs these apart: each micro-batch is scaled, their mean is
    unscaled and tested, and the scale is updated once a step.
    """

    scale: jax.Array  # float32
    good_steps: jax.Array  # int32, finite steps since the last change of the scale
    skipped: jax.Array  # int32, steps that were not finite, in the whole run
    skipped_in_a_row: jax.Array  # int32, up to the last step
    # A scale that never moves, static or 1, is a dynamic one whose factors are 1.
    growth: float = struct.field(pytree_node=False, default=1.0)
    growth_interval: int = struct.field(pytree_node=False, default=1)
    backoff: float = struct.field(pytree_node=False, default=1.0)
    min_scale: float = struct.field(pytree_node=False, default=0.0)

    @classmethod
    def start(cls, scale: float = 1.0, **rule: float) -> "LossScale":
        """Returns the loss scale of a run's first step."""

        def zero():  # one array each: the train state is donated, and a buffer only once
            return jnp.zeros((), jnp.int32)

        return cls(jnp.full((), scale, jnp.float32), zero(), zero(), zero(), **rule)

    def scale_loss(self, loss: jax.Array) -> jax.Array:
        """Returns the loss to differentiate."""
        return loss * self.scale

    def unscale(self, grads: Any) -> Any:
        """Returns the gradients of the loss itself, in float32 at least."""
        return jax.tree.map(
            lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)) / self.scale, grads
        )

    def update(self, finite: jax.Array) -> "LossScale":
        """Returns the state after a step.

        The scale grows at the last of `growth_interval` finite steps in a row, unless float32 ends
        there, and shrinks, at least to `min_scale`, when a step is not finite.

        Args:
          finite: bool scalar, whether loss and gradients of the step were.
        """
        good_steps = self.good_steps + 1
        grow = good_steps >= self.growth_interval
        larger = self.scale * self.growth
        grown = jnp.where(grow & jnp.isfinite(larger), larger, self.scale)
        shrunk = jnp.maximum(self.scale * self.backoff, self.min_scale)
        return self.replace(
            scale=jnp.where(finite, grown, shrunk),
            good_steps=jnp.where(finite & ~grow, good_steps, 0),
            skipped=self.skipped + jnp.where(finite, 0, 1),
            skipped_in_a_row=jnp.where(finite, 0, self.skipped_in_a_row + 1),
        )


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of a network, and how its loss is scaled."""

    name: str  # never "auto"
    dtype: Any  # of the inputs of convolutions and matmuls
    feature_dtype: Any  # of what flows between layers
    param_dtype: Any  # of parameters
    norm_dtype: Any  # of BatchNorm's arithmetic and running statistics
    head_dtype: Any  # of the last layers, from pooled features to logits
    matmul_precision: str  # for jax.default_matmul_precision
    initial_loss_scale: Callable[[], LossScale]  # of a run's first step
    max_skipped: int  # skipped steps in a row that stop the run
    compiler_options: dict[str, Any]  # of XLA

    def jit(self, f: Callable, **shardings: Any) -> Callable:
        """Returns `jax.jit(f, **shardings)` that multiplies and is compiled as this asks for."""

        @wraps(f)
        def with_precision(*args):
            with jax.default_matmul_precision(self.matmul_precision):
                return f(*args)

        return jax.jit(with_precision, compiler_options=self.compiler_options, **shardings)


# Of programs that compute the same bits every time. TPUs do so without any option.
DETERMINISTIC = {"gpu": {"xla_gpu_deterministic_ops": True}}


def make(
    *, name: str, loss_scale: str, deterministic: bool, platform: str, **keys: Any
) -> Precision:
    """Returns the precision of `config.precision` on a platform ("cpu", "gpu" or "tpu").

    Args:
      name, loss_scale, ...: `config.precision`: a name of `DTYPES`, one of `LOSS_SCALES` and what
        that takes.
      deterministic: programs are compiled with `DETERMINISTIC`.
      platform: that "auto" goes by.

    Raises:
      ValueError: an unknown name; float64 without JAX's 64-bit mode; a key out of its range, or set
        though the loss scaling does not take it.
    """
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    name = choose("config.precision.name", name, (*DTYPES, "auto"))
    kinds = dtypes(name)
    if loss_scale == "auto":
        loss_scale = "dynamic" if kinds["dtype"] == _F16 else "none"
    scaling = LOSS_SCALES[choose("config.precision.loss_scale", loss_scale, (*LOSS_SCALES, "auto"))]
    start, max_skipped = scaling(**taken("precision", f"loss_scale = {loss_scale}", scaling, keys))

    return Precision(
        name,
        **kinds,
        matmul_precision=matmul(name),
        initial_loss_scale=start,
        max_skipped=max_skipped,
        compiler_options=DETERMINISTIC.get(platform, {}) if deterministic else {},
    )


# -- Loss scalings: (keys of config.precision) -> how LossScale starts, and max_skipped ------------

Scaling = tuple[Callable[[], LossScale], int]


def none() -> Scaling:
    """No scaling. Nothing backs off: after a step that was not finite the next would fail too."""
    return LossScale.start, 1


def static(*, scale: float, max_skipped: int) -> Scaling:
    """A scale that never moves."""
    expect(0 < scale < math.inf, "precision.scale", scale, "a number above 0")
    expect(max_skipped >= 1, "precision.max_skipped", max_skipped, "at least 1 step")
    return partial(LossScale.start, scale), max_skipped


def dynamic(
    *,
    scale: float,
    growth: float,
    growth_interval: int,
    backoff: float,
    min_scale: float,
    max_skipped: int,
) -> Scaling:
    """A scale that grows while steps are finite, and shrinks after one that was not."""
    start, _ = static(scale=scale, max_skipped=max_skipped)
    expect(1 < growth < math.inf, "precision.growth", growth, "a factor above 1")
    expect(growth_interval >= 1, "precision.growth_interval", growth_interval, "at least 1 step")
    expect(0 < backoff < 1, "precision.backoff", backoff, "a factor between 0 and 1")
    want = f"a number above 0, at most scale = {scale}"
    expect(0 < min_scale <= scale, "precision.min_scale", min_scale, want)
    start = partial(start, growth=growth, growth_interval=growth_interval)
    return partial(start, backoff=backoff, min_scale=min_scale), max_skipped


LOSS_SCALES = {f.__name__: f for f in (none, static, dynamic)}


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number in the tree is finite, a bool scalar."""
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))
