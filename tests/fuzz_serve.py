"""What is broken on purpose, against a server that lives: it must answer, and leak nothing.

    python tests/fuzz_serve.py --mutations=10000 [--seed=0] [--report=500]

Starts `python -m jaxcls.serve` with a small network and sends mutated images (JPEG, PNG, WebP, GIF,
BMP, TIFF, PPM), JSON, forms, tensors in JSON and binary, and bytes that are no HTTP. It fails where
the server ends, keeps silent, answers 5xx other than 503, answers a good image otherwise than
before, or has more memory or open files in the end than after a tenth of the way.
"""

import argparse
import base64
import io
import json
import random
import sys
import tempfile
import time

import numpy as np
import served
from PIL import Image, PngImagePlugin
from test_predict import store

MEMORY = 60_000_000  # bytes more than after the warm-up: the caches of allocators
FILES = 16  # open ones more
PATIENCE = 20.0  # seconds for an answer
INTERESTING = (0, 1, 127, 128, 255, 256, 65535, 2**31 - 1, 2**32 - 1)


def pictures():
    """Returns encoded images of many kinds, small, so that mutations hit what matters."""
    rng, found = np.random.default_rng(0), []
    small = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    exif = small.getexif()
    exif[274] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "text", zip=True)
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True, "icc_profile": bytes(500)}),
        ("PNG", {"pnginfo": info, "icc_profile": bytes(300)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            small.convert(mode).save(file, kind, **options)
            found.append(file.getvalue())
    frames = [small, small.rotate(90), small.rotate(180)]
    for kind in ("GIF", "PNG", "WEBP"):
        file = io.BytesIO()
        small.save(file, kind, save_all=True, append_images=frames)
        found.append(file.getvalue())
    return found


def mutated(rng, data):
    """Returns bytes that are a little otherwise, or much."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8, 32))):
        at, how = rng.randrange(len(data) + 1), rng.randrange(8)
        if how == 0:
            data[at : at + 1] = rng.randbytes(1)
        elif how == 1:
            data[at : at + rng.choice((1, 2, 4, 100))] = b""
        elif how == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 100)))
        elif how == 3:  # lengths and sizes are in there
            size = rng.choice((1, 2, 4))
            number = rng.choice(INTERESTING) % 256**size
            data[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif how == 4 and data:
            data[at:] = b"" if rng.random() < 0.5 else data[at : at + 50] * rng.choice((1, 2, 50))
        elif how == 5:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + rng.choice((4, 16, 64))]
        elif how == 6 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at : at + 4] = rng.choice(
                (b"\xff\xd9", b"\xff\xda", b"IEND", b"{}", b"\r\n", b"-1")
            )
    return bytes(data)


def any_json(rng, depth=0):
    """Returns something that JSON can hold."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 6:
        return [any_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind >= 7:
        keys = ("inputs", "name", "shape", "data", "datatype", "parameters", "id", "outputs", "x")
        return {rng.choice(keys): any_json(rng, depth + 1) for _ in range(rng.randrange(4))}
    values = (None, True, 0.5, 10 ** rng.randrange(40), -1, "images", "encoded", "UINT8", "BYTES")
    return rng.choice((*values, float("nan"), float("inf"), "x" * rng.choice((0, 9, 9999))))


def changed(rng, told):
    """Returns an object of JSON with something else in a place."""
    told = json.loads(json.dumps(told))
    place, keys = told, []
    while isinstance(place, (dict, list)) and place and (not keys or rng.random() < 0.7):
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        keys.append((place, key))
        place = place[key]
    holder, key = keys[-1]
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = any_json(rng)
    return told


class Fuzz:
    """All that is sent, one after the other."""

    def __init__(self, seed):
        self.rng, self.pictures = random.Random(seed), pictures()
        self.good = self.pictures[0]
        pixels = np.zeros((1, 32, 32, 3), np.uint8)
        self.tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
        self.pixels = pixels.tobytes()
        self.kinds = (
            *(self.image, self.image, self.image, self.as_json, self.form, self.tensors),
            *(self.binary, self.files, self.raw, self.query, self.explain),
        )

    def next(self):
        """Returns what is written to the socket, and the name of its kind."""
        kind = self.rng.choice(self.kinds)
        return kind(), kind.__name__

    def post(self, body, path="/predict", **headers):
        """Returns a request that is proper but for its body."""
        return served.head(path, content_length=len(body), **headers) + body

    def image(self):
        return self.post(mutated(self.rng, self.rng.choice(self.pictures)))

    def explain(self):
        return self.post(mutated(self.rng, self.rng.choice(self.pictures)), "/explain")

    def as_json(self):
        rng, kind = self.rng, {"content_type": "application/json"}
        data = [mutated(rng, rng.choice(self.pictures)) for _ in range(rng.randrange(1, 4))]
        body = json.dumps({"images": [base64.b64encode(x).decode() for x in data]}).encode()
        if rng.random() < 0.5:
            body = json.dumps(changed(rng, json.loads(body))).encode()
        return self.post(mutated(rng, body) if rng.random() < 0.5 else body, **kind)

    def form(self):
        head = b'--xyz\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        its = [self.rng.choice(self.pictures) for _ in range(self.rng.randrange(1, 4))]
        body = b"".join(head + x + b"\r\n" for x in its) + b"--xyz--\r\n"
        kind = "multipart/form-data; boundary=xyz"
        if self.rng.random() < 0.1:
            kind = mutated(self.rng, kind.encode()).decode("latin-1")
            kind = "".join(c for c in kind if 31 < ord(c) < 127)
        return self.post(mutated(self.rng, body), content_type=kind)

    def tensors(self):
        told = {"inputs": [self.tensor | {"data": [*self.pixels]}]}
        if self.rng.random() < 0.5:
            given = {"name": "encoded", "datatype": "BYTES", "shape": [1]}
            told = {"inputs": [given | {"data": [base64.b64encode(self.good).decode()]}], "id": "a"}
        for _ in range(self.rng.choice((1, 1, 3))):
            told = changed(self.rng, told) or {"inputs": []}
        body = json.dumps(told).encode()
        return self.post(mutated(self.rng, body) if self.rng.random() < 0.3 else body, INFER)

    def binary(self):
        return self._with_header(self.tensor, self.pixels)

    def files(self):
        data = b"".join(len(x).to_bytes(4, "little") + x for x in self.pictures[:2])
        return self._with_header({"name": "encoded", "datatype": "BYTES", "shape": [2]}, data)

    def _with_header(self, given, data):
        told = {"inputs": [given | {"parameters": {"binary_data_size": len(data)}}]}
        if self.rng.random() < 0.4:
            told = changed(self.rng, told)
        head = json.dumps(told).encode()
        length = len(head) if self.rng.random() < 0.8 else self.rng.choice((0, -1, 9**9, "x", 5))
        if self.rng.random() < 0.5:
            data = mutated(self.rng, data)
        elif self.rng.random() < 0.5:
            head = mutated(self.rng, head)
        return self.post(head + data, INFER, inference_header_content_length=length)

    def raw(self):
        good = self.rng.choice(
            (
                self.post(self.good),
                served.head("/", "GET"),
                served.head(transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n",
                served.head("/v2/health/ready", "GET") * 3,
                served.head(content_length=5, expect="100-continue") + b"abcde",
                served.head("/", "GET", connection="upgrade", upgrade="websocket"),
                self.rng.randbytes(self.rng.choice((1, 100, 50_000))),
            )
        )
        at = good.find(b"\r\n\r\n") + 4
        return mutated(self.rng, good[: max(at, 20)]) + good[max(at, 20) :]

    def query(self):
        text = self.rng.choice(("top=3&model=m", "top=-1", "model=..%2f..%2fetc", "top=%ff", "a=%"))
        text = mutated(self.rng, text.encode()).decode("latin-1")
        text = "".join(c for c in text if 32 < ord(c) < 127)
        return self.post(self.good, f"/predict?{text}")


INFER = "/v2/models/m/infer"


def run(process, address, mutations, seed, report):
    """Returns what was found wrong, and a table of what was answered."""
    fuzz, wrong, table, base = Fuzz(seed), [], {}, None
    good = fuzz.post(fuzz.good)
    with served.Client(address) as client:
        client.send(good)
        expected = client.response()[2]
    began = time.monotonic()
    for number in range(mutations):
        data, kind = fuzz.next()
        status = "closed"
        try:
            with served.Client(address, 0.5 if kind == "raw" else PATIENCE) as client:
                client.send(data)
                status = client.response()[0]
        except (ConnectionError, ValueError, IndexError):
            pass
        except TimeoutError:  # what is cut off keeps both waiting, until the server lets go
            status = "waits" if kind == "raw" else "silent"
        table[kind, status] = table.get((kind, status), 0) + 1
        bad = status == "silent" or (isinstance(status, int) and status >= 500 and status != 503)
        if bad or (status == "closed" and kind != "raw"):
            wrong.append(f"mutation {number} of seed {seed}, {kind}: {status}: {data[:300]!r}")
        if process.poll() is not None:
            wrong.append(f"mutation {number} of seed {seed}, {kind}: the server has ended")
            break
        if number == mutations // 10:
            base = served.memory(process.pid), served.files(process.pid)
        if report and number % report == 0:
            sizes = served.memory(process.pid) / 1e6, served.files(process.pid)
            print(f"{number:6} {time.monotonic() - began:7.0f} s  {sizes[0]:.0f} MB, "
                  f"{sizes[1]} files, {len(wrong)} wrong", flush=True)  # fmt: skip
    else:
        with served.Client(address) as client:
            client.send(good)
            if client.response()[2] != expected:
                wrong.append("a good image is answered otherwise than before")
        time.sleep(1)
        sizes = served.memory(process.pid), served.files(process.pid)
        print(f"after a tenth {base[0] / 1e6:.0f} MB, {base[1]} files; "
              f"in the end {sizes[0] / 1e6:.0f} MB, {sizes[1]} files")  # fmt: skip
        if sizes[0] > base[0] + MEMORY:
            wrong.append(f"memory: {base[0]:,} bytes, {sizes[0]:,} in the end")
        if sizes[1] > base[1] + FILES:
            wrong.append(f"open files: {base[1]}, {sizes[1]} in the end")
    return wrong, table


def main(arguments=None):
    """Returns the exit code: 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=500, help="0: none")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = store(f"{folder}/m")
        limits = ["--batch-size=4", "--body=1", "--memory=20", "--pixels=1", "--seconds=10"]
        with served.in_process(f"m={model}", *limits) as (process, address):
            wrong, table = run(process, address, args.mutations, args.seed, args.report)
        if process.returncode:
            wrong.append(f"exit code {process.returncode}: {''.join(process.said[-20:])}")
    for (kind, status), count in sorted(table.items(), key=str):
        print(f"  {kind:<10} {status!s:>6} {count:6}")
    print(*wrong[:20], sep="\n")
    print(f"{args.mutations} mutations, {len(wrong)} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
