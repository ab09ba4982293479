"""python -m jaxcls.config: what it prints, what it draws."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from configs import digits, resnet50_vd
from jaxcls import record
from jaxcls.config import OPEN, flatten
from jaxcls.describe import draw, main

ROOT = Path(__file__).parents[1]
DIGITS = f"--config={ROOT / 'configs' / 'digits.py'}"
FINETUNE = f"--config={ROOT / 'configs' / 'finetune.py'}"
BASE = f"--config={ROOT / 'configs' / 'base.py'}"
PROBE = f"--config={ROOT / 'configs' / 'probe.py'}"


def test_it_prints_the_config_as_a_run_writes_it(capsys, tmp_path):
    assert main(["config", DIGITS, "--config.lr.peak=0.25"]) == 0
    out, err = capsys.readouterr()
    (tmp_path / "config.json").write_text(out)
    config = digits.get_config()
    config.lr.peak = 0.25
    assert (record.read(tmp_path / "config.json"), err) == (config, "")
    assert main(["config", FINETUNE]) == 0
    out, err = capsys.readouterr()
    assert {key for key, value in flatten(json.loads(out)).items() if value is None} >= {"lr.peak"}
    assert err.startswith("null: chosen when images are read: model.name, model.options, ")
    assert OPEN[-1] in err


def test_differences(capsys):
    assert main(["config", BASE, "--diff"]) == 0
    assert capsys.readouterr().out == "as configs/base.py\n"
    assert main(["config", BASE, "--diff", "--config.lr.peak=0.2", "--config.batch_size=64"]) == 0
    assert capsys.readouterr().out == "batch_size: 256 -> 64\nlr.peak: 0.1 -> 0.2\n"


def test_a_command_without_a_picture_needs_no_jax():
    code = (
        "import sys; from jaxcls import describe as m; "
        f"m.main(['config', {DIGITS!r}, '--diff']); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_picture_is_a_file(tmp_path, capsys):
    pictures = tmp_path / "lr.png", tmp_path / "lr.svg"
    assert main(["config", DIGITS, f"--plot={pictures[0]}"]) == 0  # opens the digits
    assert main(["config", BASE, f"--plot={pictures[1]}", "--images=5000"]) == 0
    with Image.open(pictures[0]) as picture:
        assert picture.size == (1200, 660)
        assert len(set(picture.convert("L").getdata())) > 20
    assert b"learning rate" in pictures[1].read_bytes() or b"<svg" in pictures[1].read_bytes()
    assert main(["config", FINETUNE, f"--plot={pictures[0]}", "--images=400"]) == 0
    assert capsys.readouterr() == ("", "")


def drawn(config, images):
    figure = Figure()
    draw(figure, config, {"num_train": images, "num_classes": 10}, "a title")
    return figure, figure.axes[0]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_what_is_drawn():
    """Against the formula: 8 steps an epoch, 25 of them; milestones, warmup, epochs above."""
    config = resnet50_vd.get_config()
    config.duration = "25 epochs"
    config.lr.schedule, config.lr.milestones = "piecewise", ("10 epochs", "20 epochs")
    config.lr.warmup = "2 epochs"
    figure, axes = drawn(config, 256 * 8 + 5)
    figure.draw_without_rendering()
    assert texts(axes) == ["warmup", "10 epochs", "20 epochs"]
    assert [axes.texts[1].xy[0], axes.texts[2].xy[0]] == [80, 160]
    steps, rates = axes.lines[0].get_data()
    np.testing.assert_array_equal(steps, np.arange(200))
    want = [0.1 * s / 16 if s < 16 else 0.1 * 0.1 ** (s // 80) for s in range(200)]
    np.testing.assert_allclose(rates, want, rtol=1e-5)
    (above,) = axes.child_axes
    assert (axes.get_xlim(), above.get_xlim()) == ((0, 200), (0, 25))
    assert axes.get_legend() is None
    assert "piecewise, peak 0.1, batch 256, 8 steps an epoch" in axes.get_title()

    config.lr.schedule, config.lr.milestones, config.checkpoint.best = "plateau", (), "loss"
    _, axes = drawn(config, 256 * 8)
    assert texts(axes)[1] == "times 0.1 after 11 evaluations in a row without a better loss"


def test_the_rate_of_each_part_is_drawn():
    """Of the digits' network, which has one block in each of its three stages."""
    config = digits.get_config()
    config.lr.warmup = ""
    config.optim.layer_decay = 0.5
    config.optim.lr_mults = (("^stage2/", 0.1), ("^stage3/block1/conv1/", 3.0), ("^head/", 10.0))
    config.optim.frozen = ("^stem/",)
    figure, axes = drawn(config, 640)
    (legend,) = figure.legends
    names = ["stage1 x 0.125", "stage2 x 0.025", "stage3 x 0.5 to 1.5", "head x 10"]
    assert [text.get_text() for text in legend.get_texts()] == names
    tops = [line.get_ydata()[0] for line in axes.lines]
    np.testing.assert_allclose(tops, [0.0125, 0.0025, 0.15, 0.05, 1.0], rtol=1e-6)
    assert axes.get_yscale() == "log"


def test_what_is_not_drawn_need_not_be_there(monkeypatch, tmp_path):
    """Of a distillation neither the teacher, nor a batch that these devices can share."""
    monkeypatch.chdir(tmp_path)
    config = f"--config={ROOT / 'configs' / 'distill.py'}:MobileNetV1_from_ResNet50_vd_ssld"
    rest = "--plot=lr.png", "--images=9000", "--config.optim.layer_decay=0.75"
    assert main(["config", config, *rest, "--config.batch_size=1001"]) == 0
    assert (tmp_path / "lr.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--config is missing"),
        ([BASE, "--plot=lr.png"], "config.data.source is not set: say --images=N"),
        ([BASE, "--images=10"], "--images=10: write a number of images above 0, with --plot"),
        ([BASE, "--plot=lr.png", "--images=0"], "--images=0: write a number of images above 0"),
        ([BASE, "--plot=/no/such/lr.png", "--images=999"], "there is no folder /no/such"),
        ([BASE, "--plot=lr.xyz", "--images=999"], "write the name of a picture, such as lr.png"),
        ([BASE, "--plot=lr.png", "--images=9"], "is more than the 9 training images"),
        ([BASE, "--plot=lr.png", "--images=999", "--config.lr.rise=0.1"], "lr.rise: not used by"),
        ([BASE, "--plots=lr.png"], "unknown flag --plots: did you mean plot?"),
        ([BASE, "--diff", "--config.lr.peek=1"], "there is no config.lr.peek"),
        ([PROBE, "--plot=lr.png", "--images=99"], "a probe (config.probe.decays) has no learning"),
    ],
)
def test_mistakes(arguments, text, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["config", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert text in err
    assert not list(tmp_path.iterdir())
