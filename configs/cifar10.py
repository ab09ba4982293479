"""CIFAR-10 as a folder of images: python -m jaxcls.main --config=configs/cifar10.py \\
    --config.data.root=CIFAR --workdir=DIR        (CIFAR/train/CLASS/*, CIFAR/test/CLASS/*)

A small ResNet-D (0.08 M parameters) for a look at real photographs on a CPU. Measured on 2 cores:
43.0, 56.9, 60.1, 65.5 and 70.6 % top-1 after 1 to 5 of its 6 epochs, 640 images/s.
"""

from configs import base


def get_config(arg=None):
    """Returns the config of a small ResNet-D for 32x32 colour images."""
    c = base.get_config(arg)
    c.data.source = "folder"
    c.data.eval = "test"
    c.duration = "6 epochs"
    c.batch_size = 128
    c.model.name = "ResNet18_vd"
    c.model.options = (("stem", "small"), ("depths", (1, 1, 1)), ("width", 16))
    c.image.size = 32
    c.image.eval_resize = 0
    c.image.crop = "shift"
    c.image.shift = 4
    c.image.mean = (0.491, 0.482, 0.447)
    c.image.std = (0.247, 0.243, 0.262)
    c.optim.l2 = 5e-4
    c.lr.peak = 0.1
    c.lr.warmup = "1 epochs"
    return c
