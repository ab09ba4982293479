"""Networks that answer: images in, classes and probabilities out, on all devices.

    model = jaxcls.load("runs/mine")
    for answer in model.predict(["cat.jpg", "dog.jpg"]):
        print(answer.classes[0], answer.probabilities[0])

A prediction is what an evaluation of the same images says, with the same views and networks.
"""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxcls import exported, network, sharding, views
from jaxcls.config import choose
from jaxcls.data.folders import read_file
from jaxcls.data.ops import transformed
from jaxcls.exported import Exported
from jaxcls.network import Network, Variables

BATCH = 32  # images of a device at once
PLAIN = views.Options(tta=(), tta_scales=(), fuse=(), weights=(), mean="probabilities")
Encoded = bytes | np.ndarray  # an image's file, or its pixels: uint8 [H, W, C]
Views = list[list[np.ndarray]]  # of an image, for each network: uint8 [S, S, C]


class Answer(NamedTuple):
    """What is said of an image."""

    image: str  # what it is called
    classes: tuple[str, ...] = ()  # the likeliest first
    probabilities: tuple[float, ...] = ()  # theirs
    decision: str | tuple[str, ...] | None = None  # see `Network.decide`; None: none of these
    error: str = ""  # why it cannot be read


class Row(NamedTuple):
    """What was computed of an image: arrays, or why there are none."""

    name: str
    outputs: Mapping[str, np.ndarray]
    error: str = ""


class Predictor:
    """A network with its weights, or several whose mean counts."""

    def __init__(
        self,
        members: Sequence[tuple[Network, Variables]],
        options: views.Options = PLAIN,
        *,
        batch_size: int = BATCH,
    ):
        """Puts the weights on the devices.

        Args:
          members: networks of the same classes, and their variables.
          options: what the mean is over.
          batch_size: images of a device at once, at most.
        """
        # of several processes each answers its own images
        here = {"devices": jax.local_devices()} if jax.process_count() > 1 else {}
        self.layout = sharding.make(data=-1, fsdp=1, model=1, fsdp_min_size=0, rules=(), **here)
        self.networks = [self._here(net) for net, _ in members]
        self.network, self.options = self.networks[0], options
        self.variables = jax.device_put([v for _, v in members], self.layout.whole)
        self.batch_size = batch_size * self.layout.mesh.size
        for net in self.networks:
            if isinstance(net, Exported) and options.tta_scales:
                size = net.image.shown
                raise net.refused(f"config.eval.tta_scales: images of {size} x {size} pixels only")
        self.transforms = [options.transforms(net) for net in self.networks]
        names = self.network.class_names
        rest = range(len(names), self.network.num_classes)
        self.class_names = (*names, *map(str, rest))
        self._of: dict[str, Callable[..., Any]] = {"probabilities": self._jit(self._probabilities)}

    def _here(self, net: Network) -> Network:
        # on a CPU 16 bits take far longer than 32
        half = self.layout.platform == "cpu" and "16" in net.precision
        return dataclasses.replace(net, precision="float32") if half else net

    @functools.cached_property
    def _traceable(self) -> bool:
        return all(net.traceable for net in self.networks if isinstance(net, Exported))

    def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self._traceable:
            return function  # another program computes, one network after the other
        whole, rows = self.layout.whole, self.layout.rows
        return jax.jit(function, in_shardings=(whole, rows), out_shardings=whole)

    def preprocess(self, image: Encoded) -> np.ndarray:
        """Returns an image as the (first) network sees it, uint8 [S, S, C].

        Raises:
          BadImage: it cannot be read.
        """
        return self.network.transform(image, None)

    def predict(self, images: Any, top: int = 5) -> list[Answer]:
        """Returns what is said of images: an image, or several.

        Args:
          images: paths, encoded images (bytes), pixels (uint8 [H, W, C] or [H, W]) or images of
            Pillow, one or an iterable of them.
          top: classes of each answer, at most.

        Raises:
          ValueError: something that is no image.
        """
        if isinstance(images, (str, os.PathLike, bytes, np.ndarray, Image.Image)):
            images = images if isinstance(images, np.ndarray) and images.ndim == 4 else [images]
        return [*self.answers(map(readable, images, itertools.count()), top)]

    def answers(
        self, images: Iterable[tuple[str, Callable[[], Encoded]]], top: int = 5
    ) -> Iterator[Answer]:
        """Yields what is said of each image, in their order; memory is that of a few batches.

        Args:
          images: name and a function that reads it.
          top: classes of each answer, at most.
        """
        for row in self.rows(images, "probabilities"):
            if row.error:
                yield Answer(row.name, error=row.error)
            elif not np.isfinite(found := row.outputs["probabilities"]).all():
                yield Answer(row.name, error=f"{row.name}: the network's answer is no number")
            else:
                yield self.answer(row.name, found, top)

    def answer(self, name: str, probabilities: np.ndarray, top: int = 5) -> Answer:
        """Returns the answer of probabilities, [K]."""
        best = np.argsort(-probabilities, kind="stable")[:top]
        decided = self.network.decide(probabilities[None])[0]
        if self.network.multi_label:
            decision = tuple(self.class_names[i] for i in np.flatnonzero(decided))
        else:
            decision = None if decided < 0 else self.class_names[decided]
        classes = tuple(self.class_names[i] for i in best)
        return Answer(name, classes, tuple(map(float, probabilities[best])), decision)

    def features(
        self, images: Iterable[tuple[str, Callable[[], Encoded]]], name: str = "pre_logits"
    ) -> Iterator[Row]:
        """Yields the features of each image: {name: [D] or [H, W, C]}, of the first network.

        Args:
          images: as for `answers`.
          name: "pre_logits", "stage1", ...: one of the network's outputs.

        Raises:
          ValueError: there is no such output, or none at all: of an export.
        """
        if isinstance(self.network, Exported):
            raise self.network.refused(f"features {name!r}")
        if name not in self._of:
            shape = jax.ShapeDtypeStruct((1, *self._shown(self.network)), np.uint8)
            outputs = jax.eval_shape(self.network.predict, self.variables[0], shape)
            choose("--features", name, outputs)
            self._of[name] = self._jit(
                lambda variables, pixels: {
                    name: self.network.predict(variables[0], pixels[0][0])[name]
                }
            )
        return self.rows(images, name)

    def rows(self, images: Iterable[tuple[str, Callable[[], Encoded]]], what: str) -> Iterator[Row]:
        """Yields what is computed of each image, in their order."""
        late: collections.deque[Any] = collections.deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:

            def begun() -> Iterator[list[Any]]:
                for chunk in _batched(images, self.batch_size):
                    yield [(name, pool.submit(self._read, name, read)) for name, read in chunk]

            chunks = begun()
            reading = collections.deque(itertools.islice(chunks, 2))
            try:
                while reading:
                    found = [(name, future.result()) for name, future in reading.popleft()]
                    reading.extend(itertools.islice(chunks, 1))
                    late.append((found, self._compute(found, what)))
                    if len(late) > 1:  # so that the devices do not wait
                        yield from _joined(*late.popleft())
                for batch in late:
                    yield from _joined(*batch)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, name: str, read: Callable[[], Encoded]) -> Any:
        try:
            return self.views(read(), name)
        except ValueError as error:  # `BadImage`, or smaller than what the network is shown
            return str(error)

    def views(self, image: Encoded, name: str) -> Views:
        """Returns an image as the networks see it.

        Raises:
          ValueError: it cannot be read; the message begins with its name.
        """
        item = {"image": image, "name": name}
        try:
            return [[transformed(item, view, None) for view in its] for its in self.transforms]
        except ValueError as e:  # there is no config here
            text, key, _ = str(e).partition(": set config.image.")
            raise ValueError(f"{text}: enlarge it") if key else e from None

    @property
    def blank(self) -> Views:
        """A black image, as the networks see it."""
        return [
            [np.zeros((view.size, view.size, view.channels), np.uint8) for view in its]
            for its in self.transforms
        ]

    @property
    def several_views(self) -> bool:
        """Whether an image is seen in more ways than by one network as it is."""
        return sum(map(len, self.transforms)) > 1

    def probabilities(self, images: Sequence[Views]) -> np.ndarray:
        """Returns those of images, float32 [B, K]."""
        found = [("", views) for views in images]
        return jax.device_get(self._compute(found, "probabilities"))["probabilities"][: len(images)]

    def looked(self, pixels: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
        """Returns where the (first) network looked, float32 [N, h, w] in [0, 1]; see `grad_cam`.

        Args:
          pixels: uint8 [N, S, S, C], of `preprocess`.
          classes: int [N], that it looked for; None: the likeliest.

        Raises:
          ValueError: it is an export.
        """
        from jaxcls.report import grad_cam

        if isinstance(self.network, Exported):
            raise self.network.refused("where it looked")
        if "looked" not in self._of:
            self._of["looked"] = grad_cam.make(self.network)
        return grad_cam.together(self._of["looked"], self.variables[0], pixels, classes)

    def pictures(self, images: Sequence[Encoded], classes: np.ndarray | None = None) -> list[bytes]:
        """Returns JPEGs of images, with where the (first) network looked laid over them.

        Args:
          images: that can be read.
          classes: as for `looked`.

        Raises:
          ValueError: it is an export, or an image cannot be read.
        """
        from jaxcls.report import plots

        its = self.network.image
        # people see little in what small networks are shown
        times = -(-plots.LEAST // its.shown) if its.eval_resize else 1
        larger = dataclasses.replace(
            its, eval_size=times * its.shown, eval_resize=times * its.eval_resize
        )
        heats = self.looked(np.stack([self.preprocess(image) for image in images]), classes)
        side = max(plots.LEAST, times * its.shown)
        return [
            plots.thumbnail(larger.transform(image, None), side, heat)
            for image, heat in zip(images, heats, strict=True)
        ]

    def _compute(self, found: Sequence[tuple[str, Any]], what: str) -> Any:
        """Returns outputs of the images that could be read, perhaps not computed yet."""
        read = [views for _, views in found if not isinstance(views, str)]
        if not read:
            return {}
        # as few programs as may be: powers of two, and a row for each device
        devices = self.layout.mesh.size
        size = devices * (1 << max(0, (len(read) - 1) // devices).bit_length())
        padded = [*read, *[read[0]] * (size - len(read))]
        stacked = jax.tree.map(lambda *x: np.stack(x), *padded)
        if self._traceable:
            stacked = jax.device_put(stacked, self.layout.rows)
        return self._of[what](self.variables, stacked)

    def _probabilities(self, variables: Any, pixels: Any) -> dict[str, jax.Array]:
        several, mean = self.network.multi_label, 0.0
        for share, net, values, its in zip(
            self.options.shares, self.networks, variables, pixels, strict=True
        ):
            answer = views.values(net, self.options, several)
            mean += sum(answer(values, view) for view in its) * (share / len(its))
        if self.options.mean == "logits":
            mean = jax.nn.sigmoid(mean) if several else jax.nn.softmax(mean)
        return {"probabilities": mean}

    def _shown(self, net: Network) -> tuple[int, int, int]:
        return net.image.shown, net.image.shown, net.image.channels


def _joined(found: Sequence[tuple[str, Any]], outputs: Mapping[str, Any]) -> Iterator[Row]:
    arrays, number = jax.device_get(dict(outputs)), itertools.count()
    for name, its in found:
        if isinstance(its, str):
            yield Row(name, {}, its)
        else:
            i = next(number)
            yield Row(name, {key: array[i] for key, array in arrays.items()})


def _batched(things: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    # itertools.batched is there from Python 3.12 on
    things = iter(things)
    while chunk := tuple(itertools.islice(things, size)):
        yield chunk


def readable(image: Any, number: int = 0) -> tuple[str, Callable[[], Encoded]]:
    """Returns what an image is called, and a function that reads it.

    Raises:
      ValueError: it is none.
    """
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(Path(image).expanduser())
        return str(image), lambda: read_file(path, str(image))
    name = f"image {number}"
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB" if image.mode not in ("L", "RGBA") else image.mode))
    if isinstance(image, bytes):
        return name, lambda: image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        pixels = image if image.ndim == 3 else image[..., None]
        return name, lambda: pixels
    kind = f"{image.dtype}{list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    raise ValueError(f"{name}: {kind} is no image: give a path, bytes, uint8 [H, W, C] or Pillow's")


def load(
    run: str | os.PathLike,
    *,
    fuse: Sequence[str] = (),
    tta: Sequence[str] = (),
    tta_scales: Sequence[float] = (),
    weights: Sequence[float] = (),
    mean: str = "probabilities",
    average: str | None = None,
    threshold: float | None = None,
    batch_size: int = BATCH,
    report: Callable[[str], None] = print,
) -> Predictor:
    """Returns a network that answers, from nothing but a directory.

    Args:
      run: a run, one of its checkpoints, converted weights, or an export: its directory or one of
        its files, model.stablehlo, model.onnx or model_int8.onnx.
      fuse, tta, tta_scales, weights, mean: as the keys of `config.eval` of these names: what the
        answer is the mean of.
      average: see `network.load`.
      threshold: least probability of a decision; None: as the network says.
      batch_size: images of a device at once, at most.
      report: is told what is damaged.

    Raises:
      ValueError: there are no weights, or of other classes.
    """
    options = views.Options(
        tta=tuple(tta),
        tta_scales=tuple(tta_scales),
        fuse=tuple(map(os.fspath, fuse)),
        weights=tuple(weights),
        mean=mean,
    )
    members = [_member(path, average, report) for path in (run, *options.fuse)]
    for path, (net, _) in zip(options.fuse, members[1:]):
        views.check_classes(members[0][0], net, path, "eval.fuse")
    model = Predictor(members, options, batch_size=batch_size)
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold = {threshold:g}: write a probability, from 0 to 1")
        count = model.network.num_classes if model.network.multi_label else 1
        model.network = dataclasses.replace(model.network, thresholds=(threshold,) * count)
    return model


def _member(
    path: str | os.PathLike, average: str | None, report: Callable[[str], None]
) -> tuple[Network, Variables]:
    if not os.fspath(path):
        raise ValueError("a run without a name: give its directory")
    if (program := exported.find(path)) is None:
        return network.load(path, average=average, report=report)
    net = exported.load(program)
    if average is not None:
        raise net.refused(f"average {average!r}")
    return net, {}
