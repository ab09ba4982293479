"""Weights by name, against servers on this machine that behave, and that do not."""

import base64
import dataclasses
import hashlib
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading

import jax
import numpy as np
import oracle
import pytest
from safetensors.numpy import save

from jaxcls import convert, fetched, models, network, weights
from jaxcls.convert import hub, paddleclas
from jaxcls.convert import readers as file_readers
from jaxcls.convert.__main__ import main
from jaxcls.convert.fetch import fetch, full_name
from jaxcls.download import Patience, download
from jaxcls.models.published import ACCURACY

PATIENT = Patience(delays=(0, 0, 0), enough=1 << 16)  # also on a busy machine
QUICK = dataclasses.replace(PATIENT, silence=1.0, window=1.0, slowest=1000.0)
NAME = "PPLCNet_x0_25"
COMMIT = "c" * 40
DATA = np.random.default_rng(0).bytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what `server.files` has; each request of a path may misbehave otherwise."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        server, path = self.server, self.path.partition("?")[0]
        server.seen.append((self.command, self.path, dict(self.headers)))
        fault = None
        if self.command == "GET" and server.faults.get(path):
            fault = server.faults[path].pop(0)
        if path not in server.files and not fault:
            repository = path.partition("/resolve/")[0]
            there = any(file.startswith(f"{repository}/") for file in server.files)
            code = "EntryNotFound" if there else "RepoNotFound"  # as the hub says it
            return self.send(404, {"X-Error-Code": code}, b"none")
        data, extra = server.files.get(path, (b"", {}))
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', **extra}
        if isinstance(fault, int):
            return self.send(fault, {}, b"no")
        if fault == "page":
            return self.send(200, {"Content-Type": "text/html"}, b"<html>please log in</html>")
        if str(fault).startswith("to "):
            return self.send(302, {"Location": fault[3:]}, b"")
        if fault == "another":  # another file since
            data, headers["ETag"] = data[::-1], '"another"'
        if fault == "wrong":
            data = bytes([data[0] ^ 1]) + data[1:]
        start, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted and fault != "whole" and self.headers.get("If-Range") in (None, headers["ETag"]):
            start, status = int(wanted[len("bytes=") :].partition("-")[0]), 206
            if start >= len(data):
                return self.send(416, {}, b"")
            where = 0 if fault == "elsewhere" else start
            headers["Content-Range"] = f"bytes {where}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if fault == "nobody knows":
            return self.send(status, headers, body, "many")
        if fault == "cut":
            return self.send(status, headers, body[: len(body) // 2], len(body))
        if fault == "silent":
            self.send(status, headers, body[:1000], len(body))
            return server.over.wait(5)
        if fault == "slow":
            self.send(status, headers, b"", len(body))
            for i in range(200):
                if server.over.wait(0.02):
                    return None
                self.wfile.write(body[i : i + 1])
            return None
        return self.send(status, headers, body)

    def send(self, status, headers, body, length=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files, found.faults, found.seen, found.over = {}, {}, [], threading.Event()
    found.url = f"http://127.0.0.1:{found.server_port}"
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.over.set()
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxcls" / "weights"


def get(server, path, **options):
    """Downloads /file; returns what was reported."""
    lines = []
    waits = {"silent", "slow"} & {*server.faults.get("/file", ())}
    options = {"patience": QUICK if waits else PATIENT, "report": lines.append} | options
    download(f"{server.url}/file", path, **options)
    return lines


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@pytest.mark.ci
@pytest.mark.parametrize(
    ("faults", "reports"),
    [
        ([], []),
        (["cut"], ["it ended after 150,000 of 300,000 bytes"]),
        (["cut", "cut", "cut", "cut"], ["150,000", "225,000", "262,500"]),
        (["silent"], ["nothing came for 1 s"]),
        ([503, 429], ["503 Service", "429 Too Many"]),
        (["cut", "whole"], ["150,000"]),  # a server without ranges
        (["cut", "elsewhere"], ["150,000", "not from 150000 on"]),
        (["to /other"], []),
    ],
)
def test_a_download_that_ends_well(server, tmp_path, faults, reports):
    server.files["/file"] = server.files["/other"] = DATA, {"Content-MD5": md5(DATA)}
    server.faults["/file"] = list(faults)
    lines, shown = [], []
    get(server, tmp_path / "f", report=lines.append, progress=lambda *now: shown.append(now))
    assert (tmp_path / "f").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["f"]  # nothing of the unfinished one
    assert all(any(text in line for line in lines) for text in reports), lines
    assert bool(lines) == bool(reports)
    assert shown[-1] == (len(DATA), len(DATA))


@pytest.mark.ci
def test_a_server_that_does_not_say_how_much(server, tmp_path):
    server.files["/file"] = DATA, {"Content-MD5": md5(DATA)}
    server.faults["/file"] = ["nobody knows"]
    shown = []
    get(server, tmp_path / "f", progress=lambda *now: shown.append(now))
    assert (tmp_path / "f").read_bytes() == DATA
    assert shown[-1] == (len(DATA), 0)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([404], "there is no such file"),
        ([403], "it does not give the file"),
        ([407], "the proxy asks for a password"),
        ([418], "it answers 418"),
        ([503] * 4, "it answers 503 Service Unavailable"),
        (["to /file"] * 20, "it leads elsewhere without end"),
        (["to file:///etc/passwd"], "or to no web page"),
        (["page"], "it gives a page to read"),
        (["wrong"], "its MD5 is"),
        (["silent", "silent", "silent", "silent"], "nothing came for 1 s"),
        (["slow", "slow", "slow", "slow"], "bytes a second came"),
    ],
)
def test_a_download_that_fails_says_why(server, tmp_path, faults, says):
    server.files["/file"] = DATA, {"Content-MD5": md5(DATA)}
    server.faults["/file"] = list(faults)
    with pytest.raises(ValueError, match=says) as error:
        get(server, tmp_path / "f")
    assert "\n" not in str(error.value)
    assert server.url in str(error.value)
    assert not (tmp_path / "f").exists()
    server.faults["/file"] = []
    get(server, tmp_path / "f")  # nothing of it is in the way
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.ci
def test_a_download_goes_on_in_the_next_process(server, tmp_path):
    server.files["/file"] = DATA, {}
    server.faults["/file"] = ["cut"]
    with pytest.raises(ValueError, match="150,000 bytes are kept"):
        get(server, tmp_path / "f", patience=Patience(delays=()))
    get(server, tmp_path / "f")
    assert server.seen[-1][2]["Range"] == "bytes=150000-"
    assert (tmp_path / "f").read_bytes() == DATA
    # not from where another file was broken off
    (tmp_path / "f").unlink()
    server.faults["/file"] = ["cut", "another"]
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA[::-1]


@pytest.mark.ci
def test_no_connection(tmp_path):
    with pytest.raises(ValueError, match=r"no connection \(Connection refused\).*https_proxy"):
        download("http://127.0.0.1:9/file", tmp_path / "f")


@pytest.mark.ci
def test_a_proxy_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    server.files["http://weights.example/file"] = DATA, {}
    download("http://weights.example/file", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.ci
def test_a_full_disk_is_told_before(server, tmp_path, monkeypatch):
    server.files["/file"] = DATA, {}
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"has 300,000 bytes, there is place for 1,000"):
        get(server, tmp_path / "f")


def shapes_of(name, **options):
    """Returns the shapes of a network's variables."""
    image = np.zeros((1, 64, 64, 3), np.float32)
    return jax.eval_shape(models.build(name, **options).init, jax.random.key(0), image)


def paddle_file(name):
    """Returns a file of PaddleClas's with weights that are drawn by their names."""
    file = io.BytesIO()
    pickle.dump(oracle.tensors(name, shapes_of(name)), file, protocol=2)
    return file.getvalue()


@pytest.fixture
def published(server, cache, monkeypatch):
    """PaddleClas's server, with the weights of one name."""
    monkeypatch.setenv("JAXCLS_PADDLECLAS", f"{server.url}/dygraph/")
    path = f"/dygraph/legendary_models/{NAME}_pretrained.pdparams"
    server.files[path] = paddle_file(NAME), {}
    return path


@pytest.mark.ci
def test_weights_of_paddleclas_by_name(server, published, cache, capsys, tmp_path):
    server.faults[published] = ["cut"]
    place = cache / "paddleclas" / NAME
    run = [sys.executable, "-c", f"""
from jaxcls import weights
variables, meta = weights.load("paddleclas:{NAME}")
assert meta["network"]["name"] == "{NAME}", meta
"""]  # fmt: skip
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stderr
    assert "licence: Apache-2.0" in done.stderr
    assert not done.stdout
    assert sorted(path.name for path in place.parent.iterdir()) == [f".{NAME}.lock", NAME]
    requests = len(server.seen)
    server.files.clear()  # from now on it is offline
    assert main(["--fetch", NAME]) == 0
    said = capsys.readouterr().out
    digest = hashlib.sha256(paddle_file(NAME)).hexdigest()
    assert f"{server.url}{published}, SHA-256 {digest}" in said
    net, variables = network.load(f"paddleclas:{NAME}")
    assert len(server.seen) == requests
    file = tmp_path / "w.pdparams"
    file.write_bytes(paddle_file(NAME))
    expected = convert.from_paddle(NAME, file_readers.read(str(file)))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert (net.name, net.num_classes, net.image.size) == (NAME, 1000, 224)
    # damaged later: the message says what to remove
    for part in place.rglob("*"):
        if part.is_file() and part.stat().st_size > 1000:
            part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"remove {place}, and it is fetched again"):
        weights.load(f"paddleclas:{NAME}", report=lambda line: None)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("paddleclas:ResNet50vd", None, "did you mean ResNet50_vd"),
        ("paddleclas:ResNet50/vd", None, "write paddleclas:NAME or timm:NAME"),
        ("paddleclas:PPHGNet_base", None, "PaddleClas tells of no file for PPHGNet_base"),
        (f"paddleclas:{NAME}", 404, "there is no such file"),
        (f"paddleclas:{NAME}", "wrong", "gave no weights"),
        ("timm:inception_v4.tf_in1k", None, "in the other order"),
        ("timm:legacy_seresnet50.in1k", None, "their first pool rounds up"),
        ("timm:resnet50z.a1_in1k", None, "did you mean resnet50"),
    ],
)
def test_names_that_cannot_be_fetched(server, published, capsys, name, fault, says):
    server.faults[published] = [fault] if fault else []
    assert main(["--fetch", name]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.ci
def test_without_the_extra(cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["--fetch", "timm:lcnet_035.test"]) == 2
    assert "pip install 'jaxcls[hub]'" in capsys.readouterr().err


CONFIG = {
    "architecture": "lcnet_035",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 176, 176],
        "test_input_size": [3, 224, 224],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}
CARD = "---\ntags:\n- timm\nlicense: mit\n---\n# a network\n"


def answers(server, name, files, owner="timm"):
    """Lays a repository out as the hub does."""
    for file, data in files.items():
        large = file.endswith((".safetensors", ".bin"))
        git = hashlib.sha1(data).hexdigest()
        digest = hashlib.sha256(data).hexdigest() if large else git
        extra = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
        extra |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))} if large else {}
        for revision in ("main", COMMIT):
            server.files[f"/{owner}/{name}/resolve/{revision}/{file}"] = data, extra


@pytest.fixture
def on_hub(server, cache, monkeypatch, tmp_path):
    """The hub, with the weights of one of timm's networks; returns the path of the large file."""
    pytest.importorskip("huggingface_hub")
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)  # it reads the environment once
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "9")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    options = {"bias": True, "downscale": False}
    shapes = shapes_of("PPLCNet_x0_35", **options)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    arrays = convert.to_torch("PPLCNet_x0_35", variables, **options)
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": save(arrays),
        "README.md": CARD.encode(),
    }
    answers(server, "lcnet_035.test", files)
    server.files["/api/models"] = json.dumps([{"id": "timm/lcnet_035.test"}]).encode(), {}
    return f"/timm/lcnet_035.test/resolve/{COMMIT}/model.safetensors"


@pytest.mark.ci
def test_weights_of_timm_by_name(server, on_hub, cache):
    lines = []
    folder = fetch("timm:lcnet_035.test", report=lines.append)
    assert folder == cache / "timm" / "lcnet_035.test"
    assert "licence: mit" in lines
    net, _ = network.load("timm:lcnet_035.test")
    assert net.name == "PPLCNet_x0_35"
    assert net.options == {"bias": True, "downscale": False}
    image = net.image
    assert (image.size, image.shown, image.eval_resize) == (176, 224, 248)
    assert (image.mean, image.std, image.interpolation) == (
        (0.5,) * 3,
        (0.25,) * 3,
        "bilinear",
    )
    server.files.clear()
    assert fetch("timm:lcnet_035.test", report=lines.append) == folder
    assert "fetched before" in "".join(lines)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([404, 404], r"timm:lcnet_035.test"),
        (["wrong"], "the file's SHA-256 is"),
        (["cut"] * 9, "timm:lcnet_035.test: "),
        (["to /loop"], "timm:lcnet_035.test: "),
        (["silent"] * 9, "timm:lcnet_035.test: "),
    ],
)
def test_a_hub_that_misbehaves(server, on_hub, cache, capsys, faults, says):
    server.faults[on_hub] = list(faults)
    server.faults["/loop"] = ["to /loop"] * 99
    assert main(["--fetch", "timm:lcnet_035.test"]) == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("jaxcls: timm:lcnet_035.test")
    assert says in last
    server.faults.clear()
    assert main(["--fetch", "timm:lcnet_035.test"]) == 0


@pytest.mark.ci
def test_timm_names_that_are_not_there(server, on_hub, cache, capsys):
    assert main(["--fetch", "timm:lcnet_035"]) == 2
    assert "it has lcnet_035.test" in capsys.readouterr().err.splitlines()[-1]
    other = CONFIG | {"model_args": {"act_layer": "relu"}}
    files = {"config.json": json.dumps(other).encode(), "model.safetensors": b"0"}
    answers(server, "lcnet_035.other", files)
    assert main(["--fetch", "timm:lcnet_035.other"]) == 2
    assert "made by other arguments" in capsys.readouterr().err.splitlines()[-1]
    # what has other tensors than its name says
    arrays = {"conv_stem.weight": np.zeros((8, 3, 3, 3), np.float32)}
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": save(arrays)}
    answers(server, "lcnet_035.bad", files)
    assert main(["--fetch", "timm:lcnet_035.bad"]) == 2
    assert "these are not the weights of PPLCNet_x0_35" in capsys.readouterr().err


@pytest.mark.ci
def test_two_at_once_fetch_once(server, published, cache):
    command = [sys.executable, "-m", "jaxcls.convert", f"--fetch=paddleclas:{NAME}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert len([path for _, path, _ in server.seen if path == published]) == 1
    assert "fetched before" in said[0] + said[1]


def test_names_and_places(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetched.split("runs/paddleclas:x") is None
    assert fetched.find("runs/timm") == "runs/timm"
    assert fetched.folder("timm:a.b") == tmp_path / "jaxcls" / "weights" / "timm" / "a.b"
    assert full_name("ResNet50_vd") == "paddleclas:ResNet50_vd"
    for wrong in ("timm:", "timm:../x", "timm:.x", "paddleclas:a/b"):
        with pytest.raises(ValueError, match="is no name of weights"):
            fetched.split(wrong)


def test_every_name_has_an_address_or_none():
    there = set(models.names()) - paddleclas.NOWHERE
    assert len(there) + len(paddleclas.NOWHERE) == len(models.names())
    urls = [paddleclas.url(name) for name in there]
    assert len(set(urls)) >= len(there) - 1  # ShuffleNetV2_x1_0 is
    assert paddleclas.url("ResNet50_vd") == (
        "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models/"
        "ResNet50_vd_pretrained.pdparams"
    )
    # SSLD's weights were published for what has accuracies
    assert {name for name in there if name.endswith("_ssld")} <= ACCURACY.keys()


def test_timm_names_lead_to_ours():
    assert list(hub.ours("resnet50d")) == ["ResNet50_vd"]
    assert hub.ours("tf_efficientnet_b0")["EfficientNetB0"]["padding"] == "SAME"
    assert {"ConvNeXt_base_224", "ConvNeXt_base_384"} == set(hub.ours("convnext_base"))
