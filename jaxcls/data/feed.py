"""The way of images to the devices: a split of the data, its transform, its batches."""

import dataclasses
from collections.abc import Callable

import jax

from jaxcls import sharding
from jaxcls.config import Plan
from jaxcls.data import loader
from jaxcls.data.access import Source
from jaxcls.data.ops import Transform
from jaxcls.data.sources import Data


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """Images for training or for evaluation."""

    data: Data
    source: Source  # one of its splits, perhaps behind a cache
    transform: Transform  # of each image, on the host
    layout: sharding.Layout
    # (what the batch has in place of images, on the devices) -> images: of a cache there
    images: Callable[[jax.Array], jax.Array] | None = None

    def train_batches(self, plan: Plan, seed: int, start_step: int) -> loader.Batches:
        """Returns an iterator over the training batches of this process, from `start_step` on."""
        return loader.train_batches(
            self.source,
            self.transform,
            batch_size=plan.batch_size,
            seed=seed,
            start_step=start_step,
            num_steps=plan.total_steps,
            sampling=self.data.sampling,
            repeats=self.data.repeats,
            unlabelled_share=self.data.unlabelled_share,
            rows=sharding.local_rows(self.layout.rows, plan.batch_size),
            on_bad_image=self.data.on_bad_image,
            max_bad_images=self.data.max_bad_images,
            options=self.data.loader,
        )

    def eval_batches(self, batch_size: int) -> loader.Batches:
        """Returns an iterator over all images once; the last batch is filled up and masked."""
        return loader.eval_batches(
            self.source,
            self.transform,
            batch_size=batch_size,
            rows=sharding.local_rows(self.layout.rows, batch_size),
            on_bad_image=self.data.on_bad_image,
            max_bad_images=self.data.max_bad_images,
            options=self.data.loader,
        )

    def put(self, batch: loader.Batch) -> dict[str, jax.Array]:
        """Returns the global batch, on the devices, of which every process gives its rows."""
        batch = sharding.put(batch, self.layout.rows)
        return {**batch, "image": self.images(batch["image"])} if self.images else batch
