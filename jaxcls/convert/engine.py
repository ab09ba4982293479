"""Weights of another code base -> {"params", "batch_stats"} of ours, total on both sides.

A family's rule maps the path of one of our layers to the name of theirs; everything else is here.
For PyTorch a family lists `Source`s: the networks of timm and torchvision that have its tensors.
There the same rules lead back, see `to_torch`.
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
    "factor": "scale",
    "mean": "_mean",
    "var": "_variance",
    "value": "",  # the layer's name is the tensor's: position embeddings, class tokens, ...
}
TORCH_LEAVES = PADDLE_LEAVES | {"mean": "running_mean", "var": "running_var"}
# Tensors that are computed, not learnt: which place is how far from which, which window sees what.
COMPUTED = re.compile(
    r"(^|\.)(relative_position_index|relative_position_bias|relative_coords_table|attn_mask"
    r"|attention_bias_idxs|num_batches_tracked)$"
)
LISTED = 10  # tensors of a kind in an error
PLAIN = {"bottleneck": None, "folded": False}  # of theirs, if not in `needs`
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
    # For the way back: tensors that the rule names -> all, and the sides of their kernels in pixels
    # where ours are linear, by patterns of their layers; 0: linear where ours are convolutions.
    complete: Callable[[Arrays], Arrays] = dict
    sides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # What timm.create_model takes: by names of ours whose options are `needs` and no others; or,
    # with arguments, what it takes for a module, None if there is nothing.
    timm: Mapping[str, str] | Callable[[Any], tuple[str, dict[str, Any]] | None] = (
        dataclasses.field(default_factory=dict)
    )


def paddle_layout(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor in our layout: convolutions OIHW -> HWIO, linear [in, out] as it is.

    Ours of `shape` may be linear where theirs is a 1x1 convolution.
    """
    if (array.ndim, len(shape)) == (4, 2) and array.shape[2:] == (1, 1):
        return array[:, :, 0, 0].T
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
    arrays = {key: array for key, array in arrays.items() if not COMPUTED.search(key)}
    converted, missing, unfit, used = {}, {}, {}, set()
    for path, leaf in target.items():
        try:
            key = ".".join(filter(None, (rule(path[1:-1], module), leaves[path[-1]])))
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
        array = np.asarray(arrays[key])
        if path[-1] != "value":
            array = layout(array, leaf.shape)
        elif [n for n in array.shape if n != 1] == [n for n in leaf.shape if n != 1]:
            array = array.reshape(leaf.shape)
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
    arrays = {k: a for k, a in arrays.items() if not COMPUTED.search(k)}
    module, target = _target(name, in_channels, build_overrides | sources[0].needs)
    layers = {path[1:-1] for path in target}

    def matches(source: Source) -> int:
        keys = source.prepare(arrays).keys()
        found = {key.rpartition(".")[0] for key in keys} | keys
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
        lines.append(
            f"{source.names}: {source.differs}; convert with {arguments} ({flags} on the command "
            f"line) and train with {_keys(source.needs)}"
        )
    if len(sources) == 1:
        start = "these are weights of a network that computes something else than PaddleClas's, "
    else:
        start = "these tensors do not tell which of several networks they are of; it is\n  "
    raise ValueError(f"{name}: {start}" + "\n  or ".join(lines))


def _keys(needs: Mapping[str, Any]) -> str:
    """Returns the config's keys for arguments of `models.build`."""
    options, keys = dict(needs), []
    if "bn_epsilon" in options:  # a key of its own
        keys.append(f"config.model.bn_epsilon = {options.pop('bn_epsilon')!r}")
    if options:
        keys.append(f"config.model.options = {tuple(options.items())!r}")
    return " and ".join(keys)


# -- The way back ---------------------------------------------------------------------------------


def source_of(name: str, module: Any, sources: Sequence[Source], package: str) -> Source:
    """Returns the networks of a package that compute what ours does.

    Args:
      name, module: of ours.
      sources: of its family, in that package.
      package: "timm" or "torchvision".

    Raises:
      ValueError: there are none; the message says with which arguments there would be.
    """
    for source in sources:
        epsilon = models.build(name, **source.needs).c.bn_epsilon
        needs = PLAIN | {"bn_epsilon": epsilon} | source.needs
        value = lambda key: getattr(module.c if key in CTX_FIELDS else module, key)
        scales = module.c.downscale and "downscale" not in needs
        if not scales and all(value(key) == needed for key, needed in needs.items()):
            return source
    if not sources:
        raise ValueError(f"{name} is not in {package}")
    told = [f"{s.names}: {s.differs}; train with {_keys(s.needs)}" for s in sources if s.needs]
    told = told or [f"{sources[0].names}, without further options"]
    raise ValueError(f"{name} computes something else than {' or '.join(told)}")


def to_torch(variables: Mapping[str, Any], module: Any, source: Source) -> dict[str, np.ndarray]:
    """Returns the tensors of PyTorch's network: what `convert_torch` makes these variables of."""
    arrays = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        layer = source.rule(path[1:-1], module)
        sides = [side for pattern, side in source.sides.items() if re.fullmatch(pattern, layer)]
        array = _torch_array(np.asarray(leaf), *sides) if path[-1] == "kernel" else np.asarray(leaf)
        key = ".".join(filter(None, (layer, TORCH_LEAVES[path[-1]])))
        arrays[key] = np.ascontiguousarray(array)
    return dict(source.complete(arrays))


def _torch_array(array: np.ndarray, side: int | None = None) -> np.ndarray:
    """Returns a kernel as PyTorch has it, the inverse of `torch_layout`; for sides see `Source`."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
        return array if side is None else array[:, :, 0, 0]
    return array.T.reshape(array.shape[1], -1, side, side) if side else array.T


def without_biases(arrays: Arrays, norms: Mapping[str, str]) -> Arrays:
    """Returns the tensors without the biases in front of a BatchNorm.

    It subtracts the mean, so a bias less there is the same network, in training too.

    Args:
      arrays: of PyTorch.
      norms: layer with a bias -> its BatchNorm.
    """
    arrays = dict(arrays)
    for layer, norm in norms.items():
        bias, mean = arrays.get(f"{layer}.bias"), arrays.get(f"{norm}.running_mean")
        if bias is not None and mean is not None and bias.shape == mean.shape:
            with np.errstate(invalid="ignore"):  # what is not finite is found later
                arrays[f"{norm}.running_mean"] = mean.astype(np.float32) - bias
            del arrays[f"{layer}.bias"]
    return arrays


def with_biases(arrays: Arrays, norms: Mapping[str, str]) -> Arrays:
    """Returns the tensors with those biases, of 0."""
    zeros = {
        f"{layer}.bias": np.zeros_like(arrays[f"{norm}.bias"]) for layer, norm in norms.items()
    }
    return {**arrays, **zeros}


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


def column_block(layer: Layer, depth: int) -> str:
    """Returns the name of a layer in one of `depth` blocks that are cut into four stages."""
    depths = ((i + 1) * depth // 4 - i * depth // 4 for i in range(4))
    return ".".join((f"blocks.{index_of(depths, layer)}", *layer[2:]))


# -- Names that timm's and torchvision's networks of inverted residuals share ----------------------


def shifted_windows(merged: int, head: str = "head") -> Rule:
    """Returns the rule of both Swin Transformers; theirs merges places so many stages before ours.

    PaddleClas ends a stage with what begins our next one, timm does as we do.
    """
    inside = {"bias_table": "relative_position_bias_table"}

    def rule(layer: Layer, module: Any) -> str:
        del module
        if layer[0] in ("head", "neck"):
            return {"head": head, "neck": "norm"}[layer[0]]
        if layer[0] == "stem":
            return f"patch_embed.{layer[1]}"
        stage, block = numbers(*layer[:2])
        *_, last = role = layer[2:]
        if last in ("reduction", "norm"):
            return f"layers.{stage - 1 - merged}.downsample.{last}"
        if "cpb_mlp" in role:
            role = (*role[:-1], {"fc1": "0", "fc2": "2"}[last])
        names = (inside.get(name, name) for name in role)
        return ".".join((f"layers.{stage - 1}.blocks.{block - 1}", *names))

    return rule


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
