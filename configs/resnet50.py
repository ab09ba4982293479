"""ResNet50 on ImageNet: python -m jaxcls.main --config=configs/resnet50.py --workdir=DIR

Expected: 76.5 % top-1, the figure published for this recipe: 120 epochs, learning rate 0.1 for a
batch of 256, divided by 10 every 30 epochs, momentum 0.9, L2 1e-4, no label smoothing, no mixing.
Larger batches: as in configs/resnet50_vd.py. `imagenet2012`: README, "ImageNet".
"""

from configs import base


def get_config(arg=None):
    """Returns the published recipe, for any batch that is a multiple of 64 images a device."""
    c = base.get_config(arg)
    c.data.source = "tfds"
    c.model.name = "ResNet50"
    c.model.bn_group = 64
    c.duration = "120 epochs"
    c.optim.l2 = 1e-4
    c.lr.schedule = "piecewise"
    c.lr.milestones = ("30 epochs", "60 epochs", "90 epochs")
    c.lr.peak = 0.1
    c.lr.batch = 256
    c.lr.warmup_if_scaled = "5 epochs"
    return c
