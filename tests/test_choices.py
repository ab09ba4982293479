"""What a config leaves open: the rules, what a checkpoint brings along, what is kept."""

import json
import types

import cv2
import jax
import numpy as np
import pytest
import runs

from configs import base, finetune
from jaxcls import choices, models, program, weights
from jaxcls.config import OPEN, check, flatten, plan
from jaxcls.data import folders
from jaxcls.data.ops import transformed

CPU, TPU = (types.SimpleNamespace(platform=platform) for platform in ("cpu", "tpu"))


def settled(images=400, pixels=300, weights="", devices=(CPU,), **keys):
    """Returns what is chosen, with `keys` set (lr_peak for lr.peak), and the line about it."""
    config = finetune.get_config()
    for key, value in keys.items():
        config.update_from_flattened_dict({key.replace("_", ".", 1): value})
    config, line = choices.settled(
        config, images=images, pixels=pixels, weights=weights, devices=list(devices)
    )
    return config, line


def weights_of(path, name, num_classes=3, meta=(), **options):
    """Writes weights that are all zero."""
    module = models.build(name, num_classes=num_classes, **options)
    image = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(shapes))
    weights.export(path, zeros, {"model": name, "class_names": None, **dict(meta)})
    return str(path)


def test_nothing_is_left_open_and_what_is_set_stays():
    config, _ = settled()
    check(config)
    values = flatten(config)
    assert [key for key in OPEN if values[key] is None] == ["data.eval_fraction"]
    kept = {"batch_size": 5, "duration": "7 epochs", "lr.peak": 0.5, "image.size": 100}
    kept |= {"optim.frozen": ("^stem/",), "model.name": "GoogLeNet", "model.options": ()}
    config = finetune.get_config()
    config.update_from_flattened_dict(kept)
    config, _ = choices.settled(config, images=400, pixels=300, weights="", devices=[CPU])
    assert {key: flatten(config)[key] for key in kept} == kept
    closed = base.get_config()
    assert choices.settled(closed, images=9, pixels=9, weights="", devices=[CPU])[0] == closed


def test_choices_follow_what_is_set():
    config, _ = settled(duration="40 steps")
    assert (config.lr.warmup, config.eval.every) == ("2 steps", "4 steps")
    assert settled(optim_name="adamw")[0].optim.l2 == 0.0
    assert settled(model_name="GoogLeNet")[0].model.options == ()
    assert settled(image_size=256)[0].image.eval_resize == 292
    assert settled(pixels=32, crop_name="random_resized")[0].crop.shift == 0
    assert [settled(pixels=40, image_size=n)[0].crop.shift for n in (1, 40, 80)] == [0, 5, 10]
    assert settled(model_name="GoogLeNet")[1].startswith("GoogLeNet from scratch")
    for config in (settled(optim_name="adamw")[0], settled(pixels=32, image_size=24)[0]):
        config.mesh.data = 1
        program.build(config, num_train=400, num_classes=5)


@pytest.mark.parametrize(
    ("images", "devices", "batch"),
    [(2, 1, 2), (9, 1, 8), (32, 1, 8), (63, 1, 8), (64, 1, 16), (400, 1, 32), (10**6, 1, 32),
     (400, 8, 32), (40, 8, 8), (400, 24, 48)],
)  # fmt: skip
def test_the_batch_fits_images_and_devices(images, devices, batch):
    config, _ = settled(images=images, devices=[CPU] * devices)
    assert config.batch_size == batch
    lengths = plan(config, max(images, batch))
    assert lengths.total_steps >= 2000 - lengths.steps_per_epoch
    assert lengths.total_steps // lengths.eval_every == 10
    assert lengths.save_every == lengths.eval_every


def test_a_plateau_needs_evaluation_images(tmp_path):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8, 3), 60 * i, np.uint8))
    (tmp_path / "train_list.txt").write_text("0.png 0\n1.png 1\n2.png 0\n3.png 1\n")
    config = base.get_config()
    config.data.source, config.data.root, config.batch_size = "list", str(tmp_path), 4
    assert choices.open_data(config)[1].eval is None
    config.lr.schedule = "plateau"
    with pytest.raises(ValueError, match=r"lr.schedule = 'plateau' .* set config.data.eval, or"):
        choices.open_data(config)


def test_nothing_is_computed_with_a_key_that_is_open():
    config = finetune.get_config()
    with pytest.raises(ValueError, match=r"not set, .*config\.model\.name, .*config\.lr\.peak"):
        program.build(config, num_train=400, num_classes=5)


@pytest.mark.parametrize("pixels", [8, 16, 32, 33, 64, 65, 100, 224, 3000])
def test_a_network_for_a_processor(pixels):
    """It can be built and trained at the size that is chosen, and costs about the same at any."""
    config, line = settled(pixels=pixels)
    assert line.startswith("no accelerator: a small ResNet18_vd from scratch")
    assert 16 <= config.image.size <= max(16, min(pixels, 128))
    config.mesh.data = 1
    built = program.build(config, num_train=400, num_classes=5)
    assert sum(x.size for x in jax.tree.leaves(built.abstract_state.params)) < 1.5e6
    assert settled(pixels=pixels, devices=(TPU,))[0].model.name == "ResNet50_vd"


def test_a_checkpoint_brings_its_network(tmp_path):
    small = weights_of(tmp_path / "small", "ResNet18_vd", depths=(1, 1), width=8, meta={
        "network": {"name": "ResNet18_vd", "options": {"depths": [1, 1], "width": 8}},
        "image": {"size": 48, "mean": [0.5], "std": [0.25], "crop": "shift", "shift": 3,
                  "interpolation": "bicubic"},
    })  # fmt: skip
    config, line = settled(weights=small)
    assert line == f"ResNet18_vd of {small}"
    assert dict(config.model.options) == {"depths": (1, 1), "width": 8}
    image, crop = config.image, config.crop
    assert (image.size, image.mean, crop.name, crop.shift) == (48, (0.5,), "shift", 3)
    assert image.interpolation == "bicubic"
    assert (config.optim.frozen, config.optim.lr_mults, config.duration) == ((), (), "600 steps")
    config.mesh.data = 1
    program.build(config, num_train=400, num_classes=5)  # the rules match its names

    # converted weights know the name, and options that change what is computed
    other = weights_of(
        tmp_path / "other", "MobileNetV1", meta={"options": {"bn_epsilon": 0.125}}, num_classes=2
    )
    config, _ = settled(weights=other, devices=(TPU,), optim_layer_decay=0.7)
    assert config.optim.lr_mults == ()  # a rate of each layer instead
    config, _ = settled(weights=other, devices=(TPU,), lr_schedule="one_cycle")
    assert (config.lr.warmup, config.lr.peak) == ("", 0.00375)  # it rises by itself
    for devices, frozen in (((CPU,), True), ((TPU,), False)):
        config, line = settled(weights=other, devices=devices)
        assert (config.model.name, config.image.size) == ("MobileNetV1", 224)
        assert config.model.options == (("bn_epsilon", 0.125),)
        assert bool(config.optim.frozen) == frozen == line.startswith("no accelerator: only the he")
        assert bool(config.optim.lr_mults) != frozen
        config.mesh.data = 1
        built = program.build(config, num_train=400, num_classes=5)
        assert built.plan.total_steps == (150 if frozen else 300)


def test_larger_images_than_those_of_the_checkpoint(tmp_path):
    """Evaluation shrinks them as training does; not the centre at their own scale."""
    for i, shade in enumerate((60, 190)):
        (tmp_path / "images" / f"class{i}").mkdir(parents=True)
        for name in "abcde":
            image = np.full((200, 200, 3), shade, np.uint8)
            image[80:120, 80:120] = 255 - shade  # a fifth of the side, not the whole of it
            cv2.imwrite(str(tmp_path / "images" / f"class{i}" / f"{name}.png"), image)
    weights = weights_of(tmp_path / "weights", "ResNet18_vd", depths=(1,), width=8, meta={
        "network": {"name": "ResNet18_vd", "options": {"depths": [1], "width": 8}},
        "image": {"size": 20, "eval_resize": 0, "crop": "shift", "shift": 0},
    })  # fmt: skip
    config = finetune.get_config()
    config.data.root, config.init.checkpoint = str(tmp_path / "images"), weights
    config, data = choices.open_data(config)
    built = program.build(config, num_train=len(data.train), num_classes=2)
    item = data.eval[0]
    trained = transformed(item, built.transform, np.random.default_rng(0))
    np.testing.assert_array_equal(transformed(item, built.network.transform, None), trained)


def test_a_checkpoint_that_does_not_say_its_options(tmp_path):
    older = weights_of(tmp_path / "older", "MobileNetV1", num_classes=2)
    config, line = settled(weights=older)
    assert (config.model.name, config.model.options) == ("MobileNetV1", ())
    assert line.endswith("; built as published, since the checkpoint does not say its options")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"model": 3}, "its meta data are not those of jaxcls"),
        ({"options": [1]}, "its meta data are not those of jaxcls"),
        ({"class_names": "cat"}, "its meta data are not those of jaxcls"),
        ({"network": ["VGG11"]}, "its meta data are not those of jaxcls"),
        (
            {"network": {"name": "VGG"}},
            "network and images .ValueError..unknown model 'VGG': did you",
        ),
        ({"network": {"name": ["VGG11"], "options": {}}}, "do not tell network and images"),
        ({"network": {"name": "VGG11", "options": [1]}}, "do not tell network and images"),
        ({"model": None}, "do not tell network and images"),
        ({"image": {"colour": 3}}, "do not tell network and images .KeyError..image.colour"),
        ({"image": {"size": "large"}}, "do not tell network and images"),
    ],
)
def test_meta_data_of_another_kind(tmp_path, meta, message):
    path = weights_of(tmp_path / "weights", "SqueezeNet1_1", meta=meta.items())
    with pytest.raises(ValueError, match=message):
        settled(weights=path)


def test_images_that_no_rule_names(tmp_path):
    for i, (height, width) in enumerate([(40, 90), (80, 60), (70, 200)]):
        (tmp_path / f"class{i}").mkdir()
        for name in "abc":
            image = np.zeros((height, width, 3), np.uint8)
            cv2.imwrite(str(tmp_path / f"class{i}" / f"{name}.png"), image)
    (tmp_path / "class0" / "broken.jpg").write_bytes(b"no image")
    config = finetune.get_config()
    config.data.root = str(tmp_path)
    lines = []
    settled_config, data = choices.open_data(config, report=lines.append)
    assert len(lines) == 1
    assert (len(data.train), len(data.eval)) == (7, 3)  # a fifth of each class, at least one
    assert choices.short_side(data.train) in (40, 60, 70)
    # what a run has chosen stays, whatever the images are now
    chosen = json.loads(settled_config.to_json_best_effort()) | {"batch_size": 3}
    run = tmp_path.parent / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(chosen))
    again, _ = choices.open_data(config, workdir=str(run), report=lines.append)
    assert again.batch_size == 3
    assert len(lines) == 1


def test_images_that_cannot_be_looked_at(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.zeros((30, 40, 3), np.uint8))
    (tmp_path / "a" / "bomb.ppm").write_bytes(b"P6 60000 60000 255\n")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere")
    (tmp_path / "b" / "other.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 7 7\n%%EndComments\n"
    )
    data, _ = folders.open_folder(root=str(tmp_path), train="", eval="", eval_fraction=0.0)
    assert choices.short_side(data) == 30


def test_all_layers_are_trained_for_8_bits(tmp_path):
    large = weights_of(tmp_path / "large", "ResNet18_vd")
    assert settled(weights=large)[0].optim.frozen
    config, line = settled(weights=large, model_quantise="int8")
    assert line.startswith(f"ResNet18_vd of {large}, trained for int8")
    assert (config.optim.frozen, config.optim.lr_mults) == ((), ())
    assert (config.lr.peak, config.duration) == (0.00375, "300 steps")


@pytest.mark.ci
def test_fine_tuning_needs_no_key_of_the_network(commands, tmp_path):
    """Fine-tuning from a run of another network needs no key but these two."""
    first = tmp_path / "first"
    done = commands.fork(
        f"--config={runs.TINY}:plain", f"--workdir={first}", "--config.duration=3 steps",
        "--config.lr.warmup=",
    )  # fmt: skip
    assert done.returncode == 0, done.err
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for name in ("dark", "light"):
        (root / name).mkdir(parents=True)
        for i in range(12):
            image = rng.integers(0, 128, (20, 24, 3), np.uint8) + 127 * (name == "light")
            cv2.imwrite(str(root / name / f"{i}.png"), image)
    second = tmp_path / "second"
    command = (
        f"--config={runs.ROOT / 'configs' / 'finetune.py'}", f"--config.init.checkpoint={first}",
        f"--config.data.root={root}", f"--workdir={second}", "--config.duration=4 steps",
    )  # fmt: skip
    done = commands.fork(*command)
    assert done.returncode == 0, done.err
    assert f"of {first}" in done.out
    again = commands.fork(f"--workdir={second}", "--mode=eval")
    assert again.returncode == 0, again.err
    last = runs.lines(second)[-1]
    assert json.loads(again.out)["loss"] == pytest.approx(last["loss"], rel=1e-5)
