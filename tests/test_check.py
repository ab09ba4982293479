"""The data check on images that the tests make: what it finds, what it leaves alone, exit codes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.fft import dctn

from jaxcls import check
from jaxcls.data import copies
from jaxcls.data.records import pack_record

ROOT = Path(check.__file__).parents[1]


def photograph(seed, height=96, width=128):
    """Returns an image with the spectrum of photographs: amplitudes fall with frequency."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / width)
    channels = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(height, width))) * amplitude
        channels.append(np.fft.ifft2(spectrum).real)
    pixels = np.stack(channels, -1)
    return np.clip(128 + 45 * pixels / pixels.std(), 0, 255).astype(np.uint8)


def compressed(image, quality):
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def resized(image, factor):
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


# -- the perceptual hash ---------------------------------------------------------------------------


def test_the_hash_is_that_of_the_paper():
    """In float64, with SciPy's transform, for images whose resizing is a mean of 4x4 pixels."""
    for seed in range(20):
        image = photograph(seed, 128, 128)
        grey = image @ [0.299, 0.587, 0.114]
        small = np.round(grey).reshape(32, 4, 32, 4).mean((1, 3))
        low = dctn(np.round(small), norm="ortho")[:8, :8].ravel()
        median = np.median(low[1:])
        bits = [(copies.perceptual_hash(image) >> (63 - i)) & 1 for i in range(64)]
        for bit, value in zip(bits, low):
            assert bit == (value > median) or abs(value - median) < 2  # of rounding to uint8
        assert sum(bits) in (31, 32)


def test_copies_are_near_and_others_are_not():
    images = [photograph(seed) for seed in range(60)]
    hashes = np.array([copies.perceptual_hash(i) for i in images], np.uint64)
    for change in (
        lambda i: compressed(i, 75),
        lambda i: compressed(i, 40),
        lambda i: resized(i, 0.5),
        lambda i: resized(i, 2),
        lambda i: compressed(resized(i, 0.7), 80),
    ):
        theirs = np.array([copies.perceptual_hash(change(i)) for i in images], np.uint64)
        assert copies.distances(hashes, theirs).max() <= copies.NEAR
    for i in range(1, len(images)):
        assert copies.distances(hashes, np.roll(hashes, i)).min() > 2 * copies.NEAR


def test_grey_images_have_hashes_too():
    image = photograph(0)[..., :1]
    assert copies.perceptual_hash(image) == copies.perceptual_hash(np.repeat(image, 3, -1))
    assert copies.perceptual_hash(np.full((5, 7, 1), 200, np.uint8)) == 1 << 63  # the mean alone


@pytest.mark.parametrize("most", [0, 3, 4, 7])
def test_the_search_finds_what_comparing_all_finds(most):
    rng = np.random.default_rng(most)
    hashes = rng.integers(0, 2**64, 700, np.uint64)
    hashes[100:120] = hashes[5]  # the same image again and again
    queries = rng.integers(0, 2**64, 300, np.uint64)
    for i in range(200):  # 0 to 9 bits from one of the hashes
        bits = rng.choice(64, i % 10, replace=False)
        queries[i] = int(hashes[rng.integers(700)]) ^ sum(1 << int(bit) for bit in bits)
    number, distance = copies.nearest(hashes, queries, most)
    found = 0
    for query, n, d in zip(queries.tolist(), number.tolist(), distance.tolist()):
        all_distances = [(query ^ h).bit_count() for h in hashes.tolist()]
        least = min(all_distances)
        if least > most:
            assert (n, d) == (-1, -1)
        else:
            assert (d, n) == (least, all_distances.index(least))
            found += 1
    assert found == 20 * (most + 1)


def test_a_search_among_nothing():
    some, nothing = np.array([3], np.uint64), np.zeros(0, np.uint64)
    assert [a.tolist() for a in copies.nearest(nothing, some, 4)] == [[-1], [-1]]
    assert [a.tolist() for a in copies.nearest(some, nothing, 4)] == [[], []]


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with 2 classes of 8 training and 3 evaluation images, all different."""
    root = tmp_path_factory.mktemp("clean")
    for i in range(22):
        path = root / ("train" if i < 16 else "val") / ("cat", "dog")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), photograph(i, 120 + i, 180 - i))
    return root


@pytest.fixture
def photos(clean, tmp_path):
    """A copy of it."""
    for path in clean.rglob("*.jpg"):
        copy = tmp_path / "photos" / path.relative_to(clean)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "photos"


def run(root, *options, source="folder"):
    """Runs the command; returns (exit code, what it wrote as JSON)."""
    file = root.parent / "report.json"
    file.unlink(missing_ok=True)
    code = check.main(
        [
            "check",
            f"--config={ROOT}/configs/base.py",
            f"--config.data.source={source}",
            f"--config.data.root={root}",
            "--config.batch_size=4",
            f"--json={file}",
            *(f"--config.{option}" for option in options),
        ]
    )
    return code, json.loads(file.read_text()) if file.exists() else None


def test_nothing_to_complain_about(clean, capsys):
    code, report = run(clean)
    assert code == 0
    train = report["train"]
    assert train["images"] == 16
    assert train["counts"] == {"cat": 8, "dog": 8}
    assert train["size"]["height"] == {"min": 120, "median": 127.5, "max": 135}
    assert train["size"]["width"] == {"min": 165, "median": 172.5, "max": 180}
    assert report["eval"]["counts"] == {"cat": 3, "dog": 3}
    for part in (train, report["eval"]):
        assert part["unreadable"] == part["out_of_range"] == part["duplicates"] == []
    assert report["leakage"] == {"exact": [], "near": []}
    assert report["problems"] == []
    out = capsys.readouterr().out
    assert "16 training and 6 evaluation images of 2 classes" in out
    assert "width  165 to 180 pixels, median 172.5" in out
    assert "unreadable" not in out


def test_unreadable_images(photos, capsys):
    truncated, empty = photos / "train/cat/04.jpg", photos / "val/dog/17.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    empty.write_bytes(b"")
    (photos / "train/dog/01.jpg").write_bytes(b"\xff\xd8 no image")
    code, report = run(photos)
    assert code == 2
    (one, two), (three,) = (report[key]["unreadable"] for key in ("train", "eval"))
    assert str(truncated) in one
    assert "01.jpg" in two
    assert str(empty) in three
    assert report["train"]["counts"] == {"cat": 7, "dog": 7}
    assert len(report["problems"]) == 2
    out = capsys.readouterr().out
    assert "2 unreadable images" in out
    assert str(truncated) in out
    assert "2 reasons why training would fail:" in out
    skip = "data.on_bad_image=skip"
    assert run(photos, skip)[0] == 0
    assert run(photos, skip, "data.max_bad_images=1")[0] == 2


def test_duplicates(photos):
    same, other = photos / "train/cat/zz.jpg", photos / "train/dog/zz.jpg"
    same.write_bytes((photos / "train/cat/00.jpg").read_bytes())
    other.write_bytes((photos / "train/cat/02.jpg").read_bytes())
    code, report = run(photos)
    assert code == 0
    assert report["train"]["duplicates"] == [
        {"names": [str(photos / "train/cat/00.jpg"), str(same)], "same_label": True},
        {"names": [str(photos / "train/cat/02.jpg"), str(other)], "same_label": False},
    ]


def test_leakage(photos, capsys):
    """Copies, and copies that were resized or compressed, of training images; all else is clean."""
    exact, under_another = photos / "val/cat/c.jpg", photos / "val/dog/c.jpg"
    exact.write_bytes((photos / "train/cat/06.jpg").read_bytes())
    under_another.write_bytes((photos / "train/cat/08.jpg").read_bytes())
    for name, change in (
        ("small.png", lambda i: resized(i, 0.5)),
        ("large.jpg", lambda i: resized(i, 2)),
        ("again.jpg", lambda i: compressed(i, 40)),
    ):
        image = cv2.imread(str(photos / "train/dog/03.jpg"))
        cv2.imwrite(str(photos / "val/dog" / name), change(image))
    code, report = run(photos)
    assert code == 0
    assert report["leakage"]["exact"] == [
        {"eval": str(exact), "train": str(photos / "train/cat/06.jpg"), "same_label": True},
        {
            "eval": str(under_another),
            "train": str(photos / "train/cat/08.jpg"),
            "same_label": False,
        },
    ]
    near = report["leakage"]["near"]
    assert {pair["eval"].rpartition("/")[2] for pair in near} == {
        "small.png",
        "large.jpg",
        "again.jpg",
    }
    assert {pair["train"] for pair in near} == {str(photos / "train/dog/03.jpg")}
    assert {pair["same_label"] for pair in near} == {True}
    assert all(0 <= pair["bits"] <= copies.NEAR for pair in near)
    out = capsys.readouterr().out
    assert "2 evaluation images with the bytes of a training image" in out
    assert "3 evaluation images that look like a training image" in out
    assert "08.jpg (another label)" in out


def test_classes_without_images(photos, capsys):
    for path in (photos / "val/dog").iterdir():
        path.unlink()
    (photos / "val/dog").rmdir()
    code, report = run(photos)
    assert code == 0
    assert report["eval"]["counts"] == {"cat": 3, "dog": 0}
    assert "1 classes without an image\n    dog\n" in capsys.readouterr().out
    (photos / "val/bird").mkdir()
    (photos / "val/bird/1.jpg").write_bytes((photos / "val/cat/16.jpg").read_bytes())
    assert run(photos)[0] == 2
    assert "has no class 'bird'" in capsys.readouterr().err


def test_what_else_would_stop_a_training(photos):
    def problems(*options):
        code, report = run(photos, *options)
        assert code == 2
        (problem,) = report["problems"]
        return problem

    assert "config.batch_size = 99 is more than the 16" in problems("batch_size=99")
    assert "smaller than the crop of 140: set" in problems("image.eval_resize=0", "image.size=140")
    assert "config.duration = 'x' is not a duration" in problems("duration=x")


def test_records_and_labels_out_of_range(photos, tmp_path, capsys):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "train.array_record"), "group_size:1")
    for i, path in enumerate(sorted((photos / "train/cat").iterdir())):
        writer.write(pack_record(path.read_bytes(), -1 if i == 4 else i % 3, path.name))
    writer.close()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    code, report = run(tmp_path, source="array_record")
    assert code == 2
    assert report["train"]["out_of_range"] == [
        {"name": "04.jpg", "label": 2},
        {"name": "08.jpg", "label": -1},
        {"name": "10.jpg", "label": 2},
    ]
    assert report["train"]["counts"] == {"a": 3, "b": 2}
    assert "eval" not in report
    assert "leakage" not in report
    assert "3 training image(s) with a label that is not in 0 to 1" in report["problems"][0]
    assert "08.jpg: -1" in capsys.readouterr().out


def test_all_missing_and_damaged_images_are_named(photos, tmp_path, capsys):
    """Those that a run would stop at before it begins too."""
    from array_record.python.array_record_module import ArrayRecordWriter

    files = sorted(photos.rglob("*.jpg"))
    lines = [f"{file.relative_to(photos)} {i % 2}" for i, file in enumerate(files)]
    (photos / "train_list.txt").write_text("\n".join([*lines, "train/x.jpg 0", "train/y.jpg 1"]))
    code, report = run(photos, source="list")
    assert (code, len(report["train"]["unreadable"])) == (2, 2)
    missing = f"{photos}/train/x.jpg ({photos}/train_list.txt:23): no such file"
    assert report["train"]["unreadable"][0] == missing
    assert "'error' and max_bad_images = 100 allow 0" in report["problems"][0]
    assert run(photos, "data.on_bad_image=skip", source="list")[0] == 0
    code, report = run(photos, "data.on_bad_image=skip", "data.max_bad_images=1", source="list")
    assert (code, len(report["problems"])) == (2, 1)
    assert run(photos, "data.max_bad_images=-1", source="list") == (2, None)
    assert "config.data.max_bad_images = -1: " in capsys.readouterr().err

    records = tmp_path / "records"
    records.mkdir()
    for shard in range(3):
        path = records / f"train-{shard:05d}-of-00003.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i, file in enumerate(files[shard::3]):
            writer.write(pack_record(file.read_bytes(), i % 2, file.name))
        writer.close()
        data = bytearray(path.read_bytes())
        if shard == 1:
            data[200] ^= 1
        path.write_bytes(data[: -1 if shard == 2 else None])
    (records / "classes.txt").write_text("a\nb\n")
    code, report = run(records, source="array_record")
    record, file = report["train"]["unreadable"]
    assert code == 2
    assert record.startswith(f"record 0 of {records}/train-00001-of-00003.array_record: ")
    assert file.startswith(f"record 0 of {records}/train-00002-of-00003.array_record: ")
    assert run(records, "data.on_bad_image=skip", source="array_record")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--config is missing"),
        (["--config=no/such.py"], "there is no such config file"),
        (["--config={base}", "--workdir=x"], "unknown flag --workdir; see --help"),
        (["--config={base}"], "config.data.source is not set"),
        (["--config={base}", "--jsn=x"], "unknown flag --jsn: did you mean json?"),
        (["--config={base}", "--config.data.rot=x"], "there is no config.data.rot: did you mean"),
        (
            ["--config={base}", "--config.data.source=digits", "--json=no/such/x"],
            "--json=no/such/x: there is",
        ),
        (
            ["--config={base}", "--config.data.source=folder", "--config.data.root={empty}"],
            "no sub",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    names = {"base": f"{ROOT}/configs/base.py", "empty": tmp_path}
    assert check.main(["check", *(option.format(**names) for option in options)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxcls: ")
    assert err.count("\n") == 1
    assert message in err


def test_help(capsys):
    assert check.main(["check", "--help"]) == 0
    assert "python -m jaxcls.check --config=FILE" in capsys.readouterr().out
