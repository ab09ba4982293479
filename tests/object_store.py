"""A stand-in of Google Cloud Storage for its real clients: folders of this machine are its buckets.

    python tests/object_store.py FOLDER PORT     # with STORAGE_EMULATOR_HOST=http://127.0.0.1:PORT
                                                 # gcsfs asks it; array_record's reader takes
                                                 # CLOUD_STORAGE_EMULATOR_ENDPOINT
A file in a folder `secret` may not be read. Only what a reader asks for is there.
"""

import contextlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Returns a server; its `asked` are the paths of its requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            url = urlsplit(self.path)
            made.asked.append(unquote(url.path))
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            found = re.fullmatch("(?:/download)?/storage/v1/b/([^/]+)(/o/?)?(.*)", url.path)
            bucket, _, name = found.groups() if found else ("", "", "")
            place = folder / bucket / unquote(name)
            if "secret" in unquote(self.path):
                return self.answer(403, {"error": {"code": 403, "message": "no permission"}})
            if not found or not (folder / bucket).is_dir() or (name and not place.is_file()):
                return self.answer(404, {"error": {"code": 404, "message": "Not Found"}})
            if name and query.get("alt") == "media":
                return self.content(place.read_bytes())
            if name:
                return self.answer(200, about(bucket, place))
            self.answer(200, listed(bucket, query) if found[2] else {"name": bucket})

        def content(self, data):
            begin, end, code = 0, len(data), 200
            if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
                first, last = found.groups()
                begin = int(first) if first else max(len(data) - int(last), 0)
                end = min(int(last) + 1, len(data)) if first and last else len(data)
                code = 206
            more = {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"} if code == 206 else {}
            self.answer(code, data[begin:end], **more)

        def answer(self, code, body, **headers):
            if isinstance(body, dict):
                body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
            self.send_response(code)
            for name, value in (*headers.items(), ("Content-Length", len(body))):
                self.send_header(name, str(value))
            with contextlib.suppress(ConnectionError):  # a reader may have what it wanted
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    def about(bucket, path):
        name = path.relative_to(folder / bucket).as_posix()
        return {"kind": "storage#object", "name": name, "bucket": bucket,
                "size": str(path.stat().st_size), "generation": "1"}  # fmt: skip

    def listed(bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for path in sorted(p for p in (folder / bucket).rglob("*") if p.is_file()):
            entry = about(bucket, path)
            if not entry["name"].startswith(prefix):
                continue
            rest = entry["name"][len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(entry)
        return {"items": items, "prefixes": sorted(prefixes)}

    made = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.daemon_threads, made.asked = True, []
    return made


if __name__ == "__main__":
    server(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
