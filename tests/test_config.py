"""Durations, differences and refusals of configs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base, resnet50_vd
from jaxcls import config as c
from jaxcls import distillation, objectives, optim, precision, schedules
from jaxcls.data import augment, erasing, mixing, ops, sources


def steps(text, batch=10, per_epoch=7):
    return c.steps_of(text, key="duration", batch_size=batch, steps_per_epoch=per_epoch)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 epochs", 21),
        ("1 epoch", 7),
        ("0.5 epochs", 4),  # 3.5, to the nearest even
        ("250 steps", 250),
        ("1e3 examples", 100),
        ("0 steps", 0),
        ("", 0),
    ],
)
def test_durations(text, expected):
    assert steps(text) == expected


@pytest.mark.parametrize(
    "text", ["3", "epochs", "3 eopchs", "-1 steps", "nan epochs", "inf steps", "3 epochs each"]
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"config.duration = .* is not a duration: write a number"):
        steps(text)


@pytest.mark.parametrize("text", ["0.07 epochs", "0.5 steps", "4 examples", "1e-9 epochs"])
def test_what_rounds_to_no_step_is_not_never(text):
    with pytest.raises(ValueError, match=f"config.duration = '{text}' is less than a step"):
        steps(text)


def test_texts_of_tuples(tmp_path):
    """As in Python, or one without quotes; names and durations also with commas between them."""
    there = tmp_path / "a,b"
    there.mkdir()
    for key, text, value in (
        ("optim.betas", "0.9, 0.95", (0.9, 0.95)),
        ("optim.frozen", r"bn\d{1,2}/", (r"bn\d{1,2}/",)),
        ("teacher.checkpoints", "a,b", ("a", "b")),
        ("teacher.checkpoints", str(there), (str(there),)),
        ("eval.fuse", "runs/a, runs/b", ("runs/a", "runs/b")),
        ("loss.stages", "stage3, stage4", ("stage3", "stage4")),
        ("loss.stages", "(('stage3', 'stage4'),)", (("stage3", "stage4"),)),
        ("loss.stages", "stage4", ("stage4",)),
        ("loss.stages", "", ()),
        ("lr.milestones", "30 epochs,60 epochs", ("30 epochs", "60 epochs")),
        ("eval.tta", "flip,five_crop", ("flip", "five_crop")),
    ):
        assert c.from_text(key, text) == value


def test_due():
    assert [s for s in range(11) if c.due(s, 3, 10)] == [3, 6, 9, 10]
    assert [s for s in range(11) if c.due(s, 0, 10)] == [10]


def test_choose_names_the_closest():
    assert c.choose("optimizer", "adam", ["adam", "sgd"]) == "adam"
    with pytest.raises(ValueError, match="unknown optimizer 'Adamw': did you mean adamw?"):
        c.choose("optimizer", "Adamw", ["adam", "adamw", "sgd"])
    with pytest.raises(ValueError, match="unknown optimizer 'xyz': choose one of adam, sgd"):
        c.choose("optimizer", "xyz", ["sgd", "adam"])
    with pytest.raises(ValueError, match="unknown policy 'x': choose one of \"\", augmix"):
        c.choose("policy", "x", ["augmix", ""])


def test_differences_from_base():
    changed = c.differences(resnet50_vd.get_config(), base.get_config())
    assert changed["optim.l2"] == (0.0, 7e-5)
    assert changed["model.bn_group"] == (None, 64)
    assert "optim.momentum" not in changed
    assert c.differences({"a": {"b": 1}}, {"a": {}}) == {"a.b": (None, 1)}


def test_unused_keys_are_refused():
    defaults = {"momentum": 0.9, "rho": 0.9}
    c.refuse_unused("optim", "adam", defaults, defaults, ())
    with pytest.raises(ValueError, match="config.optim.rho: not used by 'momentum', which takes"):
        c.refuse_unused("optim", "momentum", defaults | {"rho": 0.5}, defaults, ["momentum"])


TAKERS = {  # of sections whose consumer takes **keys, for methods that it chooses among
    "crop": (ops.training, *ops.CROPS.values()),
    "loss": (objectives.make, distillation.mixed, *objectives.OBJECTIVES.values()),
    "optim": (optim.make, *optim.OPTIMIZERS.values()),
    "lr": (schedules.schedule, *schedules.SCHEDULES.values()),
    "augment": (augment.make, augment.Augment, *augment.POLICIES.values()),
    "erase": (erasing.make, *erasing.METHODS.values()),
    "mix": (mixing.make, *mixing.KINDS.values()),
    "data": (sources.open, *sources.OPEN.values()),
    "precision": (precision.make, *precision.LOSS_SCALES.values()),
}


@pytest.mark.parametrize("section", TAKERS)
def test_every_key_is_taken_by_a_method(section):
    """By a keyword-only parameter; an alpha of `mix` by the row of its name."""
    takes = set(mixing.KINDS).union(*map(c.keywords, TAKERS[section]))
    assert set(base.get_config()[section]) <= takes


def test_every_key_is_read():
    """As config.section.key, or by what gets config.section or consume(config, "section", ...)."""
    texts = [path.read_text() for path in Path(c.__file__).parents[1].rglob("*.py")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    read, begun = {ast.unparse(a) for a in attributes}, {id(a.value) for a in attributes}
    whole = {ast.unparse(a) for a in attributes if id(a) not in begun}
    consumed = re.findall(r'(?:consume\(\s*config,|use\()\s*"(\w+)"', "\n".join(texts))
    whole |= {f"config.{section}" for section in consumed}
    for key in c.defaults()[0]:
        assert f"config.{key}" in read or f"config.{key.partition('.')[0]}" in whole, key


def test_a_method_gets_the_keys_of_its_signature():
    keys = dict(base.get_config().erase)
    assert c.taken("erase", "cutout", erasing.cutout, keys) == {"holes": 1, "length": 112}
    keys["hide"] = 0.1
    with pytest.raises(ValueError, match="erase.hide: not used by 'x', which takes holes, length;"):
        c.taken("erase", "x", erasing.cutout, keys)
    one, other = c.bound("erase", "x", (erasing.cutout, lambda *, d1: d1), keys, used=["hide"])
    assert one.keywords == {"holes": 1, "length": 112}
    assert other() == 96


def test_stage_mults():
    assert c.stage_mults(0.1, 0.1, 0.2) == (("^stem/", 0.1), ("^stage1/", 0.1), ("^stage2/", 0.2))

    assert c.stage_mults(None, 0.1, 0.2) == (("^stage1/", 0.1), ("^stage2/", 0.2))  # VGG


def test_block_mults():
    """PaddleClas's groups: block i of all has factor min(i // 3, 4), the stem that of block 0."""
    factors = (0.25, 0.25, 0.5, 0.5, 0.75)
    for blocks in ((1, 2, 3, 6, 3), (1, 2, 3, 6, 5)):
        rules = c.block_mults(*factors, blocks=blocks)
        names = [f"stage{i}/block{j}" for i, n in enumerate(blocks, 1) for j in range(1, n + 1)]
        want = {name: factors[min(i // 3, 4)] for i, name in enumerate(names)}
        want |= {"stem/conv": 0.25, "neck/conv1": 0.75}
        for name, factor in want.items():
            found = [f for pattern, f in rules if re.search(pattern, f"{name}/conv/kernel")]
            assert found == [factor], name
        assert not [pattern for pattern, _ in rules if re.search(pattern, "head/fc/kernel")]
    assert c.block_mults(0.5, blocks=(1,), every=2) == (("^(stem|stage1/block1|neck)/", 0.5),)
    with pytest.raises(ValueError, match="5 factors for 11 blocks, which are 4 groups of 3"):
        c.block_mults(*factors, blocks=(1, 2, 5, 3))


def test_plan():
    config = base.get_config()
    config.batch_size, config.duration = 30, "4 epochs"
    config.eval.every, config.checkpoint.every, config.log.every = "2 epochs", "", "60 examples"
    plan = c.plan(config, num_train=100)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 12)
    assert (plan.eval_every, plan.save_every, plan.log_every) == (6, 0, 2)
    assert plan.epoch(4) == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="config.batch_size = 30 is more than the 29 training"):
        c.plan(config, num_train=29)
    for key in ("duration", "eval.every", "checkpoint.every", "log.every"):
        short = base.get_config()
        short.batch_size = 30
        short.update_from_flattened_dict({key: "0.1 epochs"})
        with pytest.raises(ValueError, match=f"config.{key} = '0.1 epochs' is less than a step"):
            c.plan(short, num_train=100)
    config.duration = "0 steps"
    with pytest.raises(ValueError, match="config.duration = '0 steps' is less than a step"):
        c.plan(config, num_train=100)


@pytest.mark.parametrize("seed", [-1, 2**64, 99999999999999999999])
def test_seeds_of_more_than_64_bits_are_refused(seed):
    config = base.get_config()
    config.seed = 2**64 - 1
    assert c.plan(config, num_train=1000)
    config.seed = seed
    with pytest.raises(ValueError, match=f"config.seed = {seed}: write an integer from 0 to 2"):
        c.plan(config, num_train=1000)


def test_configs_are_locked():
    config = base.get_config()
    with pytest.raises(AttributeError, match="momentun"):
        config.optim.momentun = 0.8
    assert isinstance(config.optim, ConfigDict)


def test_configs_import_no_jax():
    code = (
        "import sys, configs.base, configs.finetune, jaxcls.config; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
