"""Weights of another code base -> {"params", "batch_stats"} of ours, total on both sides.

A family's rule maps the path of one of our layers to the name of theirs; everything else is here.
For PyTorch a family lists `Source`s: the networks of timm and torchvision that have its tensors.
"""

import contextlib
import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcls import models
from jaxcls.models.spec import CTX_FIELDS

PADDLE_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "_mean",
    "var": "_variance",
}
TORCH_LEAVES = PADDLE_LEAVES | {"mean": "running_mean", "var": "running_var"}
LISTED = 10  # tensors of a kind in an error
Arrays = Mapping[str, np.ndarray]
Layer = tuple[str, ...]  # a path of ours without collection and leaf: ("stage1", "block1", "conv1")
Rule = Callable[[Layer, Any], str]
Layout = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """Networks of timm or torchvision whose tensors one of ours has."""

    names: str  # "timm's vgg11 to vgg19"
    rule: Rule
    # Arguments of `models.build` with which ours computes the same; those that change the shapes
    # are needed by all sources of a network.
    needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    differs: str = ""  # what `needs` is for
    refused: str = ""  # that for which there are no arguments
    prepare: Callable[[Arrays], Arrays] = dict  # tensors -> those that the rule names


def paddle_layout(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor in our layout: convolutions OIHW -> HWIO, linear [in, out] as it is."""
    del shape
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def torch_layout(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor in our layout: convolutions OIHW -> HWIO, linear [out, in] -> [in, out].

    Ours of `shape` may be linear where theirs is a convolution over the whole image, and a 1x1
    convolution where theirs is linear.
    """
    if (array.ndim, len(shape)) == (4, 2):
        array = array.reshape(len(array), math.prod(array.shape[1:]))
    elif (array.ndim, len(shape)) == (2, 4):
        array = array[:, :, None, None]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


@contextlib.contextmanager
def building(name: str, **arguments) -> Iterator[None]:
    """Answers a value that no part of the network expects with a ValueError that names all."""
    try:
        yield
    except Exception as error:
        text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        what = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(f"{name} cannot be built with {text}: {what}") from error


def _target(name: str, in_channels: int, build_overrides: Mapping[str, Any]) -> tuple[Any, dict]:
    """Returns the module and {path: shape and dtype} of its variables."""
    module = models.build(name, **build_overrides)
    size = models.MODELS[name].size
    with building(name, in_channels=in_channels, **build_overrides):
        image = jax.ShapeDtypeStruct((1, size, size, in_channels), jnp.float32)
        return module, flatten_dict(dict(jax.eval_shape(module.init, jax.random.key(0), image)))


def _of_classifier(path: Layer) -> bool:
    return "head" in path[1:3]  # the auxiliary classifiers are at aux1/head


def convert(
    name: str,
    arrays: Arrays,
    rule: Rule,
    leaves: Mapping[str, str],
    layout: Layout,
    *,
    head: bool = True,
    in_channels: int = 3,
    **build_overrides,
) -> dict[str, Any]:
    """Returns {"params": ..., "batch_stats": ...} for `models.build(name, **build_overrides)`.

    Args:
      name: of our model.
      arrays: their tensors by name.
      rule: (path of our layer, our module) -> name of their layer.
      leaves: our leaf's name -> theirs.
      layout: (their array, our shape) -> the array in our axis order.
      head: whether to convert the classifiers; otherwise they are left out, whether they are in
        `arrays` or not.
      in_channels: of the images.

    Raises:
      ValueError: lists tensors that are missing, unmatched, of another shape or no finite floats.
    """
    module, target = _target(name, in_channels, build_overrides)
    return _fill(name, module, target, arrays, rule, leaves, layout, head)


def _fill(
    name: str,
    module: Any,
    target: Mapping[Layer, jax.ShapeDtypeStruct],
    arrays: Arrays,
    rule: Rule,
    leaves: Mapping[str, str],
    layout: Layout,
    head: bool,
) -> dict[str, Any]:
    """Returns the variables of `target`; see `convert`."""
    converted, missing, unfit, used = {}, {}, {}, set()
    for path, leaf in target.items():
        try:
            key = f"{rule(path[1:-1], module)}.{leaves[path[-1]]}"
        except (LookupError, ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: the other code base has no name for {'/'.join(path[1:])} of a network "
                "of these options"
            ) from error
        used.add(key)
        if _of_classifier(path) and not head:
            continue
        ours = "/".join(path[1:])
        if key not in arrays:
            missing[path] = f"{key}: missing (for {ours} {leaf.shape})"
            continue
        array = layout(np.asarray(arrays[key]), leaf.shape)
        if array.shape != leaf.shape:
            unfit[path] = f"{key}: shape {array.shape}, {ours} has {leaf.shape}"
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            unfit[path] = f"{key}: numbers of {array.dtype}, {ours} has {leaf.dtype}"
            continue
        with np.errstate(over="ignore"):
            converted[path] = np.ascontiguousarray(array, dtype=leaf.dtype)
        if not np.isfinite(converted[path]).all():
            unfit[path] = f"{key}: numbers that are not finite in {leaf.dtype}"
    unmatched = [f"{key}: no place for it" for key in sorted(arrays.keys() - used)]

    wrong = missing | unfit
    if wrong and not unmatched and all(map(_of_classifier, wrong)):
        if len(missing) == sum(map(_of_classifier, target)):
            raise ValueError(
                f"{name}: the classifier's tensors are missing: convert with head=False (--no-head "
                "on the command line); a run that starts from the result makes a new classifier"
            )
        unmatched.append(
            f"all but the classifier fits: give num_classes (here {module.num_classes}) as it is "
            "in the file, or head=False (--no-head on the command line) to leave it out"
        )
    if wrong or unmatched:
        kinds = [list(missing.values()), list(unfit.values()), unmatched]
        lines = [line for kind in kinds for line in _first(kind)]
        raise ValueError(f"these are not the weights of {name}:\n  " + "\n  ".join(lines))
    return {"batch_stats": {}} | unflatten_dict(converted)


def _first(lines: list[str]) -> list[str]:
    """Returns the first lines, and how many more there are."""
    more = len(lines) - LISTED
    return lines[:LISTED] + ([f"... and {more:,} more such tensors"] if more > 0 else [])


def convert_torch(
    name: str,
    arrays: Arrays,
    sources: Sequence[Source],
    *,
    head: bool,
    in_channels: int,
    **build_overrides,
) -> dict[str, Any]:
    """As `convert`, for the source whose names the tensors have.

    Raises:
      ValueError: also if that network computes something else than
        `models.build(name, **build_overrides)`; the message says what, and which arguments make
        them equal.
    """
    arrays = {k: a for k, a in arrays.items() if not k.endswith("num_batches_tracked")}
    module, target = _target(name, in_channels, build_overrides | sources[0].needs)
    layers = {path[1:-1] for path in target}

    def matches(source: Source) -> int:
        found = {key.rpartition(".")[0] for key in source.prepare(arrays)}
        return sum(source.rule(layer, module) in found for layer in layers)

    best = max(sources, key=matches)
    if not matches(best):
        some = ", ".join(sorted(arrays)[:3]) or "no tensors"
        expected = "; ".join(dict.fromkeys(source.names for source in sources))
        raise ValueError(f"{name}: these are not weights of {expected}, but {some}, ...")
    if best.refused:
        raise ValueError(f"{name}: these are weights of {best.names}: {best.refused}")
    # Complete first: what is missing says more than what would have to be set.
    prepared = best.prepare(arrays)
    variables = _fill(name, module, target, prepared, best.rule, TORCH_LEAVES, torch_layout, head)
    same = [source for source in sources if source.rule is best.rule]
    _check_needs(name, same, build_overrides)
    return variables


def _check_needs(name: str, sources: Sequence[Source], build_overrides: Mapping[str, Any]) -> None:
    """Refuses a module that computes something else than each of the sources of equal tensors.

    Where there are several, the caller has to have said which by one of the arguments needed.
    """
    module = models.build(name, **build_overrides)
    value = lambda key: getattr(module.c if key in CTX_FIELDS else module, key)
    fits = any(all(value(k) == v for k, v in source.needs.items()) for source in sources)
    said = any(key in source.needs for source in sources for key in build_overrides)
    if fits and (said or len(sources) == 1):
        return
    lines = []
    for source in sources:
        arguments = ", ".join(f"{key}={needed!r}" for key, needed in source.needs.items())
        flags = " ".join(
            "--option " + shlex.quote(f"{key}={needed}") for key, needed in source.needs.items()
        )
        options = dict(source.needs)
        config = []
        if "bn_epsilon" in options:  # a key of its own
            config.append(f"config.model.bn_epsilon = {options.pop('bn_epsilon')!r}")
        if options:
            config.append(f"config.model.options = {tuple(options.items())!r}")
        lines.append(
            f"{source.names}: {source.differs}; convert with {arguments} ({flags} on the command "
            f"line) and train with {' and '.join(config)}"
        )
    if len(sources) == 1:
        start = "these are weights of a network that computes something else than PaddleClas's, "
    else:
        start = "these tensors do not tell which of several networks they are of; it is\n  "
    raise ValueError(f"{name}: {start}" + "\n  or ".join(lines))


# -- What rules are made of -----------------------------------------------------------------------

PADDLE_PARTS = {"conv": "_conv", "bn": "_batch_norm"}  # of a ConvBN, in most of PaddleClas's files
IN_LIST = {"conv": 0, "bn": 1}  # where a list has them


def numbers(*names: str) -> list[int]:
    """Returns all numbers in names such as "stage2", "block12" and "from1_to2"."""
    return [int(n) for name in names for n in re.findall(r"\d+", name)]


def number(name: str) -> int:
    """Returns the number in a name such as "block12"."""
    (n,) = numbers(name)
    return n


def index_of(depths: Iterable[int], layer: Layer) -> int:
    """Returns the place of a layer's block among those of all stages, which have `depths`, from 0.

    The layer's path begins with "stageN", "blockN".
    """
    stage, block = numbers(*layer[:2])
    return sum(itertools.islice(depths, stage - 1)) + block - 1


# -- Names that timm's and torchvision's networks of inverted residuals share ----------------------


def rows_of(stages: Iterable[Iterable[Any]]) -> list[list[int]]:
    """Returns for each block of each stage which row, with its `repeats`, it is of."""
    count = itertools.count()
    return [[n for row in rows for n in [next(count)] * row.repeats] for rows in stages]


def row_of(rows: Sequence[Sequence[int]], layer: Layer) -> tuple[int, int]:
    """Returns the row of a layer's block and the block's place there, both from 0.

    Args:
      rows: a number for each block of each of our stages; a row is a run of equal ones.
      layer: path that begins with "stageN", "blockN".
    """
    flat = list(itertools.chain(*rows))
    index = index_of(map(len, rows), layer)
    firsts = [i for i, row in enumerate(flat) if not i or row != flat[i - 1]]
    first = max(i for i in firsts if i <= index)
    return firsts.index(first), index - first


def timm_mobile(rows: Sequence[Sequence[int]], layer: Layer) -> str:
    """Returns timm's name of a layer; the blocks of the first row have no expansion."""
    if layer[0] == "head":
        return "classifier"
    if layer[0] in ("stem", "neck"):
        stem = layer[0] == "stem"
        return {"conv": "conv_stem" if stem else "conv_head", "bn": "bn1" if stem else "bn2"}[
            layer[-1]
        ]
    row, place = row_of(rows, layer)
    role, part = layer[2:]
    if role == "se":
        theirs = {"conv1": "se.conv_reduce", "conv2": "se.conv_expand"}[part]
    elif part == "bn":
        theirs = f"bn{number(role) - (not row)}"
    else:
        last = "conv_pwl" if row else "conv_pw"
        theirs = {"conv1": "conv_pw", "conv2": "conv_dw", "conv3": last}[role]
    return f"blocks.{row}.{place}.{theirs}"


def torchvision_block(rows: Sequence[Sequence[int]], layer: Layer, *, se: bool) -> str:
    """Returns torchvision's name of a layer inside a block, which counts what the block has."""
    row, _ = row_of(rows, layer)
    role, part = layer[2:]
    expands = row > 0
    place = {"conv1": 0, "conv2": expands, "se": expands + 1, "conv3": expands + 1 + se}[role]
    names = {"conv1": "fc1", "conv2": "fc2"} if role == "se" else IN_LIST
    return f"block.{int(place)}.{names[part]}"


# -- Names that timm's and torchvision's residual networks share ----------------------------------


def torch_residual(layer: Layer, module: Any) -> str:
    """Returns the name of what ResNet and Res2Net share: head, stem, shortcuts, convolutions."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return torch_stem(layer, module.stem)
    block, role, part = torch_block(layer), layer[2], layer[-1]
    if role == "short":
        return f"{block}.{torch_shortcut(part, module.mean_short)}"
    return f"{block}.{part}{number(role)}"


def torch_stem(layer: Layer, kind: str) -> str:
    """Returns the name of a layer of the stem; three convolutions are a list with ReLUs in it."""
    _, conv, part = layer
    if kind != "conv3":
        return f"{part}1"
    place = 3 * (number(conv) - 1) + (part == "bn")
    return "bn1" if place == 7 else f"conv1.{place}"


def torch_block(layer: Layer) -> str:
    """Returns the name of a layer's block."""
    return f"layer{number(layer[0])}.{number(layer[1]) - 1}"


def torch_shortcut(part: str, mean: bool) -> str:
    """Returns the name of a layer of the shortcut in its block; a mean has a place in the list."""
    return f"downsample.{(part == 'bn') + mean}"
