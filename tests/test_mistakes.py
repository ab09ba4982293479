"""Mistakes on the command line and in configs: one line that names the key; nothing is computed.

In process: parsing, opening the data and `program.build`, which follows shapes alone.
"""

import errno
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from absl import flags

from jaxcls import choices, command, evaluate, names, output, program, recipes, record, train
from jaxcls.config import OPEN, consuming, defaults, flatten, run_file
from jaxcls.data import sources
from jaxcls.synonyms import SYNONYMS

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "configs" / "digits.py"
TYPED = [
    line.split("\t")
    for line in (ROOT / "tests" / "golden" / "mistakes.tsv").read_text().splitlines()
]
KEYS, KINDS = defaults()


def parsed(*arguments):
    """Returns the config of a command line."""
    values = flags.FlagValues()
    command.define_config(values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    command.parse(["main", *map(str, arguments)], values, required=("workdir",))
    return values.config


@pytest.fixture(autouse=True, scope="module")
def images_that_are_opened_once():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sources, "open", functools.cache(sources.open))
        yield


def said(*arguments, config=DIGITS):
    """Returns what is said of mistakes in addition to a good command; "ok" if nothing is."""
    try:
        built = parsed(f"--config={config}", "--workdir=run", "--config.mesh.data=1", *arguments)
        names.check(built)
        built, data = choices.open_data(built)
        program.build(built, **data.facts())
    except ValueError as e:
        return output.one_line(e)
    return "ok"


@pytest.mark.parametrize(("arguments", "text"), TYPED)
def test_what_was_typed(arguments, text):
    line = said(*re.split(r" (?=--)", arguments))
    assert text in line
    assert text == "ok" or line != "ok"


# -- Every key with every kind of rubbish ----------------------------------------------------------

OTHERS = (
    "data",
    "image",
    "crop",
    "augment",
    "erase",
    "mix",
    "loader",
    "precision",
)  # tested with them
RUBBISH = ("", "None", "abc", "-1", "nan", "1e30", str(2**64), "((1,2),('a',))", "{'a':1}", "0")
MORE = (
    *("null", "1", "2", "inf", "-inf", "1e-30", "1e39", str(2**31), f"-{2**64}", "0.5", "()"),
    *("(1,2)", "('a',)", "(('a',),)", "[1", "True", "\0", "é", "-1 epochs", "1e30 epochs"),
    *("3 steps", "(None,)", "(('a',1),)", "('.',)", "('',)", "('(',)", "((1,1),(1,1))"),
)


def named_or_fine(key, text):
    """Asserts that a value is taken, or refused in a line that names its key."""
    line = said(f"--config.{key}={text}")
    section = key.partition(".")[0]
    # two keys of an image can be at odds; a share of the data may leave too few for a batch
    others = {"image": "config.crop", "data": "config.batch_size"}
    near = f"config.{section}" in line or others.get(section, "config.?") in line
    assert line == "ok" or f"config.{key}" in line or (section in OTHERS and near)
    assert len(line) < 1500


@pytest.mark.ci
@pytest.mark.parametrize("key", [key for key in KEYS if key.partition(".")[0] not in OTHERS])
def test_rubbish(key):
    for text in RUBBISH:
        if not (text == "0" and KINDS[key] is str):  # a name like any other
            named_or_fine(key, text)


@pytest.mark.ci
@pytest.mark.parametrize("key", KEYS)
def test_more_rubbish(key):
    for text in MORE + RUBBISH:
        named_or_fine(key, text)


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_type_is_refused_by_its_key(key):
    wrong = {int: ("1.5", "x", "(1,2)"), float: ("x", "1/2", "(1,2)"), bool: ("maybe", "2")}
    for text in wrong.get(KINDS[key], ()):
        with pytest.raises(ValueError, match=rf"^config\.{key} = '.*': write "):
            parsed(f"--config={DIGITS}", "--workdir=run", f"--config.{key}={text}")
    section = key.rpartition(".")[0]
    with pytest.raises(ValueError, match=rf"^there is no config\.{key}x.*did you mean .*{key}"):
        parsed(f"--config={DIGITS}", "--workdir=run", f"--config.{key}x=1")
    if section:
        with pytest.raises(ValueError, match=rf"^config\.{section} is a section: write --config"):
            parsed(f"--config={DIGITS}", "--workdir=run", f"--config.{section}=1")


@pytest.mark.parametrize("key", KEYS)
def test_values_of_recipes_have_the_types_of_base(key, tmp_path):
    wrong = [{int: "True", float: "float('nan')"}.get(KINDS[key], "3")]
    wrong += ["None"] if KEYS[key] is not None and key not in OPEN else []
    recipe = tmp_path / "recipe.py"
    for value in wrong:
        recipe.write_text(
            "from configs import base\n\n\ndef get_config():\n    c = base.get_config()\n"
            f"    with c.ignore_type():\n        c.{key} = {value}\n    return c\n"
        )
        with pytest.raises(ValueError, match=rf"recipe.py: config\.{key} = .*: write "):
            recipes.read(str(recipe))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("(('dropout',1.5),)", "dropout = 1.5: write a number from 0 to below 1"),
        ("(('drop_path',1),)", "drop_path = 1: write a number"),
        ("(('width','wide'),)", "the network cannot be built"),
        ("(('depths',('a',)),)", "the network cannot be built"),
        ("(('depths',2),)", "the network cannot be built"),
        ("(('groups',0),)", "the network cannot be built"),
        ("(('width',-8),)", "write pairs"),
        ("(('width',float),)", "write pairs"),
        ("('width',8)", "write pairs"),
        ("width=8", "write pairs"),
        ("((1,2),)", "write pairs"),
        ("(('width',8,9),)", "write pairs"),
        ("(('width',{1:2}),)", "write pairs"),
        ("(('width',8),('width',16))", "'width': it is there twice"),
        ("(('bn_group',8),)", "'bn_group': there is config.model.bn_group"),
        ("(('num_classes',8),)", "'num_classes': there is config.model.num_classes"),
        (
            "(('dtype','float16'),)",
            "config.optim.frozen or an export sets it",
        ),
        ("(('widht',8),)", "ResNet18_vd takes no argument widht"),
    ],
)
def test_options_of_networks(options, text):
    line = said(f"--config.model.options={options}")
    assert line.startswith("config.model.")
    assert "config.model.options = " in line
    assert text in line


def test_options_may_set_what_no_key_sets():
    options = "--config.model.options=(('bn_epsilon',0.125),('stem','small'))"
    assert said(options) == "ok"
    assert "'bn_epsilon': there is config.model.bn_epsilon" in said(
        options, "--config.model.bn_epsilon=0.1"
    )
    text = "config.model.bn_epsilon = 2: write a number above 0 and below 1, or None"
    assert said("--config.model.options=(('bn_epsilon',2),)") == text


def test_small_images_are_blamed_on_their_size():
    line = said("--config.model.name=VGG11", "--config.model.options=()")
    assert line.startswith(
        "config.model.name = 'VGG11', config.image.size = 16: the network cannot"
    )
    assert "needs at least 32 x 32" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("optim.frozen=('.',)", "config.optim.frozen = ('.',) freezes every parameter"),
        ("optim.lr_mults=(('.',0.0),)", "is 0 for every parameter"),
        ("optim.no_decay=('',)", "config.optim.no_decay = ('',) leaves nothing that would decay"),
        ("optim.l2=0 optim.no_decay=bias", "config.optim.no_decay = ('bias',): nothing decays"),
        ("optim.momentum=0 optim.nesterov=True", "config.optim.nesterov = True does nothing"),
        ("ema.ramp=True", "config.ema.ramp = True does nothing without config.ema.decay"),
        ("eval.ema=False", "config.eval.ema = False does nothing without config.ema.decay"),
        ("init.reset=head", "config.init.reset = ('head',) does nothing without config.init.che"),
        ("init.ema=False", "config.init.ema = False does nothing without config.init.checkpoint"),
        ("loss.aux_weight=0.5", "config.loss.aux_weight = 0.5: the network has no auxiliary heads"),
        ("eval.every=0.001 epochs", "config.eval.every = '0.001 epochs' is less than a step"),
        ("log.every=1 examples", "config.log.every = '1 examples' is less than a step"),
        ("eval.every=1e12 steps", "config.eval.every = '1e12 steps' is 2^31 steps or more"),
    ],
)
def test_what_has_no_effect_is_refused(arguments, text):
    assert text in said(*(f"--config.{a}" for a in re.split(r" (?=\w+\.)", arguments)))


# -- None, and taking back what a recipe has set ---------------------------------------------------


@pytest.mark.parametrize("key", [key for key, value in KEYS.items() if value is None])
def test_none_can_be_typed_and_taken_back(key, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from configs import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n"
        f"    c.{key} = None if arg else {KINDS[key]('8')}\n    return c\n"
    )

    def value(arg, *texts):
        overrides = (f"--config.{key}={text}" for text in texts)
        return flatten(parsed(f"--config={recipe}{arg}", "--workdir=run", *overrides))[key]

    assert (value(""), value(":none")) == (8, None)
    for text in ("None", "none", "NONE", "null", " None"):
        assert value("", text) is None
    for arg, texts in ((":none", ["4"]), ("", ["None", "4"])):
        assert value(arg, *texts) == 4
        assert type(value(arg, *texts)) is KINDS[key]
    with pytest.raises(ValueError, match=rf"config\.{key} = 'No': write .*, or None"):
        value("", "No")


@pytest.mark.parametrize("text", ["None", "null"])
def test_none_is_refused_where_base_has_another_value(text):
    assert said(f"--config.lr.end={text}") == f"config.lr.end = '{text}': write a number"
    assert said(f"--config.checkpoint.keep={text}") == (
        f"config.checkpoint.keep = '{text}': write a whole number"
    )
    config = parsed(f"--config={DIGITS}", "--workdir=run", f"--config.lr.peak={text}")  # of OPEN
    with pytest.raises(ValueError, match="^not set, and only chosen"):
        program.build(config, num_train=898, num_classes=10)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.frozen", "stem", ("stem",)),
        ("optim.frozen", "^stem/", ("^stem/",)),
        ("optim.frozen", "(stem|head)/", ("(stem|head)/",)),
        ("optim.frozen", '("^stem/", "^stage1/")', ("^stem/", "^stage1/")),
        ("optim.frozen", r'("\d$",)', (r"\d$",)),
        ("optim.frozen", "[]", ()),
        ("optim.frozen", "", ()),
        ("optim.lr_mults", "[['stem', 0.1]]", (("stem", 0.1),)),
        ("crop.scale", "(1, 0.5)", (1, 0.5)),
        ("image.exif", "no", False),
        ("image.exif", "TRUE", True),
        ("lr.peak", "1e-3", 1e-3),
        ("lr.peak", "1", 1.0),
        ("seed", " 7 ", 7),
        ("data.root", "a=b", "a=b"),
    ],
)
def test_values_as_they_are_typed(key, text, value, recwarn):
    got = flatten(parsed(f"--config={DIGITS}", "--workdir=run", f"--config.{key}={text}"))[key]
    assert repr(got) == repr(value)
    assert not recwarn.list


def test_forms_of_the_command():
    plain = parsed(f"--config={DIGITS}", "--workdir=run", "--config.seed=3", "--config.lr.end=0.01")
    for arguments in (
        ("--config", DIGITS, "--workdir", "run", "--config.seed", "3", "--config.lr.end", "0.01"),
        ("--config.seed=3", "--config.lr.end=0.01", "--workdir=run", f"--config={DIGITS}"),
        (f"-config={DIGITS}", "-workdir=run", "-config.seed=3", "-config.lr.end=0.01"),
        ("--config.seed=1", f"--config={DIGITS}", "--workdir=run", "--config.seed=3",
         "--config.lr.end=0.01"),
    ):  # fmt: skip
        assert flatten(parsed(*arguments)) == flatten(plain)
    nested = parsed(f"--config={DIGITS}", "--workdir=run", "--config.log.tensorboard")
    assert nested.log.tensorboard is True
    assert plain.is_locked


# -- Hints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--lr=0.1", "unknown flag --lr: write --config.lr.peak=0.1"),
        ("--config.lr=0.1", "config.lr is a section: write --config.lr.peak=0.1"),
        ("--config.optim.lr=0.1", "there is no config.optim.lr: write --config.lr.peak=0.1"),
        ("--config.optim.wd=0.1", "write --config.optim.weight_decay=0.1"),
        ("--config.epochs=3", 'there is no config.epochs: write --config.duration="3 epochs"'),
        ("--epochs 3", 'unknown flag --epochs: write --config.duration="3 epochs"'),
        ("--batch_size=64", "unknown flag --batch_size: write --config.batch_size=64"),
        ("--batch-size=64", "unknown flag --batch-size: write --config.batch_size=64"),
        ("--optim.name=adam", "unknown flag --optim.name: write --config.optim.name=adam"),
        ("-lr=0.1", "unknown flag -lr: write --config.lr.peak=0.1"),
        ("-c x.py", "unknown flag -c: write --config="),
        ("--num_workers=4", "write --config.loader.workers=4"),
        ("--output_dir=x", "unknown flag --output_dir: write --workdir=x"),
        ("--resume", "unknown flag --resume: write --workdir="),
        ("--pretrained", "write --config.init.checkpoint=RUN"),
        ("--amp", "write --config.precision.name=bfloat16"),
        ("--evaluate", "write --mode=eval"),
        ("--gpus=2", "write --config.mesh.data=2"),
        ("--workdr=x", "unknown flag --workdr: did you mean workdir?"),
        ("--nonsense", "unknown flag --nonsense; see --help"),
        ("config.lr=0.1", "unexpected argument 'config.lr=0.1': write --config.lr.peak=0.1"),
        ("config.lr.peak=0.1", "write --config.lr.peak=0.1"),
        ("lr=0.1", "unexpected argument 'lr=0.1': write --config.lr.peak=0.1"),
        ("eval", "unexpected argument 'eval': write --mode=eval"),
        ("configs/digits.py", "write --config=configs/digits.py"),
        ("x", "unexpected argument 'x': every option begins with --"),
        ("-b 32", "unknown flag -b: write --config.batch_size=32"),
        ("-j4", "unknown flag -j4: write --config.loader.workers=4"),
        ("--workers 4", "unknown flag --workers: write --config.loader.workers=4"),
        ("--lr 1e-3", "unknown flag --lr: write --config.lr.peak=1e-3"),
        ("--weight-decay 1e-4", "write --config.optim.weight_decay=1e-4"),
        ("-o Global.epochs=10", 'unknown flag -o: write --config.duration="10 epochs"'),
        ("--eval", "unknown flag --eval: write --mode=eval"),
        ("--eval --config.seed=3", "unknown flag --eval: write --mode=eval"),
        ("--device cuda", "write JAX_PLATFORMS=cuda in the environment"),
        ("--val-split=val", "write --config.data.eval_fraction=VALUE"),
        ("--CONFIG.LR.PEAK=0.1", "write --config.lr.peak=0.1"),
        ("--config_lr_peak=0.1", "write --config.lr.peak=0.1"),
        (
            "--config.duration=4 epochs",
            """argument 'epochs': write --config.duration="4 epochs\"""",
        ),
        ("--config.duration 4 epochs", 'write --config.duration="4 epochs"'),
        ("--config.lr.peak= 0.1", "write --config.lr.peak=0.1, without a space"),
        ("--config.lr.peak = 0.1", "write --config.lr.peak=0.1, without spaces"),
        ("++lr.peak=0.1", "unexpected argument '++lr.peak=0.1': write --config.lr.peak=0.1"),
        ("--pdb", "unknown flag --pdb; see --help"),  # of absl
        ("--only_check_args", "unknown flag --only_check_args; see --help"),
        ("--log_dir=x", "unknown flag --log_dir: write --workdir=x"),
        ("-v=1", "unknown flag -v"),
        ("--config.model=ResNet18", "write --config.model.name=ResNet18"),
        ("--config.teacher.checkpoint=RUN", "write --config.teacher.checkpoints=RUN"),
        ("--config.loss.T=4", "write --config.loss.temperature=4"),
        ("--config.momentum=0.9", "did you mean optim.momentum?"),
        ("--config.Batch-Size=8", "there is no config.Batch-Size: write --config.batch_size=8"),
        ("--config.workdir=x", "there is no config.workdir: write --workdir=x"),
        ("--noconfig.image.exif", "write --config.image.exif=False"),
        ("--config.seed", "--config.seed needs a value: --config.seed=VALUE"),
        ("--mode=tran", "--mode=tran: value should be one of"),
        ("--process_id=two", "--process_id=two: "),
        ("--config=other.py", "--config is given twice, "),
        ("--config=", "--config needs a file"),
    ],
)
def test_hints(argument, text):
    assert text in said(*argument.split(" "))


def test_what_others_call_our_keys():
    for name, template in SYNONYMS.items():
        assert name == name.lower().replace("-", "_")
        target = template.partition("=")[0]
        if target in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
            continue
        if target.startswith("--"):
            known = "config workdir mode help num_processes process_id coordinator distributed"
            assert target[2:] in known.split()
        else:
            assert target in KEYS, name
        assert name not in KEYS, f"{name} is a key"


def test_flags_of_absl_that_would_do_nothing():
    for argument, text in (
        ("--pdb", "jaxcls: unknown flag --pdb; see --help\n"),
        ("--nologtostderr", "jaxcls: unknown flag --nologtostderr; see --help\n"),
        ("--log_dir=x", "jaxcls: unknown flag --log_dir: write --workdir=x\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "jaxcls.main", f"--config={DIGITS}", "--workdir=run", argument],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (2, text)


def test_missing_flags(tmp_path):
    with pytest.raises(ValueError, match="^--workdir is missing; see --help$"):
        parsed(f"--config={DIGITS}")
    with pytest.raises(ValueError, match=f"^--config is missing, and {tmp_path} is not a run that"):
        parsed(f"--workdir={tmp_path}")


# -- Config files ----------------------------------------------------------------------------------

BEGIN = "from configs import base\n\n\ndef get_config():\n    c = base.get_config()\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (BEGIN + "    return {'seed': 1}\n", "get_config() returns {'seed': 1}, not a config"),
        (BEGIN, "get_config() returns None, not a config: begin with c = base.get_config()"),
        (BEGIN + "    return 3\n", "get_config() returns 3, not a config"),
        (BEGIN + "    return c.lr\n", "is missing: begin with c = base.get_config()"),
        (BEGIN + "    return oops\n", "{path}:6: NameError: name 'oops' is not defined"),
        (BEGIN + "    raise ValueError('no luck')\n", "{path}:6: ValueError: no luck"),
        (BEGIN + "    raise SystemExit(3)\n", "{path}:6: SystemExit: 3"),
        (BEGIN + "    assert False\n", "{path}:6: AssertionError"),
        (BEGIN + "    return 1 / 0\n", "{path}:6: ZeroDivisionError: division by zero"),
        (BEGIN + "    return get_config()\n", "{path}:5: RecursionError: "),
        (BEGIN + "    c.optim.momentun = 1\n", "there is no momentun: did you mean momentum?"),
        (BEGIN + "    c.lr.peak = 'a'\n", "{path}:6: TypeError: peak = a: it is a str, not a"),
        (BEGIN + "    c.lr = 0.1\n", "TypeError: lr = 0.1: it is a section: write c.lr.peak = 0.1"),
        (BEGIN + "    c.epochs = 3\n", "there is no epochs: did you mean config.duration?"),
        (
            BEGIN + "    c.image.crop = 'shift'\n",
            "there is no crop: did you mean config.crop.name?",
        ),
        (BEGIN + "    c.image.crop_scale = 3\n", "crop_scale: did you mean config.crop.scale?"),
        (BEGIN + "    c.nonsense = 3\n", "{path}:6: AttributeError: there is no nonsense"),
        (BEGIN + "    c.unlock()\n    c.mine = 1\n    return c\n", "there is no config.mine"),
        (BEGIN + "    c.unlock()\n    del c.lr\n    return c\n", "config.lr.batch is missing"),
        (BEGIN + "    c.lr = None\n    return c\n", "config.lr.batch is missing"),
        (
            BEGIN + "    c.model.bn_group = 'x'\n    return c\n",
            "{path}:6: TypeError: bn_group = x: it is a str, not a value of type int",
        ),
        ("import nosuch\n", "{path}:1: ModuleNotFoundError: No module named 'nosuch'"),
        ("from configs import nosuch\n", "{path}:1: ImportError: "),
        ("def get_config(:\n", "{path}:1: SyntaxError: "),
        ("x = 1\n", "it has no function get_config()"),
        ("get_config = 1\n", "it has no function get_config()"),
        ("", "it has no function get_config()"),
        ("def get_config(arg):\n    return arg\n", "TypeError: get_config() missing 1 required"),
        ("def get_config(arg='x'):\n    return arg\n", "get_config() returns 'x', not a config"),
        (b"\x00\x01\x02", "source code "),
        (b"\xff\xfe\xff\xff", "SyntaxError: (unicode error)"),
    ],
)
def test_config_files(content, text, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        recipes.read(str(path))
    line = output.one_line(error.value)
    assert line.startswith(f"--config={path}")
    assert text.replace("{path}", str(path)) in line
    assert len(line) < 600
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.py"}  # no byte code


def test_what_is_no_config_file(tmp_path):
    for name, content, text in (
        ("recipe.json", "{}", "recipe.json is damaged: it is not a config"),
        ("recipe.json", '{"a": 1}', "recipe.json: config.a is not a key of this version"),
        ("recipe.yaml", "a: 1", "a config is a Python file (FILE.py or FILE.py:ARG) or a run's"),
        ("recipe", "a: 1", "a config is a Python file"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=re.escape(text)):
            recipes.read(str(tmp_path / name))
    for name in (tmp_path / "nosuch.py", "configs/nosuch.py:ResNet50", ":", "x:", "x" * 5000):
        text = f"^--config={name}: there is no such config file; jaxcls has those beside configs/"
        with pytest.raises(ValueError, match=text):
            recipes.read(str(name))
    for name in ("configs.resnet50_vd", "resnet50vd.py", "resnet50_vd", "config/Resnet50-vd.yaml"):
        text = f"^--config={name}: there is no such config file: did you mean .*configs/resnet50_vd"
        with pytest.raises(ValueError, match=text):
            recipes.read(name)
    with pytest.raises(ValueError, match=r"did you mean .*configs/imagenet.py:ResNet50\?"):
        recipes.read("imagenet:ResNet50")
    with pytest.raises(
        ValueError, match=f"^--config={tmp_path} is a directory: give a file, one such"
    ):
        recipes.read(str(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    record.write(parsed(f"--config={DIGITS}", "--workdir=run"), run, step=0)
    with pytest.raises(ValueError, match=f"of this run: --config={run}/config.json"):
        recipes.read(str(run))
    assert recipes.read(f"{run}/config.json").data.source == "digits"


def test_arguments_of_config_files(tmp_path):
    path = tmp_path / "with:colon.py"
    path.write_text(DIGITS.read_text())
    assert recipes.read(str(path)).data.source == "digits"
    with pytest.raises(ValueError, match="takes no argument, got 'x'"):
        recipes.read(f"{path}:x")
    imagenet = ROOT / "configs" / "imagenet.py"
    assert recipes.read(f"{imagenet}:ResNet50").model.name == "ResNet50"
    with pytest.raises(ValueError, match="needs a model"):
        recipes.read(str(imagenet))


def test_names_are_checked_before_images_are_looked_for(tmp_path):
    for key, name in (("optim.name", "sdg"), ("augment.policy", "rand"), ("model.name", "vit")):
        config = parsed(f"--config={DIGITS}", f"--workdir={tmp_path}", f"--config.{key}={name}")
        config.data.root = "/nosuch"  # is not what is complained of
        for run in (train.run, evaluate.run):
            with pytest.raises(ValueError, match=f"config.{key}"):
                run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_top5_tells_nothing_of_few_classes():
    config = parsed(f"--config={DIGITS}", "--workdir=run", "--config.checkpoint.best=top5")
    config.mesh.data = 1
    program.build(config, num_train=898, num_classes=6)
    with pytest.raises(ValueError, match="always 1 with up to 5 classes: write top1 or loss"):
        program.build(config, num_train=898, num_classes=5)


def test_references_follow_overrides(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(BEGIN + "    c.lr.batch = c.get_ref('batch_size')\n    return c\n")
    config = parsed(f"--config={path}", "--workdir=run", "--config.batch_size=77")
    assert (config.batch_size, config.lr.batch) == (77, 77)
    path.write_text(
        BEGIN + "    c.lr.batch = c.get_ref('seed') // c.get_ref('batch_size')\n    return c\n"
    )
    with pytest.raises(ValueError, match=f"^--config={path}: ZeroDivisionError: "):
        parsed(f"--config={path}", "--workdir=run", "--config.batch_size=0")


def test_base_is_ours_whatever_a_folder_is_called(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text("raise RuntimeError('not ours')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert flatten(run_file(ROOT / "configs" / "base.py")["get_config"]()) == KEYS


# -- The commands ----------------------------------------------------------------------------------


def test_errors_further_inside_name_their_section():
    text = r"^config\.optim has a value that cannot be used: ZeroDivisionError: "
    with pytest.raises(ValueError, match=text), consuming("optim"):
        print(1 / 0)
    with pytest.raises(ValueError, match="^as it is$"), consuming("optim"):
        raise ValueError("as it is")
    with pytest.raises(AssertionError), consuming("optim"):
        raise AssertionError


def test_a_message_is_one_line_of_bounded_length(capsys, monkeypatch):
    monkeypatch.delenv("JAXCLS_DEBUG", raising=False)
    assert command.complain(ValueError("a\n  b" + "c" * 10**5)) == 2
    line = capsys.readouterr().err
    assert line.startswith("jaxcls: a b")
    assert line.count("\n") == 1
    assert len(line) < 5000
    monkeypatch.setenv("JAXCLS_DEBUG", "1")
    with pytest.raises(ValueError, match="^x$"):
        command.complain(ValueError("x"))


def test_exit_codes():
    def raises(error):
        raise error

    for main, code in (
        (lambda: 0, 0),
        (lambda: 2, 2),
        (lambda: raises(KeyboardInterrupt), 130),
        (lambda: raises(FloatingPointError), 1),
        (lambda: raises(MemoryError), 2),
        (lambda: raises(OSError(errno.ENOSPC, "full")), 2),
    ):
        with pytest.raises(SystemExit) as ended:
            command.exit_with(command.told(main))
        assert ended.value.code == code


def test_every_command_ends_by_exit_with():
    commands = [
        path
        for path in (ROOT / "jaxcls").rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text()
    ]
    parts = ("contenders.py", "tf_data.py", "relay.py", "tied.py")  # of `input`, a run, a sweep
    parts += ("fastapi_loop.py", "runtimes.py")  # of `serve` and `predict`
    commands = [path for path in commands if path.name not in parts]
    assert len(commands) >= 6
    for path in commands:
        last = path.read_text().rpartition('if __name__ == "__main__":')[2]
        assert "exit_with(" in last or "run_module(" in last, path


@pytest.mark.parametrize("module", ["jaxcls.models", "jaxcls.main"])
def test_a_reader_that_has_gone(commands, module):
    arguments = ["--help"] if module == "jaxcls.main" else ["--json"]
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert error == ""
    assert process.returncode in (0, 141)


def test_the_table_of_models(capsys, monkeypatch):
    from jaxcls import models
    from jaxcls.models import __main__ as table
    from jaxcls.models import count

    monkeypatch.setattr(count, "equations", None)  # counting takes a minute
    assert table.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    short = [line for line in lines if len(line.split()[0]) <= 32 and " = " not in line]
    assert max(map(len, short)) <= 100
    assert len(lines) == 1 + len(models.names())
    assert table.main(["RESNET50*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == models.names("ResNet50*")
    assert rows[0] == {
        "name": "ResNet50", "family": "resnet", "alias_of": "", "size": 224,
        "params": 25557032, "macs": rows[0]["macs"], "top1": 76.5, "top5": 93.0,
    }  # fmt: skip
    assert rows[0]["macs"] == pytest.approx(4.09e9, rel=0.01)
    assert table.main(["mobilenetv1_ssld"]) == 0
    assert "= MobileNetV1 " in capsys.readouterr().out
    network, weights = table.table(["MobileNetV1", "MobileNetV1_ssld"])
    other = {"name": "MobileNetV1_ssld", "alias_of": "MobileNetV1", "top1": 77.89, "top5": 93.94}
    assert weights == network | other
    for arguments, text in (
        (["resnet50x"], "no model matches 'resnet50x': did you mean ResNet50"),
        (["--jsn"], "unrecognized arguments: --jsn; see python -m jaxcls.models --help"),
        (["a", "b"], "unrecognized arguments: b"),
    ):
        assert table.main(arguments) == 2
        captured = capsys.readouterr()
        assert text in captured.err
        assert captured.err.count("\n") == 1


def test_mistakes_in_a_process_of_their_own(commands, tmp_path):
    done = commands.fork(f"--config={runs.TINY}", f"--workdir={tmp_path / 'run'}", "--lr=0.1")
    assert (done.returncode, done.out) == (2, "")
    assert done.err == "jaxcls: unknown flag --lr: write --config.lr.peak=0.1\n"
    assert not (tmp_path / "run").exists()


def test_the_package_is_no_command(capsys):
    from jaxcls import __main__ as package

    assert package.main(["jaxcls", "train"]) == package.main(["jaxcls"]) == 2
    assert capsys.readouterr().err.startswith("jaxcls: write python -m jaxcls.main ...; others are")
    assert package.main(["jaxcls", "models"]) == 2
    assert capsys.readouterr().err.startswith("jaxcls: write python -m jaxcls.models ...; ")
    assert package.main(["jaxcls", "--help"]) == 0
    listed = re.findall("(?m)^python -m jaxcls[.]([a-z.]+)", capsys.readouterr().out)
    assert listed == list(package.COMMANDS)
    for name in listed:
        path = ROOT / "jaxcls" / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
