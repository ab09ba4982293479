"""The ways in which `predict` has a network answer: as a checkpoint, and as each export of it."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcls import weights
from jaxcls.benchmark.subjects import Loaded
from jaxcls.config import choose
from jaxcls.export import agreement, formats, program
from jaxcls.network import Network
from jaxcls.output import one_line

VARIANTS = {"timm_compiled": "timm"}  # other ways to run a format; measured where asked for
FORMATS = ("jax", *formats.FORMATS, *(k for k, v in VARIANTS.items() if v in formats.FORMATS))
OF_ALL = ("jax", "timm", "timm_compiled")  # that compute in any precision, whatever the file's


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to have a network answer."""

    format: str  # one of `FORMATS`
    precision: str
    path: Path
    answers: Path  # folder, for what it answers
    file_bytes: int

    @property
    def tolerance(self) -> float:
        """How far its answers may be from the checkpoint's, of the signal."""
        return 1.0 if quantised(self.format) else agreement.TOLERANCE[self.precision]

    @property
    def facts(self) -> dict[str, Any]:
        """What rows say of it."""
        return described(self.format, self.precision) | {"file_bytes": self.file_bytes}

    def spec(self, net: Network) -> dict[str, Any]:
        """Returns what `runtimes` is told of it."""
        found = {"format": self.format, "path": str(self.path), "precision": self.precision}
        found |= {"answers": str(self.answers), "compiled": self.format in VARIANTS}
        found |= {"size": net.image.shown, "mean": net.image.mean, "std": net.image.std}
        found |= {"temperature": net.temperature, "multi_label": net.multi_label}
        if self.format != "jax":
            its = row_of(self.format)
            found |= {"code": its.run, "needs": list(its.needs)}
        return found


def pairs(asked: str | None, precisions: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns formats with their precisions, and lines about those that are left out.

    Args:
      asked: --formats; None: all that can be had here.
      precisions: --precisions.

    Raises:
      ValueError: one that was asked for cannot be had.
    """
    names = [name for name in FORMATS if name not in VARIANTS]
    if asked is not None:
        names = [name for name in map(str.strip, asked.split(",")) if name]
    found, left_out = [], []
    for name in dict.fromkeys(names):
        choose("--formats", name, FORMATS)
        its = program.PRECISIONS if name in OF_ALL else row_of(name).precisions
        here = [precision for precision in precisions if precision in its]
        try:
            if name != "jax":
                of = VARIANTS.get(name, name)
                formats.check([of], row_of(name).precisions[0])
            if not here:
                raise ValueError(f"--format={name} has no {', '.join(precisions)}: it has "
                                 f"{', '.join(its)}")  # fmt: skip
        except ValueError as e:
            line = unflagged(e)
            if asked is not None:
                raise ValueError(f"--formats={asked}: {line}") from e
            left_out.append(f"left out: {line}")
            continue
        found += [(name, precision) for precision in here]
    if not found:
        raise ValueError(f"--formats={asked or ''}: write some of {', '.join(FORMATS)}")
    return found, left_out


def unflagged(error: Exception) -> str:
    """Returns what an error of `formats` says, where there is no --format."""
    return re.sub(r"^--format=(\S+?): |--format=", "", one_line(error))


def row_of(name: str) -> formats.Format:
    """Returns the row of `formats.FORMATS` that writes what a contender runs."""
    return formats.FORMATS[VARIANTS.get(name, name)]


def quantised(name: str) -> bool:
    """Returns whether a format is of 8 bits."""
    return name != "jax" and row_of(name).quantised


def described(name: str, precision: str) -> dict[str, str]:
    """Returns what rows say of a contender."""
    return {"format": name, "precision": "int8" if quantised(name) else precision}


def contenders(
    loaded: Loaded, chosen: Sequence[tuple[str, str]], pixels: np.ndarray, folder: Path
) -> Iterator[tuple[str, str, Contender | Exception]]:
    """Yields (format, precision, what can be started or why there is none); writes its files.

    Args:
      loaded: the network.
      chosen: formats and precisions.
      pixels: images that the writers of 8 bits see.
      folder: for the files; an empty one.
    """
    if loaded.variables is None:
        place = Path(loaded.subject.place)
        for name in dict.fromkeys(name for name, _ in chosen if name != "jax"):
            path = place / row_of(name).file
            if path.exists():
                yield from _made(name, loaded.net.precision, folder, lambda path=path: path)
        return
    stored = loaded.subject.place

    def checkpoint() -> Path:
        if stored:
            return Path(stored)
        weights.export(folder / "checkpoint", loaded.variables,
                       {"network": loaded.net.described()})  # fmt: skip
        return folder / "checkpoint"

    programs: dict[str, program.Program] = {}

    def written(name: str, precision: str) -> Path:
        row_of(name).check(loaded.net)
        precision = "float32" if name in OF_ALL else precision
        path = folder / precision / row_of(name).file
        if path.exists():  # of another variant
            return path
        if precision not in programs:
            programs[precision] = program.make(loaded.net, loaded.variables, precision=precision)
        path.parent.mkdir(exist_ok=True)
        row_of(name).write(programs[precision], path, pixels)
        return path

    placed: list[Path] = []
    for name, precision in chosen:
        if name != "jax":
            yield from _made(name, precision, folder, lambda n=name, p=precision: written(n, p))
            continue
        if not placed:
            placed.append(checkpoint())
        size = sum(x.nbytes for x in jax.tree.leaves(loaded.variables))
        yield from _made(name, precision, folder, lambda: placed[0], size)


def _made(
    name: str, precision: str, folder: Path, make: Callable[[], Path], size: int = 0
) -> Iterator[Any]:
    try:
        path = make()
    except Exception as e:  # of whatever library; the others go on
        yield name, precision, e
        return
    answers = folder / "answers" / f"{name}_{precision}"
    answers.mkdir(parents=True)
    yield name, precision, Contender(name, precision, path, answers, size or size_of(path))


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all in a folder."""
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]))


def differs(contender: Contender, batch: int, reference: np.ndarray) -> str:
    """Returns why a contender's answers are not those of the network; "" if they are.

    Args:
      contender: which has answered.
      batch: of the first so many images.
      reference: logits of these images and more.
    """
    theirs = np.load(contender.answers / f"{batch}.npy")
    ours = reference[:batch]
    if theirs.shape != ours.shape:
        return f"answers {list(theirs.shape)}, not {list(ours.shape)}"
    signal = float(np.ptp(reference, axis=0).max())
    difference, tolerance = float(np.abs(ours - theirs).max()), contender.tolerance
    if difference <= max(tolerance * signal, agreement.ROUNDING * np.abs(ours).max()):
        return ""
    return (
        f"answers something else: logits differ by {difference / (signal or 1):.2g} of what tells "
        f"images apart, more than {tolerance:g}"
    )
