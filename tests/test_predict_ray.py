"""python -m jaxcls.predict --engine=ray: shards, what is read for them, and clusters."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import PATIENCE
from test_predict import CLASSES, photos, runs  # noqa: F401

from jaxcls import predict, predict_ray, predictor
from jaxcls.predict_ray import Shard


def found(place):
    return predict.images([place])


def shards(*given, size=4, column=""):
    return [*predict_ray.shards([*map(str, given)], size, column, found)]


@pytest.fixture
def table(photos, tmp_path):  # noqa: F811
    """Returns a Parquet file of images, in four forms, in row groups of three."""
    names = [f"{i:02d}.png" for i in range(8)]
    data = [(photos / name).read_bytes() for name in names]
    columns = {
        "bytes": pa.array([*data[:7], None], pa.binary()),
        "image": [{"bytes": x, "path": None} for x in data],
        "path": [os.path.relpath(photos / name, tmp_path) for name in names],
        "url": [(photos / name).as_uri() for name in names],
    }
    pq.write_table(pa.table(columns), tmp_path / "some.parquet", row_group_size=3)
    return tmp_path / "some.parquet"


def test_shards_are_images_in_their_order(photos, table, tmp_path):  # noqa: F811
    names = [str(photos / f"{i:02d}.png") for i in range(11)]
    assert [shard.paths for shard in shards(photos)] == [tuple(names[i : i + 4]) for i in (0, 4, 8)]
    rows = [Shard((), str(table), "path", start, 4) for start in (0, 4)]
    both = shards(names[0], table, names[1], names[2], column="path")
    assert both == [Shard((names[0],)), *rows, Shard((names[1], names[2]))]
    assert shards(table.parent, column="path") == rows
    assert [shard.count for shard in both] == [1, 4, 4, 2]
    # URLs: a folder, a list, a file
    urls = [(photos / f"{i:02d}.png").as_uri() for i in range(11)]
    (photos / "list.txt").write_text("00.png\n01.png\n")
    for place, expected in (("", urls), ("/list.txt", urls[:2]), ("/03.png", urls[3:4])):
        assert [p for s in shards(photos.as_uri() + place) for p in s.paths] == expected
    (photos / "list.txt").unlink()
    assert shards(table.as_uri(), column="path")[1] == rows[1]._replace(table=table.as_uri())


@pytest.mark.parametrize("column", ["bytes", "image", "path", "url"])
def test_images_of_a_table(photos, table, column):  # noqa: F811
    read = []
    for shard in shards(table, size=5, column=column):
        read += [*predict_ray.readers(shard)]
    assert len(read) == 8
    for i, (name, image) in enumerate(read):
        if column == "bytes" and i == 7:
            with pytest.raises(ValueError, match="some.parquet: row 7: there is no image"):
                image()
        else:
            assert image() == (photos / f"{i:02d}.png").read_bytes()
            assert name.endswith(f"row {i}" if column in ("bytes", "image") else f"{i:02d}.png")


def test_what_cannot_be_shards(photos, table, tmp_path):  # noqa: F811
    for given, column, text in (
        (table, "", r"which column has the images\? --column=NAME, of bytes, image, path, url"),
        (table, "imag", "unknown .*--column 'imag': did you mean image"),
        ("nosuch://x/y", "", "nosuch"),
        (tmp_path / "no.parquet", "", "no.parquet"),
        (tmp_path.as_uri() + "/none", "", None),
    ):
        if text is None:  # told in its turn
            [shard] = shards(given)
            [(_, read)] = predict_ray.readers(shard)
            with pytest.raises(ValueError, match="no such file"):
                read()
        else:
            with pytest.raises(ValueError, match=text):
                shards(given, column=column)


def test_answers_of_a_shard(runs, photos, tmp_path):  # noqa: F811
    model = predictor.load(runs[0], threshold=0.6)
    [shard] = shards(photos, size=100)
    assert predict_ray.answer(model, shard, 2, str(tmp_path / "part-000000.parquet")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["part-000000.parquet"]
    rows = pq.read_table(tmp_path / "part-000000.parquet").to_pylist()
    for row, answer in zip(rows, model.predict(shard.paths, top=2), strict=True):
        assert row["image"] == answer.image
        assert tuple(row["classes"]) == answer.classes
        assert tuple(row["probabilities"]) == answer.probabilities
        assert row["decision"] == answer.decision
        assert (row["error"] or "") == answer.error


def test_what_is_there_stays(runs, photos, tmp_path):  # noqa: F811
    model, every = predictor.load(runs[0]), shards(photos)
    made = predict_ray.plan(model, {"top": 5}, every)
    out = str(tmp_path / "new" / "out")
    assert predict_ray.missing(out, made) == [0, 1, 2]
    (tmp_path / "new" / "out" / "part-000001.parquet").touch()
    assert predict_ray.missing(out, made) == [0, 2]
    others = {
        "top": predict_ray.plan(model, {"top": 4}, every),
        "names": predict_ray.plan(model, {"top": 5}, [every[0], every[0], every[2]]),
        "weights": predict_ray.plan(predictor.load(runs[1]), {"top": 5}, every),
    }
    for key, other in others.items():
        with pytest.raises(ValueError, match=rf"answers of another command \({key} differ\)"):
            predict_ray.missing(out, other)
    changed = predictor.load(runs[0], threshold=0.5)
    assert predict_ray.plan(changed, {"top": 5}, every)["weights"] != made["weights"]
    with pytest.raises(ValueError, match="is not empty: choose another directory"):
        predict_ray.missing(str(photos), made)
    for text, reason in (("{", "Expecting property name"), ("[]", "it is no JSON object")):
        (tmp_path / "new" / "out" / "plan.json").write_text(text)
        with pytest.raises(ValueError, match=rf"out/plan\.json cannot be read \({reason}"):
            predict_ray.missing(out, made)


def test_what_an_actor_takes():
    gpus = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0}]
    assert predict_ray.resources(gpus) == ({"num_gpus": 1}, 8)
    hosts = [{"CPU": 100.0, "TPU": 4.0}] * 4 + [{"CPU": 2.0}]
    assert predict_ray.resources(hosts) == ({"resources": {"TPU": 4.0}}, 4)
    machines = [{"CPU": 16.0}, {"CPU": 40.0}, {"memory": 1.0}]
    assert predict_ray.resources(machines) == ({"num_cpus": 16}, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--engine=ray"], "add --out=DIR"),
        (["--engine=ray", "--json"], "--engine=ray writes Parquet: leave out --json"),
        (["--engine=rya"], "invalid choice"),
        (["--shard-size=10"], "--shard-size is for --engine=ray"),
        (["--column=x"], "--column is for --engine=ray"),
        (["--engine=ray", "--shard-size=0"], "--shard-size=0: write at least 1"),
    ],
)
def test_mistakes(runs, photos, capsys, arguments, text):  # noqa: F811
    assert predict.main([runs[0], str(photos / "01.png"), *arguments]) == 2
    assert text in capsys.readouterr().err


def test_without_ray(runs, photos, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["--engine=ray", f"--out={tmp_path}"]
    assert predict.main([runs[0], str(photos), *arguments]) == 2
    assert "--engine=ray needs Ray: pip install 'jaxcls[ray]'" in capsys.readouterr().err


@pytest.mark.ci
def test_a_killed_run_goes_on(commands, runs, tmp_path):  # noqa: F811
    pytest.importorskip("ray")
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(600):
        Image.new("RGB", (640, 480), (i % 256, i // 3, 9)).save(folder / f"{i:03d}.jpg")
    (folder / "007.jpg").write_bytes(b"nothing")
    given = [runs[0], str(folder)]
    command = [sys.executable, "-m", "jaxcls.predict", *given, "--engine=ray", f"--out={out}"]
    command += ["--shard-size=32"]
    environment = commands.environment()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE
        while len([*out.glob("part-*")]) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    time.sleep(3)  # the actor ends with it
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 2 <= len(before) < 19
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "600 images, 1 of them cannot be read" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert sorted(p.name for p in out.iterdir()) == [
        *(predict_ray.file_of(i) for i in range(19)), "plan.json"
    ]  # fmt: skip
    rows = [row for p in sorted(out.glob("part-*")) for row in pq.read_table(p).to_pylist()]
    plain = [sys.executable, "-m", "jaxcls.predict", *given]
    alone = subprocess.run([*plain, "--json"], env=environment, capture_output=True, text=True)
    expected = [json.loads(line) for line in alone.stdout.splitlines()]
    assert [row["image"] for row in rows] == [it["image"] for it in expected]
    for row, it in zip(rows, expected, strict=True):
        assert [row[k] for k in ("classes", "probabilities", "decision")] == [
            it.get(k) for k in ("classes", "probabilities", "decision")
        ] or row["error"] == it["error"]
    assert set(rows[0]["classes"]) == set(CLASSES)
