"""Checkpoints of a run (orbax), weights for fine-tuning and evaluation.

A checkpoint is a directory that orbax writes, with the items `state` (arrays) and `meta` (JSON),
and `checksums.json`: the SHA-256 of every file. The checksums are written before orbax's atomic
rename, so a checkpoint has them from the moment it exists and loses them with it. A checkpoint is
saved before it is evaluated; what came out is added in `evaluation.json`, with a digest of itself.
An export is the same without optimizer state: `state` is {"params", "batch_stats"}.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxcls import files, trees
from jaxcls.files import any_process

CHECKSUMS = "checksums.json"
EVALUATION = "evaluation.json"
STAMPED = "_CHECKPOINT_METADATA"  # orbax adds the time of the commit after the checksums
# Files without a checksum; the evaluation may have been cut off by a kill while it was written.
UNLISTED = (CHECKSUMS, EVALUATION, EVALUATION + ".tmp", STAMPED, "commit_success.txt")
# What the meta data of a checkpoint from anywhere may say, or not, of its network.
META = {"model": str, "network": dict, "options": dict, "class_names": list, "image": dict}
LISTED = 10  # tensors in a message; it says how many more there are
RENAMED = "the classes have other names"
HEADS = r"(aux\d+/)?head/"  # where the classifiers are
Variables = Mapping[str, Any]  # {"params": tree, "batch_stats": tree}

# A failed save reaches the user as one line of ours. Orbax logs its own tracebacks besides. Writes
# that are still under way when it gives up end in asyncio's complaints.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _without_orphans(unraisable: Any, report: Callable[[Any], None] = sys.unraisablehook) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


sys.unraisablehook = _without_orphans


class SaveError(ValueError):
    """A checkpoint could not be written: full disk, no permission, broken storage."""


class DamageError(ValueError):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep` and the best one. Every process calls it.

    Saving is asynchronous: an error of one save is raised by the next `save`, `wait` or `close`.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int,
        best: str,
        report: Callable[[str], None] = print,
    ):
        """Opens or creates `directory`; what a killed run left half-written is removed.

        Args:
          directory: only for checkpoints, normally WORKDIR/checkpoints; local or gs://.
          keep: number of newest checkpoints to keep, at least 1.
          best: metric that tells the best one, which is kept besides: the least if its name is
            "loss", otherwise the greatest.
          report: is given a line about each checkpoint that is damaged, on process 0.

        Raises:
          ValueError: all checkpoints are damaged.
          files.StorageError: they cannot be read at the moment.
        """
        if keep < 1:
            raise ValueError(f"config.checkpoint.keep = {keep}: keep at least 1 checkpoint")
        self.best: dict[str, Any] | None = None  # {"step", metrics} of the best evaluation
        self.last: dict[str, Any] | None = None  # of the last one
        self._directory = _absolute(directory)
        self._keep, self._metric = keep, best
        self._report = _only_process_0(report)
        self._saving: int | None = None  # step of the newest save that was begun
        self._told: int | None = None  # by `finished`
        self._save_failed = False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=lambda: _add_checksums(
                    self._directory, str(self._saving)
                )
            ),
        )

        def open_manager():
            handlers = {
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            }
            return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

        def open_patiently():
            return files.patiently(open_manager, self._directory, self._report)

        # Orbax takes a folder that it cannot list for an empty one.
        steps = files.patiently(lambda: _steps(self._directory), self._directory, self._report)
        try:
            self._manager = open_patiently()
        except files.StorageError:
            raise
        except (ValueError, KeyError, TypeError):
            # Orbax reads some files of every step and gives up if one is damaged.
            damaged = {}
            for step in steps:
                try:
                    _verify_together(self._directory / str(step), self._report)
                except DamageError as e:
                    damaged[step] = e
            self._set_aside(damaged, intact=len(damaged) < len(steps))
            self._manager = open_patiently()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns which checkpoints stay, oldest first (orbax's PreservationPolicy)."""
        del context
        old = len(checkpoints) - self._keep
        best = self.best and self.best["step"]
        return [i >= old or info.step == best for i, info in enumerate(checkpoints)]

    def latest_step(self) -> int | None:
        """Returns the newest step, also while it is still being written; None without any."""
        return self._manager.latest_step()

    def evaluated(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Adds the evaluation of the newest checkpoint; the better one of all is kept.

        Raises:
          SaveError: that checkpoint, or this, could not be written.
        """
        self.wait()
        evaluation = {"step": step, **metrics}
        if jax.process_index() == 0:
            path = self._directory / str(step) / EVALUATION
            try:
                files.write_atomically(path, json.dumps(_signed(evaluation), allow_nan=False))
            except OSError as e:
                raise SaveError(f"{path} could not be written: {_reason(e)}") from e
        self._take(evaluation)

    def _take(self, evaluation: dict[str, Any]) -> None:
        self.last = evaluation
        self.best = better(self.best, evaluation, self._metric)

    def reached_preemption(self, step: int) -> bool:
        """Returns whether all processes are to save at `step`, since one received SIGTERM."""
        return self._manager.reached_preemption(step)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> bool:
        """Begins to save and returns when `state` may be donated; True unless `step` is saved.

        Args:
          step: global step, not below the newest checkpoint.
          state: tree of arrays; None leaves are kept.
          meta: what JSON can hold: class names, data position, config, ...

        Raises:
          SaveError: the save before, or this one, could not be written. The checkpoints before it
            are intact and the half-written one is gone.
        """
        self.wait()
        latest = self.latest_step()
        if step == latest:
            return False
        # Orbax would skip it without a word.
        assert latest is None or step > latest, f"step {step} is below the checkpoint {latest}"
        meta = {**meta, "best": self.best, "last": self.last}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave(json.loads(json.dumps(meta, allow_nan=False))),
        )
        self._saving = step
        try:
            saved = self._manager.save(step, args=args, force=True)
        except OSError as e:
            raise self._failed(e) from e
        assert saved, f"orbax did not save step {step}"
        return True

    def restore(
        self,
        abstract_state: Any,
        check: Callable[[dict[str, Any], epath.Path], None] = lambda meta, path: None,
    ) -> tuple[Any, dict[str, Any]] | None:
        """Returns (state, meta) of the newest checkpoint that is intact; None without any.

        One that is damaged is reported and renamed to damaged-STEP if one before it is intact.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings that the state is to
            have, on any number of devices and processes.
          check: is given meta and the checkpoint's directory first; raises a ValueError if this run
            cannot go on from it.

        Raises:
          ValueError: no checkpoint is intact; or the newest is, but of another model or
            configuration; the message names the tensors that differ.
          files.StorageError: the newest cannot be read at the moment.
        """
        damaged: dict[int, DamageError] = {}
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._restore(step, abstract_state, check)
            except DamageError as e:
                damaged[step] = e
            else:
                self._set_aside(damaged, intact=True)
                self._recall(step, restored[1])
                self._check_best(step, restored[1])
                return restored
        if damaged or _aside(self._directory):
            self._set_aside(damaged, intact=False)
        return None

    def _recall(self, step: int, meta: Mapping[str, Any]) -> None:
        """Takes up the evaluations that the checkpoints know, up to `step`."""
        there = {s for s in self._manager.all_steps() if s <= step}
        known = {}
        for s in there:
            directory = self._directory / str(s)
            read = functools.partial(_read_evaluation, directory, s)
            known[s] = files.patiently(read, directory / EVALUATION, self._report)
        for evaluation in (meta.get("best"), meta.get("last")):
            if evaluation:
                known[evaluation["step"]] = evaluation
        for s in sorted(known):
            if known[s]:
                self.last = known[s]
                if s in there:  # another, once it was not the best one any more, is gone
                    self.best = better(self.best, known[s], self._metric)

    def _check_best(self, step: int, meta: Mapping[str, Any]) -> None:
        """Makes sure that the best checkpoint, which nobody may read for weeks, is intact."""
        while self.best and self.best["step"] != step:
            try:
                _verify_together(self._directory / str(self.best["step"]), self._report)
                return
            except DamageError as e:
                self._set_aside({self.best["step"]: e}, intact=True)
                self.best = None
                self._recall(step, meta)

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
          SaveError: see `save`.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._failed(e) from e
        if self._saving is not None and not _remote(self._directory):
            files.sync(self._directory)

    def finished(self) -> int | None:
        """Returns the step of a save that has come to its end since the last call, or None."""
        if self._saving is None or self._told == self._saving or self._save_failed:
            return None
        if self._manager.is_saving_in_progress():
            return None
        self._told = self._saving
        return self._saving

    def close(self) -> None:
        """Waits for the last save and ends the threads.

        Raises:
          SaveError: the last save could not be written, and this was not raised before.
        """
        self.wait()
        try:
            self._manager.close()
        except Exception:
            if not self._save_failed:  # orbax raises it again
                raise
        if self._save_failed:
            self._remove_unfinished()  # of writes that were still under way

    def _restore(
        self, step: int, abstract_state: Any, check: Callable
    ) -> tuple[Any, dict[str, Any]]:
        path = self._directory / str(step)
        verified = _verify_together(path, self._report)
        if not verified:
            self._report(f"checkpoint {path} has no {CHECKSUMS}: it is used unverified")

        def read(item, args):
            restore = functools.partial(
                self._manager.restore, step, args=ocp.args.Composite(**{item: args})
            )
            return files.patiently(restore, path, self._report)[item]

        differences, state, meta, damage = [], None, None, None
        try:
            meta = read("meta", ocp.args.JsonRestore())
            if not isinstance(meta, dict):
                raise DamageError("its meta data are not what was written")
            # Orbax casts dtypes silently and restores part of a tree into a larger one.
            metadata = functools.partial(self._manager.item_metadata, step)
            saved = files.patiently(metadata, path, self._report).state.tree
            differences = _differences(saved, abstract_state)
            if not differences:
                state = read("state", ocp.args.StandardRestore(abstract_state))
        except Exception as e:  # on damaged files orbax raises errors of all types
            # If the files are what was written, or cannot be read, or memory is short, it is no
            # damage.
            if verified or isinstance(
                e, (files.StorageError, MemoryError, jax.errors.JaxRuntimeError)
            ):
                raise
            damage = e
        if any_process(damage is not None):
            raise DamageError(_line(damage))
        check(meta, path)
        if differences:
            raise ValueError(
                f"checkpoint {path} is of another model or configuration, so that this run cannot "
                f"go on from it: choose another --workdir. {_some(differences)}"
            )
        return state, meta

    def _failed(self, error: Exception) -> SaveError:
        """Removes what the failed save wrote and returns the error for the user."""
        self._save_failed = True
        self._remove_unfinished()
        self._manager.reload()
        step = self.latest_step()
        previous = (
            "there is none before it" if step is None else f"the one of step {step} is intact"
        )
        return SaveError(
            f"the checkpoint of step {self._saving} could not be written to {self._directory}: "
            f"{_reason(error)}; {previous}"
        )

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for path in _unfinished(self._directory, str(self._saving)):
                with contextlib.suppress(OSError):  # somebody is still writing
                    path.rmtree(missing_ok=True)

    def _set_aside(self, damaged: Mapping[int, DamageError], *, intact: bool) -> None:
        """Renames damaged checkpoints, if the run can go on without them."""
        if not intact:
            lines = [f"{self._directory / str(s)} ({e})" for s, e in damaged.items()]
            raise ValueError(
                "every checkpoint of this run is damaged: "
                + (_some(lines) if lines else ", ".join(map(str, _aside(self._directory))))
                + f". To start over, choose another --workdir, or remove {self._directory}"
            )
        if not damaged:
            return
        if jax.process_index() == 0:
            names = {path.name for path in self._directory.iterdir()}
            for step, damage in damaged.items():
                free = f"damaged-{step}"
                while free in names:
                    free += "-"
                (self._directory / str(step)).rename(self._directory / free)
                self._report(
                    f"checkpoint {self._directory / str(step)} is damaged "
                    f"({damage}): set aside as {free}"
                )
        any_process(False)  # wait for process 0
        if hasattr(self, "_manager"):
            self._manager.reload()


def better(best: dict[str, Any] | None, new: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Returns the better of two evaluations by the metric `name`; of equals the newer one.

    One whose metric is missing or not finite is never better, and None until there is another.
    """
    value = new.get(name)
    if not (isinstance(value, (int, float)) and math.isfinite(value)):
        return best
    sign = -1 if name == "loss" else 1
    known = best.get(name) if best else None
    return new if known is None or sign * value >= sign * known else best


def export(path: str | os.PathLike, variables: Variables, meta: Mapping[str, Any]) -> None:
    """Writes weights without optimizer state, for `load` and `config.init.checkpoint`.

    Args:
      path: directory that does not exist yet.
      variables: {"params", "batch_stats"}.
      meta: what JSON can hold: {"model": name, "class_names": [...] or None, ...}.

    Raises:
      ValueError: `path` exists.
      SaveError: it could not be written.
    """
    path = _absolute(path)
    if path.exists():
        raise ValueError(f"{path} exists: choose another directory for the export, or remove it")
    state = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    options = ocp.options.AsyncOptions(
        post_finalization_callback=lambda: _add_checksums(path.parent, path.name)
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
        for unfinished in _unfinished(path.parent, path.name):
            unfinished.rmtree(missing_ok=True)
        raise SaveError(f"{path} could not be written: {_reason(e)}") from e


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
    report = _only_process_0(report)
    candidates = files.patiently(lambda: _candidates(_absolute(path)), path, report)
    if not candidates:
        raise ValueError(f"{path}: {nothing_at(path)}")
    for candidate in candidates:
        verified = False
        files.check_files(candidate)
        try:
            verified = _verify_together(candidate, report)
            if not verified:
                report(f"checkpoint {candidate} has no {CHECKSUMS}: it is used unverified")
            return files.patiently(functools.partial(_read, candidate, ema), candidate, report)
        except files.StorageError:
            raise
        except Exception as e:  # on damaged files orbax raises errors of all types
            if verified:
                raise
            damage = _line(e)
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
    return bool(_candidates(_absolute(path)))


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
    report = _only_process_0(report)
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
            wrong[path] = f"{_spec(a)} in the checkpoint, {_spec(b)} in the model"
    theirs_is = meta.get("model")
    if wrong and model and theirs_is and theirs_is != model:
        raise ValueError(
            f"checkpoint {os.fspath(checkpoint)} is {theirs_is}, the config asks for {model}: set "
            f"config.model.name = {theirs_is!r}, or choose another checkpoint"
        )
    if strict and RENAMED in fresh.values():
        raise ValueError(
            f"{RENAMED} in checkpoint {os.fspath(checkpoint)}: {_some(renamed, 3)}; evaluate on "
            "data with its classes"
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
    for path, reason in list(fresh.items())[:LISTED]:
        report(f"  not taken: {path} ({reason})")
    if len(fresh) > LISTED:
        report(f"  and {len(fresh) - LISTED} more that were not taken")
    return trees.map_with_path(place, dict(variables))


# -- Files of a checkpoint -----------------------------------------------------------------------


def _absolute(path: str | os.PathLike) -> epath.Path:
    path = os.path.expanduser(path)  # a shell does not, after --config.init.checkpoint=
    files.check_place(path)
    return epath.Path(path if "://" in path else os.path.abspath(path))


def _remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _names(directory: epath.Path) -> list[str]:
    """Returns what is in a folder; nothing if there is no such folder, but errors of storage."""
    try:
        if _remote(directory):
            return [path.name for path in directory.iterdir()]
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _steps(directory: epath.Path) -> list[int]:
    """Returns the steps that have a directory, the newest first."""
    named = [directory / n for n in _names(directory) if n.isascii() and n.isdecimal()]
    # In an object store, one that is being written has its final name already.
    steps = [int(p.name) for p in named if ocp.utils.is_checkpoint_finalized(p)]
    return sorted(steps, reverse=True)


def _aside(directory: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints that were set aside."""
    return [directory / name for name in sorted(_names(directory)) if name.startswith("damaged-")]


def _candidates(path: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints that `path` may mean, the newest first."""
    if {"state", CHECKSUMS} & set(_names(path)):
        return [path]
    return [base / str(step) for base in (path / "checkpoints", path) for step in _steps(base)]


def _unfinished(directory: epath.Path, name: str) -> list[epath.Path]:
    """Returns where orbax writes what will be renamed to `directory / name`."""
    prefix = f"{name}.orbax-checkpoint-tmp"
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.name.startswith(prefix)]


def _files(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}", path


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _add_checksums(directory: epath.Path, name: str) -> None:
    # Object stores have no rename: orbax writes to the final place and marks it at the end.
    for path in _unfinished(directory, name) or [directory / name]:
        written = sorted(_files(path))
        digests = {n: _digest(file) for n, file in written if n != STAMPED}
        (path / CHECKSUMS).write_text(json.dumps(digests, indent=0))
        if not _remote(path):  # durable before orbax gives it its name
            for folder, _, names in os.walk(path, topdown=False):
                for entry in (*names, ""):
                    files.sync(os.path.join(folder, entry))


def _verify(path: epath.Path, report: Callable[[str], None]) -> bool:
    """Returns whether the checkpoint has checksums.

    Raises:
      DamageError: they do not hold.
      files.StorageError: they cannot be read at the moment.
    """

    def digest_of(name):
        return files.patiently(lambda: _digest(path / name), path / name, report)

    name = CHECKSUMS
    try:
        text = files.patiently((path / CHECKSUMS).read_bytes, path / CHECKSUMS, report)
    except FileNotFoundError:
        return False
    except (NotADirectoryError, IsADirectoryError):
        raise DamageError(f"{CHECKSUMS} is not what was written") from None
    try:
        digests = json.loads(text)
    except (ValueError, RecursionError):
        digests = None
    # Files that are in no list hold nothing that was checked; hidden ones are not orbax's.
    if not (digests and isinstance(digests, dict)):
        raise DamageError(f"{CHECKSUMS} is not what was written")
    if (path / EVALUATION).is_dir():  # which could not be evaluated again
        raise DamageError(f"{EVALUATION} is a folder")
    there = files.patiently(lambda: [n for n, _ in _files(path)], path, report)
    for name in there:
        hidden = any(part.startswith(".") for part in name.split("/"))
        if name not in digests and name not in UNLISTED and not hidden:
            raise DamageError(f"{name} is not in {CHECKSUMS}")
    for name, digest in digests.items():
        try:
            if name not in there:
                raise FileNotFoundError
            if digest_of(name) != digest:
                raise DamageError(f"{name} is not what was written")
        except files.KINDS:
            raise DamageError(f"{name} is missing") from None
    return True


def _signed(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(evaluation, sort_keys=True)
    return {**evaluation, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _read_evaluation(path: epath.Path, step: int) -> dict[str, Any] | None:
    """Returns {"step", metrics} of a checkpoint; None if it was not evaluated, or that is damaged.

    Then it is evaluated again.
    """
    try:
        evaluation = json.loads((path / EVALUATION).read_bytes())
        digest = evaluation.pop("sha256", None)
        if evaluation.get("step") == step and _signed(evaluation)["sha256"] == digest:
            return evaluation
    except (*files.KINDS, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return None


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


# -- What differs --------------------------------------------------------------------------------


def _spec(x: Any) -> str:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)  # what orbax stores
    return f"{np.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"


def _differences(saved: Any, abstract: Any) -> list[str]:
    """Returns a line for each tensor that is not the same in both trees."""
    theirs = dict(zip(trees.paths(saved), map(_spec, jax.tree.leaves(saved))))
    ours = dict(zip(trees.paths(abstract), map(_spec, jax.tree.leaves(abstract))))
    return [
        f"{path}: {theirs.get(path, 'nothing')} in the checkpoint, {ours.get(path, 'nothing')} here"
        for path in theirs | ours
        if theirs.get(path) != ours.get(path)
    ]


def _some(lines: Sequence[str], limit: int = LISTED) -> str:
    more = f"; and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more


def _reasons(reasons: Mapping[str, str]) -> str:
    def from_the_start(path):  # of the network
        collection, _, name = path.partition("/")
        return collection != "params", not name.startswith("stem"), path

    return _some([f"{path}: {reasons[path]}" for path in sorted(reasons, key=from_the_start)])


def _line(error: Exception | None) -> str:
    """Returns the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _reason(error: Exception) -> str:
    """Returns why something could not be written."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full"
    # TensorStore: "INTERNAL: Error writing ...: Failed to ...: Disk quota exceeded [os_error_code="
    found = re.search(r"([^:]+) \[os_error_code", str(error))
    return found[1].strip() if found else _line(error)


# -- Processes -----------------------------------------------------------------------------------


def _only_process_0(report: Callable[[str], None]) -> Callable[[str], None]:
    return report if jax.process_index() == 0 else lambda line: None


def _verify_together(path: epath.Path, report: Callable[[str], None]) -> bool:
    """As `_verify`, once, by process 0, with the same outcome everywhere."""
    verified, problem = False, None
    if jax.process_index() == 0:
        try:
            verified = _verify(path, report)
        except (DamageError, files.StorageError) as e:
            problem = e
    if any_process(isinstance(problem, files.StorageError)):
        raise problem or files.StorageError(f"process 0 cannot read {path}")
    if any_process(problem is not None):
        raise problem or DamageError("found by process 0")
    return any_process(verified)
