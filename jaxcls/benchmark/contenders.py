"""What `input` measures, each in a process of its own: python -m jaxcls.benchmark.contenders.

The first line of stdin is a JSON object: {"kind": one of KINDS, "config": the run's config,
"images": how many a pass has, "threads": int}. Each further line is a seed: it makes a pass over
training images and prints the seconds that it took. jaxcls/benchmark/tf_data.py does the same.
"""

import dataclasses
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxcls.benchmark import pillow
from jaxcls.config import tuples
from jaxcls.data import augment, loader, ops, sources
from jaxcls.data.decode import decode

Pass = Callable[[int], None]  # takes a seed


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors images, after what else happens to them on the host; in a run the device does it."""

    prob: float
    before: ops.Augment | None

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = self.before(image, rng) if self.before else image
        return cv2.flip(image, 1).reshape(image.shape) if rng.random() < self.prob else image


def loaded(config: ConfigDict, images: int, threads: int) -> Pass:
    """The loader of a run: from files to batches."""
    source, transform = open_training(config)

    def run(seed):
        steps = images // config.batch_size
        options = loader.Options(**{**config.loader, "threads": threads})
        with loader.train_batches(
            source,
            transform,
            batch_size=config.batch_size,
            seed=seed,
            start_step=0,
            num_steps=steps,
            options=options,
        ) as batches:
            for batch in batches:
                assert len(batch["image"]) == config.batch_size

    return run


def bare(config: ConfigDict, images: int, threads: int) -> Pass:
    """The same decoding, cropping and resizing in a plain loop: what the loader can reach."""
    del threads
    source, transform = open_training(config)

    def run(seed):
        rng = np.random.default_rng(seed)
        for index in visits(len(source), images, rng):
            transform(source[index]["image"], rng)

    return run


def whole(config: ConfigDict, images: int, threads: int) -> Pass:
    """The plain loop once more, which decodes images whole."""
    del threads
    source, transform = open_training(config)
    size = transform.size

    def run(seed):
        rng = np.random.default_rng(seed)
        for index in visits(len(source), images, rng):
            image = decode(source[index]["image"], channels=transform.channels)
            top, left, height, width = transform.crop(*image.shape[:2], size, rng).part
            part = image[top : top + height, left : left + width]
            transform.augment(cv2.resize(part, (size, size)), rng)

    return run


def with_pillow(config: ConfigDict, images: int, threads: int) -> Pass:
    """The same with Pillow alone, to batches."""
    del threads
    source, transform = open_training(config)
    size, policy = transform.size, transform.augment.before

    def run(seed):
        rng = np.random.default_rng(seed)
        for row, index in enumerate(visits(len(source), images, rng)):
            if row % config.batch_size == 0:
                batch = np.empty((config.batch_size, size, size, 3), np.uint8)
            with Image.open(io.BytesIO(source[index]["image"])) as file:
                image = file.convert("RGB")
            crop = transform.crop(image.height, image.width, size, rng)
            top, left, height, width = crop.part
            box = (left, top, left + width, top + height)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
            if policy:
                how = {"interpolation": policy.interpolation, "fill": policy.fill}
                image = pillow.apply(image, policy.draw(rng), **how)
            if rng.random() < transform.augment.prob:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            batch[row % config.batch_size] = np.asarray(image)

    return run


KINDS = {"loader": loaded, "bare": bare, "whole": whole, "pillow": with_pillow}


def open_training(config: ConfigDict) -> tuple[sources.Source, ops.Transform]:
    """Returns the training images and their transform, which flips too."""
    source = sources.open(**config.data, image_size=config.image.size).train
    flip = Flip(config.crop.flip, augment.make(**config.augment))
    image = ops.Image(**config.image)
    return source, ops.training(**config.crop, image=image, augment=flip)


def visits(count: int, images: int, rng: np.random.Generator) -> Iterator[int]:
    """Yields the numbers of so many images in random orders of all of them."""
    orders = (rng.permutation(count).tolist() for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(orders), images)


def main() -> None:
    as_in_a_config = lambda values: {key: tuples(value) for key, value in values.items()}
    spec = json.loads(sys.stdin.readline(), object_hook=as_in_a_config)
    cv2.setNumThreads(0)  # as in `loader.Batches`
    run = KINDS[spec["kind"]](ConfigDict(spec["config"]), spec["images"], spec["threads"])
    for line in sys.stdin:
        began = time.perf_counter()
        run(int(line))
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
