"""The server and those who mean no good, or are slow: over sockets, as they would."""

import contextlib
import io
import itertools
import json
import socket
import struct
import threading
import time
import tracemalloc
import types
import zipfile
import zlib

import numpy as np
import pytest
import served
from PIL import Image, PngImagePlugin

from jaxcls import predictor
from jaxcls.data.decode import decode
from jaxcls.serve import connections, forms, images, protocol
from jaxcls.serve.app import Limits, Server
from jaxcls.serve.batching import Admission

LIMITS = Limits(
    body=300_000, pixels=1_000_000, images=8, seconds=20.0, requests=16, memory=1_000_000
)


class Model:
    """Stands for a network: says of an image the bytes that it has, and fails where it is told to.

    `gate` holds its computation back.
    """

    batch_size, several_views = 4, False
    network = types.SimpleNamespace(image=types.SimpleNamespace(shown=8, channels=3))
    class_names = ("a", "b")

    def __init__(self):
        self.gate, self.begun, self.computed = threading.Event(), threading.Event(), []
        self.gate.set()

    def views(self, data, name):
        if data == b"bad":
            raise ValueError(f"{name}: cannot be decoded")
        return data

    def probabilities(self, images):
        self.begun.set()
        assert self.gate.wait(20)
        self.computed += images
        if b"raise" in images:
            raise RuntimeError("out of\nluck")
        return np.array([[np.nan if x == b"nan" else len(x), 1] for x in images], np.float32)

    def answer(self, name, row, top):
        return predictor.Answer(name, ("a",), (float(row[0]),))


@pytest.fixture
def server():
    return Server({"m": Model()}, LIMITS)


@pytest.fixture
def address(server):
    with served.in_thread(server, most=8, patience=20.0) as address:
        yield address


@pytest.fixture
def impatient():
    """Returns a server that waits half a second for a header, and one for a body or an answer."""
    server = Server({"m": Model()}, LIMITS._replace(seconds=1.0))
    with served.in_thread(server, patience=0.5) as server.address:
        yield server


@pytest.fixture
def client(address):
    with served.Client(address) as client:
        yield client


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def closes(client):
    """Returns whether the server ends the connection without an answer."""
    try:
        return client.read.read(1) == b""
    except ConnectionResetError:
        return True


def test_answers_are_sent_without_delay(server, client):
    """What is sent in two pieces would wait for the client's word about the first: 40 ms."""
    client.post(b"abc")
    assert client.response()[0] == 200
    [connection] = server.running.server_state.connections
    held = connection.transport.get_extra_info("socket")
    assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_who_says_nothing_or_dribbles_a_header_is_let_go(impatient):
    with served.Client(impatient.address) as silent, served.Client(impatient.address) as slow:
        began = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012
            for byte in itertools.cycle(b"GET / HTTP/1.1\r\nx: "):
                slow.send(bytes([byte]))
                time.sleep(0.02)
                if time.monotonic() - began > 10:
                    break
        assert time.monotonic() - began < 10
        assert closes(silent)


def test_who_dribbles_a_body_is_told_and_let_go(impatient):
    with served.Client(impatient.address) as client:
        client.send(served.head(content_length=1000), b"x")
        threading.Timer(0.3, lambda: client.send(b"x")).start()
        status, _, told = client.response()
        assert (status, told) == (408, {"error": "the body was not sent within 1 s"})
        assert closes(client)


def test_who_does_not_take_the_answer_is_let_go(impatient):
    with served.Client(impatient.address) as client:
        client.socket.settimeout(0.5)
        with pytest.raises(OSError):  # noqa: PT012
            for _ in range(10_000):  # until all buffers are full
                client.send(served.head("/openapi.json", "GET") * 20)
        until(lambda: not impatient.running.server_state.connections)
    with served.Client(impatient.address) as client:
        client.send(served.head("/health", "GET"))
        assert client.response()[0] == 200


def test_a_header_has_an_end_and_headers_a_number(address):
    with served.Client(address) as client:
        client.send(b"GET / HTTP/1.1\r\nx: ", b"y" * 40_000)
        assert client.response()[::2] == (400, {"error": "this is no HTTP request"})
    with served.Client(address) as client:
        client.post(b"x", **{f"x{i}": i for i in range(101)})
        assert client.response()[::2] == (431, {"error": "more than 100 headers"})
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"\r\n\r\n\r\nx\r\n\r\n"):
        with served.Client(address) as client:
            client.send(garbage)
            assert client.response()[0] == 400


def test_connections_have_a_number(server, address):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.Client(address)) for _ in range(8)]
        for client in held:
            client.send(served.head("/health", "GET"))
            assert client.response()[0] == 200
        more = stack.enter_context(served.Client(address))
        status, headers, told = more.response()
        assert (status, headers["retry-after"]) == (503, "1")
        assert told == {"error": "more than 8 connections"}
    until(lambda: not server.running.server_state.connections)
    with served.Client(address) as client:
        client.send(served.head("/health", "GET"))
        assert client.response()[0] == 200


def test_a_body_that_is_too_long_is_refused_before_it_is_sent(address):
    with served.Client(address) as client:
        client.send(served.head(content_length=10**12, expect="100-continue"))
        status, _, told = client.response()
        assert (status, told["error"]) == (413, "1000000000000 bytes, more than 300,000")
    with served.Client(address) as client:  # the answer arrives though more is sent
        client.send(served.head(transfer_encoding="chunked"))
        for _ in range(40):
            client.send(b"2710\r\n", bytes(10_000), b"\r\n")
        assert client.response()[0] == 413
    with served.Client(address) as client:
        client.send(served.head(content_length=3, expect="100-continue"))
        assert client.response()[0] == 100
        client.send(b"abc")
        assert client.response()[2]["predictions"][0]["probabilities"] == [3.0]


def test_chunks(client):
    client.send(served.head(transfer_encoding="chunked"))
    client.send(b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\nz: 1\r\n\r\n")
    assert client.response()[2]["predictions"][0]["probabilities"] == [3.0]
    client.send(served.head(transfer_encoding="chunked"), b"fffffffffffffffffffff\r\n")
    assert client.response()[0] == 400
    assert closes(client)


def test_what_is_packed_is_refused(client):
    client.post(zlib.compress(b"abc"), content_encoding="gzip")
    assert client.response()[::2] == (
        415,
        {"error": "content-encoding: gzip: send it as it is"},
    )


def test_no_other_site_may_ask_and_no_path_leads_to_a_file(address):
    with served.Client(address) as client:
        client.send(served.head("/", "HEAD"))
        status, headers, _ = client.response("HEAD")
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        assert "default-src 'none'" in headers["content-security-policy"]
        origin = {"origin": "http://evil", "access_control_request_method": "POST"}
        client.send(served.head("/predict", "OPTIONS", **origin))
        status, headers, told = client.response()
        assert (status, told) == (405, {"error": "Method Not Allowed"})
        client.post(b"abc", origin="http://evil")
        for found in (headers, client.response()[1]):
            assert not [name for name in found if name.startswith("access-control")]
        for path in (
            *("/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/page.html"),
            *("/v2/models/..%2f..%2fetc/ready", "/v2/models/%00", "/models/m/config"),
        ):
            client.send(served.head(path, "GET"))
            assert client.response()[0] == 404, path


def test_what_a_client_that_goes_has_asked_for_is_not_computed(server, address):
    model = server.models["m"].predictor
    model.gate.clear()
    with served.Client(address) as first, served.Client(address) as gone:
        first.post(b"first")
        assert model.begun.wait(20)
        gone.post(b"gone")
        until(lambda: server.admission.images == 2)
        gone.__exit__()
        until(lambda: server.admission.images == 1)
        model.gate.set()
        assert first.response()[0] == 200
    assert model.computed == [b"first"]
    assert server.admission == Admission(LIMITS.requests, LIMITS.memory)


def test_all_bodies_together_have_a_limit(server, address):
    server.models["m"].predictor.gate.clear()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.Client(address)) for _ in range(4)]
        for count, client in enumerate(held[:3], 1):
            client.post(bytes(300_000))
            until(lambda count=count: server.admission.bytes == 300_000 * count)
        held[3].post(bytes(200_000))
        status, headers, told = held[3].response()
        assert (status, headers["retry-after"]) == (503, "1")
        assert "bytes are waiting" in told["error"]
        server.models["m"].predictor.gate.set()
        assert [client.response()[0] for client in held[:3]] == [200] * 3
    assert server.admission == Admission(LIMITS.requests, LIMITS.memory)


def test_images_of_one_request_count_each(server, address):
    """Of 16 that there is room for, a request of 8, and one more, hold 16: the next has to wait."""
    server.models["m"].predictor.gate.clear()
    eight = json.dumps({"images": ["YWJj"] * 8}).encode()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.Client(address)) for _ in range(3)]
        for client in held[:2]:
            client.post(eight, content_type="application/json")
        until(lambda: server.admission.images == 16)
        held[2].post(b"abc")
        assert held[2].response()[0] == 503
        server.models["m"].predictor.gate.set()
        assert [client.response()[0] for client in held[:2]] == [200] * 2


def test_who_is_refused_and_asks_again_at_once_is_not_heard_for_a_while(server):
    server.models["m"].predictor.gate.clear()
    eight = json.dumps({"images": ["YWJj"] * 8}).encode()
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(served.in_thread(server))
        held = [stack.enter_context(served.Client(address)) for _ in range(3)]
        for client in held[:2]:
            client.post(eight, content_type="application/json")
        until(lambda: server.admission.images == 16)
        held[2].post(b"abc")
        status, headers, _ = held[2].response()
        assert (status, headers["retry-after"]) == (503, "1")
        began = time.monotonic()
        held[2].post(b"abc")
        server.models["m"].predictor.gate.set()
        assert held[2].response()[0] == 200
        assert time.monotonic() - began > connections.PAUSE / 2


def test_what_takes_too_long_is_given_up(impatient):
    impatient.models["m"].predictor.gate.clear()
    with served.Client(impatient.address) as client:
        client.post(b"abc")
        status, headers, told = client.response()
        assert (status, told) == (503, {"error": "no answer within 1 s"})
        assert headers["retry-after"] == "1"
    impatient.models["m"].predictor.gate.set()
    with served.Client(impatient.address) as client:
        client.post(b"abc")
        assert client.response()[0] == 200


@pytest.mark.parametrize("body", [b"raise", b"nan"])
def test_a_network_that_fails_is_a_500_with_a_reason_and_the_next_is_answered(client, body, caplog):
    client.post(body)
    status, _, told = client.response()
    assert status == 500
    assert told["error"].startswith("the network failed: ")
    assert "\n" not in told["error"]
    assert len(caplog.records) == 1
    client.post(b"abc")
    assert client.response()[0] == 200


def test_one_bad_image_spoils_no_other(address):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.Client(address)) for _ in range(8)]
        for i, client in enumerate(clients):
            client.post(b"bad" if i == 3 else bytes(i + 1))
        found = [client.response() for client in clients]
    assert [status for status, _, _ in found] == [200] * 3 + [400] + [200] * 4
    rows = [told["predictions"][0]["probabilities"][0] for s, _, told in found if s == 200]
    assert rows == [1, 2, 3, 5, 6, 7, 8]


def test_one_that_is_no_base64_spoils_no_other(client):
    body = json.dumps({"images": ["YWJj", "?", "YmFk"]}).encode()
    client.post(body, content_type="application/json; charset=utf-8")
    answers = client.response()[2]["predictions"]
    assert [sorted(a) for a in answers] == [
        ["classes", "decision", "image", "probabilities"],
        ["error", "image"],
        ["error", "image"],
    ]


def test_what_is_held_is_answered_when_it_is_told_to_end(server):
    model = server.models["m"].predictor
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(served.in_thread(server))
        clients = [stack.enter_context(served.Client(address)) for _ in range(10)]
        idle = stack.enter_context(served.Client(address))
        model.gate.clear()
        for i, client in enumerate(clients):
            client.post(bytes(i + 1))
        until(lambda: server.admission.images == 10)
        server.running.should_exit = True
        assert closes(idle)
        with pytest.raises(ConnectionRefusedError):
            served.Client(address)
        model.gate.set()
        for i, client in enumerate(clients):
            status, headers, told = client.response()
            assert (status, headers["connection"]) == (200, "close")
            assert told["predictions"][0]["probabilities"] == [i + 1]
            assert closes(client)


# -- Bombs -----------------------------------------------------------------------------------------


def png(width, height, *chunks, data=None):
    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes((1 + 3 * width) * height)) if data is None else data
    every = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in every)


def jpeg(progressive=False, size=(64, 64)):
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(
        file, "JPEG", progressive=progressive
    )
    return file.getvalue()


def giant_jpeg():
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def many_scans(count):
    data = jpeg(progressive=True)
    end = data.rindex(b"\xff\xd9")
    last = data[data.rindex(b"\xff\xda") : end]
    return data[:end] + last * count + data[end:]


def animated(kind):
    frames = [Image.new("RGB", (64, 64), (90 * i, 9, 9)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def nested_zip():
    data = bytes(1_000_000)
    for _ in range(4):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            for i in range(8):
                made.writestr(f"{i}.zip", data)
        data = file.getvalue()
    return data


def tiff(size):
    """Returns a TIFF that says it has size x size pixels."""
    tags = [(256, size), (257, size), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, size)]
    tags.append((279, 1000))
    body = struct.pack("<H", len(tags))
    body += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(1000)


def webp(side):
    canvas = struct.pack("<I", 0) + (side - 1).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


PROFILE = zlib.compress(bytes(50_000_000), 1)
BOMBS = {
    "png": (png(100_000, 100_000, data=zlib.compress(bytes(10_000))), "10000000000 pixels"),
    "line": (png(2_000_000, 1), "2000000 x 1 pixels"),
    "jpeg": (giant_jpeg(), "65500 x 65500 pixels"),
    "scans": (many_scans(100), "more than 40 scans"),
    "gif": (animated("GIF"), "several pictures"),
    "apng": (animated("PNG"), "several pictures"),
    "webp": (animated("WEBP"), "several pictures"),
    "large webp": (webp(16383), "268402689 pixels"),
    "tiff": (tiff(60_000), "3600000000 pixels"),
    "ppm": (b"P6 99999 99999 255\n" + bytes(99), "9999800001 pixels"),
    "bmp": (
        b"BM" + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, 99999, 99999, 1, 24) + bytes(99),
        "9999800001 pixels",
    ),
    "profile": (png(8, 8, (b"iCCP", b"icc\0\0" + PROFILE)), None),
    "text": (png(8, 8, (b"zTXt", b"Comment\0\0" + PROFILE)), None),
    "zip": (nested_zip(), "cannot decode"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "cannot decode"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "cannot decode"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", "cannot decode"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(name):
    """With None: the picture may be decoded, what is packed beside it is not unpacked."""
    data, text = BOMBS[name]
    tracemalloc.start()
    try:
        refused = pytest.raises(ValueError, match=text) if text else contextlib.suppress(ValueError)
        with refused:
            images.check(data, LIMITS.pixels)
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000 + 2 * len(data)
    finally:
        tracemalloc.stop()


def test_good_images_of_many_kinds_pass():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        file = io.BytesIO()
        Image.new("RGB", (40, 30)).save(file, kind)
        images.check(file.getvalue(), 1200)
        with pytest.raises(ValueError, match="40 x 30 pixels, more than 1,199"):
            images.check(file.getvalue(), 1199)
    images.check(jpeg(progressive=True), 10_000)
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 1000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    images.check(file.getvalue(), 64)


# -- Bodies ----------------------------------------------------------------------------------------


def test_texts_in_place_of_numbers_take_no_more_memory_than_they_have():
    """NumPy would give each of a list of texts the room of the longest."""
    given = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3]}
    for data in (["x" * 1_000_000] + ["y"] * 1_000_000, [10**4000] * 1000, [1e308, True]):
        body = json.dumps({"inputs": [given | {"data": data}]}).encode()
        with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
            protocol.parse(body, None, (8, 8, 3), 8)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[" * 100_000, "no JSON"),
        (b'{"inputs": [{"shape": [NaN]}]}', "whole numbers"),
        (b'{"inputs": [{"shape": [1e3]}]}', "whole numbers"),
        (b'{"inputs": [{"shape": [true]}]}', "whole numbers"),
        (b'{"inputs": [{"shape": [-1]}]}', "whole numbers"),
        (b'{"inputs": [{"shape": []}]}', "whole numbers"),
        (b'{"inputs": [{"shape": [9]}]}', "9 images, more than 8"),
        (b'{"inputs": [{"shape": [1], "parameters": []}]}', '"parameters": write an object'),
        (b'{"inputs": [{"shape": [1], "parameters": "x"}]}', '"parameters": write an object'),
        (b'{"inputs": [{"shape": [1], "name": "encoded", "datatype": "BYTES", "data": ["YWJj"]}],'
         b'"parameters": 3}', '"parameters": write an object'),
        (b'{"id": {}, "inputs": [{"shape": [1], "name": "encoded", "datatype": "BYTES",'
         b'"data": ["YWJj"]}]}', '"id": write'),
        (b'{"inputs": [{"shape": [1], "name": "encoded", "datatype": "BYTES", "data": [1]}]}',
         "list of texts"),
        (b'{"inputs": [{"shape": [0], "name": "encoded", "datatype": "BYTES", "data": []}]}',
         "0 images"),
        (b'{"inputs": [{"shape": [1], "name": ["' + b"x" * 5000 + b'"]}]}', "no input"),
        (b"\xff\xfe", "no JSON"),
        (b"", "no JSON"),
    ],
)  # fmt: skip
def test_requests_for_inference_that_are_none(client, body, text):
    client.post(body, "/v2/models/m/infer")
    server = client.response()
    assert server[0] == 400
    assert text in server[2]["error"]
    assert len(server[2]["error"]) <= 500


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 5000, "²", "99"])
def test_lengths_that_are_none(length):
    with pytest.raises(ValueError, match="is no length of this body"):
        protocol.parse(b"{}", length, (8, 8, 3), 8)


def test_binary_entries():
    def parse(binary, count):
        given = {"name": "encoded", "datatype": "BYTES", "shape": [count]}
        told = {"inputs": [given | {"parameters": {"binary_data_size": len(binary)}}]}
        head = json.dumps(told).encode()
        return protocol.parse(head + binary, str(len(head)), (8, 8, 3), 8).encoded

    assert parse(b"\3\0\0\0abc\0\0\0\0", 2) == [b"abc", b""]
    for binary, count, text in (
        (b"\3\0\0\0ab", 1, "cut off"),
        (b"\xff\xff\xff\xffab", 1, "cut off"),
        (b"\0\0", 1, "cut off|but the shape"),
        (bytes(4_000_000), 1, "2 images, but the shape"),
        (b"", 1, "0 images"),
    ):
        with pytest.raises(ValueError, match=text):
            parse(binary, count)


KIND = "multipart/form-data; boundary=xyz"


def form(*parts):
    return b"".join(b"--xyz\r\n" + part + b"\r\n" for part in parts) + b"--xyz--\r\n"


def part(name, content=b"abc", more=b""):
    return b"Content-Disposition: form-data; name=a; " + name + more + b"\r\n\r\n" + content


def test_forms():
    plain = part(b'filename="a.png"', b"1\r\n--xy\r\n2", b"\r\nContent-Type: image/png")
    field = b'content-disposition: form-data; name="top"\r\n\r\n3'
    quoted = part(rb'filename="a\"b.png"')
    umlaut = part('filename="ü.png"'.encode())
    star = part(b"filename*=UTF-8''%C3%BC.png")
    body = form(plain, field, quoted, umlaut, star, part(b'filename=""', b""))
    assert forms.files(body, KIND, 9) == [
        ("a.png", b"1\r\n--xy\r\n2"),
        ('a"b.png', b"abc"),
        ("ü.png", b"abc"),
        ("ü.png", b"abc"),
        ("a", b""),
    ]
    for kind in ('multipart/form-data; charset=x; boundary="xyz"', KIND + "; charset=utf-8"):
        assert len(forms.files(b"preamble\r\n" + form(plain) + b"epilogue", kind, 9)) == 1


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (form(part(b"filename=a")), "multipart/form-data", "no boundary"),
        (form(part(b"filename=a")), "multipart/form-data; boundary=", "no boundary"),
        (form(part(b"filename=a")), f"multipart/form-data; boundary={'x' * 71}", "no boundary"),
        (form(part(b"filename=a")), "multipart/form-data; boundary=abc", "does not have"),
        (form(part(b"filename=a"))[:-4], KIND, "cut off"),
        (form(part(b"filename=a"))[:-20], KIND, "cut off"),
        (b"--xyz", KIND, "cut off"),
        (form(part(b"filename=a", more=b"\r\nx: " + b"y" * 5000)), KIND, "no header"),
        (form(*[part(b"filename=a")] * 10), KIND, "more than 9 parts"),
        (form(), KIND, "no file"),
        (form(b"content-disposition: form-data; name=a\r\n\r\nx"), KIND, "no file"),
        (form(b"\r\nx"), KIND, "no file"),
        (form(b"x"), KIND, "no header"),
        (b"", KIND, "does not have"),
    ],
)
def test_forms_that_are_none(body, kind, text):
    with pytest.raises(ValueError, match=text):
        forms.files(body, kind, 9)
