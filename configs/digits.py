"""Digits on a CPU: python -m jaxcls.main --config=configs/digits.py --workdir=/tmp/digits

The 1,797 handwritten digits that scikit-learn carries, 8x8 pixels enlarged to 16x16; the first
half trains, the second half tests. A ResNet-D of 0.3 M parameters with shifts, mixup and smoothing.
"""

from configs import base


def get_config(arg=None):
    """Returns the config of a small ResNet-D for 16x16 grey images."""
    c = base.get_config(arg)
    c.data.source = "digits"
    c.duration = "60 epochs"
    c.batch_size = 64
    c.model.name = "ResNet18_vd"
    c.model.options = (("stem", "small"), ("depths", (1, 1, 1)), ("width", 32))
    c.image.size = 16
    c.image.eval_resize = 0
    c.crop.name = "shift"
    c.crop.shift = 2
    c.crop.flip = 0.0
    c.image.mean = (0.3,)
    c.image.std = (0.37,)
    c.mix.mixup = 0.2
    c.loss.label_smoothing = 0.1
    c.optim.l2 = 5e-4
    c.lr.peak = 0.1
    c.lr.warmup = "3 epochs"
    c.eval.every = "5 epochs"
    c.checkpoint.every = "5 epochs"
    c.log.every = "1 epochs"
    return c
