"""Weights of a run, a checkpoint or an export: what is taken from them, and what is said of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_checkpoint import (
    NOTHING,
    array_file,
    assert_same,
    flip,
    make_state,
    noise,
    opened,
    save,
    small_files,
    steps_in,
)

from jaxcls import files, weights


def variables_of(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def test_load_accepts_a_workdir_its_checkpoints_one_of_them_and_an_export(tmp_path):
    save(tmp_path / "run/checkpoints", 1, 2)
    names = ["a", "b", "c", "d"]
    for path, step in (("run", 2), ("run/checkpoints", 2), ("run/checkpoints/1", 1)):
        variables, meta = weights.load(tmp_path / path, average="")
        assert_same(variables, variables_of(make_state(step)))
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(variables))
        assert meta == {"step": step, "class_names": names} | NOTHING
        variables, _ = weights.load(tmp_path / path)
        assert_same(variables, make_state(step).ema)
    weights.export(tmp_path / "out/weights", variables, {"model": "Tiny", "class_names": names})
    with pytest.raises(ValueError, match="out/weights has no average 'ema'"):
        weights.load(tmp_path / "out/weights", average="ema")
    for average in (None, ""):
        exported, meta = weights.load(tmp_path / "out/weights", average=average)
        assert_same(exported, variables)
        assert meta == {"model": "Tiny", "class_names": names}


def test_a_home_directory_that_the_shell_has_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "run/checkpoints", 1)
    assert weights.exists("~/run")
    assert_same(weights.load("~/run")[0], make_state(1).ema)


def test_load_takes_the_weights_where_there_is_no_average(tmp_path):
    save(tmp_path, 1, ema=False)
    variables, _ = weights.load(tmp_path)
    assert_same(variables, variables_of(make_state(1, ema=False)))


def test_load_passes_over_a_damaged_checkpoint_of_a_run_and_touches_nothing(tmp_path):
    save(tmp_path, 1, 2)
    flip(array_file(tmp_path / "2"))
    lines = []
    _, meta = weights.load(tmp_path, report=lines.append)
    assert meta["step"] == 1
    assert len(lines) == 1
    assert f"{tmp_path / '2'} is damaged" in lines[0]
    assert steps_in(tmp_path) == [1, 2]
    with pytest.raises(ValueError, match=r"no intact checkpoint .*is not what was written"):
        weights.load(tmp_path / "2", report=lines.append)


def test_load_without_a_checkpoint(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{path}: no checkpoint there; give a run's"):
            weights.load(path)


def test_an_export_does_not_overwrite(tmp_path):
    with pytest.raises(ValueError, match="exists: choose another"):
        weights.export(tmp_path, variables_of(make_state(1)), {})


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path):
    with small_files(100_000), pytest.raises(files.SaveError, match="could not be written"):
        weights.export(tmp_path / "out", {"params": noise(200_000)}, {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(files.SaveError, match=r"file/sub/out could not be written: .*Not a dir"):
        weights.export(tmp_path / "file/sub/out", {"params": noise(10)}, {})


def initialize(variables, directory, **changes):
    """Returns (variables, the report)."""
    lines = []
    network = {"name": "", "options": {}, "num_classes": 4, "class_names": ()}
    network = {key: changes.pop(key, value) for key, value in network.items()}
    arguments = {"network": network, "checkpoint": directory, "ema": False} | changes
    return weights.initialize(variables, report=lines.append, **arguments), lines


def test_fine_tuning_takes_everything_but_the_head_of_other_classes(tmp_path):
    save(tmp_path, 1)
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    fresh = variables_of(make_state(9, classes=6, dtype=jnp.bfloat16))
    sharding = NamedSharding(mesh, PartitionSpec())
    fresh = jax.device_put(fresh, jax.tree.map(lambda x: sharding, fresh))
    variables, lines = initialize(fresh, tmp_path, num_classes=6, class_names=list("uvwxyz"))
    expected = variables_of(make_state(1))
    expected["params"]["head"] = fresh["params"]["head"]
    kernel = expected["params"]["stem"]["conv1"]["kernel"].astype(jnp.bfloat16)
    expected["params"]["stem"]["conv1"]["kernel"] = kernel
    assert_same(variables, expected)
    assert all(x.sharding == sharding for x in jax.tree.leaves(variables))
    assert lines == [
        f"initialised 5 of 7 tensors from {tmp_path}",
        "  not taken: params/head/fc/bias (4 classes in the checkpoint, 6 here)",
        "  not taken: params/head/fc/kernel (4 classes in the checkpoint, 6 here)",
    ]


@pytest.mark.parametrize(
    ("class_names", "taken"), [("abcd", True), ("abcx", False), ((), True), ("abcde", True)]
)
def test_fine_tuning_with_as_many_classes_looks_at_their_names(tmp_path, class_names, taken):
    save(tmp_path, 1)
    fresh = variables_of(make_state(9))
    variables, lines = initialize(fresh, tmp_path, class_names=tuple(class_names))
    head = make_state(1 if taken else 9).params["head"]
    assert_same(variables["params"]["head"], head)
    assert_same(variables["params"]["stage1"], make_state(1).params["stage1"])
    line = "  not taken: params/head/fc/kernel (the classes have other names)"
    assert (line in lines) == (not taken)


def test_fine_tuning_from_weights_without_a_classifier(tmp_path):
    variables = jax.tree.map(np.asarray, variables_of(make_state(1)))
    del variables["params"]["head"]
    weights.export(tmp_path / "converted", variables, {})
    fresh = variables_of(make_state(9))
    started, lines = initialize(fresh, tmp_path / "converted")
    assert_same(started["params"]["head"], fresh["params"]["head"])
    assert_same(started["params"]["stem"], variables["params"]["stem"])
    assert lines[1] == "  not taken: params/head/fc/bias (the checkpoint has no classifier)"
    with pytest.raises(ValueError, match="head/fc/kernel: the checkpoint has no classifier"):
        initialize(fresh, tmp_path / "converted", strict=True)  # an evaluation needs one


def test_converted_weights_need_the_options_they_were_converted_with(tmp_path):
    variables = jax.tree.map(np.asarray, variables_of(make_state(1)))
    meta = {"options": {"padding": None, "stem": (64, 3)}}
    weights.export(tmp_path / "converted", variables, meta)
    fresh = variables_of(make_state(9))
    started, _ = initialize(fresh, tmp_path / "converted", options={"stem": (64, 3)})
    assert_same(started, variables)
    with pytest.raises(ValueError, match=r"with stem = \[64, 3\], this one has None: set it in"):
        initialize(fresh, tmp_path / "converted")


def test_fine_tuning_from_the_average_and_with_reset(tmp_path):
    save(tmp_path, 1)
    reset = ("^stage1/", "fc/bias$")
    variables, lines = initialize(variables_of(make_state(9)), tmp_path, ema=True, reset=reset)
    fresh, average = make_state(9), make_state(1).ema
    assert_same(variables["batch_stats"], fresh.batch_stats)
    assert_same(variables["params"]["stage1"], fresh.params["stage1"])
    assert_same(variables["params"]["stem"], average["params"]["stem"])
    assert_same(
        variables["params"]["head"]["fc"]["kernel"], average["params"]["head"]["fc"]["kernel"]
    )
    assert "  not taken: batch_stats/stage1/bn1/var (config.init.reset)" in lines
    assert lines[0].startswith("initialised 2 of 7 tensors")


def test_fine_tuning_from_another_model_names_every_tensor(tmp_path):
    save(tmp_path, 1)
    fresh = variables_of(make_state(9))
    fresh["params"]["stem"]["conv1"]["kernel"] = jnp.zeros((3, 3, 2, 9))
    fresh["params"]["neck"] = {"bias": jnp.zeros(3)}
    del fresh["batch_stats"]["stage1"]["bn1"]["var"]
    with pytest.raises(ValueError, match=r"config.init.checkpoint = .* does not fit") as e:
        initialize(fresh, tmp_path)
    for line in (
        "params/stem/conv1/kernel: float32[3,3,2,8] in the checkpoint, float32[3,3,2,9] in the",
        "params/neck/bias: not in the checkpoint",
        "batch_stats/stage1/bn1/var: not in the model",
    ):
        assert line in str(e.value)
    assert "head" not in str(e.value)
    reset = ("^stem/conv1", "^neck/", "/var$")
    _, lines = initialize(fresh, tmp_path, reset=reset)
    assert lines[0].startswith("initialised 5 of 7 tensors")


def test_fine_tuning_from_another_network_names_both(tmp_path):
    with opened(tmp_path) as (checkpoints, _):
        checkpoints.save(1, make_state(1), {"model": "ResNet18_vd"})
    other = variables_of(make_state(9, width=16))
    for strict in (False, True):
        with pytest.raises(ValueError, match="is ResNet18_vd, the config asks for ResNet50_vd"):
            initialize(other, tmp_path, name="ResNet50_vd", strict=strict)


def test_a_long_list_of_tensors_is_cut(tmp_path):
    save(tmp_path, 1)
    fresh = variables_of(make_state(9))
    fresh["params"]["stage2"] = {f"conv{i}": {"kernel": jnp.zeros(3)} for i in range(30)}
    with pytest.raises(ValueError, match=r"; and 20 more$") as e:
        initialize(fresh, tmp_path)
    assert str(e.value).count("not in the checkpoint") == 10
    _, lines = initialize(fresh, tmp_path, reset=("^stage2/",))
    assert len(lines) == 12
    assert lines[-1] == "  and 20 more that were not taken"


def test_an_evaluation_with_other_classes_names_them(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(
        ValueError, match=r"other names in checkpoint .*: class 3 is 'd' there, 'x'"
    ):
        initialize(variables_of(make_state(9)), tmp_path, class_names=tuple("abcx"), strict=True)


def test_a_hidden_layer_of_the_head_is_no_classifier(tmp_path):
    save(tmp_path, 1)
    other = variables_of(make_state(9, width=16))
    with pytest.raises(ValueError, match="does not fit") as e:
        initialize(other, tmp_path)
    assert "params/head/fc/kernel: float32[8,4] in the checkpoint" in str(e.value)


def test_a_reset_that_matches_nothing(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"config.init.reset: '\^haed/' matches no parameter"):
        initialize(variables_of(make_state(9)), tmp_path, reset=("^haed/",))
