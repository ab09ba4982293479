"""A network of 3,000 parameters on the digits, with everything on that a run can forget."""

from configs import base


def get_config(arg=None):
    """Returns the config of a run of a second or two; arg "plain": float32, without extras."""
    c = base.get_config()
    c.data.source = "digits"
    c.batch_size = 128  # 7 steps an epoch, 2 images left over
    c.duration = "30 steps"
    c.model.name = "ResNet18_vd"
    c.model.options = (("stem", "small"), ("depths", (1,)), ("width", 8))
    c.image.size = 8
    c.image.eval_resize = 0
    c.crop.name = "shift"
    c.crop.shift = 1
    c.crop.flip = 0.5
    c.image.mean = (0.3,)
    c.image.std = (0.37,)
    c.mix.mixup = 0.2
    c.optim.l2 = 1e-4
    c.lr.warmup = "5 steps"
    # nothing lines up: epochs of 7 steps, evaluations, checkpoints, lines of the log
    c.eval.every = "6 steps"
    c.eval.batch_size = 100
    c.checkpoint.every = "4 steps"
    c.log.every = "5 steps"
    c.report.enabled = False  # tests/test_report.py
    if arg == "plain":
        return c
    c.ema.decay = 0.9
    c.optim.accumulate_steps = 2
    c.precision.name = "float16"
    c.precision.scale = 2.0**24  # too large: the first steps are skipped
    c.precision.growth_interval = 4
    return c
