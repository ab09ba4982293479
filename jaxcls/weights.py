"""Weights of a run, a checkpoint or an export: for evaluation and fine-tuning.

An export is a checkpoint (`jaxcls.checkpoint`) without optimizer state: `state` is {"params",
"batch_stats"}.
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

from jaxcls import checksums, files, trees
from jaxcls.checksums import CHECKSUMS

# What the meta data of a checkpoint from anywhere may say, or not, of its network.
META = {"model": str, "network": dict, "options": dict, "class_names": list, "image": dict}
RENAMED = "the classes have other names"
HEADS = r"(aux\d+/)?head/"  # where the classifiers are
Variables = Mapping[str, Any]  # {"params": tree, "batch_stats": tree}


def export(path: str | os.PathLike, variables: Variables, meta: Mapping[str, Any]) -> None:
    """Writes weights without optimizer state, for `load` and `config.init.checkpoint`.

    Args:
      path: directory that does not exist yet.
      variables: {"params", "batch_stats"}.
      meta: what JSON can hold: {"model": name, "class_names": [...] or None, ...}.

    Raises:
      ValueError: `path` exists.
      files.SaveError: it could not be written.
    """
    path = files.absolute(path)
    if path.exists():
        raise ValueError(f"{path} exists: choose another directory for the export, or remove it")
    state = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    options = ocp.options.AsyncOptions(
        post_finalization_callback=lambda: checksums.add(path.parent, path.name)
    )
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(json.loads(json.dumps(meta)))
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = ocp.CompositeCheckpointHandler()
        with ocp.AsyncCheckpointer(handler, async_options=options) as checkpointer:
            checkpointer.save(path, args=args)
    except (OSError, ValueError) as e:
        for unfinished in checksums.unfinished(path.parent, path.name):
            unfinished.rmtree(missing_ok=True)
        raise files.SaveError(f"{path} could not be written: {files.reason(e)}") from e


def load(
    path: str | os.PathLike, *, ema: bool = True, report: Callable[[str], None] = print
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the weights and the meta data of a run, a checkpoint or an export.

    Args:
      path: a run's workdir (its newest intact checkpoint is taken), the checkpoints in it, one of
        them, or an export.
      ema: take the moving average where there is one.
      report: is given a line about each checkpoint that is damaged.

    Returns:
      ({"params", "batch_stats"}, meta), the weights as NumPy arrays.

    Raises:
      ValueError: there is no checkpoint, or no intact one.
      files.StorageError: it cannot be read at the moment.
    """
    report = files.only_process_0(report)
    candidates = files.patiently(lambda: checksums.candidates(files.absolute(path)), path, report)
    if not candidates:
        raise ValueError(f"{path}: {nothing_at(path)}")
    for candidate in candidates:
        verified = False
        files.check_files(candidate)
        try:
            verified = checksums.verify(candidate, report)
            if not verified:
                report(f"checkpoint {candidate} has no {CHECKSUMS}: it is used unverified")
            return files.patiently(functools.partial(_read, candidate, ema), candidate, report)
        except files.StorageError:
            raise
        except Exception as e:  # on damaged files orbax raises errors of all types
            if verified:
                raise
            damage = files.line(e)
            report(f"checkpoint {candidate} is damaged ({damage})")
    raise ValueError(f"{os.fspath(path)}: no intact checkpoint ({damage})")


def nothing_at(path: str | os.PathLike) -> str:
    """Returns what to do about a path where there is no checkpoint."""
    path = os.fspath(path)
    if path.endswith((".pdparams", ".pth", ".pt", ".safetensors", ".npz")):
        return (
            "weights of another program have to be converted: python -m jaxcls.convert NAME "
            f"--from {shlex.quote(path)} --to DIR writes what to give here"
        )
    return (
        "no checkpoint there; give a run's working directory, one of its checkpoints "
        "(WORKDIR/checkpoints/STEP) or an export"
    )


def exists(path: str | os.PathLike) -> bool:
    """Returns whether `load` would find a checkpoint there."""
    return bool(checksums.candidates(files.absolute(path)))


def initialize(
    variables: Variables,
    *,
    num_classes: int,
    class_names: Sequence[str] = (),
    model: str = "",
    options: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike,
    ema: bool = True,
    reset: Sequence[str] = (),
    strict: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Returns variables with the values of a checkpoint: the start of fine-tuning.

    Every tensor is taken but for those that `reset` names, and the classifiers (tensors of the
    head and of auxiliary heads whose last axis is the classes) if the classes differ, in number or
    in their names where both are known, or if the checkpoint has no classifier at all. These keep
    their fresh values.

    Args:
      variables: {"params", "batch_stats"} as initialised; their dtypes and shardings are kept.
      num_classes: of the model.
      class_names: of the training data.
      model: its name, for messages.
      options: arguments that the model was built with, to be compared with those that converted
        weights need: some change what is computed but no shape.
      checkpoint: see `load`.
      ema: take the moving average where there is one.
      reset: patterns of tensors that keep their fresh values; one that only the checkpoint has is
        dropped.
      strict: refuse a checkpoint of other classes: for evaluation, where nothing may be fresh.
      report: is given a line about every tensor that was not taken, and why, on process 0.

    Raises:
      ValueError: there is no intact checkpoint, the weights need other options, a pattern matches
        nothing, or another tensor is missing in the checkpoint, unknown to the model or of
        another shape.
    """
    report = files.only_process_0(report)
    source, meta = load(checkpoint, ema=ema, report=report)
    for name, value in (meta.get("options") or {}).items():
        ours = json.loads(json.dumps((options or {}).get(name)))
        if ours != value:
            raise ValueError(
                f"the weights of {os.fspath(checkpoint)} are for a model with {name} = {value!r}, "
                f"this one has {ours!r}: set it in config.model or config.model.options"
            )
    theirs = dict(zip(trees.paths(source), jax.tree.leaves(source)))
    ours = dict(zip(trees.paths(variables), jax.tree.leaves(variables)))
    names = {path: path.partition("/")[2] for path in theirs | ours}  # without "params/"
    trees.check(reset, dict.fromkeys(names.values(), 0), "init.reset")
    before, now = list(meta.get("class_names") or ()), list(class_names)
    renamed = [
        f"class {i} is {a!r} there, {b!r} here"
        for i, (a, b) in enumerate(zip(before, now))
        if a != b
    ]

    headless = not any(re.match(HEADS, names[path]) for path in theirs)
    fresh, wrong = {}, {}
    for path, name in names.items():
        a, b = theirs.get(path), ours.get(path)
        if trees.matches(reset, name):
            fresh[path] = "config.init.reset"
        elif a is None and headless and re.match(HEADS, name):
            fresh[path] = "the checkpoint has no classifier"
        elif a is None:
            wrong[path] = "not in the checkpoint"
        elif b is None:
            wrong[path] = "not in the model"
        elif re.match(HEADS, name) and b.shape == (*a.shape[:-1], num_classes) != a.shape:
            fresh[path] = f"{a.shape[-1]} classes in the checkpoint, {num_classes} here"
        elif re.match(HEADS, name) and b.shape == (*a.shape[:-1], num_classes) and renamed:
            fresh[path] = RENAMED
        elif a.shape != b.shape:
            wrong[path] = f"{trees.spec(a)} in the checkpoint, {trees.spec(b)} in the model"
    theirs_is = meta.get("model")
    if wrong and model and theirs_is and theirs_is != model:
        raise ValueError(
            f"checkpoint {os.fspath(checkpoint)} is {theirs_is}, the config asks for {model}: set "
            f"config.model.name = {theirs_is!r}, or choose another checkpoint"
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
    for path, reason in list(fresh.items())[: files.LISTED]:
        report(f"  not taken: {path} ({reason})")
    if len(fresh) > files.LISTED:
        report(f"  and {len(fresh) - files.LISTED} more that were not taken")
    return trees.map_with_path(place, dict(variables))


def _read(path: epath.Path, ema: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (variables, meta), reading no more than that."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path / "state").item_metadata.tree
        averaged = ema and tree.get("ema") is not None
        weights = tree["ema"] if averaged else tree
        if "params" not in weights:
            raise ValueError(f"{path}: its state has no params, so it is not from jaxcls")
        item = {"params": weights["params"], "batch_stats": weights.get("batch_stats", {})}
        item = {"ema": item} if averaged else item
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=to_numpy, partial_restore=True)
        variables = checkpointer.restore(path / "state", args=args)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        meta = checkpointer.restore(path / "meta", args=ocp.args.JsonRestore())
    if not isinstance(meta, dict) or any(
        not isinstance(meta.get(key), kind | None) for key, kind in META.items()
    ):
        raise ValueError(f"{path}: its meta data are not those of jaxcls")
    return variables["ema"] if averaged else variables, meta


def _reasons(reasons: Mapping[str, str]) -> str:
    def from_the_start(path):  # of the network
        collection, _, name = path.partition("/")
        return collection != "params", not name.startswith("stem"), path

    return files.some([f"{path}: {reasons[path]}" for path in sorted(reasons, key=from_the_start)])
