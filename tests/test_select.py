"""Choosing images without labels: the surest of each class, no copies of what is to be left out."""

import csv
import dataclasses
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from test_check import compressed, photograph
from test_network import small

from jaxcls import network, select, weights
from jaxcls.data import copies, sources

COLOUR = {"mean": (0.4,) * 3, "std": (0.3,) * 3, "eval_resize": 9}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An export of a network of four classes with random weights."""
    net, _ = small()
    net = dataclasses.replace(net, image=dataclasses.replace(net.image, **COLOUR))
    rng = np.random.default_rng(5)
    drawn = jax.tree.map(lambda x: rng.uniform(-0.5, 0.6, x.shape).astype(np.float32), net.shapes)
    drawn["batch_stats"] = jax.tree.map(np.abs, drawn["batch_stats"])
    path = tmp_path_factory.mktemp("weights") / "w"
    weights.export(path, drawn, {"network": net.described()})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve photographs in two folders, one file that is damaged, and validation images."""
    root = tmp_path_factory.mktemp("photos")
    for folder in ("many/x", "many/y y", "val/dog"):
        (root / folder).mkdir(parents=True)
    for i in range(12):
        name = root / "many" / ("x" if i % 2 else "y y") / f"{i:02}.png"
        cv2.imwrite(str(name), photograph(i))
    (root / "many/x/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for i, image in enumerate([compressed(photograph(3), 40), photograph(50)]):
        cv2.imwrite(str(root / f"val/dog/{i}.png"), image)
    half = cv2.resize(photograph(8), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(root / "val/2.png"), half)
    (root / "val/notes.md").write_text("no image")
    return root


def said_by(run, photos):
    """Returns {path: (label, confidence, features)} of every image, one by one."""
    net, variables = network.load(run)
    found = {}
    for path in sorted(photos.rglob("*.png")):
        pixels = net.transform(path.read_bytes(), None)
        outputs = net.predict(variables, pixels[None])
        chances = np.exp(np.asarray(outputs["logits"][0], np.float64))
        chances /= chances.sum()
        x = np.asarray(outputs["pre_logits"][0], np.float64)
        name = str(path.relative_to(photos))
        found[name] = chances.argmax(), chances.max(), x / np.linalg.norm(x)
    return found


def chosen(out):
    """Returns [(path, label)] of a list."""
    rows = [line.rpartition(" ") for line in out.read_text().splitlines()]
    return [(path, int(label)) for path, _, label in rows]


def test_the_list_has_the_surest_of_each_class(run, photos, tmp_path, capsys):
    out = photos / "list.txt"
    assert select.main([f"--weights={run}", f"--images={photos / 'many'}", f"--out={out}"]) == 0
    every = {k: v for k, v in said_by(run, photos).items() if k.startswith("many")}
    want = sorted(every, key=lambda name: (every[name][0], -every[name][1]))
    assert chosen(out) == [(name, every[name][0]) for name in want]  # relative to the list
    assert len({label for _, label in chosen(out)}) > 1
    assert "12 of 13 images" in (said := capsys.readouterr().out)
    assert "  1 cannot be read\n" in said
    rows = list(csv.DictReader((photos / "list.csv").open()))
    assert [row["path"] for row in rows] == want
    assert [row["class"] for row in rows] == ["abcd"[every[name][0]] for name in want]
    ours = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(ours, [every[name][1] for name in want], atol=2e-6)

    # a few of them; of a list, and in batches that do not divide
    listed = tmp_path / "images.txt"
    listed.write_text(
        "".join(f"{photos / name} 7\n" for name in every) + f"{photos / 'gone.png'}\n"
    )
    least = sorted(ours)[3]
    args = [f"--weights={run}", f"--images={listed}", f"--out={tmp_path / 'l.txt'}"]
    assert select.main([*args, "--top=2", f"--min-confidence={least}", "--batch-size=1"]) == 0
    want = [name for name in want if every[name][1] >= least - 1e-6]
    of = lambda name: [other for other in want if every[other][0] == every[name][0]]
    want = [name for name in want if of(name).index(name) < 2]
    assert chosen(tmp_path / "l.txt") == [(str(photos / name), every[name][0]) for name in want]
    assert "2 cannot be read" not in capsys.readouterr().out  # one is missing
    assert 0 < len(want) < 8


def test_the_list_trains(run, photos, tmp_path):
    out = photos / "again.txt"
    assert select.main([f"--weights={run}", f"--images={photos / 'many'}", f"--out={out}"]) == 0
    from configs import base

    data = base.get_config().data
    data.source, data.root, data.train, data.num_classes = "list", str(photos), "again.txt", 4
    opened = sources.open(**data)
    assert [(p, int(n)) for p, n in zip(opened.train.paths, opened.train.labels)] == chosen(out)
    assert opened.train[0]["image"][:4] == b"\x89PNG"
    assert select.images(str(out), "--images").paths == opened.train.paths


def test_copies_of_what_is_to_be_left_out(run, photos, tmp_path, capsys):
    args = [f"--weights={run}", f"--images={photos / 'many'}", f"--exclude={photos / 'val'}"]
    out = tmp_path / "l.txt"
    assert select.main([*args, f"--out={out}", "--similarity=1"]) == 0
    assert {path for path, _ in chosen(out)} == {
        str(path) for path in (photos / "many").rglob("*.png") if path.stem not in ("03", "08")
    }
    assert "  2 look like one to leave out\n" in capsys.readouterr().out

    # by their features: the cosines are those of the network's own, of a source one by one
    every = said_by(run, photos)
    net, variables = network.load(run)
    looker = select.Looker(net, variables, batch_size=1)
    known = looker.known(select.images(str(photos / "val"), "--exclude"))
    assert known.features.shape == (3, 8)
    scores = looker.scores(select.images(str(photos / "many"), "--images"), known)
    theirs = np.stack([x for name, (*_, x) in every.items() if name.startswith("val")])
    paths = select.images(str(photos / "many"), "--images").paths
    want = [
        (theirs @ every[f"many/{path}"][2]).max() if path.endswith("png") else -1 for path in paths
    ]
    np.testing.assert_allclose(scores.similarity, want, atol=1e-5)
    bar = sorted(want)[-4]  # copies are at the top, and some that only the features take for one
    left, _ = select.select(scores, known, similarity=float(bar - 1e-4))
    assert {*left.tolist()} == {
        i for i, value in enumerate(want) if -1 < value < bar and "03" not in paths[i]
        and "08" not in paths[i]
    }  # fmt: skip


def test_what_is_chosen_of_many_is_what_a_loop_chooses():
    rng = np.random.default_rng(0)
    n, classes = 3000, 7
    label = rng.integers(-1, classes, n).astype(np.int32)
    confidence = rng.integers(1, 60, n).astype(np.float32) / 60  # many ties
    look = rng.integers(0, 2**63, n).astype(np.uint64)
    known = select.Known(np.zeros((5, 2), np.float32), look[[3, 99, 500, 501, 700]] ^ np.uint64(7))
    similarity = rng.uniform(-1, 1, n).astype(np.float32)
    scores = select.Scores(label, confidence, similarity, look)
    got, reasons = select.select(scores, known, top=20, min_confidence=0.5, similarity=0.9)
    want = []
    for k in range(classes):
        good = [
            (-confidence[i], i)
            for i in range(n)
            if label[i] == k and confidence[i] >= 0.5 and similarity[i] < 0.9
            if i not in (3, 99, 500, 501, 700)
        ]
        want += [i for _, i in sorted(good)[:20]]
    assert got.tolist() == want
    assert sum(reasons.values()) == n - len(got)
    assert reasons["cannot be read"] == (label < 0).sum()
    every, _ = select.select(scores)
    assert len(every) == (label >= 0).sum()
    assert copies.NEAR >= 3


def test_of_copies_among_them_the_surest_is_chosen():
    rng = np.random.default_rng(0)
    n = 1200  # more than are compared pair by pair
    look = rng.integers(0, 2**63, n).astype(np.uint64)
    copy = rng.permutation(n).reshape(-1, 3)[:150]  # three of one scene each
    look[copy] = look[copy[:, :1]] ^ np.array([0, 3, 2**40 + 2**13], np.uint64)
    confidence = rng.uniform(0.5, 1, n).astype(np.float32)
    label = rng.integers(0, 3, n).astype(np.int32)
    scores = select.Scores(label, confidence, np.full(n, -1, np.float32), look)
    got, reasons = select.select(scores)
    surest = copy[np.arange(150), confidence[copy].argmax(1)]
    assert {*got.tolist()} == {*range(n)} - {*copy.ravel().tolist()} | {*surest.tolist()}
    assert reasons["look like a surer one"] == 300
    none, _ = select.select(scores, min_confidence=2)
    assert len(none) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--weights": "nowhere"}, "nowhere: no checkpoint there"),
        ({"--images": "nowhere"}, "nowhere: no such folder (--images)"),
        ({"--exclude": "nowhere"}, "nowhere: no such folder (--exclude)"),
        ({"--out": "nowhere/l.txt"}, "--out=nowhere/l.txt: write the name of a list"),
        ({"--out": "l.csv"}, "--out=l.csv: write the name of a list"),
        ({"--top": "-1"}, "--top=-1: write at least 0"),
        ({"--batch-size": "0"}, "--batch-size=0: write at least 1"),
        ({"--min-confidence": "1.5"}, "1.5: write a number from 0 to 1"),
        ({"--similarity": "x"}, "--similarity: invalid"),
        ({"--images": "empty"}, "empty has no images (--images)"),
    ],
)
def test_mistakes(run, photos, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    args = {"--weights": str(run), "--images": str(photos / "many"), "--out": "l.txt"} | changes
    assert select.main([f"{name}={value}" for name, value in args.items()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "l.txt").exists()


@pytest.mark.ci
def test_the_command(commands, run, photos, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxcls.select", f"--weights={run}", f"--images={photos / 'many'}",
         f"--out={tmp_path / 'l.txt'}", "--top=1"],
        env=commands.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(chosen(tmp_path / "l.txt")) <= 4
    assert done.stderr.count("skipped:") == done.stderr.count("\n") == 1
