"""What a config leaves open, chosen from the images, the checkpoint and the devices.

A key of `jaxcls.config.OPEN` whose value is None is chosen by `settled`, by rules that depend on
nothing else; a key with a value is kept. configs/finetune.py leaves them all open. What was chosen
stands in the run's config.json, and stays when the run goes on.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from jaxcls import config as configs
from jaxcls import models, optim, record, weights
from jaxcls.data import sources
from jaxcls.data.decode import FORMATS

# Of this many parameters and more, a network takes hours to train on a few processor cores, where
# its new head takes minutes; and it was trained on many images, so that its features stay good.
LARGE = 3_000_000
FEATURES = (r"^(stem|stage\d+|neck)/",)  # all but the heads
# A part's factor grows from stem to head; in networks of any number of stages.
FACTORS = ((r"^(stem|stage1)/", 0.1), (r"^(stem|stage[1-3])/", 0.2), (r"^(stem|stage\d+)/", 0.3))


def open_data(
    config: ConfigDict,
    *,
    workdir: str = "",
    weights: str | None = None,
    training: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[ConfigDict, sources.Data]:
    """Returns the config with nothing left open, and the images that its `data` names.

    Args:
      config: of a run.
      workdir: of the run: what was chosen when it began is chosen again.
      weights: the checkpoint that it starts from; None: `config.init.checkpoint`.
      training: of `sources.open`.
      report: is given a line about what was chosen.

    Raises:
      ValueError: something is wrong with `config.data` or with the checkpoint.
    """
    if not _open_keys(config):
        size = config.image.size
        return config, sources.open(**config.data, image_size=size, training=training)
    path = epath.Path(workdir) / record.FILE
    if workdir and path.exists():
        with contextlib.suppress(ValueError):  # it is damaged, and will be written anew
            config = _with(config, configs.flatten(record.read(path)))
    size = config.image.size or 224
    data = sources.open(**config.data, image_size=size, training=training)
    if _open_keys(config):
        config, line = settled(
            config,
            images=len(data.train),
            pixels=short_side(data.train),
            weights=config.init.checkpoint if weights is None else weights,
            devices=jax.devices(),
        )
        report(line)
    return config, data


def settled(
    config: ConfigDict, *, images: int, pixels: int, weights: str, devices: list[jax.Device]
) -> tuple[ConfigDict, str]:
    """Returns the config with nothing left open, and a line about it.

    With `weights` (fine-tuning), network and images are as there. A network of `LARGE` parameters
    is trained at the small learning rates of PaddleClas, which grow from stem to head, for 20
    epochs or at least 300 steps; where there is no accelerator only its head, for 10 epochs or at
    least 150 steps. A small one is trained as a whole for 20 epochs or at least 600 steps. Without
    `weights`, a network is trained from scratch: ResNet50_vd on an accelerator, otherwise a small
    one, at 16 to 128 pixels, for 20 epochs or at least 2,000 steps. A batch is 32 images, or a
    quarter of all, at least 8, where they are few. There are ten evaluations.

    Args:
      config: of a run.
      images: number of training images.
      pixels: of their short side.
      weights: the checkpoint to start from, or "".
      devices: that the batch is divided over.

    Raises:
      ValueError: there is no such checkpoint.
    """
    accelerator = devices[0].platform != "cpu"
    batch = 2 ** int(np.log2(min(np.clip(images / 4, 8, 32), images)))
    batch = config.batch_size or -(-batch // len(devices)) * len(devices)
    if weights:
        choice, parameters, told = _of_checkpoint(weights)
        freeze = parameters >= LARGE and not accelerator
        what = f"{choice['model.name']} of {weights}"
        if freeze:
            what = f"no accelerator: only the head of {what} is trained"
            least_epochs, least_steps, rate, l2 = 10, 150, 0.03, 1e-6
        elif parameters >= LARGE:
            least_epochs, least_steps, rate, l2 = 20, 300, 0.00375, 1e-6
        else:
            least_epochs, least_steps, rate, l2 = 20, 600, 0.03, 5e-4
        if not told:
            what += "; built as published, since the checkpoint does not say its options"
    else:
        choice, parameters, freeze = _from_scratch(accelerator, pixels), 0, False
        name = config.model.name or choice["model.name"]
        what = f"{name} from scratch, as config.init.checkpoint is not set"
        if not accelerator and name == choice["model.name"]:
            what = f"no accelerator: a small {what}"
        least_epochs, least_steps, rate, l2 = 20, 2000, 0.05, 5e-4
    per_epoch = max(images // batch, 1)
    steps = max(least_epochs * per_epoch, least_steps)
    if config.duration is not None:
        steps = configs.steps_of(
            config.duration, key="duration", batch_size=batch, steps_per_epoch=per_epoch
        )
    choice |= _following(config, choice) | {
        "batch_size": batch,
        "duration": f"{steps} steps",
        "lr.peak": rate * batch / 32,
        "lr.warmup": f"{steps // 20} steps",
        "eval.every": f"{max(steps // 10, 1)} steps",
        "checkpoint.every": f"{max(steps // 10, 1)} steps",
        "optim.l2": l2 if "l2" in optim.OPTIMIZERS.get(config.optim.name, ()) else 0.0,
        "optim.frozen": FEATURES if freeze else (),
        "optim.lr_mults": FACTORS if weights and parameters >= LARGE and not freeze else (),
    }
    return _with(config, choice), what


def network(config: ConfigDict) -> dict[str, Any]:
    """Returns what a checkpoint keeps of `config.model`, to build the network again."""
    options = dict(config.model.options)
    if config.model.bn_epsilon is not None:
        options["bn_epsilon"] = config.model.bn_epsilon
    return {"name": config.model.name, "options": options}


def _following(config: ConfigDict, choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the choices that depend on a key that has a value."""
    follow: dict[str, Any] = {}
    if config.model.name not in (None, choice["model.name"]):
        follow["model.options"] = ()
    if config.image.size is not None:
        scale = config.image.size / choice["image.size"]
        follow["image.eval_size"] = 0
        follow["image.eval_resize"] = round(choice["image.eval_resize"] * scale)
        follow["image.shift"] = int(choice["image.shift"] * scale)
    if config.image.crop not in (None, "shift"):
        follow["image.shift"] = 0
    return follow


def short_side(source: sources.Source, samples: int = 16) -> int:
    """Returns the median of the pixels of the short sides of some images."""
    sides = []
    for index in np.linspace(0, len(source) - 1, samples).astype(int).tolist():
        try:
            image = source[index]["image"]
            if isinstance(image, np.ndarray):
                sides.append(min(image.shape[:2]))
                continue
            with Image.open(io.BytesIO(image), formats=FORMATS) as header:
                sides.append(min(header.size))
        except MemoryError:
            raise
        except Exception:  # as in `decode`; whether it may be skipped is up to the run
            continue
    return int(np.median(sides or [224]))


def _of_checkpoint(path: str) -> tuple[dict[str, Any], int, bool]:
    """Returns keys for a checkpoint, its number of parameters, and whether it says its options."""
    variables, meta = weights.load(path, report=lambda line: None)
    try:
        return _of_meta(meta, sum(x.size for x in jax.tree.leaves(variables["params"])))
    except (LookupError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(
            f"config.init.checkpoint = {path!r}: its meta data do not tell network and images "
            f"({configs.short(e)}): begin with a recipe that leaves nothing open, such as "
            "configs/resnet50_vd.py"
        ) from e


def _of_meta(meta: Mapping[str, Any], parameters: int) -> tuple[dict[str, Any], int, bool]:
    network = meta.get("network") or {"name": meta["model"], "options": meta.get("options") or {}}
    size = models.MODELS[network["name"]].size
    images = _images(size=size, eval_resize=round(size * 256 / 224)) | {
        f"image.{key}": configs.from_json(f"image.{key}", value)
        for key, value in meta.get("image", {}).items()
    }
    # images of one size needed no resizing; those here may be larger, and training shrinks them
    short = images["image.eval_size"] or images["image.size"]
    images["image.eval_resize"] = images["image.eval_resize"] or short
    choice = {
        "model.name": network["name"],
        "model.options": tuple((k, configs.tuples(v)) for k, v in network["options"].items()),
        **images,
    }
    return choice, parameters, bool({"network", "options"} & meta.keys())


def _from_scratch(accelerator: bool, pixels: int) -> dict[str, Any]:
    """Returns network and images for a training without a checkpoint."""
    if accelerator:
        return {"model.name": "ResNet50_vd", "model.options": (), **_images()}
    if pixels <= 64:  # the whole image, shifted a little
        size = max(pixels // 8 * 8, 16)
        options = (("stem", "small"), ("depths", (1, 1, 1)), ("width", 32))
        images = _images(size=size, eval_resize=size, crop="shift", shift=size // 8)
    else:
        size = min(pixels // 32 * 32, 128)
        options = (("depths", (1, 1, 1, 1)), ("width", 32))
        images = _images(size=size, eval_resize=round(size * 256 / 224))
    return {"model.name": "ResNet18_vd", "model.options": options, **images}


def _images(**image: Any) -> dict[str, Any]:
    """Returns the keys of `image`, with the defaults of configs/base.py for those not given."""
    defaults = configs.defaults()[0]
    keys = [key for key in configs.OPEN if key.startswith("image.")]
    return {key: image.get(key.partition(".")[2], defaults[key]) for key in keys}


def _open_keys(config: ConfigDict) -> list[str]:
    values = configs.flatten(config)
    # what `data.eval_fraction` is then is up to the source
    return [k for k in configs.OPEN if values[k] is None and k != "data.eval_fraction"]


def _with(config: ConfigDict, choice: Mapping[str, Any]) -> ConfigDict:
    """Returns the config with the values of `choice` in the keys that are open."""
    open_keys = _open_keys(config)
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict({k: v for k, v in choice.items() if k in open_keys})
    return config
