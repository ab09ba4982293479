"""What an export computes: from images as they come to logits and probabilities."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxcls import trees
from jaxcls.models import layers
from jaxcls.network import Network, Variables

INPUTS = ("uint8", "float_nchw")
PRECISIONS = ("float32", "bfloat16", "float16")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that one export is for


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A network with its weights, as it is exported."""

    network: Network
    variables: Variables
    input: str  # one of `INPUTS`
    loaded: tuple[Network, Variables] | None = None  # before BatchNorms were folded

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: [H, W, C], or [C, H, W] of "float_nchw"."""
        size, channels = self.network.image.shown, self.network.image.channels
        return (size, size, channels) if self.input == "uint8" else (channels, size, size)

    @property
    def dtype(self) -> Any:
        """Of an image."""
        return np.uint8 if self.input == "uint8" else np.float32

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(x.nbytes for x in jax.tree.leaves(self.variables))

    def spec(self, batch: int | str = "b") -> jax.ShapeDtypeStruct:
        """Returns shape and dtype of images, for a batch of any size or of that one."""
        shape = export.symbolic_shape(", ".join(map(str, (batch, *self.shape))))
        return jax.ShapeDtypeStruct(shape, self.dtype)

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns {"logits": [B, K], "probabilities": [B, K]}, float32.

        Args:
          images: uint8 [B, H, W, C] after resizing and cropping; of "float_nchw" [B, C, H, W], of
            pixels from 0 to 1, less the mean, through the standard deviation.
        """
        if self.input == "float_nchw":
            images = images.transpose(0, 2, 3, 1)
        logits = self.network.predict(self.variables, images)["logits"].astype(jnp.float32)
        return {"logits": logits, "probabilities": self.network.probabilities(logits)}

    def given(self, pixels: np.ndarray) -> np.ndarray:
        """Returns images [B, H, W, C], as `network.transform` makes them, as the program wants."""
        if self.input == "uint8":
            return pixels
        return np.asarray(self.network.normalise(pixels), np.float32).transpose(0, 3, 1, 2)


def make(
    network: Network, variables: Variables, *, precision: str = "float32", input: str = "uint8"
) -> Program:
    """Returns the program of a network, BatchNorms folded.

    Args:
      network, variables: of `jaxcls.network.load`.
      precision: one of `PRECISIONS`: of the convolutions, and between them.
      input: one of `INPUTS`.
    """
    loaded, epsilon = variables, network.module.c.bn_epsilon
    # other programs have convolutions of their own, and none the kernels of the device that is here
    options = {**network.folded.options, "by_platform": False, "kernels": False}
    folded = dataclasses.replace(network, options=options, precision=precision)
    variables = layers.fold(variables, folded.shapes, epsilon)
    compute = folded.module.c.dtype
    short = jnp.finfo(compute).bits == 16

    def stored(path: str, x: Any) -> Any:
        # convolutions take their kernels in 16 bits, the head stays as it is
        return x.astype(compute) if short and path.endswith("kernel") and x.ndim == 4 else x

    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
    return Program(folded, trees.map_with_path(stored, wide), input, (network, loaded))
