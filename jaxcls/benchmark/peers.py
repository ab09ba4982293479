"""The same networks in other JAX code, each with a plain step, for `traffic --compare=...`."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls import program

Array = jax.Array


class Peer(NamedTuple):
    """A network in bfloat16, with parameters and statistics in float32."""

    variables: Any  # (parameters, statistics), as shapes
    apply: Callable[..., Any]  # (parameters, statistics, images) -> (logits, new statistics)


# -- flax: nn.Conv, nn.BatchNorm and nn.MultiHeadDotProductAttention as they come ------------------

Conv = partial(nn.Conv, use_bias=False, dtype=jnp.bfloat16)
Norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=jnp.bfloat16)


class ResNet(nn.Module):
    """As Flax's ImageNet example has it: the stride in the 3x3 convolution, bfloat16 throughout."""

    depths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(Norm()(Conv(64, (7, 7), (2, 2), [(3, 3), (3, 3)])(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                strides, width = (2, 2) if i and not j else (1, 1), 64 * 2**i
                y = nn.relu(Norm()(Conv(width, (1, 1))(x)))
                y = nn.relu(Norm()(Conv(width, (3, 3), strides)(y)))
                y = Norm(scale_init=nn.initializers.zeros)(Conv(4 * width, (1, 1))(y))
                if x.shape != y.shape:
                    x = Norm()(Conv(4 * width, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(1000, dtype=jnp.bfloat16)(x.mean((1, 2)))


class ViT(nn.Module):
    """Patches of 16 pixels, blocks that normalise first, a class token."""

    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    width: int = 768

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense, norm = (
            partial(nn.Dense, dtype=jnp.bfloat16),
            partial(nn.LayerNorm, dtype=jnp.bfloat16),
        )
        x = nn.Conv(self.width, (16, 16), (16, 16), dtype=jnp.bfloat16)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width), jnp.bfloat16)
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        x += self.param("position", nn.initializers.normal(0.02), x[:1].shape).astype(x.dtype)
        for _ in range(self.depth):
            x += nn.MultiHeadDotProductAttention(self.heads, dtype=jnp.bfloat16)(norm()(x))
            x += dense(self.width)(nn.gelu(dense(self.mlp_ratio * self.width)(norm()(x))))
        return dense(1000)(norm()(x)[:, 0])


FLAX = {
    "ResNet50": partial(ResNet, (3, 4, 6, 3)),
    "ResNet101": partial(ResNet, (3, 4, 23, 3)),
    "ResNet152": partial(ResNet, (3, 8, 36, 3)),
    "ViT_small_patch16_224": partial(ViT, 8, 8, 3),
    "ViT_base_patch16_224": ViT,
}


def flax(name: str, shape: tuple[int, int, int]) -> Peer:
    """Returns a network of plain Flax layers, for images [H, W, C]."""
    module = FLAX[name]()
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def apply(params: Any, stats: Any, images: Array) -> tuple[Array, Any]:
        given = {"params": params, "batch_stats": stats}
        logits, new = module.apply(given, images, mutable=["batch_stats"])
        return logits, new.get("batch_stats", {})

    return Peer((variables["params"], variables.get("batch_stats", {})), apply)


# -- keras: keras.applications on its JAX backend --------------------------------------------------

KERAS = {f"EfficientNetB{n}": f"EfficientNetB{n}" for n in range(8)} | {
    **{name: name for name in ("ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19")},
    **{f"DenseNet{n}": f"DenseNet{n}" for n in (121, 169, 201)},
    "MobileNetV1": "MobileNet",
    "MobileNetV2": "MobileNetV2",
    "MobileNetV3_large_x1_0": "MobileNetV3Large",
    "MobileNetV3_small_x1_0": "MobileNetV3Small",
    "InceptionV3": "InceptionV3",
    "ConvNeXt_tiny": "ConvNeXtTiny",
    "ConvNeXt_small": "ConvNeXtSmall",
}


def keras(name: str, shape: tuple[int, int, int]) -> Peer:
    """Returns a network of keras.applications, for images [H, W, C]."""
    module = import_keras()
    module.config.set_dtype_policy("mixed_bfloat16")
    network = getattr(module.applications, KERAS[name])(
        weights=None, classifier_activation=None, input_shape=shape
    )
    values = lambda variables: [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
    variables = values(network.trainable_variables), values(network.non_trainable_variables)
    return Peer(variables, partial(network.stateless_call, training=True))


def import_keras() -> Any:
    """Returns the module, with its backend JAX.

    Raises:
      ValueError: it is not installed, or has another backend.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras as module
    except ImportError as e:
        raise ValueError(f"--compare=keras needs keras (pip install keras): {e}") from e
    if module.backend.backend() != "jax":
        raise ValueError(f"--compare=keras: Keras's backend is {module.backend.backend()}, not jax")
    return module


PEERS = {"flax": (flax, FLAX), "keras": (keras, KERAS)}


def lower(peer: Peer, built: program.Program) -> Any:
    """Returns a plain train step, lowered: cross-entropy, SGD with momentum, top-1.

    Args:
      peer: the network.
      built: whose images, batch and devices it has.
    """
    tx, image = optax.sgd(0.1, momentum=0.9), built.network.image
    mean, std = np.float32(image.mean), np.float32(image.std)

    def step(state: Any, batch: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
        params, stats, opt_state = state

        def loss_fn(params: Any) -> tuple[Array, Any]:
            images = (batch["image"] / 255 - mean) / std
            logits, new = peer.apply(params, stats, images.astype(jnp.bfloat16))
            logits = logits.astype(jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), (logits, new)

        (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        top1 = (logits.argmax(-1) == batch["label"]).mean()
        state = optax.apply_updates(params, updates), stats, opt_state
        return state, {"loss": loss, "top1": top1}

    batch, layout = built.plan.batch_size, built.layout
    params, stats = peer.variables
    arguments = (
        (params, stats, jax.eval_shape(tx.init, params)),
        {
            "image": jax.ShapeDtypeStruct((batch, *image.shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )
    shardings = {"in_shardings": (layout.whole, layout.rows), "out_shardings": layout.whole}
    return jax.jit(step, donate_argnums=0, **shardings).lower(*arguments)
