"""python -m jaxcls.serve: what is answered is what is predicted, and nothing brings it down."""

import asyncio
import base64
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import fuzz_serve
import httpx
import jax
import numpy as np
import pytest
import serve_load
import served
import yaml
from PIL import Image
from starlette.testclient import TestClient
from test_predict import CLASSES, store

from jaxcls import predict, predictor
from jaxcls.export import __main__ as export_command
from jaxcls.serve import __main__ as command
from jaxcls.serve import connections, protocol
from jaxcls.serve.app import STOPPING, Limits, Server
from jaxcls.serve.batching import Admission, Batcher, Failed

LIMITS = Limits(
    body=2_000_000, pixels=1_000_000, images=8, seconds=30.0, requests=64, memory=50_000_000
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return store(tmp_path_factory.mktemp("serve") / "chess")


@pytest.fixture(scope="module")
def model(run):
    return predictor.load(run, batch_size=1)


@pytest.fixture(scope="module")
def client(model):
    server = Server({"chess": model, "again": model}, LIMITS)
    with TestClient(server.app()) as client:
        client.server = server
        yield client


def picture(seed=0, size=(64, 48), kind="PNG"):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def test_served_is_predicted_bit_for_bit(client, model):
    for seed in range(3):
        [answer] = client.post("/predict?top=3", content=picture(seed)).json()["predictions"]
        [expected] = model.predict(picture(seed), top=3)
        assert answer["classes"] == list(expected.classes)
        assert answer["probabilities"] == list(expected.probabilities)
        assert answer["decision"] == expected.decision


def test_ways_to_send_images(client, model):
    one, two = picture(1), picture(2)
    expected = [list(a.probabilities) for a in model.predict([one, two])]
    text = [base64.b64encode(data).decode() for data in (one, two)]
    url = f"data:image/png;base64,{text[0]}"
    several = [("image", ("a.png", one)), ("image", ("b.png", two))]
    for found in (
        client.post("/predict", files=several),
        client.post("/predict", json={"images": text}),
        client.post("/predict", json={"images": [url, text[1]]}),
        client.post("/predict", json={"images": [base64.encodebytes(one).decode(), text[1]]}),
    ):
        assert found.status_code == 200
        given = [answer["probabilities"] for answer in found.json()["predictions"]]
        np.testing.assert_allclose(given, expected, atol=1e-5)
    names = [a["image"] for a in client.post("/predict", files=several).json()["predictions"]]
    assert names == ["a.png", "b.png"]
    broken = client.post("/predict", files=[several[0], ("image", ("c.png", b"x"))]).json()
    assert [sorted(a) for a in broken["predictions"]][1] == ["error", "image"]
    assert client.post("/predict?model=again&top=1", content=one).json()["model"] == "again"


def bomb(side=100_000):
    """Returns a PNG that says it has side x side pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def animated():
    frames = [Image.new("RGB", (64, 64), (90 * i, 9, 9)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "given", "status", "text"),
    [
        ("/predict", {"content": b"no image"}, 400, "cannot decode the image"),
        ("/predict", {"content": b""}, 400, "image"),
        ("/predict", {"content": bomb()}, 400, "10000000000 pixels"),
        ("/predict", {"content": bomb(1500)}, 400, "1500 x 1500 pixels"),
        ("/predict", {"content": animated()}, 400, "several pictures in one"),
        ("/predict", {"content": bytes(2_000_001)}, 413, "more than 2,000,000"),
        ("/predict", {"files": [("i", (f"{i}", b"x")) for i in range(9)]}, 413, "9 images"),
        ("/predict", {"json": {"image": "?"}}, 400, "no base64"),
        ("/predict", {"json": {"image": 3}}, 400, "BASE64"),
        ("/predict", {"json": {"images": []}}, 400, "BASE64"),
        ("/predict", {"json": [1]}, 400, "BASE64"),
        ("/predict", {"data": {"a": "b"}, "files": {}}, 400, ""),
        ("/predict?top=0", {"content": b"x"}, 400, "at least 1"),
        ("/predict?model=none", {"content": b"x"}, 404, "no model 'none': chess, again"),
        ("/explain?model=none", {"content": b"x"}, 404, "no model"),
        ("/explain", {"content": b"x"}, 400, "cannot decode"),
        ("/v2/models/none/infer", {"content": b"{}"}, 404, "no model"),
        ("/health", {"content": b"x"}, 405, ""),
        ("/../../etc/passwd", {"content": b"x"}, 404, ""),
        ("/predict/", {"content": b"x"}, 404, "Not Found"),
    ],
)
def test_what_is_refused(client, path, given, status, text):
    found = client.post(path, **given)
    assert found.status_code == status
    assert text in found.json()["error"]
    assert client.server.admission == Admission(LIMITS.requests, LIMITS.memory)


def test_a_body_without_a_length_has_a_limit(client):
    def parts():
        for _ in range(100):
            yield bytes(100_000)

    found = client.post("/predict", content=parts())
    assert found.status_code == 413


def test_what_programs_ask(client):
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").status_code == 200
    assert client.get("/models").json()["chess"]["classes"] == list(CLASSES)
    client.post("/predict", content=picture())
    text = client.get("/metrics").text
    assert re.search(r'jaxcls_requests_total\{route="/predict",status="200"\} [1-9]', text)
    assert 'jaxcls_batch_images_bucket{le="1.0",model="chess"}' in text
    told = client.get("/openapi.json").json()
    assert told["openapi"].startswith("3.")
    ours = {(r.path, m.lower()) for r in client.app.routes for m in r.methods - {"HEAD"}}
    assert ours == {(path, how) for path, its in told["paths"].items() for how in its}
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(told)))
    assert names == told["components"]["schemas"].keys()


def test_the_page_and_where_it_looked(client):
    page = client.get("/").text
    assert 'const models = ["chess", "again"]' in page
    assert "http" not in re.sub(r'charset="utf-8"', "", page)  # nothing from elsewhere
    found = client.post("/explain", content=picture())
    assert found.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(found.content)).size == (224, 224)


# -- The Open Inference Protocol -------------------------------------------------------------------


def test_tensors(client, model):
    files = [picture(seed) for seed in range(3)]
    pixels = np.stack([*map(model.preprocess, files)])
    expected = np.array([a.probabilities for a in model.predict(files)])
    given = {"name": "images", "datatype": "UINT8", "shape": [3, 32, 32, 3]}
    url = "/v2/models/chess/infer"
    for data in (pixels.tolist(), pixels.ravel().tolist()):
        found = client.post(url, json={"id": "7", "inputs": [given | {"data": data}]}).json()
        assert (found["model_name"], found["id"]) == ("chess", "7")
        [output] = found["outputs"]
        assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
        rows = -np.sort(-np.reshape(output["data"], output["shape"]))
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    head = json.dumps(
        {
            "inputs": [given | {"parameters": {"binary_data_size": pixels.size}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    found = client.post(
        url, content=head + pixels.tobytes(), headers={protocol.HEADER: str(len(head))}
    )
    length = int(found.headers[protocol.HEADER])
    [output] = json.loads(found.content[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(found.content) - length
    rows = np.frombuffer(found.content[length:], "<f4").reshape(output["shape"])
    np.testing.assert_allclose(-np.sort(-rows), expected, atol=1e-5)
    told = client.get("/v2/models/chess").json()
    assert told["inputs"][0]["shape"] == [-1, 32, 32, 3]


def test_files_of_images_as_tensors(client, model):
    files = [picture(seed) for seed in range(2)]
    expected = np.array([a.probabilities for a in model.predict(files)])
    text = [base64.b64encode(data).decode() for data in files]
    given = {"name": "encoded", "datatype": "BYTES", "shape": [2]}
    body = json.dumps({"inputs": [given | {"data": text}]}).encode()
    binary = b"".join(len(x).to_bytes(4, "little") + x for x in files)
    head = json.dumps({"inputs": [given | {"parameters": {"binary_data_size": len(binary)}}]})
    for content, length in ((body, len(body)), (head.encode() + binary, len(head))):
        found = client.post(
            "/v2/models/chess/infer", content=content, headers={protocol.HEADER: str(length)}
        ).json()
        rows = np.reshape(found["outputs"][0]["data"], found["outputs"][0]["shape"])
        np.testing.assert_allclose(-np.sort(-rows), expected, atol=1e-5)


@pytest.mark.ci
def test_a_client_of_triton(run, model):
    """NVIDIA's own, where it is installed: pip install 'tritonclient[http]'."""
    http = pytest.importorskip("tritonclient.http")
    files = [picture(seed) for seed in range(3)]
    pixels = np.stack([*map(model.preprocess, files)])
    expected = np.array([a.probabilities for a in model.predict(files)])
    with served.in_thread(Server({"chess": model}, LIMITS)) as (host, port):
        client = http.InferenceServerClient(f"{host}:{port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("chess")
        assert client.is_model_ready("chess", "1")
        assert not client.is_model_ready("none")
        told = client.get_model_metadata("chess")
        assert [x["name"] for x in told["inputs"]] == ["images", "encoded"]
        assert client.get_server_metadata()["name"] == "jaxcls"
        for binary in (False, True):
            images = http.InferInput("images", [3, 32, 32, 3], "UINT8")
            images.set_data_from_numpy(pixels, binary_data=binary)
            output = http.InferRequestedOutput("probabilities", binary_data=binary)
            found = client.infer("chess", [images], outputs=[output], request_id="7")
            rows = -np.sort(-found.as_numpy("probabilities"))
            np.testing.assert_allclose(rows, expected, atol=1e-5)
            assert found.get_response()["id"] == "7"
        encoded = http.InferInput("encoded", [3], "BYTES")
        encoded.set_data_from_numpy(np.array(files, object), binary_data=True)
        found = client.infer("chess", [encoded])
        rows = -np.sort(-found.as_numpy("probabilities"))
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        with pytest.raises(http.InferenceServerException, match="no model 'none'"):
            client.infer("none", [encoded])
        client.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": []}, "give one"),
        ({"inputs": None}, "give one"),
        ({"name": "input"}, "no input 'input'"),
        ({"datatype": "FP32"}, "UINT8"),
        ({"shape": [1, 32, 32]}, "are [B, 32, 32, 3]"),
        ({"shape": [2, 32, 32, 3]}, "3072 numbers"),
        ({"shape": [10**30, 32, 32, 3]}, "numbers"),
        ({"shape": "x"}, "whole numbers"),
        ({"data": [[1], [2, 3]]}, "different lengths"),
        ({"data": [256] * 3072}, "0 to 255"),
        ({"data": [0.5] * 3072}, "0 to 255"),
        ({"data": None}, "0 to 255"),
        ({"parameters": {"binary_data_size": 5}}, "0 bytes follow"),
        ({"outputs": [{"name": "x"}]}, "no output 'x'"),
        ({"outputs": [3]}, "no output"),
    ],
)
def test_tensors_that_are_refused(client, change, text):
    given = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
    given |= {k: v for k, v in change.items() if k not in ("inputs", "outputs")}
    body = {"inputs": [given]} | {k: v for k, v in change.items() if k in ("inputs", "outputs")}
    found = client.post("/v2/models/chess/infer", json=body)
    assert found.status_code == 400
    assert text in found.json()["error"]


# -- Many at once ----------------------------------------------------------------------------------


def test_answers_are_neither_lost_nor_crossed(run):
    """200 requests at once, an image of its own each."""
    model = predictor.load(run, batch_size=1)
    limits = LIMITS._replace(requests=200)
    server = Server({"chess": model}, limits)
    files = [picture(seed, (40, 40)) for seed in range(200)]
    expected = np.array([a.probabilities for a in model.predict(files)])

    async def ask():
        app = server.app()
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                posts = [client.post("/predict", content=data) for data in files]
                return await asyncio.gather(*posts)

    found = asyncio.run(ask())
    rows = [r.json()["predictions"][0]["probabilities"] for r in found]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    text = {r.status_code for r in found}
    assert text == {200}


def test_what_is_beyond_is_refused_at_once_and_what_is_held_answered():
    """Of ten at once, with room for three, three are answered and seven are told to come again."""
    gate = threading.Event()

    class Slow:
        batch_size, network = 1, None

        def views(self, data, name):
            return data

        def probabilities(self, images):
            assert gate.wait(20)
            return np.ones((len(images), 5))

        def answer(self, name, row, top):
            return predictor.Answer(name, ("a",), (1.0,))

    server = Server({"slow": Slow()}, LIMITS._replace(requests=3))

    async def ask():
        app = server.app()
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                tasks = [
                    asyncio.create_task(client.post("/predict", content=b"x")) for _ in range(10)
                ]
                while sum(task.done() for task in tasks) < 7:
                    await asyncio.sleep(0.01)
                early = [task.result() for task in tasks if task.done()]
                gate.set()
                return early, await asyncio.gather(*tasks)

    early, all_of_them = asyncio.run(ask())
    assert [r.status_code for r in early] == [503] * 7
    assert early[0].headers["retry-after"] == "1"
    assert sorted(r.status_code for r in all_of_them) == [200] * 3 + [503] * 7
    assert server.admission == Admission(3, LIMITS.memory)


@pytest.mark.ci
def test_batches_gather_while_one_is_computed():
    sizes, gate = [], threading.Event()

    def compute(images):
        gate.wait(20)
        return np.array(images)

    async def ask():
        batcher = Batcher(compute, batch_size=4, watch=lambda n, _: sizes.append(n))
        batcher.start()
        first = asyncio.create_task(batcher.submit(0))
        while not sizes:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.submit(i)) for i in range(1, 10)]
        given_up = asyncio.create_task(batcher.submit(-1))
        await asyncio.sleep(0.05)
        given_up.cancel()
        gate.set()
        found = await asyncio.gather(first, *others)
        await batcher.stop(9)
        return found

    assert asyncio.run(ask()) == [*range(10)]
    assert sizes == [1, 4, 4, 1]


def test_an_error_is_of_its_batch():
    def compute(images):
        if -1 in images:
            raise ValueError("of this one")
        return images

    async def ask():
        batcher = Batcher(compute, batch_size=1)
        batcher.start()
        tasks = [batcher.submit(i) for i in (1, -1, 2)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.stop(9)
        return found

    one, error, two = asyncio.run(ask())
    assert (one, two, type(error)) == (1, 2, Failed)
    assert str(error) == "the network failed: ValueError: of this one"


def test_served_is_what_the_command_predicts(run, client, tmp_path, capsys):
    """Bit for bit, through the files and the JSON of both."""
    files = {}
    for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP")):
        path = tmp_path / f"{seed}.{kind.lower()}"
        path.write_bytes(picture(seed, kind=kind))
        files[str(path)] = path
    assert predict.main([run, *files, "--json", "--batch-size=1", "--top=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in map(json.loads, lines):
        data = files[line.pop("image")].read_bytes()
        [served] = client.post("/predict?top=4", content=data).json()["predictions"]
        assert served.pop("image") == "image"
        assert served == line


@pytest.mark.parametrize(
    "told",
    [
        {"multi_label": True, "thresholds": (0.9, 0.1, 0.5, 0.5, 0.0)},
        {"multi_label": True},
        {"background": "queen", "thresholds": (0.3,)},
        {"thresholds": (1.0,), "temperature": 0.5},
    ],
    ids=lambda told: "-".join(told),
)
def test_decisions_are_those_of_the_run(told, tmp_path):
    model = predictor.load(store(tmp_path / "run", **told), batch_size=1)
    answers = map(predict.as_json, model.predict([*map(picture, range(6))]))
    expected = json.loads(json.dumps([*answers]))
    with TestClient(Server({"m": model}, LIMITS).app()) as client:
        for seed, answer in enumerate(expected):
            [served] = client.post("/predict", content=picture(seed)).json()["predictions"]
            assert served | {"image": f"image {seed}"} == answer
    kinds = {type(answer["decision"]) for answer in expected}
    assert kinds <= ({list} if told.get("multi_label") else {str, type(None)})


@pytest.mark.ci
def test_an_export_is_served_as_its_run(run, model, tmp_path, capsys):
    """Its program may be compiled otherwise: within 1e-5; it has no weights to look into."""
    assert export_command.main([run, f"--to={tmp_path / 'out'}", "--format=stablehlo,onnx"]) == 0
    files = [picture(seed) for seed in range(3)]
    expected = np.array([a.probabilities for a in model.predict(files)])
    exports = {
        name: predictor.load(tmp_path / "out" / file, batch_size=4)
        for name, file in (("stablehlo", ""), ("onnx", "model.onnx"))
    }
    server = Server(exports, LIMITS)
    for served_model in server.models.values():
        served_model.warm_up()
    text = [base64.b64encode(data).decode() for data in files]
    with TestClient(server.app()) as client:
        for name in exports:
            found = client.post(f"/predict?model={name}", json={"images": text}).json()
            rows = [answer["probabilities"] for answer in found["predictions"]]
            np.testing.assert_allclose(rows, expected, atol=1e-5)
            given = {"name": "encoded", "datatype": "BYTES", "shape": [3], "data": text}
            found = client.post(f"/v2/models/{name}/infer", json={"inputs": [given]}).json()
            rows = -np.sort(-np.reshape(found["outputs"][0]["data"], (3, -1)))
            np.testing.assert_allclose(rows, expected, atol=1e-5)
            refused = client.post(f"/explain?model={name}", content=files[0])
            assert refused.status_code == 400
            text_of = f"{name} is an export, which cannot say where it looked"
            assert refused.json() == {"error": text_of}


def test_what_kubernetes_asks_is_there(client):
    told = yaml.safe_load((Path(__file__).parents[1] / "launch" / "kserve.yaml").read_text())
    spec = told["spec"]["predictor"]
    [container] = spec["containers"]
    assert container["command"] == ["python3", "-m", "jaxcls.serve"]
    args = command.parser().parse_args(container["args"])
    assert args.runs == [f"{told['metadata']['name']}=/mnt/models"]
    assert [port["containerPort"] for port in container["ports"]] == [args.port]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == args.port
        assert client.get(asked["path"]).status_code == 200
    assert spec["terminationGracePeriodSeconds"] > connections.SHUTDOWN + STOPPING


# -- The command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port=70000"], "--port=70000: write a number from 0 to 65535"),
        (["--requests=0"], "--requests=0: write a number above 0"),
        (["--body=-1"], "--body=-1.0: write"),
        (["--wait=1e9"], "--wait=1e+09: write milliseconds"),
        (["x=nowhere", "x=elsewhere"], "two models have the same name"),
        (["a b=c/?"], "'a b' is no name for an address: write NAME=DIR"),
        (["a/b=c"], "'a/b' is no name for an address: write NAME=DIR"),
        (["..=c"], "'..' is no name for an address: write NAME=DIR"),
        (["x="], "x=: write NAME=DIR"),
        (["--host="], "--host=: write an address of this machine"),
        (["nowhere", "--port=0"], "nowhere"),
    ],
)
def test_mistakes(arguments, text, capsys):
    runs = [] if not arguments[0].startswith("-") else ["nowhere"]
    assert command.main([*runs, *arguments]) == 2
    assert text in capsys.readouterr().err


def test_batches_are_no_larger_than_what_is_held(run, monkeypatch):
    """Each size is computed once before the first answer: 10,000 images would take the memory."""

    class Found(Exception):
        pass

    def server(models, limits, *, wait):
        raise Found(models["chess"].batch_size)

    monkeypatch.setattr("jaxcls.serve.app.Server", server)
    with pytest.raises(Found, match=f"^{7 * jax.local_device_count()}$"):
        command.main([run, "--port=0", "--batch-size=10000", "--requests=7"])


def test_without_its_packages(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert command.main([run]) == 2
    said = capsys.readouterr().err
    assert said == "jaxcls: jaxcls.serve needs uvicorn: pip install 'jaxcls[serve]'\n"


def test_a_port_in_use(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main([run, f"--port={port}"]) == 2
    assert f"--port={port}: it is in use: choose another" in capsys.readouterr().err


@pytest.mark.ci
def test_mutations(capsys):
    """A share of what python tests/fuzz_serve.py --mutations=10000 sends."""
    assert fuzz_serve.main(["--mutations=700", "--seed=1", "--report=0"]) == 0, capsys.readouterr()


@pytest.mark.ci
def test_a_thousand_at_once(run):
    """A share of what python tests/serve_load.py asks; its other parts look at times."""
    assert not serve_load.none_lost_none_crossed(run, 1000)


@pytest.mark.ci
def test_what_is_accepted_is_answered_when_it_is_told_to_end(run):
    arguments = ["--port=0", "--batch-size=2"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jaxcls.serve", f"chess={run}", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    address = None
    for line in server.stderr:
        if found := re.search(r"chess: (http://\S+)", line):
            address = found[1]
            break
    assert address
    answers, refused = [], []

    def ask(seed):
        while True:
            try:
                with urllib.request.urlopen(f"{address}/predict", picture(seed), 30) as response:
                    answers.append(json.load(response)["predictions"][0]["classes"])
            except OSError as error:
                refused.append(getattr(error, "reason", error))
                return

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    while len(answers) < 20 and not refused:
        time.sleep(0.05)
    assert not refused
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert server.wait(60) == 0
    # by a closed door, before they were accepted: no answer says so
    assert all(isinstance(error, ConnectionError) for error in refused), refused
