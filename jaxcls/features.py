"""What a network makes of the images of a source, in their order, a batch at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import precision
from jaxcls.config import check_eval_batch
from jaxcls.data.feed import Feed
from jaxcls.network import Network, Variables

CLASSIFIER = ("head", "fc")  # path of the linear classifier


def each(
    compute: Callable[[jax.Array], dict[str, jax.Array]],
    feed: Feed,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda images: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what `compute` makes of each batch, on the host, and "number" and "label" of its rows.

    "number" is that of the image in the source, int [R]. Images that cannot be read and may be
    skipped have no row. The images are read once, and memory is that of a few batches.

    Args:
      compute: uint8 images [B, H, W, C] -> arrays [B, ...].
      feed: of the images, as they are evaluated.
      batch_size: over all devices.
      progress: told the number of images that are done, before each batch.

    Raises:
      ValueError: an image that cannot be read.
    """
    check_eval_batch(batch_size, feed.layout.mesh.size)

    def rows(batch, first, computed):
        kept = np.flatnonzero(batch["mask"])
        found = {name: np.asarray(value)[kept] for name, value in computed.items()}
        return found | {"number": first + kept, "label": batch["label"][kept]}

    late: list[Any] = []  # one batch, so that the device does not wait
    with feed.eval_batches(batch_size) as batches:
        for number, batch in enumerate(batches):
            progress(min(number * batch_size, len(feed.source)))
            computed = compute(feed.put(batch)["image"])
            if late:
                yield rows(*late)
            kept = {name: batch[name] for name in ("label", "mask")}
            late = [kept, number * batch_size, computed]
    if late:
        yield rows(*late)


def of_classifier(network: Network) -> Callable[[Variables, jax.Array], jax.Array]:
    """Returns f(variables, images) -> what the network's classifier sees, float32 [B, D].

    That is "pre_logits" as a rule: features of the whole image. Some old networks scale them.

    Raises:
      ValueError: its classifier is not a linear layer.
    """
    tree = network.shapes["params"]
    for name in CLASSIFIER:
        tree = tree.get(name, {})
    if tree.keys() != {"kernel", "bias"} or len(tree["kernel"].shape) != 2:
        raise ValueError(
            f"the classifier of {network.name} is not a linear layer on features of the whole "
            "image: it cannot be trained by itself; fine-tune, with configs/finetune.py"
        )

    def features(variables: Variables, images: jax.Array) -> jax.Array:
        seen = []

        def note(call, args, kwargs, context):
            if context.module.path == CLASSIFIER and context.method_name == "__call__":
                seen.append(args[0])
            return call(*args, **kwargs)

        with (
            jax.default_matmul_precision(precision.matmul(network.precision)),
            nn.intercept_methods(note),
        ):
            network.module.apply(variables, network.normalise(images))
        return seen[0].astype(jnp.float32)

    return features
