"""Weights of a run, a checkpoint or an export: for evaluation and fine-tuning.

An export is a checkpoint (`jaxcls.checkpoint`) without optimizer state: `state` is {"params",
"batch_stats"}. The meta data of both have a "network", what `jaxcls.network` needs to use them.
What was trained besides the network, "extra" in both trees, is left out.
"""

import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxcls import averages, checksums, fetched, files, signals, trees
from jaxcls.checksums import CALIBRATION, CHECKSUMS
from jaxcls.models import transformer

# What the meta data of a checkpoint from anywhere may say, or not, of its network.
META = {"model": str, "network": dict, "options": dict, "class_names": list, "image": dict}
CALIBRATED = ("temperature", "thresholds")  # what an evaluation finds for a network
RENAMED = "the classes have other names"
HEADS = r"(aux\d+/)?head/"  # where the classifiers are
Variables = Mapping[str, Any]  # {"params": tree, "batch_stats": tree}


def export(path: str | os.PathLike, variables: Variables, meta: Mapping[str, Any]) -> None:
    """Writes weights without optimizer state, for `load` and `config.init.checkpoint`.

    Args:
      path: directory that does not exist yet.
      variables: {"params", "batch_stats"}.
      meta: what JSON can hold, with "network": `Network.described()`.

    Raises:
      ValueError: `path` exists.
      files.SaveError: it could not be written.
    """
    path = files.absolute(path)
    if path.exists():
        raise ValueError(f"{path} exists: choose another directory for the export, or remove it")
    state = {name: _without_extra(variables.get(name, {})) for name in ("params", "batch_stats")}
    options = ocp.options.AsyncOptions(
        post_finalization_callback=lambda: checksums.add(path.parent, path.name)
    )
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(json.loads(json.dumps(meta)))
    )

    def undo():
        for unfinished in checksums.unfinished(path.parent, path.name):
            unfinished.rmtree(missing_ok=True)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = ocp.CompositeCheckpointHandler()
        with (
            signals.undone(undo),
            ocp.AsyncCheckpointer(handler, async_options=options) as checkpointer,
        ):
            checkpointer.save(path, args=args)
    except (OSError, ValueError) as e:
        raise files.SaveError(f"{path} could not be written: {files.reason(e)}") from e


def load(
    path: str | os.PathLike,
    *,
    average: str | None = None,
    report: Callable[[str], None] = print,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the weights and the meta data of a run, a checkpoint or an export.

    Args:
      path: a run's workdir (its newest intact checkpoint is taken), the checkpoints in it, one of
        them, or an export; or a name such as "paddleclas:ResNet50_vd" or
        "timm:resnet50d.ra2_in1k", whose weights are fetched the first time (`jaxcls.fetched`).
      average: take the average of that name, "swa" or "ema"; "": the parameters as trained; None:
        the first average that has begun, and as trained without any.
      report: is given a line about each checkpoint that is damaged.

    Returns:
      ({"params", "batch_stats"}, meta), the weights as NumPy arrays.

    Raises:
      ValueError: there is no checkpoint, or no intact one, or it has no such average, or it cannot
        be fetched.
      files.StorageError: it cannot be read at the moment.
    """
    _, found, variables, meta = _find(path, average, report)
    if average and found != average:
        raise ValueError(f"{os.fspath(path)} has no average {average!r}, or it has not begun yet")
    return variables, meta


def calibrate(
    path: str | os.PathLike, found: Mapping[str, Any], *, average: str | None = None
) -> None:
    """Stores what was found with the weights that `load` finds there, for these alone.

    What it has of `CALIBRATED`; whatever was stored before is gone. It stands beside the files of
    their checkpoint, whose checksums stay as they are.

    Raises:
      ValueError: as `load`.
      files.SaveError: it could not be written.
    """
    checkpoint, average, _, _ = _find(path, average, lambda line: None)
    if jax.process_index() == 0:
        text = json.dumps({**found, "average": average}, allow_nan=False)
        try:
            files.write_atomically(checkpoint / CALIBRATION, text + "\n")
        except OSError as e:
            what = f"{checkpoint / CALIBRATION} could not be written: {files.reason(e)}"
            raise files.SaveError(what) from e


def _find(
    path: str | os.PathLike, average: str | None, report: Callable[[str], None]
) -> tuple[epath.Path, str, dict[str, Any], dict[str, Any]]:
    """Returns the checkpoint that `load` takes, the average ("": as trained), and what it returns.

    Args and errors: of `load`.
    """
    report = files.only_process_0(report)
    place = files.absolute(fetched.find(path))
    candidates = files.patiently(lambda: checksums.candidates(place), path, report)
    if not candidates:
        raise ValueError(f"{path}: {nothing_at(path)}")
    for candidate in candidates:
        verified = False
        files.check_files(candidate)
        try:
            verified = checksums.verify(candidate, report)
            if not verified:
                report(f"checkpoint {candidate} has no {CHECKSUMS}: it is used unverified")
            names = averages.PREFERRED if average is None else (average,) if average else ()
            read = functools.partial(_read, candidate, names)
            return candidate, *files.patiently(read, candidate, report)
        except files.StorageError:
            raise
        except Exception as e:  # on damaged files orbax raises errors of all types
            if verified:
                raise
            damage = files.line(e)
            report(f"checkpoint {candidate} is damaged ({damage})")
    again = f"; remove {place}, and it is fetched again" if fetched.split(path) else ""
    raise ValueError(f"{os.fspath(path)}: no intact checkpoint ({damage}){again}")


def described(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what meta data say of the network, also those of versions before 0.2.

    Raises:
      ValueError: something in there is of another type.
    """
    known = {"name": meta.get("model"), "options": meta.get("options") or {}}
    known |= {key: meta[key] for key in ("class_names", "image") if meta.get(key)}
    known |= meta.get("network") or {}
    known |= {key: meta[key] for key in CALIBRATED if key in meta}
    if wrong := _wrong({"model": known["name"]} | known):
        raise ValueError(f"the meta data of the weights have another {wrong[0]} than jaxcls writes")
    return known


def nothing_at(path: str | os.PathLike) -> str:
    """Returns what to do about a path where there is no checkpoint."""
    path = os.fspath(path)
    if path.endswith((".pdparams", ".pth", ".pt", ".safetensors", ".npz")):
        return (
            "weights of another program have to be converted: python -m jaxcls.convert NAME "
            f"--from {shlex.quote(path)} --to DIR writes what to give here"
        )
    if (files.absolute(path) / "network.json").exists():
        return (
            "an export has a program and no weights; give the run or the checkpoint that it was "
            "made of (jaxcls.predict and jaxcls.serve take exports too)"
        )
    return (
        "no checkpoint there; give a run's working directory, one of its checkpoints "
        "(WORKDIR/checkpoints/STEP) or an export"
    )


def exists(path: str | os.PathLike) -> bool:
    """Returns whether `load` would find a checkpoint there; of a name it is fetched."""
    return bool(checksums.candidates(files.absolute(fetched.find(path))))


def initialize(
    variables: Variables,
    *,
    network: Mapping[str, Any],
    checkpoint: str | os.PathLike,
    ema: bool = True,
    reset: Sequence[str] = (),
    strict: bool = False,
    stored: tuple[dict[str, Any], dict[str, Any]] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Returns variables with the values of a checkpoint: the start of fine-tuning.

    Every tensor is taken but for those that `reset` names, and the classifiers (tensors of the
    head and of auxiliary heads whose last axis is the classes) if the classes differ, in number or
    in their names where both are known, or if the checkpoint has no classifier at all. These keep
    their fresh values. For images of other channels, the first convolution is adapted: its kernels
    are summed for grey ones, otherwise repeated over the channels, A of them there and B here, and
    multiplied by A / B, as timm does: features keep their size. For images of another size,
    embeddings and biases of places are interpolated (`models.transformer`).

    Args:
      variables: {"params", "batch_stats"} as initialised; their dtypes and shardings are kept.
      network: that they are of, `Network.described()`. What converted weights need of its options
        is compared: some change what is computed but no shape.
      checkpoint: see `load`.
      ema: take the average where there is one, see `load`.
      reset: patterns of tensors that keep their fresh values; one that only the checkpoint has is
        dropped.
      strict: refuse a checkpoint of other classes: for evaluation, where nothing may be fresh.
      stored: what `load` returned for it, if it was read before.
      report: is given a line about every tensor that was not taken, and why, on process 0.

    Raises:
      ValueError: there is no intact checkpoint, the weights need other options, a pattern matches
        nothing, or another tensor is missing in the checkpoint, unknown to the model or of
        another shape.
    """
    report = files.only_process_0(report)
    source, meta = stored or load(checkpoint, average=None if ema else "", report=report)
    told, num_classes = described(meta), network["num_classes"]
    converted = meta.get("source") or "network" not in meta
    for name, value in told["options"].items() if converted else ():
        ours = json.loads(json.dumps(network["options"].get(name)))
        if ours != value:
            raise ValueError(
                f"the weights of {os.fspath(checkpoint)} are for a model with {name} = {value!r}, "
                f"this one has {ours!r}: set it in config.model or config.model.options"
            )
    theirs = dict(zip(trees.paths(source), jax.tree.leaves(source)))
    ours = dict(zip(trees.paths(variables), jax.tree.leaves(variables)))
    names = {path: path.partition("/")[2] for path in theirs | ours}  # without "params/"
    trees.check(reset, dict.fromkeys(names.values(), 0), "init.reset")
    pairs = zip(told.get("class_names") or (), network["class_names"])
    renamed = [f"class {i} is {a!r} there, {b!r} here" for i, (a, b) in enumerate(pairs) if a != b]

    images = [which.get("image") or {} for which in (told, network)]
    channels = [len(image.get("mean") or (0,) * 3) for image in images]
    headless = not any(re.match(HEADS, names[path]) for path in theirs)
    fresh, wrong, adapted = {}, {}, []
    for path, name in names.items():
        a, b = theirs.get(path), ours.get(path)
        if trees.matches(reset, name):
            fresh[path] = "config.init.reset"
        elif a is None and headless and re.match(HEADS, name):
            fresh[path] = "the checkpoint has no classifier"
        elif name.startswith(f"{trees.EXTRA}/"):
            fresh[path] = "it is no part of a network"
        elif a is None:
            wrong[path] = "not in the checkpoint"
        elif b is None:
            wrong[path] = "not in the model"
        elif re.match(HEADS, name) and b.shape == (*a.shape[:-1], num_classes) != a.shape:
            fresh[path] = f"{a.shape[-1]} classes in the checkpoint, {num_classes} here"
        elif re.match(HEADS, name) and b.shape == (*a.shape[:-1], num_classes) and renamed:
            fresh[path] = RENAMED
        elif not strict and a.shape != b.shape and _of_channels(a.shape, b.shape, channels):
            theirs[path] = with_channels(np.asarray(a), channels[1])
            adapted.append(f"  adapted: {path} {list(a.shape)} to images of {channels[1]} channels")
        elif not strict and a.shape != b.shape and _resized(name, a, b) is not None:
            theirs[path] = _resized(name, a, b)
            adapted.append(f"  adapted: {path} {list(a.shape)} to {list(b.shape)}, interpolated")
        elif a.shape != b.shape:
            wrong[path] = f"{trees.spec(a)} in the checkpoint, {trees.spec(b)} in the model"
    if wrong and told["name"] not in (None, network["name"]):
        raise ValueError(
            f"checkpoint {os.fspath(checkpoint)} is {told['name']}, the config asks for "
            f"{network['name']}: set config.model.name = {told['name']!r}, or choose another "
            "checkpoint"
        )
    if strict and RENAMED in fresh.values():
        raise ValueError(
            f"{RENAMED} in checkpoint {os.fspath(checkpoint)}: {files.some(renamed, 3)}; evaluate "
            "on data with its classes"
        )
    if strict and (wrong := wrong | fresh):
        raise ValueError(f"checkpoint {os.fspath(checkpoint)} does not fit: {_reasons(wrong)}")
    if wrong:
        raise ValueError(
            f"config.init.checkpoint = {str(checkpoint)!r} does not fit the model; patterns in "
            f"config.init.reset let tensors be initialised afresh: {_reasons(wrong)}"
        )

    def place(path, target):
        if path in fresh:
            return target
        value = np.asarray(theirs[path]).astype(target.dtype)
        return jax.make_array_from_callback(value.shape, target.sharding, lambda i: value[i])

    taken = len(ours.keys() - fresh.keys())
    report(f"initialised {taken} of {len(ours)} tensors from {os.fspath(checkpoint)}")
    for line in adapted:
        report(line)
    for path, reason in list(fresh.items())[: files.LISTED]:
        report(f"  not taken: {path} ({reason})")
    if len(fresh) > files.LISTED:
        report(f"  and {len(fresh) - files.LISTED} more that were not taken")
    return trees.map_with_path(place, dict(variables))


def _resized(name: str, theirs: Any, ours: Any) -> np.ndarray | None:
    """Returns a parameter of places for images of another size, or None, if it is none of them."""
    return transformer.adapted(name, np.asarray(theirs), ours.shape)


def _of_channels(theirs: Sequence[int], ours: Sequence[int], channels: Sequence[int]) -> bool:
    """Returns whether two shapes are those of the first kernels for so many channels, each."""
    same = len(theirs) == len(ours) == 4 and (*theirs[:2], theirs[3]) == (*ours[:2], ours[3])
    return same and [theirs[2], ours[2]] == [*channels]


def with_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns the kernels [h, w, A, F] of a first convolution for images of so many channels, B.

    Their sum for one channel; otherwise repeated in order, and A / B times as large.
    """
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    there = kernel.shape[2]
    return kernel[:, :, np.arange(channels) % there] * (there / channels)


def start(
    init: Callable[[], Any],
    abstract_state: Any,
    *,
    checkpoint: str,
    ema: bool,
    reset: Sequence[str],
    network: Mapping[str, Any],
    report: Callable[[str], None] = print,
) -> Any:
    """Returns the train state at step 0, with the weights of `config.init`, if there are any.

    Args:
      init: makes the state.
      abstract_state: its shapes and shardings.
      checkpoint, ema, reset: `config.init`.
      network, report: of `initialize`.
    """
    if checkpoint and not exists(checkpoint):
        raise ValueError(f"config.init.checkpoint = {checkpoint!r}: {nothing_at(checkpoint)}")
    state = init()
    if not checkpoint:
        return state
    variables = initialize(
        state.variables(),
        network=network,
        checkpoint=checkpoint,
        ema=ema,
        reset=reset,
        report=report,
    )
    average = {name: averages.start(variables, name) for name in state.averages}
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.device_put(state.replace(**variables, averages=average), shardings)


def _without_extra(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name != trees.EXTRA}


def _read(path: epath.Path, names: Sequence[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns the first average there, or "", its variables, meta data; reads no more."""
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        tree = handler.metadata(path / "state").tree  # the checkpointer's would log a warning
        # where the average stands; before version 0.2 it was beside the parameters
        places = [p for name in names for p in (("averages", name), (name,)) if _at(tree, p)]
        place = next((p for p in places if _begun(checkpointer, path, tree, p)), ())
        kept = _at(tree, place)
        if "params" not in kept:
            raise ValueError(f"{path}: its state has no params, so it is not from jaxcls")
        item = {"params": _without_extra(kept["params"])}
        if batch_stats := _without_extra(kept.get("batch_stats", {})):
            item["batch_stats"] = batch_stats
        restored = checkpointer.restore(path / "state", args=_only(place, item))
        variables = {"batch_stats": {}} | _at(restored, place)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        meta = checkpointer.restore(path / "meta", args=ocp.args.JsonRestore())
    if not isinstance(meta, dict) or _wrong(meta):
        raise ValueError(f"{path}: its meta data are not those of jaxcls")
    average = place[-1] if place else ""
    return average, variables, meta | _calibration(path, average)


def _calibration(path: epath.Path, average: str) -> dict[str, Any]:
    """Returns what `calibrate` has stored for this average."""
    try:
        stored = json.loads((path / CALIBRATION).read_bytes())
        known = {key: stored[key] for key in CALIBRATED if key in stored}
        if not known:
            raise ValueError("nothing")
        return known if stored["average"] == average else {}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"{path / CALIBRATION} is damaged: remove it, or write it again with --mode=eval "
            "--config.eval.calibrate"
        ) from None


def _begun(
    checkpointer: ocp.Checkpointer, path: epath.Path, tree: Mapping[str, Any], place: Sequence[str]
) -> bool:
    """Returns whether the average at that place is of any step; until then a mean is of none."""
    if averages.COUNT not in _at(tree, place):
        return True
    count = checkpointer.restore(path / "state", args=_only((*place, averages.COUNT), 0))
    return _at(count, place)[averages.COUNT] > 0


def _only(place: Sequence[str], item: Any) -> ocp.args.PyTreeRestore:
    """Returns what restores nothing but the leaves of `item`, at that place of a state."""
    for name in place[::-1]:
        item = {name: item}
    to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    return ocp.args.PyTreeRestore(item=item, restore_args=to_numpy, partial_restore=True)


def _wrong(meta: Mapping[str, Any]) -> list[str]:
    return [key for key, kind in META.items() if not isinstance(meta.get(key), kind | None)]


def _at(tree: Mapping[str, Any], place: Sequence[str]) -> Any:
    for name in place:
        tree = (tree.get(name) if isinstance(tree, Mapping) else None) or {}
    return tree


def _reasons(reasons: Mapping[str, str]) -> str:
    def from_the_start(path):  # of the network
        collection, _, name = path.partition("/")
        return collection != "params", not name.startswith("stem"), path

    return files.some([f"{path}: {reasons[path]}" for path in sorted(reasons, key=from_the_start)])
