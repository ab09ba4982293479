"""What is needed to use weights, and is stored with them: module, classes, preprocessing.

    network, variables = jaxcls.network.load("RUN")
    outputs = network.predict(variables, images)        # {"logits": [B, K], ...}

It needs no config, no data and no optimizer: evaluation, fine-tuning and teachers use it too.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxcls
from jaxcls import config as configs
from jaxcls import files, models, precision, trees, weights
from jaxcls.config import LARGEST, choose, short
from jaxcls.data import device, ops
from jaxcls.data.access import MAX_CLASSES

# Arguments of networks that precision and the train step set.
OURS = ("c", "train", "parent", "dtype", "feature_dtype", "param_dtype", "norm_dtype",
        "head_dtype", "frozen", "folded", "by_platform", "platform", "kernels")  # fmt: skip
Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network without its weights."""

    name: str  # one of `jaxcls.models.names()`
    options: Mapping[str, Any]  # further arguments of `jaxcls.models.build`
    num_classes: int  # 0: weights without a classifier
    class_names: tuple[str, ...]  # of the first classes; () where they are not known
    image: ops.Image
    precision: str  # a key of `jaxcls.precision.DTYPES`
    version: str = jaxcls.__version__  # of the jaxcls that trained or converted the weights
    temperature: float = 1.0  # that logits are divided by, see `probabilities`
    multi_label: bool = False  # images may show several classes
    thresholds: tuple[float, ...] = ()  # of `decide`
    background: str = ""  # class that stands for none of the others; "": there is none

    @functools.cached_property
    def module(self) -> nn.Module:
        """The Flax module, as it evaluates."""
        kinds = precision.dtypes(self.precision)
        return models.build(self.name, num_classes=self.num_classes, **self.options, **kinds)

    @property
    def shapes(self) -> dict[str, Any]:
        """Those of its variables."""
        image = jax.ShapeDtypeStruct((1, *self.image.shape), jnp.float32)
        shapes = jax.eval_shape(self.module.init, {"params": jax.random.key(0)}, image)
        return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}

    @property
    def transform(self) -> ops.Transform:
        """`f(image, None)`: an encoded image, or uint8 [H, W, C] -> uint8 pixels to predict."""
        return self.image.transform

    @property
    def folded(self) -> "Network":
        """The network with its BatchNorms in the convolutions, for what `layers.fold` returns."""
        return dataclasses.replace(self, options={**self.options, "folded": True})

    def resized(self, size: int, resize: int | None = None) -> "Network":
        """Returns the network for images of `size` x `size` pixels, to evaluate without training.

        A little more than in training is often better (Touvron et al. 2019, arXiv:1906.06423).

        Args:
          size: pixels that are shown.
          resize: pixels of the short side before the central crop; None: as many times `size` as
            before, and `size` where images were taken as they are.

        Raises:
          ValueError: it does not take images of this size.
        """
        image = self.image
        if resize is None:
            resize = round((image.eval_resize or image.shown) * size / image.shown)
        changed = dataclasses.replace(image, eval_size=size, eval_resize=resize)
        network = dataclasses.replace(self, image=changed)
        network.check_shown()
        return network

    def check_shown(self) -> None:
        """Refuses a size of images in evaluation that the network does not take.

        Raises:
          ValueError: it needs larger ones, or those that it was trained on.
        """
        size = self.image.shown
        images = jax.ShapeDtypeStruct((1, size, size, self.image.channels), jnp.float32)
        try:
            jax.eval_shape(self.module.apply, self.shapes, images)
        except Exception as e:  # of whatever layer
            raise ValueError(
                f"config.image.eval_size = {size}: {self.name}, trained at {self.image.size} x "
                f"{self.image.size} pixels, cannot be evaluated at {size} x {size}: {files.line(e)}"
            ) from e

    def normalise(self, images: jax.Array) -> jax.Array:
        """Returns uint8 images [B, H, W, C] as the module takes them; floating ones are so."""
        wide = jnp.promote_types(precision.dtypes(self.precision)["feature_dtype"], jnp.float32)
        image = self.image
        return device.normalise(images, mean=image.mean, std=image.std, dtype=wide)

    @functools.cached_property
    def predict(self) -> Callable[[Variables, jax.Array], dict[str, jax.Array]]:
        """`f(variables, images) -> outputs`, jitted: {"logits": [B, K], "pre_logits", ...}.

        Images are uint8 [B, H, W, C], as `transform` makes them, or floating and normalised. Logits
        are float32, but of half precision in O3. It is computed as each platform does it fast
        (`Ctx.by_platform`), which differs from `module` by rounding.
        """
        by_platform = self.options.get("by_platform", True)
        module = self.module.clone(c=self.module.c.replace(by_platform=by_platform))

        def predict(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
            with jax.default_matmul_precision(precision.matmul(self.precision)):
                return module.apply(variables, self.normalise(images), train=False)

        return jax.jit(predict)

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Returns softmax(logits / temperature), float32 [B, K]; of `multi_label` the sigmoid.

        The temperature is 1 until an evaluation with `config.eval.calibrate` has fitted it.
        """
        function = jax.nn.sigmoid if self.multi_label else jax.nn.softmax
        return function(jnp.asarray(logits, jnp.float32) / self.temperature)

    def decide(self, probabilities: Any) -> np.ndarray:
        """Returns what images show, by their `probabilities` [B, K].

        The number of the most likely class, int [B]; -1, none of these, where its probability is
        below `thresholds`, if there is one, and where it is `background`. Of `multi_label` which
        classes, bool [B, K]: those from their threshold on, 1/2 without.
        """
        p = np.asarray(probabilities)
        if self.multi_label:
            return p >= np.array(self.thresholds or (0.5,), p.dtype)
        sure = p.max(-1) >= np.array(self.thresholds or (0.0,), p.dtype)
        found = p.argmax(-1)
        if self.background:
            sure &= found != self.class_names.index(self.background)
        return np.where(sure, found, -1)

    def calibrated(self, told: Mapping[str, Any]) -> "Network":
        """Returns it with temperature and thresholds as `weights.described` tells.

        Raises:
          ValueError: they are none.
        """
        thresholds = configs.tuples(told.get("thresholds") or ())
        net = dataclasses.replace(self, temperature=temperature_of(told), thresholds=thresholds)
        check_decisions(net)
        return net

    def described(self) -> dict[str, Any]:
        """Returns what is stored with weights, as JSON can hold it; `of_meta` reads it."""
        return dataclasses.asdict(self) | {"class_names": list(self.class_names)}


def load(
    path: str | os.PathLike,
    *,
    average: str | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Network, dict[str, Any]]:
    """Returns a network and its variables, NumPy arrays, from nothing but a directory.

    Args:
      path: a run's working directory (its newest intact checkpoint is taken), one of its
        checkpoints, or an export; local or gs://.
      average: take the average of that name, "swa" or "ema"; "": the parameters as trained; None:
        the first average that has begun, and as trained without any.
      report: is given a line about what is damaged, or not said there.

    Raises:
      ValueError: there are no intact weights, or none of a network with a classifier.
    """
    variables, meta = weights.load(path, average=average, report=report)
    network = of_meta(meta, variables, path, report=report)
    if not network.num_classes:
        raise ValueError(
            f"{os.fspath(path)}: its weights have no classifier: fine-tune them, with "
            "--config.init.checkpoint"
        )
    try:
        differences = trees.differences(variables, network.shapes, dtypes=False)
    except Exception as e:  # options from a file may break anything
        raise ValueError(
            f"{os.fspath(path)}: {network.name} cannot be built: {files.line(e)}"
        ) from e
    if differences:
        raise ValueError(
            f"{os.fspath(path)}: its weights are not those of {network.name} as it is described "
            f"there: {files.some(differences)}"
        )
    return network, variables


def of_meta(
    meta: Mapping[str, Any],
    variables: Variables,
    path: str | os.PathLike,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> Network:
    """Returns the network that weights are of, from their meta data.

    Before version 0.2 these said less: then the classes are counted in the classifier, images are
    those of the published recipe, and it computes in float32; `report` is told.

    Raises:
      ValueError: they are not those of a network.
    """
    problem = f"{os.fspath(path)}: its meta data do not describe a network: "
    try:
        told = weights.described(meta)
        name = choose("model", told["name"], models.MODELS)
        fields = [field.name for field in dataclasses.fields(ops.Image)]
        there = {k: v for k, v in (told.get("image") or {}).items() if k in fields}
        image = {k: configs.from_json(f"image.{k}", v) for k, v in there.items()}
        if missing := [key for key in fields if key not in image]:
            image = published_image(name) | image
            report(f"{os.fspath(path)} does not say its image.{', '.join(missing)}: as published")
        if "precision" not in told:
            report(f"{os.fspath(path)} does not say its precision: float32")
        options = {key: configs.tuples(value) for key, value in told["options"].items()}
        if not all(map(is_option, options.items())):
            raise ValueError(f"options {short(options)}")
        network = Network(
            name=name,
            options=options,
            num_classes=told.get("num_classes", 0),
            class_names=tuple(map(_encodable, told.get("class_names") or ())),
            image=ops.Image(**image),
            precision=choose("precision", told.get("precision", "float32"), precision.DTYPES),
            version=str(told.get("version", "before 0.2")),
            multi_label=bool(told.get("multi_label", False)),
            background=str(told.get("background") or ""),
        )
        if "num_classes" not in told:
            network = dataclasses.replace(network, num_classes=_count_classes(network, variables))
        network = network.calibrated(told)
    except Exception as e:  # what stands in a file may break anything
        raise ValueError(f"{problem}{files.line(e)}") from e
    if not isinstance(network.num_classes, int) or not 0 <= network.num_classes <= MAX_CLASSES:
        raise ValueError(f"{problem}{short(network.num_classes)} classes")
    return network


def _encodable(name: Any) -> str:
    # JSON can say what UTF-8 cannot
    return str(name).encode(errors="backslashreplace").decode()


def temperature_of(told: Mapping[str, Any]) -> float:
    """Returns the temperature of what `weights.described` tells, 1 if it does not.

    Raises:
      ValueError: it is none.
    """
    value = told.get("temperature", 1.0)
    if not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(f"temperature {short(value)}")
    return float(value)


def check_decisions(network: Network) -> None:
    """Refuses thresholds that are no probabilities, too many or too few; a background that is none.

    Raises:
      ValueError: it is so.
    """
    if network.background:
        choose("config.model.background", network.background, network.class_names)
        if network.multi_label:
            raise ValueError(
                f"config.model.background = {network.background!r}: images that may show several "
                'classes show none of them without it: write ""'
            )
    given, wanted = network.thresholds, network.num_classes if network.multi_label else 1
    good = all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in given)
    if not good or len(given) not in (0, wanted):
        raise ValueError(
            f"thresholds = {short(given)}: give {wanted} of 0 to 1, or none"
            + (", one for each class" if network.multi_label else ", of the most likely class")
        )


def published_image(name: str) -> dict[str, Any]:
    """Returns `config.image` of the published recipe of a network."""
    recipe = configs.run_file(configs.BASE.with_name("imagenet.py"))["get_config"](name)
    return dict(recipe.image)


def _count_classes(network: Network, variables: Variables) -> int:
    """Returns the number of classes that makes a network of these variables; 0 without a head."""
    heads = jax.tree.leaves(variables["params"].get("head", {}))
    n = 0
    for n in sorted({x.shape[-1] for x in heads}):
        there = dataclasses.replace(network, num_classes=n).shapes
        if not trees.differences(variables, there, dtypes=False):
            break
    return n


# -- From the config -------------------------------------------------------------------------------


def make(
    *,
    name: str,
    num_classes: int,
    bn_momentum: float | None,
    bn_epsilon: float | None,
    bn_group: int | None,
    quantise: str,
    options: Sequence[tuple[str, Any]],
    background: str,
    classes: int,
    class_names: Sequence[str],
    image: ops.Image,
    precision: str,
    multi_label: bool = False,
) -> tuple[Network, nn.Module, dict[str, Any]]:
    """Returns the network of `config.model`, its module in training, and the shapes of its outputs.

    Args:
      name, ..., options: `config.model`. Momentum and groups of BatchNorm, and rounding to 8 bits,
        are for training only.
      classes, class_names: of the data.
      image: of `config.image`.
      precision: name of `config.precision`.
      multi_label: whether an image may show several classes.

    Raises:
      ValueError: there is no such network for such images, or it does not take these options.
    """
    choose("config.model.name", name, models.MODELS)
    keys = {"bn_momentum": bn_momentum, "bn_epsilon": bn_epsilon, "bn_group": bn_group}
    choose("config.model.quantise", quantise, ("", "int8"))
    keys["quantise"] = True if quantise else None
    names = [option[0] for option in options if is_option(option)]
    _check_options(name, options, names, {"name", "num_classes", *keys}, keys)
    arguments = {key: value for key, value in keys.items() if value is not None} | dict(options)
    for key in ("bn_momentum", "bn_epsilon"):
        models.check(key, arguments.get(key), "config.model.")
    if num_classes and num_classes < classes:
        raise ValueError(
            f"config.model.num_classes = {num_classes}, the data has {classes}: write at least "
            "that, or 0"
        )
    if num_classes > MAX_CLASSES:
        raise ValueError(f"config.model.num_classes = {num_classes}: write at most {MAX_CLASSES}")
    training = ("bn_momentum", "bn_group", "quantise")
    training = {key: arguments.pop(key) for key in training if key in arguments}
    network = Network(
        name=name,
        options=arguments,
        num_classes=num_classes or classes,
        class_names=tuple(class_names),
        image=image,
        precision=precision,
        multi_label=multi_label,
        background=background,
    )
    check_decisions(network)
    # With options of the user whatever goes wrong inside is theirs; without, the image's size.
    theirs = Exception if options else (ValueError, ArithmeticError)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    try:
        module = network.module
        two = jax.ShapeDtypeStruct((2, *image.shape), jnp.float32)  # are enough to try
        apply = functools.partial(module.init_with_output, rngs, train=True)
        outputs, _ = jax.eval_shape(apply, two)
    except theirs as e:
        given = f", config.model.options = {short(options)}" if options else ""
        raise ValueError(
            f"config.model.name = {name!r}{given}, config.image.size = {image.size}: the network "
            f"cannot be built: {e or type(e).__name__}"
        ) from e
    if image.shown != image.size:
        network.check_shown()
    if quantise and _kernels(network) != _kernels(network.folded):
        raise ValueError(
            f"config.model.quantise = {quantise!r}: {name} adds up convolutions that become one: "
            'write "", or train the form that is exported'
        )
    return network, module.clone(c=module.c.replace(**training)), outputs


def _kernels(network: Network) -> int:
    return sum(x.ndim == 4 for x in jax.tree.leaves(network.shapes["params"]))


def _check_options(
    name: str,
    options: Sequence[Any],
    names: Sequence[str],
    arguments: set[str],
    keys: Mapping[str, Any],
) -> None:
    given = f"config.model.options = {short(options)}"
    if not all(map(is_option, options)):
        raise ValueError(
            f"{given}: write pairs of a name and a value, such as "
            '(("dropout", 0.2),); values are numbers of at least 0, texts, True, False, None and '
            "tuples of them"
        )
    takes = models.arguments(name) - {*OURS, *arguments} | {"bn_epsilon", "bn_momentum"}
    if unknown := sorted({*names} - takes - {*OURS, *arguments}):
        raise ValueError(
            f"{given}: {name} takes no argument {', '.join(unknown)}; it takes "
            f"{', '.join(sorted(takes))}; without: --config.model.options='()'"
        )
    for option in names:
        # converted weights have the options that they need, BatchNorm's epsilon among them
        training = option in ("bn_group", "quantise")
        key = option in arguments and (keys.get(option, 0) is not None or training)
        if key or option in OURS or names.count(option) > 1:
            why = "config.precision, config.optim.frozen or an export sets it"
            why = f"there is config.model.{option}" if key else why
            why = "it is there twice" if names.count(option) > 1 else why
            raise ValueError(f"{given}: {option!r}: {why}")


def is_option(option: Any) -> bool:
    """Returns whether this is a (name, value) that a network and JSON can take."""

    def fits(value):
        if isinstance(value, (tuple, list)):
            return all(map(fits, value))
        if isinstance(value, (int, float)):
            return 0 <= value < LARGEST
        return value is None or isinstance(value, str)

    pair = isinstance(option, (tuple, list)) and len(option) == 2
    return pair and isinstance(option[0], str) and fits(option[1])
