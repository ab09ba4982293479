"""Where images stay after they were read: encoded or decoded in host memory, or on the device.

A cache changes how fast batches come, not what is in them.
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.data import ops
from jaxcls.data.access import Source, for_all
from jaxcls.data.decode import BadImage
from jaxcls.data.feed import Feed
from jaxcls.sharding import Layout

AUTO_BYTES = 2**30  # for training images, and as much for evaluation
SAMPLES = 8  # images that the size of all is estimated from
# what a container may use, of Linux' control groups: version 2, and 1
CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def use(feed: Feed, what: str) -> Feed:
    """Returns the feed with the cache that `config.data.cache` asks for.

    "encoded": files are read once; "decoded": and decoded once; both as they are needed.
    "device": all images are read now and lie on every device, as far as the transform of one is the
      same in every epoch: whole in evaluation, before the shift of the crops "shift" and "center"
      in training. A batch from the loader then has (number, y, x), int32 [L, 3], in place of the
      images, which `Feed.put` cuts out.
    "auto": "device" on an accelerator where that is possible, or else "decoded", if it takes at
      most `AUTO_BYTES`; else "encoded" for files in a store, if these take at most half of the
      memory; "none" otherwise, and with worker processes.

    Args:
      feed: of images as they lie.
      what: "training" or "evaluation", for messages.

    Raises:
      ValueError: a cache with worker processes, one larger than the memory, "device" with a
        transform that it cannot have; from "device" also an unreadable image.
    """
    source, transform, kind = feed.source, feed.transform, feed.data.cache
    workers = feed.data.loader.workers
    if kind == "none" or (kind == "auto" and workers):
        return feed
    if workers:
        raise ValueError(
            f"config.data.cache = {kind!r} keeps images in one process, config.loader.workers = "
            f'{workers} reads in others: write config.loader.workers = 0, or cache = "none"'
        )
    device = feed.layout.mesh.local_devices[0]
    fixed = _without_shift(transform)
    entry = {
        "encoded": lambda item: item["image"],
        "decoded": lambda item: _read_only(transform.decoded(item["image"], item["name"])),
        "device": lambda item: ops.transformed(item, fixed, None),
    }
    if kind == "auto":
        options = ["device", "decoded"] if fixed and device.platform != "cpu" else ["decoded"]
        small = (option for option in options if _estimate(source, entry[option]) <= AUTO_BYTES)
        kind = next(small, "none")
        if kind == "none" and feed.data.remote:  # each would be asked for again in every epoch
            small = _estimate(source, entry["encoded"]) <= _memory() / 2
            kind = "encoded" if small else "none"
    if kind == "none":
        return feed
    if kind == "device" and not fixed:
        raise ValueError(
            'config.data.cache = "device" needs config.crop.name = "shift" or "center", one '
            'interpolation and no config.augment: write config.data.cache = "decoded"'
        )
    needed = _estimate(source, entry[kind])
    _check_memory(kind, needed, device)
    if jax.process_index() == 0:
        print(f"cache of {what} images: {kind}, about {needed / 2**20:.3g} MiB", flush=True)
    if kind != "device":  # what was estimated of a few images may be too little
        limits = {"decoded": AUTO_BYTES, "encoded": _memory() / 2}
        most = limits[kind] if feed.data.cache == "auto" else _memory()
        return dataclasses.replace(feed, source=Cached(source, entry[kind], most))
    skip = feed.data.on_bad_image == "skip"
    items, pixels = _read_all(source, entry[kind], what, skip=skip)
    return dataclasses.replace(
        feed,
        source=Numbered(source, items),
        transform=functools.partial(_place, shift=transform.crop.shift),
        images=_cut(pixels, transform.size, feed.layout),
    )


def _without_shift(transform: ops.Transform) -> ops.Transform | None:
    """Returns what a transform does to an image in every epoch: all that a shift may cut from.

    None where it does more than that and a shift.
    """
    crop = transform.crop
    if not isinstance(crop, ops.Shifted) or transform.augment or len(transform.interpolation) > 1:
        return None
    return dataclasses.replace(
        transform, crop=ops.Shifted(crop.resize, 0), size=transform.size + 2 * crop.shift
    )


def _read_only(image: bytes | np.ndarray) -> bytes | np.ndarray:
    if isinstance(image, np.ndarray):
        image.flags.writeable = False  # all epochs share it
    return image


def _estimate(source: Source, entry: Callable[[dict[str, Any]], Any]) -> float:
    """Returns the bytes of the entries of all images, judged by a few."""
    sizes = []
    for index in np.linspace(0, len(source) - 1, SAMPLES).astype(int).tolist():
        try:
            image = entry(source[index])
        except BadImage:
            continue
        sizes.append(_bytes(image))
    return len(source) * float(np.mean(sizes or [0]))


def _bytes(image: bytes | np.ndarray) -> int:
    return image.nbytes if isinstance(image, np.ndarray) else len(image)


def _check_memory(kind: str, needed: float, device: jax.Device) -> None:
    there = _memory()
    if kind == "device":
        there = min(there, (device.memory_stats() or {}).get("bytes_limit", there))
    if needed > there:
        raise ValueError(
            f"config.data.cache = {kind!r} needs about {needed / 2**30:.3g} GiB, there are "
            f'{there / 2**30:.3g}: write cache = "none"'
        )


def _memory() -> float:
    """Returns the bytes of memory that there are; infinity where the system does not say."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has none of this
        return math.inf
    for file in CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            there = min(there, int(Path(file).read_text()))
    return there


@dataclasses.dataclass(frozen=True, eq=False)
class _Wrapper:
    source: Source

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels

    @property
    def marks(self) -> int:
        return self.source.marks

    @property
    def has_label(self) -> np.ndarray:
        return self.source.has_label

    def __len__(self) -> int:
        return len(self.source)


@dataclasses.dataclass(frozen=True, eq=False)
class Cached(_Wrapper):
    """A source that keeps its items with `entry(item)` as their image; it does not pickle.

    When these have `most` bytes no more are kept.
    """

    entry: Callable[[dict[str, Any]], Any]
    most: float = math.inf
    items: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    kept: list[int] = dataclasses.field(default_factory=lambda: [0])  # bytes

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items.get(index)
        if item is None:
            item = self.source[index]
            item = item | {"image": self.entry(item)}
            size = _bytes(item["image"])
            if self.kept[0] + size <= self.most:  # two threads at once may go a little beyond
                self.kept[0] += size
                self.items[index] = item
        return item


# -- On the device ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered(_Wrapper):
    """A source whose pixels are elsewhere: the image of an item is its number."""

    items: list[dict[str, Any] | BadImage]

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        if isinstance(item, BadImage):
            raise BadImage(str(item))
        return item


def _read_all(
    source: Source, entry: Callable[[dict[str, Any]], np.ndarray], what: str, *, skip: bool
) -> tuple[list[dict[str, Any] | BadImage], np.ndarray]:
    """Returns the items of all images, numbers in place of their images, and entry(item) of each.

    Raises:
      ValueError: one cannot be read and shall not be skipped, or none can.
    """

    def read(index):
        try:
            item = source[index]
            return item | {"image": entry(item)}
        except BadImage as error:
            if not skip:
                raise
            return error

    items, pixels = [], None
    for index, item in enumerate(for_all(read, len(source), f"reading {what} images")):
        if not isinstance(item, BadImage):
            if pixels is None:
                pixels = np.zeros((len(source), *item["image"].shape), np.uint8)
            pixels[index] = item["image"]
            item["image"] = index
        items.append(item)
    if pixels is None:
        raise ValueError(f"none of the {len(items)} {what} images can be read: {items[0]}")
    return items, pixels


def _place(number: int, rng: np.random.Generator | None, *, shift: int) -> np.ndarray:
    """Returns (number, y, x), int32 [3]: draws the shift as `ops.Shifted` does."""
    return np.array([number, *ops.shifts(rng, shift)], np.int32)


def _cut(pixels: np.ndarray, size: int, layout: Layout) -> Callable[[jax.Array], jax.Array]:
    """Returns f(places) -> images, which it cuts from `pixels` on the devices."""
    whole, rows = layout.whole, layout.rows
    images = jax.make_array_from_process_local_data(whole, pixels, pixels.shape)
    cut = jax.jit(
        functools.partial(gather, size=size), in_shardings=(whole, rows), out_shardings=rows
    )
    return functools.partial(cut, images)


def gather(images: jax.Array, places: jax.Array, *, size: int) -> jax.Array:
    """Returns parts of images, uint8 [B, size, size, C].

    Args:
      images: uint8 [N, H, W, C].
      places: int32 [B, 3], the number of each image and y and x of the part's upper left corner.
      size: pixels of a part, height and width.
    """

    def cut(place):
        number, y, x = place
        part = (1, size, size, images.shape[-1])
        return jax.lax.dynamic_slice(images, (number, y, x, jnp.int32(0)), part)[0]

    return jax.vmap(cut)(places)
