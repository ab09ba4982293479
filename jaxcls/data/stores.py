"""Files in an object store: gs://BUCKET/FOLDER, s3://..., and what else fsspec has a package for.

Its packages (gcsfs, s3fs) try again by themselves where a store fails for a while.
"""

import dataclasses
import posixpath
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def remote(path: Any) -> bool:
    """Returns whether a path is a URL."""
    return "://" in str(path)


def _opened(url: str) -> tuple[Any, str]:
    """Returns the file system of fsspec, and the path in it.

    Raises:
      ValueError: there is none for such a URL.
    """
    import fsspec.core

    scheme, _, rest = url.partition("://")
    try:
        if scheme in ("http", "https"):  # nothing can be listed
            raise ValueError(scheme)
        bucket, _, name = posixpath.normpath(rest).partition("/")
        # not with the name: "::" in it would be a chain of file systems
        fs, top = fsspec.core.url_to_fs(f"{scheme}://{bucket or rest}")
        return fs, posixpath.join(top, name) if bucket and name else top
    except ImportError as e:
        raise ValueError(f"{url}: {e} (gs://: pip install 'jaxcls[gcs]')") from e
    except ValueError as e:
        raise ValueError(
            f"{url}: there is no such storage: give a folder, or gs://BUCKET/FOLDER"
        ) from e


def _asked(url: str, question: Callable[[Any, str], T]) -> T:
    """Returns question(file system, path).

    Raises:
      ValueError: the store refuses it, or does not answer.
      FileNotFoundError, NotADirectoryError, IsADirectoryError: there is no such thing.
    """
    fs, path = _opened(url)
    try:
        return question(fs, path)
    except MISSING:
        raise
    except Exception as e:  # each package has its own
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise ValueError(f"{url}: the store does not give it: {reason}") from e


def read(url: str, most: int | None = None) -> bytes:
    """Returns a file, or its first bytes; see `_asked`."""
    return _asked(url, lambda fs, path: fs.cat_file(path, start=0, end=most))


def size(url: str) -> int:
    """Returns the bytes of a file; see `_asked`."""
    return _asked(url, lambda fs, path: fs.size(path))


def below(url: str) -> list[str]:
    """Returns all files below a folder, relative to it and sorted; see `_asked`."""
    found = _asked(url, lambda fs, path: [p[len(path) :].lstrip("/") for p in fs.find(path)])
    return sorted(name for name in found if name)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is in a folder, as `os.DirEntry`."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder

    def is_symlink(self) -> bool:
        return False


def entries(url: str) -> list[Entry]:
    """Returns what is in a folder; see `_asked`."""

    def listed(fs, path):
        for info in fs.ls(path, detail=True):
            name = posixpath.basename(info["name"].rstrip("/"))
            if info["name"].strip("/") != path.strip("/"):  # some store an empty file for a folder
                yield Entry(name, f"{url.rstrip('/')}/{name}", info["type"] == "directory")

    return _asked(url, lambda fs, path: [*listed(fs, path)])


@dataclasses.dataclass(frozen=True)
class Place:
    """A file or folder in a store: the part of `pathlib.Path` that sources of images use."""

    url: str

    def __truediv__(self, name: str) -> "Place":
        return Place(name if remote(name) else f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url

    __fspath__ = __str__

    @property
    def name(self) -> str:
        return posixpath.basename(self.url.rstrip("/"))

    @property
    def parent(self) -> "Place":
        return Place(posixpath.dirname(self.url.rstrip("/")))

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def is_file(self) -> bool:
        return self._kind() == "file"

    def read_bytes(self) -> bytes:
        return read(self.url)

    def _kind(self) -> str:
        try:
            return _asked(self.url, lambda fs, path: fs.info(path)["type"])
        except MISSING:
            return ""
