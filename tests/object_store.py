"""A stand-in of Google Cloud Storage for its real clients: folders of this machine are its buckets.

    python tests/object_store.py FOLDER PORT     # and in the environment of a command:

    export STORAGE_EMULATOR_HOST=http://127.0.0.1:PORT            # gcsfs, google-cloud-storage
    export GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false                # else gcsfs asks Google, by gRPC
    export TENSORSTORE_GCS_HTTP_URL=http://127.0.0.1:PORT GOOGLE_AUTH_TOKEN_FOR_TESTING=token
    export CLOUD_STORAGE_EMULATOR_ENDPOINT=http://127.0.0.1:PORT  # array_record's reader

A file in a folder `secret` may not be read or written. Of the JSON API only that is there which
these clients ask for: objects and their parts, listings in pages, uploads in one piece or several,
copies, moves, removals, and what all of these expect an object's generation to be.
"""

import base64
import contextlib
import datetime
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

PAGE = 20  # objects of a listing
ERRORS = {400: "Bad Request", 403: "no permission", 404: "Not Found", 412: "conditionNotMet"}
ERRORS |= {304: "Not Modified", 416: "not satisfiable"}


class Refused(Exception):
    """What a client is answered instead."""


def environment(address: str) -> dict[str, str]:
    """Returns what the clients of a command take, so that they ask the server at `address`."""
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    others = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    return dict.fromkeys(names, address) | others | {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "token"}


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Returns a server; its `asked` are its requests, and its `fault` returns a code for some."""
    writing, uploads = threading.RLock(), {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def do_GET(self):
            url = urlsplit(self.path)
            self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {unquote(self.path)}"
            made.asked.append(asked)
            try:
                if code := made.fault(asked) or 403 * ("secret" in asked):
                    raise Refused(code)
                found = re.fullmatch("(/download|/upload)?/storage/v1/b/([^/]+)(.*)", url.path)
                if not found or not (folder / found[2]).is_dir():
                    raise Refused(404)
                kind, self.bucket, rest = found.groups()
                if kind == "/upload":
                    return self.upload()
                names = [unquote(name) for name in re.split("/o/?", rest, maxsplit=1)[1:]]
                getattr(self, self.command.lower())(*names)
            except Refused as e:
                code = e.args[0]
                error = {"code": code, "message": ERRORS.get(code, "try again")}
                self.answer(code, b"" if code == 304 else {"error": error})

        do_POST = do_PUT = do_DELETE = do_GET

        def get(self, name=None):
            if name is None:
                return self.answer(200, {"kind": "storage#bucket", "name": self.bucket})
            if not name:
                return self.answer(200, listed(self.bucket, self.query))
            with writing:
                place = self.found(name)
                known = about(self.bucket, place)
                data = place.read_bytes() if self.query.get("alt") == "media" else None
            if data is None:
                return self.answer(200, known)
            begin, end, code = 0, len(data), 200
            if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
                first, last = found.groups()
                begin = int(first) if first else max(len(data) - int(last), 0)
                end = min(int(last) + 1, len(data)) if first and last else len(data)
                code = 206
                if begin >= len(data):
                    raise Refused(416)
            more = {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"} if code == 206 else {}
            more["X-Goog-Generation"] = known["generation"]
            self.answer(code, data[begin:end], **more)

        def delete(self, name):
            with writing:
                remove(self.found(name))
            self.answer(204, b"")

        def post(self, name):
            with writing:  # a copy, whose target may be in another bucket; or a move
                name, _, how, _, bucket, target = re.fullmatch(
                    "(.*)/((copyTo|rewriteTo|moveTo)(/b/([^/]+))?)/o/(.*)", name
                ).groups()
                source = self.found(name)
                known = write(bucket or self.bucket, target, source.read_bytes())
                if how == "moveTo":
                    remove(source)
            self.answer(200, {"done": True, "resource": known} if how == "rewriteTo" else known)

        def upload(self):
            kind = self.query.get("uploadType")
            if "upload_id" in self.query:
                return self.chunk(self.query["upload_id"])
            if kind == "media":
                return self.write(self.query["name"], self.body)
            if kind == "multipart":
                mark = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
                _, about, data, _ = re.split(rb"(?:^|\r?\n)--" + re.escape(mark), self.body)
                split = lambda part: re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
                return self.write(json.loads(split(about))["name"], split(data))
            number = uuid.uuid4().hex
            name = self.query.get("name") or json.loads(self.body)["name"]
            uploads[number] = [name, self.query, bytearray()]
            there = f"http://{self.headers['Host']}/upload/storage/v1/b/{quote(self.bucket)}/o"
            self.answer(200, b"", Location=f"{there}?uploadType=resumable&upload_id={number}")

        def chunk(self, number):
            if number not in uploads or self.command == "DELETE":
                code = 499 if uploads.pop(number, None) else 404
                return self.answer(code, b"")
            name, query, data = uploads[number]
            _, first, total = re.fullmatch(
                r"bytes ((\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"]
            ).groups()
            if self.body:
                data[int(first) :] = self.body
            if total == str(len(data)):
                self.query = query
                self.write(name, bytes(data))
                return uploads.pop(number)
            self.answer(308, b"", **({"Range": f"bytes=0-{len(data) - 1}"} if data else {}))

        def write(self, name, data):
            with writing:
                self.expect(folder / self.bucket / name)
                known = write(self.bucket, name, data)
            self.answer(200, known)

        def expect(self, place):
            """Refuses an object that is not of the generation that the client expects."""
            here = generation(place) if place.is_file() else "0"
            if self.query.get("ifGenerationMatch", here) != here:
                raise Refused(412)
            if self.query.get("ifGenerationNotMatch") == here:
                raise Refused(304)

        def found(self, name):
            place = folder / self.bucket / name
            self.expect(place)
            there = not name.endswith("/") and place.is_file()
            if not there or self.query.get("generation", generation(place)) != generation(place):
                raise Refused(404)
            return place

        def answer(self, code, body, **headers):
            if isinstance(body, dict):
                body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
            self.send_response(code)
            length = {} if code in (204, 304) else {"Content-Length": len(body)}
            for name, value in (headers | length).items():
                self.send_header(name.replace("_", "-"), str(value))
            with contextlib.suppress(ConnectionError):  # a reader may have what it wanted
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    def generation(place):
        return str(place.stat().st_mtime_ns)

    def write(bucket, name, data):
        place = folder / bucket / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(data)
        os.replace(file.name, place)  # there whole, or not at all
        return about(bucket, place)

    def remove(place):
        place.unlink()
        with contextlib.suppress(OSError):  # a store has no folders without objects
            for parent in [p for p in place.parents if len(p.parents) > len(folder.parents) + 1]:
                parent.rmdir()

    def about(bucket, path):
        name, data = path.relative_to(folder / bucket).as_posix(), path.read_bytes()
        time = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
        time = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"kind": "storage#object", "name": name, "bucket": bucket, "size": str(len(data)),
                "generation": generation(path), "metageneration": "1", "etag": generation(path),
                "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
                "timeCreated": time, "updated": time}  # fmt: skip

    def listed(bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, end = query.get("startOffset", ""), query.get("endOffset")
        entries = {}  # name of an object, or of a folder: the object
        with writing:
            for path in sorted(p for p in (folder / bucket).rglob("*") if p.is_file()):
                name = path.relative_to(folder / bucket).as_posix()
                if name.startswith(prefix) and first <= name and (not end or name < end):
                    rest, mark, _ = name[len(prefix) :].partition(delimiter or "\0")
                    entries[prefix + rest + mark] = None if mark else path
            names = sorted(name for name in entries if name > query.get("pageToken", ""))
            page = names[: min(PAGE, int(query.get("maxResults", PAGE)))]
            items = [about(bucket, entries[name]) for name in page if entries[name]]
        answer = {"kind": "storage#objects", "items": items}
        answer["prefixes"] = [name for name in page if not entries[name]]
        return answer | ({"nextPageToken": page[-1]} if names > page else {})

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128

        def handle_error(self, *arguments):
            """A client that is killed is no error of the server."""

    made = Server(("127.0.0.1", port), Handler)
    made.asked, made.fault = [], lambda asked: 0
    return made


if __name__ == "__main__":
    server(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
