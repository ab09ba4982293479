"""python -m jaxcls.data.preview --config=FILE[:ARG] --out=FILE.png [--images=16] [--step=0] \\
    [--config.KEY=VALUE]

Writes a contact sheet of the first images of a training batch: each as it lies in the data, whole,
and beside it as the network gets it at that step, after all that host and device do to it, with the
random numbers of the run; only normalising is undone. Below it the class, or of mixed images both
with their weights. Exit codes: 0; 2: a mistake in command, config or data.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from jaxcls import choices, sharding
from jaxcls.command import complain, define_config, exit_with, parse
from jaxcls.data.decode import decode
from jaxcls.program import build, train_batches

TILE = (96, 320)  # pixels: smaller images are enlarged to at least that, larger ones made smaller
GAP = 8  # pixels around tiles
FONT_SIZE = 13  # pixels
WIDTH = 1900  # pixels of a sheet at most, if it is not a single pair


@dataclasses.dataclass(frozen=True)
class Original:
    """A transform for the loader: the whole image on a white square, uint8 [size, size, C]."""

    size: int
    channels: int
    exif: bool

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        pixels = decode(image, channels=self.channels, exif=self.exif)
        factor = self.size / max(pixels.shape[:2])
        height, width = (max(round(n * factor), 1) for n in pixels.shape[:2])
        flag = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
        pixels = cv2.resize(pixels, (width, height), interpolation=flag)
        out = np.full((self.size, self.size, self.channels), 255, np.uint8)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        out[top : top + height, left : left + width] = pixels.reshape(height, width, -1)
        return out


def preview(
    config: ConfigDict, *, images: int, step: int
) -> tuple[np.ndarray, np.ndarray, list[list[tuple[float, str]]]]:
    """Returns originals, what the network gets, and the labels, of the first rows of a batch.

    Images are uint8 [N, T, T, C] and [N, S, S, C], N being at most the batch size; the labels of
    each are its (weight, class name), one or two.

    Args:
      config: of a run.
      images: N.
      step: of the run.

    Raises:
      ValueError: whatever is wrong with config and data; a number out of range.
    """
    config, data = choices.open_data(config)
    program = build(config, num_train=len(data.train), num_classes=len(data.class_names))
    total = program.plan.total_steps
    if not 0 <= step < total:
        raise ValueError(f"--step={step}: the run has the steps 0 to {total - 1}")
    if images < 1:
        raise ValueError(f"--images={images}: write a number of at least 1")
    # nothing is read ahead for a step that does not come
    program = program._replace(plan=dataclasses.replace(program.plan, total_steps=step + 1))
    transform = program.train_transform
    size = min(max(transform.size, TILE[0]), TILE[1])
    original = Original(size, transform.channels, transform.exif)

    def batch_of(program):
        with train_batches(config, data, program, start_step=step) as batches:
            return next(batches)

    before = batch_of(program._replace(train_transform=original))
    batch = program.prepare(np.int32(step), sharding.put(batch_of(program), program.batch_sharding))
    rows = {key: np.asarray(value[:images]) for key, value in batch.items()}
    mean, std = np.array(config.image.mean), np.array(config.image.std)
    pixels = np.clip(255 * (rows["image"] * std + mean), 0, 255).round().astype(np.uint8)
    names = [[(1.0, data.class_names[label])] for label in rows["label"]]
    if "lam" in rows:
        second = [data.class_names[label] for label in rows["label2"]]
        names = [
            [(lam, name), (1 - lam, other)] if lam < 1 else [(1.0, name)]
            for lam, [(_, name)], other in zip(rows["lam"].tolist(), names, second)
        ]
    return before["image"][:images], pixels, names


def sheet(
    originals: np.ndarray, images: np.ndarray, labels: list[list[tuple[float, str]]], title: str
) -> Image.Image:
    """Returns the contact sheet of what `preview` returns."""
    tile = originals.shape[1]
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 4
    wide, high = 2 * tile + 3 * GAP, tile + max(map(len, labels)) * line + GAP
    columns = max(min(WIDTH // wide, len(images)), 1)
    lines = -(-len(images) // columns)
    out = Image.new("RGB", (columns * wide, lines * high + line + GAP), "white")
    draw = ImageDraw.Draw(out)
    draw.text((GAP, GAP // 2), shortened(title, out.width - 2 * GAP, font), "black", font)
    for i, (before, after, names) in enumerate(zip(originals, images, labels, strict=True)):
        x, y = (i % columns) * wide + GAP, (i // columns) * high + line + GAP
        for left, pixels in ((x, before), (x + tile + GAP, _resized(after, tile))):
            out.paste(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels),
                      (left, y))  # fmt: skip
        for row, (weight, name) in enumerate(names):
            text = name if weight == 1 else f"{weight:.3f}  {name}"
            text = shortened(text, 2 * tile + GAP, font)
            draw.text((x, y + tile + 2 + row * line), text, "black", font)
    return out


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    flag = cv2.INTER_AREA if size < len(image) else cv2.INTER_NEAREST
    return cv2.resize(image, (size, size), interpolation=flag).reshape(size, size, -1)


def shortened(text: str, width: int, font: ImageFont.ImageFont) -> str:
    """Returns the text, cut off with "..." where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code; a user's mistake is one line on stderr."""
    values = flags.FlagValues()
    define_config(values)
    flags.DEFINE_string("out", None, "image file to write", flag_values=values)
    flags.DEFINE_integer("images", 16, "number of images, at most a batch", flag_values=values)
    flags.DEFINE_integer("step", 0, "step of the run", flag_values=values)
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        name = parse(argv, values, required=("out",))
        out = Path(values.out)
        if not out.parent.is_dir():
            raise ValueError(f"--out={out}: there is no folder {out.parent}")
        if out.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"--out={out}: write the name of an image file, such as sheet.png")
        logging.set_verbosity(logging.WARNING)
        shown = preview(values.config, images=values.images, step=values.step)
        title = f"{name}, step {values.step}: each image whole, and as the network gets it"
        sheet(*shown, title).save(out)
    except ValueError as error:
        return complain(error)
    except OSError as error:
        return complain(OSError(f"{error.filename or out}: {error.strerror or error}"))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    exit_with(main)
