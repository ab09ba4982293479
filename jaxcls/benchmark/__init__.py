"""python -m jaxcls.benchmark COMMAND [--config=FILE[:ARG]] [OPTIONS] [--config.KEY=VALUE]

compile  Processor seconds to trace, lower and compile the train step with each --model, by default
         one of each family.
input    Images/s from files to batches of uint8: reading, decoding, random resized crop, what
         config.augment asks for and a flip (in a run the device does it), on so many --cores:
         through the real loader, and in a bare loop around the same functions, which is the limit.
         --compare=tf,pillow do the same work by tf.data with its fused decode_and_crop_jpeg (in a
         Python of its own: --tf_python) and by Pillow; --records adds folders of ArrayRecord (of
         the same photographs, written by data_prep), --policies transformations.
loop     The time of a step in the real loop (`jaxcls.train.run`: reading, feeding, logging) against
         the bare jitted step called again and again on one batch that lies on the device.
predict  Latency (p50, p95, p99), images/s, memory and size of --models that answer, by --batches,
         --precisions and --formats: in JAX, and exported, by the runtimes that users have. --csv
         and --plot write it to files. Each contender has a process of its own, on the same cores;
         none is timed that answers something else than the network. JAX_PLATFORMS=cpu keeps all
         of them off accelerators.
serve    Requests/s and latency (p50, p95, p99) of `jaxcls.serve` RUN with so many --clients, and of
         a plain FastAPI server around the same network, in which a request is a call (if fastapi is
         installed): both at once on the same cores, asked in turn.
train    Images/s of the train step on synthetic images that lie on the device, with compile time,
         memory, FLOPs and the share of the device's peak; every combination of the lists given with
         --model, --precision, --batch and --bn_group. --compare=timm times the same network in
         PyTorch besides.
traffic  Bytes that an image of the train step moves from and to memory, as read from the compiled
         program, and by XLA's own count; FLOPs, temporaries, collectives; of each --model, on TPUs
         that need not be here (--topology=v5e:2x4, with the [tpu] extra) or --devices=cpu:8.
         --compare=flax,keras compiles the same network of plain Flax layers and that of
         keras.applications besides, with a plain step in bfloat16; "ratio" is ours to theirs.
         --kinds says which operations move them. Minutes a program, the first time.

What is compared is measured in one run, in repetitions, in turn. Without --config, loop takes
configs/digits.py (a small ResNet-D, 64 images of 16x16), train and compile configs/resnet50_vd.py,
traffic configs/base.py, and input that with --config.data.source=... and what it takes; predict and
serve have no config: python -m jaxcls.benchmark predict --models=ResNet50_vd,runs/mine. XLA's flags
come from the environment: XLA_FLAGS='--xla_gpu_...=...' python -m jaxcls.benchmark train. The
options of a command: python -m jaxcls.benchmark COMMAND --help. Exit code 2: a mistake in command
or config, one line on stderr.
"""
