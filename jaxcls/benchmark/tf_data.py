"""tf.data for `input`, run by a Python that has TensorFlow: PYTHON jaxcls/benchmark/tf_data.py.

The first line of stdin is a JSON object: {"files": [...], "images": how many a pass has, "batch",
"size", "scale", "ratio", "threads"}; then as in jaxcls/benchmark/contenders.py.
"""

import json
import os
import sys
import time

if __name__ == "__main__":  # before TensorFlow looks
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf


def batches(spec, seed):
    """Returns uint8 batches, decoded as TensorFlow's own ImageNet pipelines do."""

    def load(path):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4], tf.float32),
            area_range=spec["scale"],
            aspect_ratio_range=spec["ratio"],
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.cast(tf.image.resize(image, [spec["size"]] * 2), tf.uint8)
        return tf.image.random_flip_left_right(image)

    options = tf.data.Options()
    options.threading.private_threadpool_size = spec["threads"]
    options.threading.max_intra_op_parallelism = 1
    files = tf.data.Dataset.from_tensor_slices(spec["files"])
    images = files.shuffle(len(spec["files"]), seed).repeat().take(spec["images"])
    images = images.map(load, num_parallel_calls=spec["threads"])
    return images.batch(spec["batch"], drop_remainder=True).prefetch(2).with_options(options)


def main():
    spec = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        began = time.perf_counter()
        for batch in batches(spec, int(line)):
            assert batch.dtype == tf.uint8
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
