"""What a config leaves open, chosen from the images, the checkpoint and the devices.

A key of `jaxcls.config.OPEN` whose value is None is chosen by `settled`, by rules that depend on
nothing else; a key with a value is kept. configs/finetune.py leaves them all open. What was chosen
stands in the run's config.json, and stays when the run goes on.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from jaxcls import config as configs
from jaxcls import network, objectives, optim, record, schedules, teachers, weights
from jaxcls.data import arrays, loader, sampling, sources
from jaxcls.data.access import Source
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
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[ConfigDict, sources.Data]:
    """Returns the config with nothing left open, and the images that its `data` names.

    A background class of the data is one of the network's, too.

    Args:
      config: of a run.
      workdir: of the run: what was chosen when it began is chosen again.
      weights: the checkpoint that it starts from; None: `config.init.checkpoint`.
      training: of `sources.open`.
      devices: to choose for, also ones that are not here; None: those that are.
      report: is given a line about what was chosen.

    Raises:
      ValueError: something is wrong with `config.data` or with the checkpoint.
    """
    options = configs.consume(config, "loader", loader.Options)
    path = epath.Path(workdir) / record.FILE
    if configs.left_open(config) and workdir and path.exists():
        with contextlib.suppress(ValueError):  # it is damaged, and will be written anew
            config = _with(config, configs.flatten(record.read(path)))
    size = config.image.size or 224
    needs_labels = "" if config.loss.name in objectives.UNLABELLED else config.loss.name
    how = {"image_size": size, "training": training, "needs_labels": needs_labels}
    how["other_names"] = functools.partial(_class_names, config.teacher.checkpoints)
    data = configs.consume(config, "data", sources.open, **how)
    data = dataclasses.replace(data, loader=options)
    if config.data.background and not config.model.background:
        config = config.copy_and_resolve_references()
        config.model.background = arrays.BACKGROUND
    if config.teacher.stored and training:
        teachers.check_stored(data.train)
    if configs.left_open(config):
        config, line = settled(
            config,
            images=data.num_train,
            pixels=short_side(data.train),
            weights=config.init.checkpoint if weights is None else weights,
            devices=list(devices or jax.devices()),
        )
        report(line)
    share = config.data.unlabelled_share
    sampling.check(data.sampling, data.repeats, config.batch_size, share)
    if config.lr.schedule == "plateau" and data.eval is None:
        raise ValueError(
            "config.lr.schedule = 'plateau' follows the evaluation, and config.data has no "
            "evaluation images: set config.data.eval, or take another schedule"
        )
    return config, data


def _class_names(checkpoints: Sequence[str]) -> tuple[str, ...]:
    """Returns the class names of the first teacher, () without one."""
    if not checkpoints:
        return ()
    quiet = lambda line: None  # it is loaded once more, and says it then
    return network.load(checkpoints[0], report=quiet)[0].class_names


def settled(
    config: ConfigDict, *, images: int, pixels: int, weights: str, devices: list[jax.Device]
) -> tuple[ConfigDict, str]:
    """Returns the config with nothing left open, and a line about it.

    With `weights` (fine-tuning), network and images are as there. A network of `LARGE` parameters
    is trained at the small learning rates of PaddleClas, which grow from stem to head, for 20
    epochs or at least 300 steps; where there is no accelerator only its head, for 10 epochs or at
    least 150 steps. A small one is trained as a whole for 20 epochs or at least 600 steps. With
    `config.model.quantise` all of it is, at one rate, for 3 epochs or at least 300 steps. Without
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
        quantise = config.model.quantise  # what is rounded are the weights of all layers
        freeze = parameters >= LARGE and not accelerator and not quantise
        what = f"{choice['model.name']} of {weights}"
        if freeze:
            what = f"no accelerator: only the head of {what} is trained"
            least_epochs, least_steps, rate, l2 = 10, 150, 0.03, 1e-6
        elif parameters >= LARGE:
            least_epochs, least_steps, rate, l2 = 20, 300, 0.00375, 1e-6
        else:
            least_epochs, least_steps, rate, l2 = 20, 600, 0.03, 5e-4
        if quantise:  # they need to move no further than to the next step of 8 bits
            least_epochs, least_steps, rate = 3, 300, 0.00375
            what = f"{what}, trained for {quantise}"
        if not told:
            what += "; built as published, since the checkpoint does not say its options"
    else:
        choice, parameters, freeze = _from_scratch(accelerator, pixels), 0, False
        name = config.model.name or choice["model.name"]
        what = f"{name} from scratch, as config.init.checkpoint is not set"
        if not accelerator and name == choice["model.name"]:
            what = f"no accelerator: a small {what}"
        least_epochs, least_steps, rate, l2 = 20, 2000, 0.05, 5e-4
    labelled = configs.labelled_rows(batch, config.data.unlabelled_share)
    per_epoch = max(images // labelled, 1)
    steps = max(least_epochs * per_epoch, least_steps)
    if config.duration is not None:
        steps = configs.steps_of(
            config.duration, key="duration", batch_size=batch, steps_per_epoch=per_epoch
        )
    # rates of the parts, in another way
    own = freeze or bool(config.model.quantise) or config.optim.layer_decay < 1
    choice |= _following(config, choice) | {
        "batch_size": batch,
        "duration": f"{steps} steps",
        "lr.peak": rate * batch / 32,
        "lr.warmup": "" if config.lr.schedule in schedules.RISING else f"{steps // 20} steps",
        "eval.every": f"{max(steps // 10, 1)} steps",
        "checkpoint.every": f"{max(steps // 10, 1)} steps",
        "optim.l2": l2 if _takes_l2(config.optim.name) else 0.0,
        "optim.frozen": FEATURES if freeze else (),
        "optim.lr_mults": FACTORS if weights and parameters >= LARGE and not own else (),
    }
    return _with(config, choice), what


def _following(config: ConfigDict, choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the choices that depend on a key that has a value."""
    follow: dict[str, Any] = {}
    if config.model.name not in (None, choice["model.name"]):
        follow["model.options"] = ()
    if config.image.size is not None:
        scale = config.image.size / choice["image.size"]
        follow["image.eval_size"] = 0
        follow["image.eval_resize"] = round(choice["image.eval_resize"] * scale)
        follow["crop.shift"] = int(choice["crop.shift"] * scale)
    if config.crop.name not in (None, "shift"):
        follow["crop.shift"] = 0
    return follow


def _takes_l2(optimizer: str) -> bool:
    return optimizer in optim.OPTIMIZERS and "l2" in configs.keywords(optim.OPTIMIZERS[optimizer])


def short_side(source: Source, samples: int = 16) -> int:
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
        net = network.of_meta(meta, variables, path)
        crop = (meta.get("crop") or {}).items()
        keys = dataclasses.asdict(net.image) | (meta.get("image") or {})
        images = {configs.MOVED.get(f"image.{k}", f"image.{k}"): v for k, v in keys.items()}
        images |= {f"crop.{key}": value for key, value in crop}
        images = {k: configs.from_json(k, v) for k, v in images.items()}
        images = _images(**{k: v for k, v in images.items() if k in configs.OPEN})
    except (LookupError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(
            f"config.init.checkpoint = {path!r}: its meta data do not tell network and images "
            f"({configs.short(e.__cause__ or e)}): begin with a recipe that leaves nothing open, "
            "such as configs/resnet50_vd.py"
        ) from e
    # images of one size needed no resizing; those here may be larger, and training shrinks them
    images["image.eval_resize"] = images["image.eval_resize"] or net.image.shown
    choice = {"model.name": net.name, "model.options": tuple(net.options.items()), **images}
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return choice, parameters, bool({"network", "options"} & meta.keys())


def _from_scratch(accelerator: bool, pixels: int) -> dict[str, Any]:
    """Returns network and images for a training without a checkpoint."""
    if accelerator:
        return {"model.name": "ResNet50_vd", "model.options": (), **_images()}
    images: dict[str, Any] = {}
    if pixels <= 64:  # the whole image, shifted a little
        size = max(pixels // 8 * 8, 16)
        options = (("stem", "small"), ("depths", (1, 1, 1)), ("width", 32))
        images = {"image.eval_resize": size, "crop.name": "shift", "crop.shift": size // 8}
    else:
        size = min(pixels // 32 * 32, 128)
        options = (("depths", (1, 1, 1, 1)), ("width", 32))
        images = {"image.eval_resize": round(size * 256 / 224)}
    images = _images(**{"image.size": size}, **images)
    return {"model.name": "ResNet18_vd", "model.options": options, **images}


def _images(**keys: Any) -> dict[str, Any]:
    """Returns the keys of `image` and `crop`, those not given as in configs/base.py."""
    of_images = (key for key in configs.OPEN if key.startswith(("image.", "crop.")))
    return {key: configs.defaults()[0][key] for key in of_images} | keys


def _with(config: ConfigDict, choice: Mapping[str, Any]) -> ConfigDict:
    """Returns the config with the values of `choice` in the keys that are open."""
    open_keys = configs.left_open(config)
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict({k: v for k, v in choice.items() if k in open_keys})
    return config
