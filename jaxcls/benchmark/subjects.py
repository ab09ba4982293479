"""What `predict` measures: networks of the zoo, runs and exports, with their weights."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxcls import exported, models, network, trees, weights
from jaxcls.config import choose, closest
from jaxcls.data import ops
from jaxcls.models import count
from jaxcls.models.published import ACCURACY
from jaxcls.network import Network, Variables


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to be measured."""

    name: str  # of the zoo, or the directory as it was written
    place: str = ""  # directory; "": random weights

    def accuracy(self) -> tuple[float | None, str]:
        """Returns its top-1 in percent, and whose it is."""
        if not self.place:
            top1 = ACCURACY.get(self.name, (None,))[0]
            return top1, "" if top1 is None else "published"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(Path(self.place, "summary.json").read_text())
            return 100 * float(told["best"]["top1"]), "of the run"
        return None, ""


def named(text: str) -> list[Subject]:
    """Returns what --models says, each once.

    Raises:
      ValueError: there is no such network.
    """
    found: list[Subject] = []
    for item in filter(None, map(str.strip, text.split(","))):
        place = Path(item).expanduser()
        if item in models.MODELS:
            found.append(Subject(item))
        elif place.exists() or "/" in item:
            if not place.is_dir() or not (_exported(place) or weights.exists(place)):
                raise ValueError(f"--models={item}: {weights.nothing_at(place)}")
            found.append(Subject(item, str(place)))
        elif item.lower() in models.FAMILIES:
            found += map(Subject, _networks("*", item.lower()))
        elif any(sign in item for sign in "*?["):
            if not (several := _networks(item)):
                raise ValueError(f"--models={item}: no model has such a name{_near(item)}")
            found += map(Subject, several)
        else:
            choose("model", item, models.MODELS)
    if not found:
        raise ValueError("--models=: write names, such as ResNet50_vd; python -m jaxcls.models")
    return list(dict.fromkeys(found))


def _networks(pattern: str, family: str = "") -> list[str]:
    """Returns names without those that are other weights of a network."""
    found = [name for name in models.names(pattern) if not models.MODELS[name].alias_of]
    return [name for name in found if family in ("", models.family_of(name))]


def _near(pattern: str) -> str:
    return closest(pattern.strip("*?"), models.MODELS) or "; all names: python -m jaxcls.models"


def _exported(place: Path) -> bool:
    return (place / exported.ABOUT).is_file()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A network with what can be measured of it."""

    subject: Subject
    net: Network
    variables: Variables | None  # None: an export, which has files
    input: str  # of the programs, see `program.INPUTS`

    @property
    def facts(self) -> dict[str, Any]:
        """What rows say of the network."""
        top1, top1_from = self.subject.accuracy()
        shapes, image = self.net.shapes, self.net.image
        one = jax.ShapeDtypeStruct((1, image.shown, image.shown, image.channels), jnp.float32)
        macs = count.multiply_adds(self.net.predict, shapes, one)
        params = count.parameters(shapes["params"])
        return {"model": self.subject.name, "size": image.shown, "params": params, "macs": macs,
                "top1": top1, "top1_from": top1_from}  # fmt: skip


def load(subject: Subject, size: int | None) -> Loaded:
    """Returns a network, as trained, or with random weights.

    Raises:
      ValueError: it cannot be loaded, or does not take images of this size.
    """
    place = Path(subject.place)
    if not subject.place:
        image = ops.Image(**network.published_image(subject.name))
        net = Network(name=subject.name, options={}, num_classes=1000, class_names=(),
                      image=image, precision="float32")  # fmt: skip
        return Loaded(subject, _sized(net, size), random_variables(net), "uint8")
    if not _exported(place):
        net, variables = network.load(place, report=lambda line: print(line, file=sys.stderr))
        return Loaded(subject, _sized(net, size), variables, "uint8")
    net, kind, _ = exported.described(epath.Path(place))
    if size not in (None, net.image.shown):
        raise ValueError(f"--size={size}: {place} takes {net.image.shown} pixels: export it anew")
    return Loaded(subject, net, None, kind)


def _sized(net: Network, size: int | None) -> Network:
    return net if size in (None, net.image.shown) else net.resized(size)


def random_variables(net: Network, seed: int = 0) -> dict[str, Any]:
    """Returns variables as training could leave them: no BatchNorm is the identity.

    Their statistics are those of noise, so that features keep to the range of 16 bits.
    """
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> np.ndarray:
        last = path.rpartition("/")[2]
        if last in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if last == "kernel" else 0.1
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(deviation)

    variables = trees.map_with_path(draw, net.shapes)
    if not variables["batch_stats"]:
        return variables
    module = models.build(net.name, num_classes=net.num_classes, bn_momentum=0.0, **net.options)
    size, channels = net.image.size, net.image.channels
    images = rng.standard_normal((4, size, size, channels), np.float32)

    @jax.jit
    def train(variables: Variables, images: jax.Array) -> dict[str, Any]:
        rngs = {"dropout": jax.random.key(seed)}
        _, new = module.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return new["batch_stats"]

    return {**variables, "batch_stats": jax.device_get(train(variables, images))}
