"""Fine-tuning on images that show several classes: python -m jaxcls.main \\
    --config=configs/multilabel.py --config.init.checkpoint=RUN --config.data.root=IMAGES \\
    --workdir=DIR

IMAGES has train_list.txt and val_list.txt, in each line the path of an image below IMAGES, a tab
and 0 or 1 for each class, 0,1,0; and classes.txt, a name a line. What is trained and for how long
is as in configs/finetune.py. Every class has a binary cross-entropy of its own; where few of many
classes are shown, try --config.loss.name=asymmetric, or --config.loss.pos_weights=balanced. The
checkpoint of the best mean average precision is kept; afterwards, the thresholds that are best for
the F1 of each class are stored with the network by

    python -m jaxcls.main --workdir=DIR --mode=eval --config.eval.calibrate=True
"""

from configs import finetune


def get_config(arg=None):
    """Returns the recipe; what depends on images, checkpoint and devices is open."""
    c = finetune.get_config(arg)
    c.data.source = "list"
    c.data.multi_label = True
    c.loss.name = "bce"
    c.loss.label_smoothing = 0.0
    c.checkpoint.best = "map"
    return c
