"""Where images come from: opens what `config.data` names as sources (data/access.py)."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcls.config import (
    LARGEST,
    check_seed,
    choose,
    closest,
    defaults,
    keywords,
    labelled_rows,
    taken,
)
from jaxcls.data import stores
from jaxcls.data.access import Source
from jaxcls.data.arrays import (
    BACKGROUND,
    Joined,
    Subset,
    WithBackground,
    open_digits,
    open_fake,
)
from jaxcls.data.folders import CLASSES_FILE, open_folder, some
from jaxcls.data.labels import counts, groups
from jaxcls.data.lists import open_list
from jaxcls.data.loader import PLAIN, Options
from jaxcls.data.records import Records, Tfds, open_array_record, open_tfds
from jaxcls.data.sampling import WEIGHTS, by_class, subset
from jaxcls.data.tables import open_huggingface, open_table, open_unlabelled

CACHES = ("auto", "none", "encoded", "decoded", "device")  # data/cache.py

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """What `config.data` stands for."""

    train: Source
    eval: Source | None  # None: the source has nothing to evaluate on
    class_names: tuple[str, ...]
    on_bad_image: str  # "error" or "skip"
    max_bad_images: int
    sampling: str  # a key of sampling.WEIGHTS
    repeats: int
    cache: str  # a key of cache.KINDS
    loader: Options = PLAIN  # config.loader
    unlabelled_share: float = 0.0  # of each batch
    remote: bool = False  # each image is a file in a store: a request

    @property
    def num_train(self) -> int:
        """Training images that an epoch goes through: where a share has no label, the others."""
        return int(self.train.has_label.sum()) if self.unlabelled_share else len(self.train)

    def facts(self) -> dict[str, Any]:
        """Returns what a program is built for: `program.build(config, **data.facts())`."""
        return {
            "num_train": self.num_train,
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "class_counts": self.class_counts,
            "multi_label": bool(getattr(self.train, "marks", 0)),
        }

    def class_counts(self) -> tuple[np.ndarray, float]:
        """Returns how often an epoch shows each class, float64 [K], and the images with a label.

        That is the number of its images; with another sampling than "shuffle" of their visits, out
        of as many. All labels are read, which may take long.
        """
        labels, weight = self.train.labels, WEIGHTS[self.sampling] or np.asarray
        visits = np.zeros(len(labels))
        for images in by_class(labels).values():
            visits[images] = weight(np.float64(len(images))) / len(images)
        total = np.count_nonzero(visits)
        visits *= total / visits.sum()
        if labels.ndim == 2:
            return visits @ (labels > 0), float(total)
        known = labels >= 0
        return np.bincount(labels[known], visits[known], len(self.class_names)), float(total)


def open(
    *,
    source: str,
    on_bad_image: str,
    max_bad_images: int,
    fraction: float,
    fraction_seed: int,
    long_tail: float,
    sampling: str,
    repeats: int,
    cache: str,
    background: str,
    unlabelled: str,
    unlabelled_share: float,
    image_size: int = 224,
    training: bool = True,
    needs_labels: str = "supervised",
    other_names: Callable[[], tuple[str, ...]] = tuple,
    **keys: Any,
) -> Data:
    """Returns the images that `config.data` names: `sources.open(**config.data)`.

    Args:
      source: a key of `OPEN`.
      on_bad_image, ..., cache: see configs/base.py.
      image_size: pixels of fake images, height and width.
      training: whether training images will be read: if not, those of a list may be missing.
      needs_labels: name of the loss, if it learns from labels alone; "": some may be missing.
      other_names: returns names of classes, a teacher's, where no image has a label and nothing
        else names them.
      keys: the others of `config.data`; those that the source takes are its function's parameters.

    Raises:
      ValueError: an unknown source, a key that it does not take, or data that is not as it should
        be: a missing folder, an empty class, a list line without a label, ...; images without a
        label that nothing learns from, or that never come.
    """
    if not source:
        raise ValueError(f"config.data.source is not set: write one of {', '.join(sorted(OPEN))}")
    choose("config.data.source", source, OPEN)
    choose("config.data.sampling", sampling, WEIGHTS)
    choose("config.data.cache", cache, CACHES)
    given = {
        "image_size": image_size,
        "training": training,
        "allowed": bad_images_allowed(on_bad_image, max_bad_images),
        "needs_labels": needs_labels,
        "other_names": other_names,
    }
    if keys["eval_fraction"] is None and source != "folder":
        keys["eval_fraction"] = 0.0
    opened = OPEN[source]
    arguments = taken("data", source, opened, keys)
    check_seed("data.fraction_seed", fraction_seed)
    if fraction == long_tail == 1 and fraction_seed:
        raise ValueError(f"config.data.fraction_seed = {fraction_seed}: not used by fraction = 1.0")
    arguments |= {key: given[key] for key in given.keys() & keywords(opened)}
    train_source, eval_source = opened(**arguments)
    if len(train_source.class_names) < 2:
        raise ValueError(
            f"config.data: there is one class only, {train_source.class_names[0]!r}, and nothing "
            f"to tell it from: {SECOND_CLASS[source]}"
        )
    if eval_source is not None and not eval_source.has_label.any():
        said = f"none of the {len(eval_source)} evaluation images has a label"
        if keys["eval"]:
            raise ValueError(f"{said}: name others in config.data.eval = {keys['eval']!r}")
        log.warning("%s: they are not used", said)
        eval_source = None
    if eval_source is not None:
        _report_classes(train_source, eval_source)
    if background:
        number = _background(background, train_source)
        train_source = WithBackground(train_source, number)
        eval_source = eval_source and WithBackground(eval_source, number)
    if long_tail != 1 and train_source.marks:
        raise ValueError(
            f"config.data.long_tail = {long_tail}: images that show several classes cannot be "
            "thinned out by class: write 1.0"
        )
    if fraction != 1 or long_tail != 1:
        classes = len(train_source.class_names)
        grouped = groups(train_source.labels)
        if not train_source.has_label.all():  # these are a group, too
            rest = classes + 1
            grouped = np.where(train_source.has_label, grouped, rest)
        chosen = subset(grouped, fraction, fraction_seed, long_tail, classes)
        train_source = Subset(train_source, chosen)
    if unlabelled and training:
        if needs_labels:
            raise ValueError(
                f"config.data.unlabelled = {unlabelled!r}: config.loss.name = {needs_labels!r} "
                "learns from labels alone: choose a loss that has a teacher, or write "
                'config.data.unlabelled = ""'
            )
        how = {key: keys[key] for key in ("root", "delimiter", "image_column")}
        how["allowed"] = given["allowed"]
        train_source = Joined(train_source, open_unlabelled(unlabelled, **how))
    if training:
        _check_share(train_source, sampling, unlabelled_share)
    return Data(
        train=train_source,
        eval=eval_source,
        class_names=train_source.class_names,
        on_bad_image=on_bad_image,
        max_bad_images=max_bad_images,
        sampling=sampling,
        repeats=repeats,
        cache=cache,
        unlabelled_share=unlabelled_share,
        remote=source in ("folder", "list") and stores.remote(keys["root"]),
    )


def _background(name: str, source: Source) -> int:
    """Returns the number of the class that `config.data.background` names.

    Raises:
      ValueError: there is none, or it cannot be one.
    """
    names = source.class_names
    if source.marks:
        raise ValueError(
            f"config.data.background = {name!r}: images with a mark for each class show none of "
            'them where all are 0: write ""'
        )
    if name not in names:
        raise ValueError(f"config.data.background = {name!r} is no class{closest(name, names)}")
    if BACKGROUND in names and name != BACKGROUND:
        raise ValueError(
            f"config.data.background = {name!r}: there is a class {BACKGROUND!r} already: name "
            "that one, or rename it"
        )
    return names.index(name)


def _check_share(source: Source, sampling: str, share: float) -> None:
    """Refuses a share of images without a label that cannot be had, or such that never come.

    Raises:
      ValueError: it is so.
    """
    labelled_rows(LARGEST, share)  # whether it is one
    there = source.has_label
    if share and (there.all() or not there.any()):
        what = "every" if there.all() else "no"
        raise ValueError(
            f"config.data.unlabelled_share = {share}: {what} training image has a label: "
            + ("name others in config.data.unlabelled" if there.all() else "write 0.0")
        )
    if not share and sampling != "shuffle" and not there.all():
        raise ValueError(
            f"config.data.sampling = {sampling!r} goes by classes, and {(~there).sum()} training "
            "images have no label: say in config.data.unlabelled_share how many of a batch these "
            'are, or write sampling = "shuffle"'
        )
    if sampling != "shuffle":
        names = source.class_names
        empty = np.flatnonzero(counts(source.labels, len(names)) == 0)
        if len(empty):
            raise ValueError(
                f"config.data.sampling = {sampling!r}: of these classes there is no training image "
                f"that could be shown more often: {some([names[i] for i in empty])}: write "
                '"shuffle", or leave the classes out'
            )


def unset() -> dict[str, Any]:
    """Returns the keys of `config.data` that sources take, with their defaults."""
    takes, (values, _) = set().union(*map(keywords, OPEN.values())), defaults()
    return {key: values[f"data.{key}"] for key in takes if f"data.{key}" in values}


def bad_images_allowed(on_bad_image: str, max_bad_images: int) -> int | None:
    """Returns how many unreadable images do not stop a run; None: each is an error.

    Raises:
      ValueError: one of the two is out of range.
    """
    choose("config.data.on_bad_image", on_bad_image, ("error", "skip"))
    if max_bad_images < 0:
        raise ValueError(
            f"config.data.max_bad_images = {max_bad_images}: write a number of at least 0"
        )
    return max_bad_images if on_bad_image == "skip" else None


def _report_classes(train: Source, evaluation: Source) -> None:
    """Says which classes have images in one of the two only, where labels need no reading."""
    if isinstance(train, (Records, Tfds)) or not train.has_label.any():
        return
    count = len(train.class_names)
    there = [counts(s.labels, count) > 0 for s in (train, evaluation)]
    for what, missing in (
        ("evaluation", there[0] & ~there[1]),
        ("training", there[1] & ~there[0]),
    ):
        names = [train.class_names[i] for i in np.flatnonzero(missing).tolist()]
        if names:
            log.warning("%d of %d classes have no %s images: %s", len(names), count, what,
                        some(names))  # fmt: skip


OPEN = {
    "digits": open_digits,
    "folder": open_folder,
    "list": open_list,
    "array_record": open_array_record,
    "tfds": open_tfds,
    "table": open_table,
    "huggingface": open_huggingface,
    "fake": open_fake,
}


# Where a second class comes from.
SECOND_CLASS = {
    "folder": "every class of images needs a sub-folder of its own in config.data.root (or train)",
    "list": "write the labels 0, 1, ... in the list, or set config.data.num_classes",
    "array_record": f"{CLASSES_FILE} has one class in each line",
    "tfds": "choose another set",
    "table": "there is one label only, or set config.data.class_names",
    "huggingface": "choose another set, or name its column in config.data.label_columns",
    "fake": "write config.data.num_classes of at least 2",
}
