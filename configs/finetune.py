"""Fine-tuning on a folder of images: python -m jaxcls.main --config=configs/finetune.py \\
    --config.init.checkpoint=RUN --config.data.root=IMAGES --workdir=DIR

RUN is a working directory of jaxcls, one of its checkpoints or converted weights; IMAGES has
train/CLASS/*.jpg and val/CLASS/*.jpg, or just CLASS/*.jpg: then add --config.data.eval_fraction=0.1
to hold out a tenth. The head is new where the classes differ; everything else starts from RUN and
is trained, at factors of the learning rate that grow from stem to head.

The quick start of PaddleClas's documentation (Flowers102, ResNet50_vd, 20 epochs, batch 32,
learning rate 0.00375, L2 1e-6) went from 94.0 % to 95.0 % by better weights (SSLD) and these
factors.
"""

from configs import base
from jaxcls.config import stage_mults


def get_config(arg=None):
    """Returns the recipe; the model has to be the one of `init.checkpoint`."""
    c = base.get_config(arg)
    c.data.source = "folder"
    c.model.name = "ResNet50_vd"
    c.duration = "20 epochs"
    c.batch_size = 32
    c.loss.label_smoothing = 0.1
    c.optim.l2 = 1e-6
    c.optim.lr_mults = stage_mults(0.1, 0.1, 0.2, 0.2, 0.3)
    c.lr.peak = 0.00375
    return c
