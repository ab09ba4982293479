"""Where a network looked: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import precision
from jaxcls.network import Network

BATCH = 8  # images that are computed together: one program, whatever their number


def grad_cam(network: Network, variables: Any, images: np.ndarray) -> np.ndarray | None:
    """Returns how much each place spoke for the predicted class, float32 [N, H, W] in [0, 1].

    The features of the last stage, weighted by the mean gradient of the largest logit, what is
    negative cut off. None for a network whose last stage is no map, or where what it returns as
    "stageN" is not what its submodule of that name does (HRNet, GoogLeNet).

    Args:
      network: that predicts.
      variables: of it.
      images: uint8 [N, S, S, C], as `network.transform` makes them.
    """
    shape = jax.ShapeDtypeStruct((BATCH, *images.shape[1:]), images.dtype)
    found = _stage(network, variables, shape)
    if found is None:
        return None
    stage, features = found

    def cam(variables, images):
        def score(zero):
            def add(call, args, kwargs, context):
                y = call(*args, **kwargs)
                return y + zero if _is(context, stage) else y

            with nn.intercept_methods(add), _matmul(network):
                outputs = network.module.apply(variables, network.normalise(images), train=False)
            return outputs["logits"].max(-1).sum().astype(jnp.float32), outputs[stage]

        zero = jnp.zeros(features.shape, features.dtype)
        gradient, y = jax.grad(score, has_aux=True)(zero)
        weights = gradient.astype(jnp.float32).mean((1, 2), keepdims=True)
        heat = jax.nn.relu((weights * y).sum(-1))
        return heat / jnp.maximum(heat.max((1, 2), keepdims=True), 1e-12)

    cam, parts = jax.jit(cam), []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        padded = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), 0)])
        parts.append(np.asarray(cam(variables, padded), np.float32)[: len(part)])
    return np.concatenate(parts) if parts else None


def _stage(network: Network, variables: Any, images: Any) -> tuple[str, Any] | None:
    """Returns name and shape of the last stage, if it is what its submodule returns."""
    seen, exact = {}, {}

    def look(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1:
            seen[context.module.path[0]] = y
        return y

    def run(variables, images):
        with nn.intercept_methods(look):
            outputs = network.module.apply(variables, network.normalise(images), train=False)
        exact.update({name: y is seen.get(name) for name, y in outputs.items()})
        return outputs

    outputs = jax.eval_shape(run, variables, images)
    stages = {int(name[5:]): name for name in outputs if re.fullmatch(r"stage\d+", name)}
    last = stages[max(stages)] if stages else None
    if not exact.get(last) or outputs[last].ndim != 4:
        return None
    return last, outputs[last]


def _is(context: Any, stage: str) -> bool:
    return context.module.path == (stage,) and context.method_name == "__call__"


def _matmul(network: Network) -> Any:
    return jax.default_matmul_precision(precision.matmul(network.precision))
