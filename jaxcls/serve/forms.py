"""Forms that browsers and curl send (multipart/form-data, RFC 7578), read in memory."""

import re
import urllib.parse

HEAD = 4096  # bytes of the header of a part, at most
_BOUNDARY = re.compile(r';[ \t]*boundary=(?:"([^"\\]{1,70})"|([^\s;"]{1,70}))[ \t]*(?:;|$)', re.I)
_DISPOSITION = re.compile(r"^content-disposition:[ \t]*form-data[ \t]*(;.*)$", re.I | re.M)
_PARAMETER = re.compile(r';[ \t]*([a-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))', re.I)


def files(body: bytes, kind: str, most: int) -> list[tuple[str, bytes]]:
    """Returns the names and contents of the files of a form, in their order.

    Args:
      body: of the request.
      kind: its Content-Type, which has the boundary.
      most: parts, of which files are some.

    Raises:
      ValueError: it is no such form, or has no file.
    """
    boundary = _BOUNDARY.search(kind)
    if not boundary:
        raise ValueError("the form has no boundary of 1 to 70 characters in its Content-Type")
    mark = b"--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
    end = -2 if body.startswith(mark) else body.find(b"\r\n" + mark)
    if end == -1:
        raise ValueError("the form does not have the boundary of its Content-Type")
    found = []
    for _ in range(most + 1):
        at = end + 2 + len(mark)
        if body.startswith(b"--", at):
            break
        line = body.find(b"\r\n", at, at + HEAD)
        end = body.find(b"\r\n" + mark, line)
        if line < 0 or body[at:line].strip(b" \t") or end < 0:
            raise ValueError("the form is cut off or damaged")
        begin = body.find(b"\r\n\r\n", line, min(end, line + HEAD))
        if begin < 0:
            raise ValueError(f"a part of the form has no header of at most {HEAD} bytes")
        name = _name(body[line + 2 : begin].decode("utf-8", "replace"))
        if name is not None:
            found.append((name, body[begin + 4 : end]))
    else:
        raise ValueError(f"the form has more than {most} parts")
    if not found:
        raise ValueError("the form has no file: send it as image=@cat.jpg")
    return found


def _name(head: str) -> str | None:
    """Returns the name of a file, by the header of its part; None: it is a field."""
    disposition = _DISPOSITION.search(head)
    given = {}
    for key, quoted, plain in _PARAMETER.findall(disposition[1] if disposition else ""):
        given[key.lower()] = re.sub(r"\\(.)", r"\1", quoted) or plain
    if "filename*" in given:  # UTF-8''%C3%BC.png
        return urllib.parse.unquote(given["filename*"].rpartition("'")[2], errors="replace")
    name = given.get("filename")
    return name if name is None else name or given.get("name", "image")
