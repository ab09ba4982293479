"""Checkpoints of a run (orbax), weights for fine-tuning and evaluation.

A checkpoint is a directory that orbax writes, with the items `state` (arrays), `meta` (JSON) and
`metrics` (JSON), and `checksums.json`: the SHA-256 of every file. The checksums are written before
orbax's atomic rename, so a checkpoint has them from the moment it exists and loses them with it.
An export is the same without optimizer state: `state` is {"params", "batch_stats"}.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxcls import trees
from jaxcls.files import any_process

CHECKSUMS = "checksums.json"
STAMPED = "_CHECKPOINT_METADATA"  # orbax adds the time of the commit after the checksums
HEADS = r"(aux\d+/)?head/"  # where the classifiers are
Variables = Mapping[str, Any]  # {"params": tree, "batch_stats": tree}

# A failed save reaches the user as one line of ours. Orbax logs its own tracebacks besides, and
# warnings about what is meant here (no metrics at a step that was not evaluated). Writes that are
# still under way when it gives up end in asyncio's complaints.
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
        """
        if keep < 1:
            raise ValueError(f"config.checkpoint.keep = {keep}: keep at least 1 checkpoint")
        self._directory = _absolute(directory)
        self._best = best
        self._report = _only_process_0(report)
        self._saving: int | None = None  # step of the newest save that was begun
        self._told: int | None = None  # by `finished`
        self._save_failed = False
        lowest = best == "loss"

        def metric(metrics):
            # A run that is resumed with another `best` has steps without that metric.
            return metrics.get(best, math.inf if lowest else -math.inf)

        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            best_fn=metric,
            best_mode="min" if lowest else "max",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=metric,
                        reverse=lowest,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
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

        try:
            self._manager = open_manager()
        except (ValueError, KeyError, TypeError):
            # Orbax reads some files of every step and gives up if one is damaged.
            for step in _steps(self._directory):
                try:
                    _verify_together(self._directory / str(step))
                except DamageError as e:
                    self._set_aside(step, e)
            self._manager = open_manager()

    def latest_step(self) -> int | None:
        """Returns the newest step, also while it is still being written; None without any."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step of the best metric; None if no checkpoint has metrics."""
        return self._manager.best_step()

    def reached_preemption(self, step: int) -> bool:
        """Returns whether all processes are to save at `step`, since one received SIGTERM."""
        return self._manager.reached_preemption(step)

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Begins to save and returns when `state` may be donated; True unless `step` is saved.

        Args:
          step: global step, not below the newest checkpoint.
          state: tree of arrays; None leaves are kept.
          meta: what JSON can hold: class names, data position, config, ...
          metrics: of the evaluation at this step, if there was one.

        Raises:
          SaveError: the save before, or this one, could not be written. The checkpoints before it
            are intact and the half-written one is gone.
          ValueError: `metrics` lacks the metric that tells the best checkpoint.
        """
        self.wait()
        latest = self.latest_step()
        if step == latest:
            return False
        # Orbax would skip it without a word.
        assert latest is None or step > latest, f"step {step} is below the checkpoint {latest}"
        metrics = {k: float(v) for k, v in (metrics or {}).items()}
        if metrics and self._best not in metrics:
            raise ValueError(
                f"config.checkpoint.best = {self._best!r} is not a metric of the evaluation; "
                f"choose one of {', '.join(sorted(metrics))}"
            )
        if not math.isfinite(metrics.get(self._best, math.nan)):
            metrics = None  # sorting by NaN would lose the best one
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave(json.loads(json.dumps(meta))),
        )
        self._saving = step
        try:
            saved = self._manager.save(step, args=args, metrics=metrics, force=True)
        except OSError as e:
            raise self._failed(e) from e
        assert saved, f"orbax did not save step {step}"
        return True

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns (state, meta) of the newest checkpoint that is intact; None without any.

        One that is damaged is reported and renamed to damaged-STEP, and the one before is tried.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings that the state is to
            have, on any number of devices and processes.

        Raises:
          ValueError: the newest checkpoint is intact, but of another model or configuration; the
            message names the tensors that differ.
        """
        while (step := self.latest_step()) is not None:
            try:
                return self._restore(step, abstract_state)
            except DamageError as e:
                self._set_aside(step, e)
                self._manager.reload()
        return None

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
          SaveError: see `save`.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._failed(e) from e

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

    def _restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        path = self._directory / str(step)
        verified = _verify_together(path)
        if not verified:
            self._report(f"checkpoint {path} has no {CHECKSUMS}: it is used unverified")
        differences, restored, damage = [], None, None
        try:
            # Orbax casts dtypes silently and restores part of a tree into a larger one.
            saved = self._manager.item_metadata(step).state.tree
            differences = _differences(saved, abstract_state)
            if not differences:
                args = ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()
                )
                restored = self._manager.restore(step, args=args)
        except Exception as e:  # on damaged files orbax raises errors of all types
            # If the files are what was written, or memory is short, it is not damage.
            if verified or isinstance(e, (MemoryError, jax.errors.JaxRuntimeError)):
                raise
            damage = e
        if any_process(damage is not None):
            raise DamageError(_line(damage))
        if differences:
            raise ValueError(
                f"checkpoint {path} is of another model or configuration, so that this run cannot "
                f"go on from it: choose another --workdir. {_some(differences)}"
            )
        return restored.state, restored.meta

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

    def _set_aside(self, step: int, damage: DamageError) -> None:
        if jax.process_index() == 0:
            names = {path.name for path in self._directory.iterdir()}
            free = f"damaged-{step}"
            while free in names:
                free += "-"
            (self._directory / str(step)).rename(self._directory / free)
            self._report(
                f"checkpoint {self._directory / str(step)} is damaged "
                f"({damage}): set aside as {free}"
            )
        any_process(False)  # wait for process 0


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
    """
    candidates = _candidates(_absolute(path))
    if not candidates:
        raise ValueError(
            f"{path}: no checkpoint there; give a run's working directory, one of its checkpoints "
            "(WORKDIR/checkpoints/STEP) or an export"
        )
    report = _only_process_0(report)
    for candidate in candidates:
        verified = False
        try:
            verified = _verify_together(candidate)
            if not verified:
                report(f"checkpoint {candidate} has no {CHECKSUMS}: it is used unverified")
            return _read(candidate, ema)
        except PermissionError:
            raise
        except Exception as e:  # on damaged files orbax raises errors of all types
            if verified:
                raise
            damage = _line(e)
            report(f"checkpoint {candidate} is damaged ({damage})")
    raise ValueError(f"{os.fspath(path)}: no intact checkpoint ({damage})")


def exists(path: str | os.PathLike) -> bool:
    """Returns whether `load` would find a checkpoint there."""
    return bool(_candidates(_absolute(path)))


def initialize(
    variables: Variables,
    *,
    num_classes: int,
    class_names: Sequence[str] = (),
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
    renamed = len(before) == len(now) and before != now

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
            fresh[path] = "the classes have other names"
        elif a.shape != b.shape:
            wrong[path] = f"{_spec(a)} in the checkpoint, {_spec(b)} in the model"
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
    for path, reason in fresh.items():
        report(f"  not taken: {path} ({reason})")
    return trees.map_with_path(place, dict(variables))


# -- Files of a checkpoint -----------------------------------------------------------------------


def _absolute(path: str | os.PathLike) -> epath.Path:
    path = os.fspath(path)
    return epath.Path(path if "://" in path else os.path.abspath(path))


def _steps(directory: epath.Path) -> list[int]:
    """Returns the steps that have a directory, the newest first."""
    if not directory.is_dir():
        return []
    named = [p for p in directory.iterdir() if p.name.isdigit()]
    # In an object store, one that is being written has its final name already.
    steps = [int(p.name) for p in named if ocp.utils.is_checkpoint_finalized(p)]
    return sorted(steps, reverse=True)


def _candidates(path: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints that `path` may mean, the newest first."""
    if (path / "state").exists() or (path / CHECKSUMS).exists():
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
        digests = {n: _digest(file) for n, file in sorted(_files(path)) if n != STAMPED}
        (path / CHECKSUMS).write_text(json.dumps(digests, indent=0))


def _verify(path: epath.Path) -> bool:
    """Returns whether the checkpoint has checksums; raises DamageError if they do not hold."""
    if not (path / CHECKSUMS).exists():
        return False
    name = CHECKSUMS
    try:
        digests = json.loads((path / CHECKSUMS).read_text())
        for name, digest in digests.items():
            if _digest(path / name) != digest:
                raise DamageError(f"{name} is not what was written")
    except FileNotFoundError:
        raise DamageError(f"{name} is missing") from None
    except PermissionError:
        raise
    except OSError as e:
        raise DamageError(f"{name} cannot be read: {e.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise DamageError(f"{CHECKSUMS} is not what was written") from None
    return True


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


def _some(lines: Sequence[str], limit: int = 10) -> str:
    more = f"; and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more


def _reasons(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{path}: {reason}" for path, reason in reasons.items())


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


def _verify_together(path: epath.Path) -> bool:
    """As `_verify`, once, by process 0, with the same outcome everywhere."""
    verified, damage = False, None
    if jax.process_index() == 0:
        try:
            verified = _verify(path)
        except DamageError as e:
            damage = e
    if any_process(damage is not None):
        raise damage or DamageError("found by process 0")
    return any_process(verified)
