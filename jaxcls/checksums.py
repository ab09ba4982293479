"""The files of a checkpoint: which there are, and whether they are what was written.

`checksums.json` has the SHA-256 of every file. It is written before orbax's atomic rename, so a
checkpoint has it from the moment it exists and loses it with its step.

An object store (gs://) keeps an MD5 of each object that was written whole: of these it has the MD5,
which nothing is read for. Verified is then that the store still holds the objects that orbax wrote;
that it gives their bytes is its own promise. A copy on a disk is read, as all other files are.
"""

import base64
import json
import os
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxcls import files
from jaxcls.files import any_process

CHECKSUMS = "checksums.json"
EVALUATION = "evaluation.json"
CALIBRATION = "calibration.json"
STAMPED = "_CHECKPOINT_METADATA"  # orbax adds the time of the commit after the checksums
MD5 = "md5:"  # begins what is no SHA-256
# Files without a checksum: what is added later, and may be cut off by a kill while it is written.
LATER = (EVALUATION, CALIBRATION)
UNLISTED = (CHECKSUMS, *LATER, *(f"{name}.tmp" for name in LATER), STAMPED, "commit_success.txt")
REPORT = "report/"  # of an export


class DamageError(ValueError):
    """A checkpoint is not what was written."""


def steps(directory: epath.Path) -> list[int]:
    """Returns the steps that have a directory, the newest first."""
    named = [directory / n for n in files.names(directory) if n.isascii() and n.isdecimal()]
    # In an object store, one that is being written has its final name already.
    steps = [int(p.name) for p in named if ocp.utils.is_checkpoint_finalized(p)]
    return sorted(steps, reverse=True)


def candidates(path: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints that `path` may mean, the newest first."""
    if {"state", CHECKSUMS} & set(files.names(path)):
        return [path]
    return [base / str(step) for base in (path / "checkpoints", path) for step in steps(base)]


def unfinished(directory: epath.Path, name: str) -> list[epath.Path]:
    """Returns where orbax writes what will be renamed to `directory / name`."""
    prefix = f"{name}.orbax-checkpoint-tmp"
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.name.startswith(prefix)]


def add(directory: epath.Path, name: str) -> None:
    # Object stores have no rename: orbax writes to the final place and marks it at the end.
    for path in unfinished(directory, name) or [directory / name]:
        known, written = _known(path), sorted(_files(path))
        digests = {n: known.get(n) or _digest(file) for n, file in written if n != STAMPED}
        (path / CHECKSUMS).write_text(json.dumps(digests, indent=0))
        if not files.remote(path):  # durable before orbax gives it its name
            for folder, _, names in os.walk(path, topdown=False):
                for entry in (*names, ""):
                    files.sync(os.path.join(folder, entry))


def verify(path: epath.Path, report: Callable[[str], None]) -> bool:
    """As `_verify`, once, by process 0, with the same outcome everywhere."""
    verified, problem = False, None
    if jax.process_index() == 0:
        try:
            verified = _verify_here(path, report)
        except (DamageError, files.StorageError) as e:
            problem = e
    text = f"process 0 cannot read {path}"
    files.raise_together(problem, text, files.PassingError, files.StorageError)
    files.raise_together(problem, "found by process 0", DamageError)
    return any_process(verified)


def _verify_here(path: epath.Path, report: Callable[[str], None]) -> bool:
    """Returns whether the checkpoint has checksums.

    Raises:
      DamageError: they do not hold.
      files.StorageError: they cannot be read at the moment.
    """

    def digest_of(name, md5):
        if md5 and name in known:
            return known[name]
        return files.patiently(lambda: _digest(path / name, md5), path / name, report)

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
    known = files.patiently(lambda: _known(path), path, report)
    for name in there:
        hidden = any(part.startswith(".") for part in name.split("/"))
        ours = name in digests or name in UNLISTED or name.startswith(REPORT)
        if not ours and not hidden:
            raise DamageError(f"{name} is not in {CHECKSUMS}")
    for name, digest in digests.items():
        try:
            if name not in there:
                raise FileNotFoundError
            if digest_of(name, str(digest).startswith(MD5)) != digest:
                raise DamageError(f"{name} is not what was written")
        except files.KINDS:
            raise DamageError(f"{name} is missing") from None
    return True


def _files(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}", path


def _known(directory: epath.Path) -> dict[str, str]:
    """Returns the digests of files that an object store knows, by one listing."""
    if not files.remote(directory):
        return {}
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(os.fspath(directory))
    except ImportError:  # TensorFlow reads and writes what is there
        return {}
    objects = system.find(root, detail=True)
    return {
        name.removeprefix(f"{root}/"): MD5 + base64.b64decode(about["md5Hash"]).hex()
        for name, about in objects.items()
        if "md5Hash" in about
    }


def _digest(path: epath.Path, md5: bool = False) -> str:
    return MD5 * md5 + files.digest(path, "md5" if md5 else "sha256")
