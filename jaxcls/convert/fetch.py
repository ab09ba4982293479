"""Weights by name: downloaded, converted once, kept; see `jaxcls.fetched` for where."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from jaxcls import download, fetched, files, models, weights
from jaxcls.config import choose
from jaxcls.convert import checkpoint, hub, paddleclas, readers
from jaxcls.network import published_image


def full_name(name: str) -> str:
    """Returns the name with where it is from: what has no such is PaddleClas's.

    Raises:
      ValueError: an unknown one of PaddleClas's, with the nearest.
    """
    origin, their = fetched.split(name) or fetched.split(f"paddleclas:{name}")
    if origin == "paddleclas":
        choose("weights of PaddleClas", their, models.MODELS)
        paddleclas.url(their)
    return f"{origin}:{their}"


def fetch(
    name: str,
    *,
    report: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Returns the checkpoint of a name such as "timm:resnet50d.ra2_in1k", fetched if need be.

    Args:
      name: see `full_name`.
      report: is given lines: what is done, where it is from, under which licence.
      progress: see `download.download`.

    Raises:
      ValueError: why it cannot be had.
    """
    name = full_name(name)
    folder = fetched.folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder, report):
        if folder.exists():
            report(f"{folder}: fetched before")
        else:
            work = folder.with_name(f".{folder.name}")  # stays for the next attempt
            work.mkdir(exist_ok=True)
            origin, their = fetched.split(name)
            make = _of_paddleclas if origin == "paddleclas" else _of_timm
            report(make(their, work, folder, report, progress))
            shutil.rmtree(work, ignore_errors=True)
    _, meta = weights.load(folder, report=report)
    source = meta.get("source", {})
    report(f"from {source.get('url')}, SHA-256 {source.get('sha256')}")
    report(f"licence: {source.get('licence')}")
    return folder


def _of_paddleclas(
    name: str, work: Path, folder: Path, report: Callable, progress: Callable
) -> str:
    url = paddleclas.url(name)
    file = work / url.rpartition("/")[2]
    if not file.exists():
        report(f"fetching {url}")
        download.download(url, file, report=report, progress=progress)
    return checkpoint.write(
        folder,
        name,
        _read(file, url),
        style="paddle",
        num_classes=1000,
        image=published_image(name),
        head=paddleclas.has_head(name),
        options={},
        source=_source(file, url, paddleclas.licence(name)),
    )


def _of_timm(name: str, work: Path, folder: Path, report: Callable, progress: Callable) -> str:
    del progress
    found = hub.download(name, work, report)
    return checkpoint.write(
        folder,
        found.name,
        _read(found.file, found.url),
        style="torch",
        num_classes=found.num_classes,
        image=found.image,
        head=found.num_classes > 0,
        options=found.options,
        source=_source(found.file, found.url, found.licence),
    )


def _read(file: Path, url: str) -> Any:
    try:
        return readers.read(str(file))
    except ValueError as e:
        file.unlink(missing_ok=True)  # otherwise it would be met again
        raise ValueError(f"{url} gave no weights: {e}") from e


def _source(file: Path, url: str, licence: str) -> dict[str, str]:
    digest = files.digest(file)
    return {"file": file.name, "sha256": digest, "url": url, "licence": licence}


@contextlib.contextmanager
def _alone(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Holds the place against other processes of this machine that want the same."""
    lock = filelock.FileLock(os.fspath(folder.with_name(f".{folder.name}.lock")))
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report(f"{folder.name}: another process is fetching it; waiting")
            lock.acquire()
    except (NotImplementedError, OSError) as e:
        if not isinstance(e, NotImplementedError) and e.errno not in files.NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
