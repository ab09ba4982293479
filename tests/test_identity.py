"""What a checkpoint knows of its data, and which other data it refuses."""

import dataclasses
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import base
from jaxcls.data import identity, sources

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def folder(tmp_path):
    """Three classes of four images."""
    for name in CLASSES:
        for i in range(4):
            path = tmp_path / "a" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return tmp_path / "a"


def of(root, **changes):
    config = base.get_config()
    config.data.source, config.data.root = "folder", str(root)
    config.data.update(ConfigDict(changes))
    return identity.of(sources.open(**config.data))


def test_the_same_images_elsewhere(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b" / "elsewhere")
    assert of(folder) == of(tmp_path / "b" / "elsewhere")
    assert identity.differences(of(folder), of(folder)) == []
    halves = [of(root, fraction=0.5) for root in (folder, tmp_path / "b" / "elsewhere")]
    assert halves[0] == halves[1]
    assert identity.differences(of(folder), halves[0]) == ["12 training images before, 6 now"]
    other = of(folder, fraction=0.5, fraction_seed=1)
    assert "other training images" in identity.differences(halves[0], other)[0]


def refusal(before, now, accept=False):
    with pytest.raises(ValueError) as e:
        identity.check(before, now, accept=accept, path="RUN/checkpoints/7")
    assert "RUN/checkpoints/7" in str(e.value)
    return str(e.value)


def test_what_can_be_accepted(folder):
    before = of(folder)
    (folder / "bee" / "3.png").rename(folder / "bee" / "4.png")
    assert "other training images" in refusal(before, of(folder))
    (folder / "bee" / "4.png").unlink()
    text = refusal(before, of(folder))
    assert "12 training images before, 11 now" in text
    assert "--config.checkpoint.changed_data=accept" in text
    identity.check(before, of(folder), accept=True, path="")
    (folder / "bee").rename(folder / "bug")  # in its place
    text = refusal(before, of(folder))
    assert "class 1 was 'bee', now 'bug'" in text
    identity.check(before, of(folder), accept=True, path="")


def test_classes_that_change_places_cannot(folder):
    before = of(folder)
    (folder / "ant").rename(folder / "dog")
    for accept in (False, True):
        text = refusal(before, of(folder), accept)
        assert "class 0 was 'ant', now 'bee'" in text
        assert "'bee' is class 1 there and 0 here" in text
        assert "--config.init.checkpoint" in text
    shutil.rmtree(folder / "dog")
    assert "3 classes before, 2 now" in refusal(before, of(folder), accept=True)


def test_labels(folder):
    path = folder / "train_list.txt"
    lines = [f"{name}/{i}.png {label}" for label, name in enumerate(CLASSES) for i in range(4)]
    path.write_text("\n".join(lines))
    before = of(folder, source="list")
    path.write_text("\n".join([lines[0].replace(" 0", " 1"), *lines[1:]]))
    assert identity.differences(before, of(folder, source="list")) == [
        "other labels of the training images"
    ]


def test_evaluation_images(folder):
    some, more = (of(folder, eval_fraction=fraction) for fraction in (0.25, 0.5))
    assert identity.differences(some, more) == [
        "9 training images before, 6 now",
        "3 evaluation images before, 6 now",
    ]
    data = sources.open(**_digits())
    without = dataclasses.replace(data, eval=None)
    assert identity.differences(identity.of(data), identity.of(without)) == []


def _digits():
    config = base.get_config()
    config.data.source = "digits"
    return config.data
