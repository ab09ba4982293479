"""CIFAR-10 as a folder of images: python -m jaxcls.main --config=configs/cifar10.py \\
    --config.data.root=CIFAR --workdir=DIR        (CIFAR/train/CLASS/*, CIFAR/test/CLASS/*)

A small ResNet-D (0.08 M parameters) for a look at real photographs on a CPU. Measured on 2 cores:
43.0, 56.9, 60.1, 65.5 and 70.6 % top-1 after 1 to 5 of its 6 epochs, 640 images/s.

What augmentation does where images are few, 7 minutes a run on one core:

    --config.data.fraction=0.1 --config.duration="40 epochs" --config.eval.every="40 epochs" \\
    --config.model.options='(("stem","conv3"),("depths",(1,1,1)),("width",32))' \\
    --config.crop.flip=0.0 --config.crop.shift=0

57.1, 58.0, 57.9 % top-1 for seeds 0, 1, 2; with --config.erase.name=random_erasing 59.5, 60.2
and 59.3, with --config.mix.cutmix=1.0 61.7, 62.6 and 62.2, with
--config.augment.policy=randaugment 66.8, 67.6 and 66.6. With flip and shift, 68.1 % for seed 0, it
takes more steps than these for more of it to help: random_erasing 67.0, randaugment 65.4.
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
    c.image.eval_resize = 32
    c.crop.name = "shift"
    c.crop.shift = 4
    c.image.mean = (0.491, 0.482, 0.447)
    c.image.std = (0.247, 0.243, 0.262)
    c.optim.l2 = 5e-4
    c.lr.peak = 0.1
    c.lr.warmup = "1 epochs"
    return c
