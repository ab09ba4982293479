"""Transforms for worker processes, in a module that is quick to import."""

import os
import signal
import time

import cv2
import numpy as np


def slow(image, rng, seconds):
    time.sleep(seconds)
    return image


def kill_myself(image, rng):
    os.kill(os.getpid(), signal.SIGKILL)


def count_threads(image, rng):
    """Instead of the image: how many threads OpenCV would take for it."""
    return np.full_like(image, cv2.getNumThreads())


def same(image, rng):
    """Pixels as they are."""
    return image


def first_bytes(image, rng):
    """Pixels that tell which bytes they were."""
    return np.frombuffer(image[:12], np.uint8).reshape(2, 2, 3)
