"""The checkpoints of a run (orbax).

A checkpoint is a directory that orbax writes, with the items `state` (arrays) and `meta` (JSON),
and checksums (`jaxcls.checksums`). It is saved before it is evaluated; what came out is added in
`evaluation.json`, with a digest of itself.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxcls import checksums, files, signals, trees
from jaxcls.checksums import CHECKSUMS, EVALUATION
from jaxcls.files import any_process


def _or_not_told(ask: Callable[[Any], bool]) -> Callable[[Any], bool]:
    @functools.wraps(ask)
    def hierarchical(path: Any) -> bool:
        try:
            return ask(path)
        except Exception:
            return False

    return hierarchical


# Whenever orbax has removed a checkpoint it asks for the kind of the bucket, some of which keep
# empty folders. Who may read and write objects need not be told: for them the folders stay.
with contextlib.suppress(ImportError, AttributeError):  # a part of orbax that is not for others
    from orbax.checkpoint._src.path import gcs_utils

    gcs_utils.is_hierarchical_namespace_enabled = _or_not_told(
        gcs_utils.is_hierarchical_namespace_enabled
    )


class _Manager(ocp.CheckpointManager):
    """Orbax's, but for what it does where there are several processes.

    It tells at once that a save has failed here: orbax first waits minutes for the others. And it
    asks JAX nothing about preemption, which counts the questions: see `barrier`.
    """

    tell: Callable[[Exception], Any] = staticmethod(lambda error: None)

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except Exception as e:
            self.tell(e)
            raise

    def reached_preemption(self, step: int) -> bool:
        return False


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
        self._directory = files.absolute(directory)
        self._keep, self._metric = keep, best
        self._report = files.only_process_0(report)
        self._saving: int | None = None  # step of the newest save that was begun
        self._told: int | None = None  # by `finished`
        self._save_failed = False
        self._kept: tuple[Any, dict[str, Any]] | None = None  # state and meta, while they are saved
        self._gave_up = False  # on the last save
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=lambda: checksums.add(self._directory, str(self._saving))
            ),
        )

        def open_manager():
            handlers = {
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            }
            manager = _Manager(self._directory, options=options, item_handlers=handlers)
            if jax.process_count() > 1:
                manager.tell = self._failed
            return manager

        def patiently(f):
            return files.patiently(f, self._directory, self._report)

        # Orbax takes a folder that it cannot list for an empty one.
        steps = patiently(lambda: checksums.steps(self._directory))
        try:
            self._manager = patiently(open_manager)
        except files.StorageError:
            raise
        except (ValueError, KeyError, TypeError):
            # Orbax reads some files of every step and gives up if one is damaged.
            damaged = {}
            for step in steps:
                try:
                    checksums.verify(self._directory / str(step), self._report)
                except checksums.DamageError as e:
                    damaged[step] = e
            self._set_aside(damaged, intact=len(damaged) < len(steps))
            self._manager = patiently(open_manager)

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
          files.SaveError: that checkpoint, or this, could not be written.
        """
        self.wait()
        evaluation = {"step": step, **metrics}
        if jax.process_index() == 0:
            path = self._directory / str(step) / EVALUATION
            try:
                files.write_atomically(path, json.dumps(_signed(evaluation), allow_nan=False))
            except OSError as e:
                raise files.SaveError(f"{path} could not be written: {files.reason(e)}") from e
        self._take(evaluation)

    def _take(self, evaluation: dict[str, Any]) -> None:
        self.last = evaluation
        self.best = better(self.best, evaluation, self._metric)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> bool:
        """Begins to save and returns when `state` may be donated; True unless `step` is saved.

        Args:
          step: global step, not below the newest checkpoint.
          state: tree of arrays; None leaves are kept.
          meta: what JSON can hold: class names, data position, config, ...

        Raises:
          files.SaveError: the save before, or this one, could not be written. The checkpoints
            before it are intact and the half-written one is gone.
        """
        self.wait()
        latest = self.latest_step()
        if step == latest:
            return False
        # Orbax would skip it without a word.
        assert latest is None or step > latest, f"step {step} is below the checkpoint {latest}"
        meta = {**meta, "best": self.best, "last": self.last}
        self._saving, self._kept = step, (state, json.loads(json.dumps(meta, allow_nan=False)))
        try:
            self._begin()
        except Exception as e:
            if files.storage_problem(e) is None:
                raise
            self._try_again(e)
        if self._gave_up:  # on the one before: this one is not left behind before it is there
            self._gave_up = False
            self.wait()
        return True

    def _begin(self) -> None:
        state, meta = self._kept
        args = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(meta)}
        saved = self._manager.save(self._saving, args=ocp.args.Composite(**args), force=True)
        assert saved, f"orbax did not save step {self._saving}"

    def _try_again(self, error: Exception) -> None:
        """Writes what could not be written again, for a while, where storage may answer later.

        A state that was computed on is gone: the next save is to have it.
        """
        for delay in files.DELAYS:
            if self._kept is None or jax.process_count() > 1 or not files.passes(error):
                break  # with others, these would have to begin again, too
            what = f"the checkpoint of step {self._saving} could not be written: "
            what += files.storage_problem(error)
            self._remove_unfinished()
            self._manager.reload()
            if any(x.is_deleted() for x in jax.tree.leaves(self._kept[0])):
                self._report(f"{what}; the run goes on to the next one")
                self._saving, self._kept, self._gave_up = None, None, True
                return
            self._report(f"{what}; trying again in {delay} s")
            time.sleep(delay)
            try:
                self._begin()
                self._manager.wait_until_finished()
                return
            except Exception as e:
                error = e
        raise self._failed(error) from error

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
        damaged: dict[int, checksums.DamageError] = {}
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._restore(step, abstract_state, check)
            except checksums.DamageError as e:
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
                checksums.verify(self._directory / str(self.best["step"]), self._report)
                return
            except checksums.DamageError as e:
                self._set_aside({self.best["step"]: e}, intact=True)
                self.best = None
                self._recall(step, meta)

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
          files.SaveError: see `save`.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            self._try_again(e)
        self._kept = None
        if self._saving is not None and not files.remote(self._directory):
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
          files.SaveError: the last save could not be written, and this was not raised before.
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
        verified = checksums.verify(path, self._report)
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
                raise checksums.DamageError("its meta data are not what was written")
            # Orbax casts dtypes silently and restores part of a tree into a larger one.
            metadata = functools.partial(self._manager.item_metadata, step)
            saved = files.patiently(metadata, path, self._report).state.tree
            old = "ema" in saved and hasattr(abstract_state, "averages")
            target = _before_averages(abstract_state) if old else abstract_state
            differences = trees.differences(saved, target)
            if not differences:
                state = read("state", ocp.args.StandardRestore(target))
                state = _with_averages(state, abstract_state) if old else state
        except Exception as e:  # on damaged files orbax raises errors of all types
            # If the files are what was written, or cannot be read, or memory is short, it is no
            # damage.
            if verified or isinstance(
                e, (files.StorageError, MemoryError, jax.errors.JaxRuntimeError)
            ):
                raise
            damage = e
        if any_process(damage is not None):
            raise checksums.DamageError(files.line(damage))
        check(meta, path)
        if differences:
            raise ValueError(
                f"checkpoint {path} is of another model or configuration, so that this run cannot "
                f"go on from it: choose another --workdir. {files.some(differences)}"
            )
        return state, meta

    def _failed(self, error: Exception) -> files.SaveError:
        """Removes what the failed save wrote and returns the error for the user.

        One of several processes ends with it, and the others then do: for them orbax would wait.
        """
        self._save_failed = True
        self._remove_unfinished()
        step = next(iter(checksums.steps(self._directory)), None)
        previous = (
            "there is none before it" if step is None else f"the one of step {step} is intact"
        )
        failed = files.SaveError(
            f"the checkpoint of step {self._saving} could not be written to {self._directory}: "
            f"{files.reason(error)}; {previous}"
        )
        if files.passes(error):
            failed.exit_code = signals.AGAIN
        if jax.process_count() > 1:
            signals.end_process(f"jaxcls: {failed}", failed.exit_code)
        self._manager.reload()
        return failed

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for path in checksums.unfinished(self._directory, str(self._saving)):
                with contextlib.suppress(OSError):  # somebody is still writing
                    path.rmtree(missing_ok=True)

    def _set_aside(self, damaged: Mapping[int, checksums.DamageError], *, intact: bool) -> None:
        """Renames damaged checkpoints, if the run can go on without them."""
        if not intact:
            lines = [f"{self._directory / str(s)} ({e})" for s, e in damaged.items()]
            raise ValueError(
                "every checkpoint of this run is damaged: "
                + (files.some(lines) if lines else ", ".join(map(str, _aside(self._directory))))
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


def _aside(directory: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints that were set aside."""
    return [
        directory / name for name in sorted(files.names(directory)) if name.startswith("damaged-")
    ]


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


def _before_averages(state: Any) -> dict[str, Any]:
    """Returns a train state as versions before 0.2 saved it, with its one average as "ema"."""
    tree = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return tree | {"ema": tree.pop("averages").get("ema")}


def _with_averages(tree: dict[str, Any], state: Any) -> Any:
    average = tree.pop("ema")
    return state.replace(averages={"ema": average} if average else {}, **tree)
