"""The contact sheet: it shows what the network gets, and what that was made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from PIL import Image, ImageDraw, ImageFont

from configs import augment
from jaxcls import choices, precision, preview, program, steps
from jaxcls.data import device, sources
from jaxcls.data.feed import Feed
from jaxcls.objectives import Objective


class Remember(nn.Module):
    """A network whose statistics are its last input."""

    @nn.compact
    def __call__(self, image, train=False):
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(image.shape))
        seen.value = image
        return {"logits": nn.Dense(3)(image.reshape(len(image), -1))}


@pytest.mark.parametrize("k", [1, 2])
def test_it_is_what_the_train_step_gives_to_the_network(k):
    batch = {"image": np.arange(16 * 12, dtype=np.float32).reshape(16, 2, 2, 3),
             "label": np.arange(16, dtype=np.int32)}  # fmt: skip

    def prepare(keys, batch, step):
        noise = jax.random.normal(keys.erase, batch["image"].shape)
        return {**batch, "image": batch["image"] + noise + 1000 * step}

    model, tx = Remember(), optax.with_extra_args_support(optax.sgd(0.1))
    train_step = steps.make_train_step(
        model,
        tx,
        Objective(lambda outputs, batch, aux: (outputs["logits"].sum() * 1e-9, {}), None),
        prepare=prepare,
        learning_rate=lambda step: 0.1,
        accumulate_steps=k,
    )
    scale = precision.make(**runs.tiny("plain").precision, platform="cpu").initial_loss_scale()
    state = steps.init_state(model, tx, scale, (2, 2, 3), seed=7)
    prepared = device.in_a_run(prepare, seed=7, accumulate_steps=k)
    for step in range(3):
        shown = jax.jit(prepared)(step, batch)
        np.testing.assert_array_equal(shown["label"], batch["label"])
        # the statistics are those of the last micro-batch, rows k - 1, 2k - 1, ...
        state = state.replace(batch_stats={"seen": jnp.zeros((16 // k, 2, 2, 3))})
        state, _ = jax.jit(train_step)(state, batch)
        np.testing.assert_array_equal(state.batch_stats["seen"], shown["image"][k - 1 :: k])


def digits(**changes):
    """Returns a config whose images reach the network unchanged but for what `changes` say."""
    config = runs.tiny("plain")
    config.crop.name, config.crop.shift, config.crop.flip = "center", 0, 0.0
    config.image.size, config.mix.mixup, config.mesh.data = 16, 0.0, 1  # 16: as in the data
    config.update_from_flattened_dict(changes)
    return config


def pixels_of(config):
    data = sources.open(**config.data, image_size=config.image.size)
    items = [data.train[i] for i in range(len(data.train))]
    return np.stack([i["image"] for i in items]), np.array([i["label"] for i in items])


def shrunk(originals):
    return originals[:, 3::6, 3::6]  # 16 pixels were enlarged to 96


def test_plain_images_and_their_originals():
    config = digits()
    originals, images, labels = preview.preview(config, images=20, step=9)
    assert originals.shape == (20, 96, 96, 1)
    assert images.shape == (20, 16, 16, 1)
    np.testing.assert_array_equal(originals, images.repeat(6, 1).repeat(6, 2))
    source, truth = pixels_of(config)
    for image, [(weight, name)] in zip(images, labels):
        found = (source == image).all((1, 2, 3))
        assert found.any()
        assert weight == 1
        assert name in {str(label) for label in truth[found]}
    # of that step, not of another one, and always the same
    again, *_ = preview.preview(config, images=20, step=9)
    other, *_ = preview.preview(config, images=20, step=10)
    np.testing.assert_array_equal(again, originals)
    assert (other != originals).any()


def test_a_batch_that_is_smaller_is_shown_whole():
    originals, images, labels = preview.preview(digits(), images=500, step=0)
    assert len(originals) == len(images) == len(labels) == 128


def test_mixed_images_are_their_originals_with_the_weights_below():
    config = digits(**{"mix.mixup": 1.0, "model.bn_group": 8, "optim.accumulate_steps": 2})
    originals, images, labels = preview.preview(config, images=128, step=3)
    plain = shrunk(originals).astype(float)
    names = [name for (_, name), _ in labels]
    for row, (image, [(lam, _), (rest, other)]) in enumerate(zip(images, labels)):
        assert lam + rest == pytest.approx(1)
        mixed = [lam * plain[row] + rest * plain[j] for j in range(128) if names[j] == other]
        assert min(abs(image - m).max() for m in mixed) < 0.51  # rounded


@pytest.mark.ci
def test_augmented_images_are_those_of_training():
    changes = {
        "augment.policy": "randaugment",
        "erase.name": "random_erasing",
        "erase.ramp": "8 steps",
        "mix.cutmix": 1.0,
        "mix.prob": 0.9,
    }
    config = digits(**changes, **{"crop.name": "shift", "crop.shift": 2, "crop.flip": 0.5})
    _, images, labels = preview.preview(config, images=128, step=5)
    config, data = choices.open_data(config)
    built = program.build(config, num_train=len(data.train), num_classes=10)
    feed = Feed(data, data.train, built.transform, built.layout)
    with feed.train_batches(built.plan, config.seed, start_step=0) as batches:
        batch = [next(batches) for _ in range(6)][5]
    prepared = built.prepare(np.int32(5), batch)
    normal = (images / 255 - config.image.mean[0]) / config.image.std[0]
    inside = (images > 0) & (images < 255)  # clipped otherwise
    assert inside.mean() > 0.3
    half = 0.5 / 255 / config.image.std[0] + 1e-5  # of rounding
    assert abs(normal - prepared["image"])[inside].max() < half
    np.testing.assert_allclose([row[0][0] for row in labels], prepared["lam"], atol=1e-6)
    assert [row[0][1] for row in labels] == [str(label) for label in prepared["label"]]


@pytest.mark.parametrize(("images", "step", "message"), [
    (4, 30, "--step=30: the run has the steps 0 to 29"),
    (4, -1, "--step=-1"),
    (0, 0, "--images=0: write a number of at least 1"),
])  # fmt: skip
def test_numbers_out_of_range(images, step, message):
    with pytest.raises(ValueError, match=message):
        preview.preview(digits(), images=images, step=step)


# -- The sheet -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_every_tile_is_where_it_belongs(channels):
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 200, (10, 96, 96, channels), np.uint8)
    images = rng.integers(0, 200, (10, 48, 48, channels), np.uint8)
    labels = [[(0.25, "a"), (0.75, "b")], *[[(1.0, "c")]] * 9]
    got = np.asarray(preview.sheet(originals, images, labels, "title"))
    places = []
    for before, after in zip(originals, images.repeat(2, 1).repeat(2, 2)):
        pair = [np.broadcast_to(tile, (96, 96, 3)) for tile in (before, after)]
        corners = np.argwhere((got[:-95, :-95] == pair[0][0, 0]).all(-1))
        found = [(y, x) for y, x in corners if (got[y : y + 96, x : x + 96] == pair[0]).all()]
        assert len(found) == 1
        y, x = found[0]
        beside = got[y : y + 96, x + 96 : x + 2 * 96 + 2 * preview.GAP]
        assert any((beside[:, i : i + 96] == pair[1]).all() for i in range(2 * preview.GAP))
        assert (got[y + 96 : y + 110, x : x + 96] < 100).any(), "no label below"
        places.append((y, x))
    assert places == sorted(places)


def test_long_names_are_shortened():
    font = ImageFont.load_default(13)
    assert preview.shortened("tench", 100) == "tench"
    name = "Greater Swiss Mountain dog, a very large one"
    short = preview.shortened(name, 150)
    assert short.endswith("...")
    assert name.startswith(short[:-3])
    assert 130 < font.getlength(short) <= 150
    assert preview.shortened("x" * 10**6, 100).endswith("xxx...")


@pytest.mark.parametrize("fonts", [(), preview.FONT_FOLDERS])
def test_names_of_any_script(fonts, monkeypatch):
    """No two names look the same, as boxes or question marks do: letters, or else their numbers."""
    for f in (preview._font, preview._system_fonts):
        f.cache_clear()
    monkeypatch.setattr(preview, "FONT_FOLDERS", fonts)
    names = ["\u4e2d\u6587", "\u732b\u72d7", "\u0642\u0637", "\U0001f600", "\U0001f601", "a\nb"]
    names += ["\xdc", "\xc4", "\u0416", "\udcff", "\u202e", "tench"]
    looks = []
    for name in names:
        image = Image.new("L", (200, 20), "white")
        preview.write(ImageDraw.Draw(image), (0, 0), name)
        looks.append(image.tobytes())
    assert len(set(looks)) == len(names)
    if not fonts:
        assert preview._width("\u4e2d") == preview._width(r"\u4e2d")
        assert preview._width("a\nb") == preview._width(r"a\nb")
    assert preview._width("tench") == ImageFont.load_default(13).getlength("tench")
    for f in (preview._font, preview._system_fonts):
        f.cache_clear()


def test_large_images_are_made_smaller_and_keep_their_shape():
    original = preview.Original(size=32, channels=3, exif=True)
    image = np.zeros((400, 200, 3), np.uint8)
    got = original(image, None)
    assert got.shape == (32, 32, 3)
    assert (got[:, :8] == 255).all()
    assert (got[:, 8:24] == 0).all()
    assert (got[:, 24:] == 255).all()
    grey = preview.Original(size=32, channels=1, exif=True)(image[:16, :8], None)
    assert grey.shape == (32, 32, 1)


# -- The command ---------------------------------------------------------------------------------


def command(*arguments):
    return preview.main(["preview", *map(str, arguments)])


@pytest.mark.ci
def test_the_command_writes_a_sheet(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    options = ("--images=6", "--step=2", "--config.mesh.data=1", "--config.erase.name=cutout")
    code = command(f"--config={runs.TINY}:plain", f"--out={out}", *options,
                   "--config.erase.length=4")  # fmt: skip
    assert (code, capsys.readouterr().err) == (0, "")
    with Image.open(out) as image:
        assert image.mode == "RGB"
        assert image.width > 6 * 2 * 96


@pytest.mark.parametrize(("arguments", "message"), [
    (["--out=x.png"], "--config is missing"),
    ([f"--config={runs.TINY}"], "--out is missing"),
    ([f"--config={runs.TINY}", "--out=x.png", "--imagse=3"], "unknown flag --imagse: did you mean"),
    ([f"--config={runs.TINY}", "--out=x.png", "--config.erase.nmae=3"], "config.erase.nmae"),
    ([f"--config={runs.TINY}", "--out=x.png", "--config.mesh.data=1", "--config.erase.name=cutuot"],
     "did you mean cutout"),
    ([f"--config={runs.TINY}", "--out=none/x.png"], "--out=none/x.png: there is no folder none"),
    ([f"--config={runs.TINY}", "--out=x.dat"], "--out=x.dat: write the name of an image file, "),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -- The recipes ---------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize("name", augment.NAMES)
def test_recipes_can_be_built(name):
    config = augment.get_config(name)
    config.mesh.data = 1
    built = program.build(config, num_train=1_281_167, num_classes=1000)
    epochs, batch = (360, 1024) if name == "ssld_v2" else (300, 256)
    assert built.plan.total_steps == epochs * (1_281_167 // batch)
    policy = {"autoaugment", "randaugment", "ssld_v2"}
    assert (built.transform.augment is not None) == (name in policy)
    image = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    prepared = jax.eval_shape(built.prepare, step, {"image": image, "label": label})
    assert prepared["image"].shape == image.shape
    assert ("lam" in prepared) == (name in {"mixup", "cutmix"})


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match=r"configs/augment.py:NAME, NAME being baseline, "):
        augment.get_config("cutot")
