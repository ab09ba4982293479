"""One file from a web server: resumed, checked, and patient to a point.

Only Python's own library: http_proxy, https_proxy and no_proxy count as for everything there.
"""

import base64
import dataclasses
import errno
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxcls import files

CHUNK = 1 << 16
BUSY = (408, 425, 429, 500, 502, 503, 504)  # what a server says that may answer later
SAID = {
    401: "it asks for a password",
    403: "it does not give the file",
    404: "there is no such file",
    407: "the proxy asks for a password: http_proxy=http://USER:PASSWORD@HOST:PORT",
    410: "there is no such file any more",
}


@dataclasses.dataclass(frozen=True)
class Patience:
    """When a connection is given up, and how often it is tried again."""

    silence: float = 30.0  # seconds without a byte
    window: float = 60.0  # seconds over which it is measured how slow it is
    slowest: float = 4096.0  # bytes a second
    delays: tuple[float, ...] = (1, 2, 4, 8)  # seconds; from the start after `enough` bytes more
    enough: int = 1 << 20


class _Broken(Exception):
    """A transfer that may be continued."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if request.type == "https" and urllib.parse.urlsplit(url).scheme != "https":
            raise ValueError(f"{request.full_url} leads to {url}, which is not encrypted")
        return super().redirect_request(request, file, code, message, headers, url)


def download(
    url: str,
    path: Path,
    *,
    patience: Patience = Patience(),
    report: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes what is at `url` into `path`, which is there whole or not at all.

    Until then it is in PATH.part: the next call goes on from there, if the server still has the
    same file (its ETag). Size and MD5 (Content-MD5) are compared where the server says them.

    Args:
      path: in a folder that exists.
      report: is given a line before each further attempt.
      progress: is given how many bytes there are, and how many in all, 0: not known.

    Raises:
      ValueError: why not, and what to do.
      OSError: of the disk.
    """
    part, delays = Path(f"{path}.part"), list(patience.delays)
    while True:
        before = _size(part)
        try:
            _attempt(url, part, patience, progress)
            break
        except _Broken as e:
            problem, there = str(e), _size(part)
        if there >= before + patience.enough:
            delays = list(patience.delays)
        if not delays:
            kept = f"; {there:,} bytes are kept, the same again goes on from there" * bool(there)
            raise ValueError(f"{url}: {problem}{kept}")
        delay = delays.pop(0)
        report(f"{url}: {problem}; trying again in {delay:g} s")
        time.sleep(delay)
    try:
        expected = _told(part).get("md5")
        if expected and (found := files.digest(part, "md5")) != expected:
            part.unlink()
            raise ValueError(
                f"{url}: its MD5 is {found}, not {expected} as its server says: it was removed, "
                "try again"
            )
        part.replace(path)
    finally:
        _note(part).unlink(missing_ok=True)


def _attempt(
    url: str, part: Path, patience: Patience, progress: Callable[[int, int], None]
) -> None:
    """Continues or begins; what is there afterwards is whole."""
    told, start = _told(part), _size(part)
    headers = {"User-Agent": "jaxcls", "Accept-Encoding": "identity"}
    if told.get("url") == url and told.get("etag") and start:
        headers |= {"Range": f"bytes={start}-", "If-Range": told["etag"]}
    request = urllib.request.Request(url, headers=headers)
    with _open(request, patience.silence, part) as response:
        if response.headers.get_content_type() == "text/html":  # of a hotel's network, a proxy
            raise ValueError(f"{url}: it gives a page to read, not the file")
        length = _number(response.headers.get("Content-Length"))
        if response.status == 206:
            given = response.headers.get("Content-Range", "")
            if not re.fullmatch(rf"bytes {start}-\d+/(\d+|\*)", given.strip()):
                _forget(part)
                raise _Broken(f"it gave bytes {given or 'nobody knows which'}, not from {start} on")
        else:
            start = 0
            _forget(part)
            etag = response.headers.get("ETag", "")
            kept = {"url": url, "md5": _md5(response.headers.get("Content-MD5"))}
            # a weak one may be of other bytes
            kept["etag"] = etag if etag[:1] == '"' and length else ""
            _note(part).write_text(json.dumps(kept))
        total = start + length if length else 0
        if (free := shutil.disk_usage(part.parent).free) < length:
            raise ValueError(
                f"{url} has {total:,} bytes, there is place for {free:,} in {part.parent}"
            )
        _receive(response, part, start, total, patience, progress)


def _receive(
    response: http.client.HTTPResponse,
    part: Path,
    done: int,
    total: int,
    patience: Patience,
    progress: Callable[[int, int], None],
) -> None:
    since, then = time.monotonic(), done
    with part.open("ab") as file:
        while True:
            try:
                chunk = response.read1(CHUNK)
            except TimeoutError as e:
                raise _Broken(f"nothing came for {patience.silence:g} s") from e
            except (OSError, http.client.HTTPException) as e:
                raise _Broken(_why(e)) from e
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            progress(done, total)
            seconds = time.monotonic() - since
            if seconds > patience.window:
                if done - then < patience.slowest * seconds:
                    raise _Broken(f"{(done - then) / seconds:.0f} bytes a second came")
                since, then = time.monotonic(), done
    if total and done < total:
        raise _Broken(f"it ended after {done:,} of {total:,} bytes")


def _open(request: urllib.request.Request, seconds: float, part: Path) -> Any:
    """Returns the response; an answer that stays so is a ValueError, another is `_Broken`."""
    url = request.full_url
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=seconds)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code == 416:  # more is kept than there is
            _forget(part)
            raise _Broken("it has less than was kept") from e
        if e.code in BUSY:
            raise _Broken(f"it answers {e.code} {e.reason}") from e
        if 300 <= e.code < 400:
            raise ValueError(f"{url}: it leads elsewhere without end, or to no web page") from e
        raise ValueError(f"{url}: {SAID.get(e.code, f'it answers {e.code} {e.reason}')}") from e
    except TimeoutError as e:
        raise _Broken(f"nothing came for {seconds:g} s") from e
    except urllib.error.URLError as e:
        problem = e.reason if isinstance(e.reason, Exception) else e
        if isinstance(problem, TimeoutError):
            raise _Broken(f"nothing came for {seconds:g} s") from e
        if getattr(problem, "errno", None) in (errno.ECONNRESET, errno.EPIPE):
            raise _Broken(_why(problem)) from e
        raise ValueError(
            f"{url}: no connection ({_why(problem)}); behind a proxy set https_proxy and "
            "http_proxy; a file that was brought otherwise: python -m jaxcls.convert NAME "
            "--from FILE --to DIR"
        ) from e
    except (OSError, http.client.HTTPException) as e:
        raise _Broken(_why(e)) from e


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _md5(header: str | None) -> str:
    """Returns the digits of Content-MD5, which is in base 64; "" for none."""
    try:
        found = base64.b64decode(header or "", validate=True)
    except ValueError:
        return ""
    return found.hex() if len(found) == 16 else ""


def _number(header: str | None) -> int:
    """Returns what Content-Length says; 0 for what is no number."""
    return int(header) if re.fullmatch(r"[0-9]{1,18}", (header or "").strip()) else 0


def _note(part: Path) -> Path:
    return Path(f"{part}.json")


def _told(part: Path) -> dict[str, str]:
    """Returns what the server said of the file whose beginning is kept."""
    try:
        told = json.loads(_note(part).read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _forget(part: Path) -> None:
    for path in (part, _note(part)):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0
