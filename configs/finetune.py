"""Fine-tuning on a folder of images: python -m jaxcls.main --config=configs/finetune.py \\
    --config.init.checkpoint=RUN --config.data.root=IMAGES --workdir=DIR

RUN is a working directory of jaxcls, one of its checkpoints or converted weights; IMAGES has
train/CLASS/*.jpg and val/CLASS/*.jpg, or just CLASS/*.jpg: then a fifth is held out. Network and
image size are those of RUN, the head is new where the classes differ, and everything is trained, of
a large network at factors of the learning rate that grow from stem to head. Without an accelerator
only the head of a large network is trained, and without RUN a small network from scratch. What is
None here is chosen by the rules of jaxcls/choices.py; set it to decide yourself.

The rule for large networks is the quick start of PaddleClas's documentation (Flowers102,
ResNet50_vd, 20 epochs, batch 32, learning rate 0.00375, L2 1e-6), which went from 94.0 % to 95.0 %
by better weights (SSLD) and these factors.
"""

from configs import base
from jaxcls.config import OPEN


def get_config(arg=None):
    """Returns the recipe; what depends on images, checkpoint and devices is open."""
    c = base.get_config(arg)
    c.update_from_flattened_dict(dict.fromkeys(OPEN))
    c.data.source = "folder"
    c.loss.label_smoothing = 0.1
    return c
