"""Lengths of a run: durations such as "90 epochs" as numbers of steps."""

import dataclasses
import math

from ml_collections import ConfigDict

from jaxcls.config.values import LARGEST, short

UNITS = ("epochs", "steps", "examples")


def steps_of(duration: str, *, key: str, batch_size: int, steps_per_epoch: int) -> int:
    """Returns the number of steps in a duration such as "90 epochs", "500 steps", "1e6 examples".

    Rounded to the nearest step; "" is 0, and so is a number of 0.

    Raises:
      ValueError: not a duration, one above 0 that rounds to no step, which would mean never, or
        2^31 steps and more; the message names `key`.
    """
    if duration == "":
        return 0
    number, _, unit = str(duration).strip().partition(" ")
    unit = unit.strip()
    unit = unit if unit.endswith("s") else unit + "s"
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0 and unit in UNITS):
        raise ValueError(
            f"config.{key} = {short(duration)} is not a duration: write a number and a unit, "
            'such as "90 epochs", "500 steps" or "1e6 examples"'
        )
    scale = {"epochs": steps_per_epoch, "steps": 1, "examples": 1 / batch_size}[unit]
    if value * scale > LARGEST:
        raise ValueError(f"config.{key} = {duration!r} is 2^31 steps or more: write a shorter one")
    steps = round(value * scale)
    if value and not steps:
        raise ValueError(
            f"config.{key} = {duration!r} is less than a step (an epoch has {steps_per_epoch} of "
            f'{batch_size} images): write at least "1 step"'
        )
    return steps


def due(step: int, every: int, last: int) -> bool:
    """Returns whether something done `every` so many steps, and at the `last`, is due at `step`."""
    return step > 0 and ((every > 0 and step % every == 0) or step == last)


def check_seed(key: str, seed: int) -> int:
    """Returns a seed if it is one: each of them gives other numbers, on the host and the device.

    Raises:
      ValueError: it has more than 64 bits or a sign; the message names `key`.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(
            f"config.{key} = {seed}: write an integer from 0 to 2**64 - 1 = {2**64 - 1}"
        )
    return seed


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's lengths in steps. An interval of 0 means: only at the end."""

    batch_size: int  # images per step, over all devices
    eval_batch_size: int
    steps_per_epoch: int
    total_steps: int
    eval_every: int
    save_every: int
    log_every: int

    def epoch(self, step: int) -> float:
        """Returns the epochs that `step` steps are."""
        return step / self.steps_per_epoch

    def rows(self, devices: int, micro_batches: int, group: int | None) -> int:
        """Returns the images that are computed together: those of a micro-batch.

        Raises:
          ValueError: batches do not divide over devices, micro-batches and groups of BatchNorm.
        """
        batch = self.batch_size
        if batch % (devices * micro_batches):
            raise ValueError(
                f"config.batch_size = {batch} does not divide over {devices} device(s) x "
                f"config.optim.accumulate_steps = {micro_batches}: use a multiple of "
                f"{devices * micro_batches}"
            )
        rows = batch // micro_batches
        if group is not None and group < 1:
            raise ValueError(
                f"config.model.bn_group = {group}: write a number of images above 0, or None for "
                "all"
            )
        if group is not None and rows % group:
            raise ValueError(
                f"config.model.bn_group = {group} does not divide the {rows} images that are "
                "computed together (config.batch_size / config.optim.accumulate_steps)"
            )
        check_eval_batch(self.eval_batch_size, devices)
        return rows


def labelled_rows(batch_size: int, unlabelled_share: float) -> int:
    """Returns how many images of each batch have a label; all where the share is 0.

    Raises:
      ValueError: a share out of range, or one that leaves a part of the batch empty.
    """
    if not 0 <= unlabelled_share < 1:
        raise ValueError(
            f"config.data.unlabelled_share = {unlabelled_share}: write a share from 0.0 to below 1"
        )
    labelled = batch_size - round(batch_size * unlabelled_share)
    if unlabelled_share and not 0 < labelled < batch_size:
        raise ValueError(
            f"config.data.unlabelled_share = {unlabelled_share} of a batch of {batch_size} images "
            f"leaves {labelled} with a label: write a share that leaves some of both"
        )
    return labelled


def check_eval_batch(batch: int, devices: int) -> None:
    """Refuses batches of evaluation that do not divide over devices."""
    if batch < 1 or batch % devices:
        raise ValueError(
            f"config.eval.batch_size = {batch} does not divide over {devices} device(s)"
        )


def plan(config: ConfigDict, num_train: int) -> Plan:
    """Returns the lengths of a run over `num_train` training images.

    Where a share of each batch has no label (`data.unlabelled_share`), they are those with one.

    Raises:
      ValueError: a seed, a duration, a share or a batch size that makes no sense.
    """
    check_seed("seed", config.seed)
    batch = config.batch_size
    if batch < 1:
        raise ValueError(f"config.batch_size = {batch}: write a number of images above 0")
    if config.eval.batch_size < 0:
        raise ValueError(
            f"config.eval.batch_size = {config.eval.batch_size}: write a number of images, or 0 "
            "for as many as config.batch_size"
        )
    labelled = labelled_rows(batch, config.data.unlabelled_share)
    if num_train < labelled < batch:
        raise ValueError(
            f"config.batch_size = {batch} with {labelled} rows of images with a label "
            f"(config.data.unlabelled_share) is more than the {num_train} of them: an epoch would "
            "have no step; use a smaller batch"
        )
    if num_train < labelled:
        raise ValueError(
            f"config.batch_size = {batch} is more than the {num_train} training images: "
            "an epoch would have no step; use a smaller batch"
        )
    steps_per_epoch = num_train // labelled

    def steps(key: str, duration: str, at_least: int = 0) -> int:
        n = steps_of(duration, key=key, batch_size=batch, steps_per_epoch=steps_per_epoch)
        if n < at_least:
            raise ValueError(f"config.{key} = {duration!r} is less than a step")
        return n

    return Plan(
        batch_size=batch,
        eval_batch_size=config.eval.batch_size or batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps("duration", config.duration, at_least=1),
        eval_every=steps("eval.every", config.eval.every),
        save_every=steps("checkpoint.every", config.checkpoint.every),
        log_every=steps("log.every", config.log.every),
    )
