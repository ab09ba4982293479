"""Every key of a run, its default and its unit: the reference manual of the configs.

A recipe starts from `get_config()` and changes what differs. The config is locked: a key that is
not declared here is an error that names it. A duration is a string of a number and a unit:
"90 epochs", "500 steps" or "1e6 examples" ("" or "0 steps" = never, where that makes sense; less
than half a step is an error). The keys of `jaxcls.config.OPEN` can be None: jaxcls/choices.py then
chooses, by the images, the checkpoint and the devices.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg=None):
    """Returns the base config: ResNet50 for 90 epochs; `data` still has to be chosen."""
    if arg:
        raise ValueError(f"configs/base.py takes no argument, got {arg!r}")
    c = ConfigDict()

    c.seed = 0  # of initial weights, shuffling, augmentation and dropout; below 2**64
    c.duration = "90 epochs"  # length of the run; an epoch is floor(training images / batch_size)
    c.batch_size = 256  # images per step, over all devices and processes

    # -- The network: jaxcls.network.make(**model) ----------------------------------------------
    c.model = ConfigDict()
    c.model.name = "ResNet50"  # one of `python -m jaxcls.models`
    c.model.num_classes = 0  # 0: as many as the training data has
    # share of the running statistics that a step keeps; None: the network's own, mostly 0.9
    c.model.bn_momentum = config_dict.placeholder(float)
    c.model.bn_epsilon = config_dict.placeholder(float)  # None: the network's own, mostly 1e-5
    c.model.bn_group = config_dict.placeholder(int)  # images that share statistics; None: all
    # "int8": training rounds as `python -m jaxcls.export --format=int8` does, so that less is lost
    # there: to fine-tune, with configs/finetune.py; "": no rounding
    c.model.quantise = ""
    c.model.options = ()  # further arguments of the family: (("dropout", 0.2), ...)
    # class of the data that stands for none of the others: `Network.decide` then answers -1
    c.model.background = ""

    # -- Where the images come from: jaxcls.data.sources.open(**data) ---------------------------
    c.data = ConfigDict()
    # "folder", "list", "table" (CSV, Parquet), "huggingface", "tfds", "array_record", "digits",
    # "fake"
    c.data.source = ""
    # folder, list, table: directory of the images; tfds, array_record: of the records (tfds: "" is
    # ~/tensorflow_datasets); huggingface: what save_to_disk wrote, or a clone from the hub. Of
    # folder, list, array_record and tfds also gs://BUCKET/FOLDER (pip install 'jaxcls[gcs]')
    c.data.root = ""
    # folder: sub-folder, "" is "train" if there is one; list: list file, "" is "train_list.txt";
    # tfds, huggingface: split, "" is "train"; array_record: file pattern below root, "" is
    # "train*.array_record"; table: file or pattern, "" is "train.csv", .tsv, .jsonl or .parquet
    c.data.train = ""
    # likewise: "val", "val_list.txt", "validation" or "test", "val*.array_record", "val.csv"
    c.data.eval = ""
    # folder without eval: this share of each class is held out; None: 0.2
    c.data.eval_fraction = 0.0
    c.data.delimiter = " "  # list: between path and label; table: " " is what the file's name says
    # list: the label of an image is a mark for each class, 0,1,1, of images that show several;
    # table, huggingface: such a text or list, or all the classes, names or numbers
    c.data.multi_label = False
    # list, table, huggingface: names of the classes; (): the lines of root/classes.txt, or those of
    # the table
    c.data.class_names = ()
    # table, huggingface: column of paths or bytes; "": "image", "path", "file_name", ...
    c.data.image_column = ""
    # column of the label, a name or a number; or one for each class, of its marks 0 and 1; ():
    # "label", "class", ...
    c.data.label_columns = ()
    # table: column that tells rows of training, "train", from those of evaluation, which data.eval
    # names ("": "val", "test", ...)
    c.data.split_column = ""
    c.data.name = "imagenet2012"  # tfds: name of the set
    c.data.num_train = 0  # fake: number of training images
    c.data.num_eval = 0  # fake: number of evaluation images
    # fake, list, table, huggingface: number of classes (0, but fake: largest label + 1)
    c.data.num_classes = 0
    # class whose images show none of the others: it becomes the last one and is called
    # "background", also as model.background
    c.data.background = ""
    # further training images without a label, for losses that learn from them: a folder, with all
    # below it, a list of paths or a table. It is relative to root, the paths to its own folder
    c.data.unlabelled = ""
    # of each batch so much has no label, and an epoch is floor(labelled images / labelled rows of a
    # batch) batches; 0.0: images come in one order, whether they have a label or not
    c.data.unlabelled_share = 0.0
    # unreadable images, missing ones of lists, damaged records: "error", or "skip": take the next
    # readable image instead, and count
    c.data.on_bad_image = "error"
    c.data.max_bad_images = 100  # with "skip": more than this many in a run stop it
    c.data.fraction = 1.0  # share of the training images to use, the same of each class
    c.data.fraction_seed = 0  # which ones; config.seed does not change them; below 2**64
    # makes a balanced set long-tailed, to try what helps there: images of the first class for each
    # one of the last, exponentially fewer in between; 1.0: as they are
    c.data.long_tail = 1.0
    # which images an epoch has: "shuffle": each once; "balanced", "sqrt": every class equally
    # often, or as the square root of its number of images
    c.data.sampling = "shuffle"
    c.data.repeats = 1  # times that an image is in its batch, each time augmented differently
    # where images stay after they were first read, jaxcls.data.cache: "none"; "encoded" or
    # "decoded" in host memory; "device": all in its memory; "auto": small sets on an accelerator if
    # they can, or decoded; files of gs:// encoded, where half of the memory holds them
    c.data.cache = "auto"

    # -- Feeding the device: jaxcls.data.loader -------------------------------------------------
    c.loader = ConfigDict()
    c.loader.threads = 0  # decoding threads in each process; 0: one for each core
    c.loader.workers = 0  # worker processes; 0: threads of this process only
    c.loader.prefetch = 4  # batches ready in advance, at least 1

    # -- How images reach the network: jaxcls.data.ops.Image(**image), stored with the weights ----
    c.image = ConfigDict()
    c.image.size = 224  # pixels, height and width, in training
    c.image.eval_size = 0  # pixels in evaluation; 0: size
    c.image.eval_resize = 256  # pixels of the short side before the central crop; 0: no resize
    # "nearest", "bilinear", "area", "bicubic", "lanczos"; "random": bilinear or bicubic in training
    c.image.interpolation = "bilinear"
    # large JPEGs at 1/2, 1/4 or 1/8 of their size where crops still are shrunk, quicker and
    # smoother: "always", so that evaluation sees what training saw; "train" and "never" evaluate
    # from all pixels, as published accuracies of other code bases are measured
    c.image.scaled_decode = "always"
    c.image.exif = True  # turn photographs as their EXIF orientation says
    # of each channel, pixels in [0, 1]. As many as images shall have: 3, RGB; 1, grey; 4, RGB and
    # transparency, or a fourth band (where a file has none, 255). Of 16 bits the upper 8 count
    c.image.mean = (0.485, 0.456, 0.406)
    c.image.std = (0.229, 0.224, 0.225)

    # -- Which part of them trains: jaxcls.data.ops.training(**crop) ----------------------------
    c.crop = ConfigDict()
    c.crop.name = "random_resized"  # or "shift" (pad and crop), "center"; "eval": as in evaluation
    c.crop.scale = (0.08, 1.0)  # random_resized: share of the area
    c.crop.ratio = (3 / 4, 4 / 3)  # random_resized: width / height
    c.crop.log_ratio = False  # random_resized: uniform in its logarithm
    c.crop.shift = 0  # shift: pixels to each side at most
    c.crop.flip = 0.5  # probability of a left-right flip

    # -- Transforming images, on the host: jaxcls.data.augment.make(**augment) ------------------
    c.augment = ConfigDict()
    # "autoaugment" (of ImageNet), "autoaugment_cifar10", "autoaugment_svhn", "randaugment",
    # "augmix", or RandAugment in timm's notation: "rand-m9-mstd0.5-inc1"; "": none
    c.augment.policy = ""
    c.augment.prob = config_dict.placeholder(float)  # of an image; None: 1, augmix 0.5
    c.augment.num_layers = 2  # randaugment: ops for an image
    c.augment.magnitude = 5.0  # randaugment: of the ops, 0 to 10
    c.augment.width = 3  # augmix: chains that are mixed
    c.augment.depth = 1  # augmix: ops in a chain; 0: 1 to 3
    c.augment.severity = 1.0  # augmix: largest magnitude, up to 10
    c.augment.alpha = 0.1  # augmix: of the weights' Dirichlet and Beta distributions
    c.augment.interpolation = "bilinear"  # of shear, translation and rotation; or "nearest"
    c.augment.fill = 128  # grey level where they uncover
    c.augment.rotation = 0.0  # degrees to each side at most
    c.augment.rotation_prob = 0.5  # of an image
    c.augment.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue: +- this
    c.augment.color_jitter_prob = 1.0  # of an image
    c.augment.grayscale = 0.0  # probability of an image to become grey
    c.augment.lighting = 0.0  # standard deviation of PCA lighting; AlexNet's is 0.1

    # -- Erasing parts of images: jaxcls.data.erasing.make(**erase) -----------------------------
    c.erase = ConfigDict()
    c.erase.name = ""  # "cutout", "random_erasing", "hide_and_seek", "grid_mask"; "": none
    c.erase.prob = config_dict.placeholder(float)  # of an image; None: 1, random_erasing 0.5
    c.erase.ramp = ""  # duration of prob's linear rise from 0; "": prob from the start
    c.erase.fill = "constant"  # the mean colour; "random" colour of an image; "pixel": noise
    c.erase.holes = 1  # cutout: squares in an image
    c.erase.length = 112  # cutout: pixels, side of a square; as all pixels here, for images of 224
    c.erase.area = (0.02, 0.4)  # random_erasing: share of the image
    c.erase.aspect = (0.3, 1 / 0.3)  # random_erasing: height / width
    c.erase.grids = (0, 16, 32, 44, 56)  # hide_and_seek: pixels, side of a cell; 0 hides nothing
    c.erase.hide = 0.5  # hide_and_seek: probability of a cell
    c.erase.d1 = 96  # grid_mask: pixels, least period
    c.erase.d2 = 224  # grid_mask: pixels, the period is below
    c.erase.ratio = 0.5  # grid_mask: width of a band, share of the period
    c.erase.rotate = 1  # grid_mask: degrees, the angle is below; 1: no rotation
    c.erase.mode = 1  # grid_mask: 1 erases the squares between the bands, 0 the bands

    # -- Mixing of images: jaxcls.data.mixing.make(**mix) ---------------------------------------
    # Mixup, CutMix and FMix draw one weight, box or mask for a whole batch, as published; with
    # `each` one for each image, and for each whether and how it is mixed
    c.mix = ConfigDict()
    c.mix.mixup = 0.0  # alpha of mixup's Beta(alpha, alpha); 0: off
    c.mix.cutmix = 0.0  # alpha of CutMix; 0: off
    c.mix.fmix = 0.0  # alpha of FMix; 0: off
    c.mix.prob = 1.0  # share of the batches (with `each`: of the images) that are mixed
    c.mix.each = False  # draw for each image
    c.mix.weights = (1.0, 1.0, 1.0)  # mixup, cutmix, fmix: how often, where more than one is on
    c.mix.decay_power = 3.0  # fmix: the larger, the smoother the masks
    c.mix.max_soft = 0.0  # fmix: share of the pixels on either side of an edge that are blended

    # -- The loss: jaxcls.objectives.make(**loss) -----------------------------------------------
    c.loss = ConfigDict()
    # "supervised": cross-entropy with the labels; "bce", "asymmetric": a binary one for each class,
    # of images that may show several. From a teacher (jaxcls/distillation.py): "symmetric_kl"
    # (SSLD's), "js", "soft_ce", "kl", "dkd", "dist", "skd", "wsl" compare scores, "l2",
    # "attention", "rkd" features; "dml": two networks learn from each other
    c.loss.name = "supervised"
    c.loss.label_smoothing = 0.0
    # supervised: classes weigh ("inverse",) to their number of images, or to their "effective" one,
    # or as "auto" finds it; or as given: a number for each, or (("cat", 2.0), ...), others 1. All
    # are scaled to a mean of 1 over the training images
    c.loss.class_weights = ()
    c.loss.effective_beta = 0.999  # effective: 0 is no weighting, towards 1 the inverse
    c.loss.focal_gamma = 0.0  # supervised: of the focal loss; 0: off
    # supervised: tau, the logits get tau log(share of the class) in training; 1 for rare classes to
    # count as much as frequent ones, 0: off
    c.loss.logit_adjustment = 0.0
    # bce: weights of the classes that an image does show, ("balanced",): images without it for each
    # one with it; or as given, as class_weights
    c.loss.pos_weights = ()
    # bce: from this share on a class of a mixed batch is wholly there, below not; 0: by its share
    c.loss.target_threshold = 0.0
    c.loss.gamma_pos = 1.0  # asymmetric: focus on classes that are there and not seen
    c.loss.gamma_neg = 4.0  # asymmetric: on those that are seen and not there
    c.loss.clip = 0.05  # asymmetric: probabilities below count as 0, of classes that are not there
    c.loss.focus_gradient = False  # asymmetric: the focus has a gradient, too, as in its formula
    c.loss.aux_weight = 0.3  # weight of each auxiliary head's loss, in networks that have them
    # of a loss from a teacher: weight of the labels' beside it; None: 0 for symmetric_kl, js and
    # soft_ce, 0.1 for skd, 1 for the others
    c.loss.hard = config_dict.placeholder(float)
    c.loss.soft = 1.0  # its own weight
    # kl, dkd, dist, skd, wsl: scores are divided by it; None: 4, wsl 2, dist and skd 1
    c.loss.temperature = config_dict.placeholder(float)
    c.loss.target = 1.0  # dkd: weight of the label against all others
    c.loss.non_target = 8.0  # dkd: weight of the others among each other
    c.loss.inter = 1.0  # dist: weight of the correlations of classes
    c.loss.intra = 1.0  # dist: weight of the correlations of images
    c.loss.multiplier = 2.0  # skd: standard deviation of an image's scores
    # l2, attention, rkd: names of features that both networks have, ("stage3", "stage4"), or pairs
    # of the student's and the teacher's, (("stage3", "stage4"),)
    c.loss.stages = ()
    c.loss.kl_weight = 0.0  # l2, attention, rkd: weight of "kl" beside them
    c.loss.distance = 1.0  # rkd: weight of distances of images
    c.loss.angle = 2.0  # rkd: weight of angles between images
    c.loss.peer = ""  # dml: name of the second network; "": the same as the first

    # -- Networks that it learns from: jaxcls.teachers.make(**teacher) --------------------------
    c.teacher = ConfigDict()
    # runs, checkpoints or exports of any networks with the classes of the data: ("RUN",). Each gets
    # the images of the student at its own size
    c.teacher.checkpoints = ()
    c.teacher.weights = ()  # of each of several; (): all the same
    c.teacher.precision = ""  # a name of config.precision; "": that of the run; "own": its own
    # the outputs lie in the records of data_prep/teacher.py: no teacher runs. They are of whole
    # images: no random crops, augmentation, erasing and mixing
    c.teacher.stored = False

    # -- The optimizer: jaxcls.optim.make(**optim) ----------------------------------------------
    c.optim = ConfigDict()
    # "sgd", "momentum", "adam", "adamw", "rmsprop", "adadelta", "lamb", "lars", "lion"
    c.optim.name = "momentum"
    c.optim.momentum = 0.9  # momentum, rmsprop, lars
    c.optim.nesterov = False  # momentum
    c.optim.betas = (0.9, 0.999)  # adam, adamw, lamb
    c.optim.lion_betas = (0.9, 0.99)  # lion
    c.optim.rho = 0.9  # rmsprop, adadelta: decay of the mean square
    c.optim.epsilon = config_dict.placeholder(float)  # None: 1e-8 (rmsprop 1e-3, adadelta 1e-6)
    # lars: of its updates to the kernel, in norm, at a learning rate of 1; biases and norms: plain
    c.optim.trust_coefficient = 0.001
    c.optim.l1 = 0.0  # gradient += l1 * sign(parameter)
    c.optim.l2 = 0.0  # gradient += l2 * parameter (PaddleClas's L2Decay); not adamw, lamb, lion
    # parameter -= lr * weight_decay * parameter; not adam, rmsprop, lars
    c.optim.weight_decay = 0.0
    c.optim.no_decay = ()  # patterns of parameters without l1, l2, weight_decay: ("/bias$", ...)
    # ((pattern, factor), ...), factors of the learning rate; the first that matches counts. A new
    # head with ten times the rate of the others: (("^head/", 10.0),); stages: stage_mults and
    # block_mults of jaxcls.config
    c.optim.lr_mults = ()
    # the learning rate of a block is layer_decay^(layers above it) times that of the head, stem,
    # each block, neck and head being layers (BEiT's 0.75 or so); and times lr_mults; 1.0: off
    c.optim.layer_decay = 1.0
    c.optim.frozen = ()  # patterns of parameters that stay as they are, their BatchNorms too
    c.optim.clip_norm = 0.0  # global norm of the gradient at most; 0: off
    # Lookahead around any optimizer: steps after which slow weights go the share lookahead_alpha to
    # the parameters, which go on from there (evaluate at multiples); 0: off
    c.optim.lookahead = 0
    c.optim.lookahead_alpha = 0.5
    c.optim.accumulate_steps = 1  # micro-batches in a step, each batch_size / accumulate_steps

    # -- Its learning rate: jaxcls.schedules.schedule(**lr) -------------------------------------
    c.lr = ConfigDict()
    c.lr.peak = 0.1  # for a batch of `batch` images; for b images it is peak * b / batch
    c.lr.batch = 0  # 0: peak as it stands
    # "constant", "cosine", "piecewise", "polynomial", "exponential", "cyclic", "one_cycle",
    # "plateau": lower where evaluations get no better. `python -m jaxcls.config --plot` draws it
    c.lr.schedule = "cosine"
    c.lr.warmup = ""  # duration of the linear rise to the peak; it counts within the run
    c.lr.warmup_start = 0.0  # learning rate that it begins with
    c.lr.warmup_if_scaled = ""  # this warmup instead where batch_size is above `batch`
    c.lr.end = 0.0  # cosine, polynomial: where it ends; cyclic, plateau: the least
    c.lr.milestones = ()  # piecewise: durations from the start, ("30 epochs", "60 epochs")
    # factor: piecewise: at each milestone; exponential: every `every`; plateau: each time; cyclic
    # with mode "exp_range": of the height, in a cycle
    c.lr.gamma = 0.1
    c.lr.every = "2.4 epochs"  # exponential
    c.lr.power = 1.0  # polynomial: 1 = linear
    # cyclic: "triangular" (or ""), "triangular2": each half as high as the one before, "exp_range";
    # one_cycle: "cos" (or ""), "linear"; plateau: `threshold` is "rel"ative (or ""), or "abs"olute
    c.lr.mode = ""
    c.lr.cycle = "10 epochs"  # cyclic: length of a way up and down
    # share of the way up, of a cycle, or of the run with one_cycle; None: 0.5, one_cycle 0.3
    c.lr.rise = config_dict.placeholder(float)
    c.lr.div_factor = 25.0  # one_cycle: it begins with peak / div_factor
    c.lr.final_div_factor = 1e4  # one_cycle: it ends with that / final_div_factor
    c.lr.three_phase = False  # one_cycle: down to where it began first, as fast as up
    # plateau: evaluations in a row without a better checkpoint.best that are borne; one more, and
    # the learning rate is multiplied by gamma
    c.lr.patience = 10
    c.lr.threshold = 1e-4  # plateau: what is better by less is not better
    c.lr.cooldown = 0  # plateau: evaluations after it that are not counted

    # -- Numbers: jaxcls.precision.make(**precision) --------------------------------------------
    c.precision = ConfigDict()
    # "auto" (bfloat16 on accelerators, float32 on a CPU), "float32" = "O0", "bfloat16",
    # "float16" = "O2", "O1", "O3", "O1_bfloat16", "O3_bfloat16", "float64": jaxcls/precision.py.
    c.precision.name = "auto"
    c.precision.loss_scale = "auto"  # "none", "static", "dynamic"; auto: dynamic with float16
    c.precision.scale = 65536.0  # static: the scale; dynamic: the first one
    c.precision.growth = 2.0  # dynamic: factor at the last of `growth_interval` finite steps
    c.precision.growth_interval = 2000  # steps
    c.precision.backoff = 0.5  # dynamic: factor after a step that was not finite
    c.precision.min_scale = 1.0  # dynamic
    c.precision.max_skipped = 50  # skipped steps in a row that stop the run
    # GPU: the same bits every time, by XLA's xla_gpu_deterministic_ops: no sums in the order in
    # which threads come, no choice of kernels by their time. CPUs and TPUs need no option for it
    c.precision.deterministic = False

    c.ema = ConfigDict()
    c.ema.decay = 0.0  # of the moving average of parameters and statistics; 0: none
    c.ema.ramp = False  # begin with min(decay, (1 + step) / (10 + step))

    # -- Stochastic weight averaging: jaxcls.averages.stochastic(**swa) --------------------------
    # the mean of the variables at `start` and `every` so often after it, with statistics of
    # BatchNorm that are estimated anew, over an epoch of training batches but at most 100, wherever
    # it is saved; the learning rate of that time is up to `lr`: constant, or of cycles of `every`
    c.swa = ConfigDict()
    c.swa.start = ""  # duration from the beginning of the run; "": off
    c.swa.every = "1 epochs"

    # -- Devices: jaxcls.sharding.make(**mesh) --------------------------------------------------
    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices along the batch; -1: all that are left
    c.mesh.fsdp = 1  # devices that share parameters and optimizer state (and the batch too)
    # devices that share the classes: the classifier, its optimizer state and the scores (and the
    # batch too), for millions of them; it has to divide model.num_classes
    c.mesh.model = 1
    c.mesh.fsdp_min_size = 65536  # smaller parameters (in elements) stay whole on each device
    # ((pattern, axes), ...): how parameters whose names match are cut, an axis of the mesh or None
    # for each dimension, (("head/.*kernel$", (None, "fsdp")),); the first that matches counts, the
    # others are cut by their shapes
    c.mesh.rules = ()

    # -- Starting point: jaxcls.weights.initialize(**init) --------------------------------------
    c.init = ConfigDict()
    # fine-tuning: a run's working directory, a checkpoint or an export; or published weights by
    # name, paddleclas:NAME or timm:NAME, fetched the first time (python -m jaxcls.convert --fetch)
    c.init.checkpoint = ""
    c.init.ema = True  # take its average where it has one: `swa` if that has begun, or `ema`
    c.init.reset = ()  # patterns of tensors that start afresh (a head of another size always does)

    # -- A linear probe instead of a training: jaxcls.probe.make(**probe), configs/probe.py --------
    c.probe = ConfigDict()
    c.probe.decays = ()  # weight decays of classifiers on features that stay as they are; (): off
    c.probe.held_out = 0.2  # share of the training images of each class that the best is chosen on

    # -- Output: jaxcls.checkpoint.Checkpoints(**checkpoint), jaxcls.metrics ---------------------
    c.checkpoint = ConfigDict()
    c.checkpoint.every = "1 epochs"  # and before each evaluation, and at the end
    c.checkpoint.keep = 3  # newest; the best one is kept besides
    # metric of the evaluation that tells the best ("loss": the least): "top1", "top5"; of images
    # that may show several classes "map", "macro_f1", "micro_f1"
    c.checkpoint.best = "top1"
    # "accept": resume also if images or labels are others than those of the checkpoint, or classes
    # were renamed in their place
    c.checkpoint.changed_data = "refuse"
    c.eval = ConfigDict()
    c.eval.every = "1 epochs"  # and at the end
    c.eval.batch_size = 0  # 0: batch_size
    c.eval.ema = True  # evaluate the average where there is one: `swa` from its start on, or `ema`
    # of --mode=eval alone: jaxcls.views, jaxcls.evaluate
    c.eval.average = ""  # of several in a checkpoint "swa" or "ema"; "": as with `ema` above
    c.eval.tta = ()  # views of each image: "flip", "five_crop", "ten_crop"
    c.eval.tta_scales = ()  # of image.eval_size and eval_resize, (0.875, 1.0, 1.125); (): 1
    c.eval.fuse = ()  # further runs, checkpoints or exports, of any network for these classes
    c.eval.weights = ()  # of this network and of each of `fuse`; (): all the same
    c.eval.mean = "probabilities"  # over views and networks; or "logits"
    c.eval.against = ""  # run, checkpoint or export to compare with, image by image
    # fit a temperature on these images, store it with the weights; of images that may show several
    # classes the threshold of each class that is best for its F1
    c.eval.calibrate = False
    # with calibrate: store the probability too below which a prediction is "none of these", so that
    # this share of the others is right; 0: none
    c.eval.accepted_accuracy = 0.0
    c.eval.rejected = 0.0  # or so that at most this share is rejected
    c.eval.predictions = ""  # Parquet file of all probabilities, such as "predictions.parquet"
    # DIR/report of the last evaluation, jaxcls.report.write.Options(**report)
    c.report = ConfigDict()
    c.report.enabled = True
    c.report.samples = 1000  # of the bootstrap, for intervals; 0: none
    c.report.mistakes = 24  # most confident ones, shown as pictures, at most 200; 0: none
    c.report.grad_cam = True  # where the network looked: costs a compilation of its evaluation
    c.log = ConfigDict()
    c.log.every = "50 steps"
    c.log.tensorboard = True
    # What takes too long: jaxcls.watch.Watch(**watch)
    c.watch = ConfigDict()
    # times the median of the last 100: a step that takes longer is reported, with what every thread
    # does; 0: none
    c.watch.slow = 10.0
    c.watch.least = 30.0  # seconds that such a step takes at least
    # seconds without a step, a batch of an evaluation, the end of a save, that end the process with
    # exit code 75, for launchers to try again; 0: never. The first step may take as long as it does
    c.watch.stuck = 1800.0

    c.lock()
    return c
