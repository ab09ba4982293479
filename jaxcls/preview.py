"""python -m jaxcls.preview --config=FILE[:ARG] --out=FILE.png [--images=16] [--step=0] \\
    [--config.KEY=VALUE]

Writes a contact sheet of the first images of a training batch: each as it lies in the data, whole,
and beside it as the network gets it at that step, after all that host and device do to it, with the
random numbers of the run; only normalising is undone. Below it the class, or of mixed images both
with their weights. Exit codes: 0; 2: a mistake in command, config or data.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from jaxcls import choices
from jaxcls.command import define_config, exit_with, parse, told
from jaxcls.console import Console
from jaxcls.data.decode import decode
from jaxcls.data.feed import Feed
from jaxcls.data.labels import names_of
from jaxcls.program import build

TILE = (96, 320)  # pixels: smaller images are enlarged to at least that, larger ones made smaller
GAP = 8  # pixels around tiles
FONT_SIZE = 13  # pixels
WIDTH = 1900  # pixels of a sheet at most, if it is not a single pair
FORMATS = ("BMP", "GIF", "JPEG", "PDF", "PNG", "PPM", "TIFF", "WEBP")  # of the sheet

# Where systems keep fonts, and which have most scripts: Pillow's own has Latin letters only.
FONT_FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts"),
)
FONTS = (
    *("notosanscjk", "sourcehansans", "wqy", "arial unicode", "arialunicode", "msyh", "msgothic"),
    *("malgun", "pingfang", "hiragino", "stheiti", "notosans", "dejavusans", "freesans", "segoeui"),
)
STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")
MAX_FONTS = 50  # that are tried
LONGEST = 500  # characters of a name that are looked at


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
    each are its (weight, class name), one or two; the name is of several classes where the image
    shows several, and "no label" or "no class" where there is none.

    Args:
      config: of a run.
      images: N.
      step: of the run.

    Raises:
      ValueError: whatever is wrong with config and data; a number out of range.
    """
    config, data = choices.open_data(config)
    program = build(config, **data.facts())
    total = program.plan.total_steps
    if not 0 <= step < total:
        raise ValueError(f"--step={step}: the run has the steps 0 to {total - 1}")
    if images < 1:
        raise ValueError(f"--images={images}: write a number of at least 1")
    # nothing is read ahead for a step that does not come
    plan = dataclasses.replace(program.plan, total_steps=step + 1)
    transform = program.transform
    size = min(max(transform.size, TILE[0]), TILE[1])
    original = Original(size, transform.channels, transform.exif)

    def batch_of(feed):
        with feed.train_batches(plan, config.seed, start_step=step) as batches:
            return next(batches)

    feed = Feed(data, data.train, transform, program.layout)
    before = batch_of(dataclasses.replace(feed, transform=original))
    batch = program.prepare(np.int32(step), feed.put(batch_of(feed)))
    rows = {key: np.asarray(value[:images]) for key, value in batch.items()}
    image = program.network.image
    mean, std = np.array(image.mean), np.array(image.std)
    pixels = np.clip(255 * (rows["image"] * std + mean), 0, 255).round().astype(np.uint8)

    def name_of(label):
        none = "no class" if (label >= 0).any() else "no label"
        return " + ".join(names_of(label, data.class_names)) or none

    names = [[(1.0, name_of(label))] for label in rows["label"]]
    if "lam" in rows:
        second = [name_of(label) for label in rows["label2"]]
        names = [
            [(lam, name), (1 - lam, other)] if lam < 1 else [(1.0, name)]
            for lam, [(_, name)], other in zip(rows["lam"].tolist(), names, second)
        ]
    return before["image"][:images], pixels, names


def sheet(
    originals: np.ndarray, images: np.ndarray, labels: list[list[tuple[float, str]]], title: str
) -> Image.Image:
    """Returns the contact sheet of what `preview` returns; of four channels the first three."""
    tile = originals.shape[1]
    line = FONT_SIZE + 4
    wide, high = 2 * tile + 3 * GAP, tile + max(map(len, labels)) * line + GAP
    columns = max(min(WIDTH // wide, len(images)), 1)
    lines = -(-len(images) // columns)
    out = Image.new("RGB", (columns * wide, lines * high + line + GAP), "white")
    draw = ImageDraw.Draw(out)
    write(draw, (GAP, GAP // 2), shortened(title, out.width - 2 * GAP))
    for i, (before, after, names) in enumerate(zip(originals, images, labels, strict=True)):
        x, y = (i % columns) * wide + GAP, (i // columns) * high + line + GAP
        for left, pixels in ((x, before), (x + tile + GAP, _resized(after, tile))):
            shown = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
            out.paste(Image.fromarray(np.ascontiguousarray(shown)), (left, y))
        for row, (weight, name) in enumerate(names):
            text = name if weight == 1 else f"{weight:.3f}  {name}"
            write(draw, (x, y + tile + 2 + row * line), shortened(text, 2 * tile + GAP))
    return out


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    flag = cv2.INTER_AREA if size < len(image) else cv2.INTER_NEAREST
    return cv2.resize(image, (size, size), interpolation=flag).reshape(size, size, -1)


# -- Letters of any script -------------------------------------------------------------------------


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    """Draws a text in black; what no font has as `\\u4e2d`."""
    x, y = place
    for font, part in _runs(text):
        draw.text((x, y + FONT_SIZE), part, "black", font, anchor="ls")
        x += font.getlength(part)


def shortened(text: str, width: float) -> str:
    """Returns the text, cut off with "..." where it is wider than `width` pixels."""
    if len(text) <= LONGEST and _width(text) <= width:
        return text
    text = text[:LONGEST]
    while text and _width(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _width(text: str) -> float:
    return sum(font.getlength(part) for font, part in _runs(text))


def _runs(text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
    """Yields the parts of a text with the font that has their characters."""
    known = ((_font(char), char) for char in text)
    # of what no font has, the default one writes the number
    shown = ((font or _default(), char if font else ascii(char)[1:-1]) for font, char in known)
    for font, run in itertools.groupby(shown, key=lambda pair: pair[0]):
        yield font, "".join(char for _, char in run)


@functools.cache
def _font(char: str) -> ImageFont.FreeTypeFont | None:
    """Returns the first font that has a character, None if there is none."""
    if not char.isprintable():
        return None
    if _has(_default(), char):
        return _default()
    return next((font for font in _system_fonts() if _has(font, char)), None)


def _has(font: ImageFont.FreeTypeFont, char: str) -> bool:
    """Returns whether a font has a character: it does not look like one that none has."""
    return char == " " or _look(font, char) not in (_look(font, "\U0010ffff"), None)


def _look(font: ImageFont.FreeTypeFont, char: str) -> tuple[tuple[int, int], bytes] | None:
    try:
        mask = font.getmask(char)
    except (OSError, ValueError):  # a damaged font
        return None
    return mask.size, bytes(mask)


@functools.cache
def _default() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT_SIZE)


@functools.cache
def _system_fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """Returns the fonts of the system, those with most scripts first."""
    walks = (os.walk(os.path.expanduser(folder)) for folder in FONT_FOLDERS)
    files = [
        os.path.join(folder, name)
        for folder, _, names in itertools.chain.from_iterable(walks)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    ]

    def rank(file):
        name = os.path.basename(file).lower()
        wide = next((i for i, begin in enumerate(FONTS) if name.startswith(begin)), len(FONTS))
        return wide, any(style in name for style in STYLES), name

    fonts = []
    for file in sorted(files, key=rank)[:MAX_FONTS]:
        with contextlib.suppress(OSError):  # a damaged one, or one of fixed sizes: emoji
            fonts.append(ImageFont.truetype(file, FONT_SIZE))
    return tuple(fonts)


@told
def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code."""
    values = flags.FlagValues()
    define_config(values)
    flags.DEFINE_string("out", None, "image file to write", flag_values=values)
    flags.DEFINE_integer("images", 16, "number of images, at most a batch", flag_values=values)
    flags.DEFINE_integer("step", 0, "step of the run", flag_values=values)
    name = parse(argv, values, required=("out",), help=__doc__)
    out = Path(values.out).expanduser()
    if not out.parent.is_dir():
        raise ValueError(f"--out={out}: there is no folder {out.parent}")
    if Image.registered_extensions().get(out.suffix.lower()) not in FORMATS:
        raise ValueError(f"--out={out}: write the name of an image file, such as sheet.png")
    Console()  # shows what the input warns of
    shown = preview(values.config, images=values.images, step=values.step)
    title = f"{name}, step {values.step}: each image whole, and as the network gets it"
    try:
        sheet(*shown, title).save(out)
    except OSError as e:  # Pillow's own have no number
        raise ValueError(f"{out}: {e.strerror or e}") from e
    return 0


if __name__ == "__main__":
    exit_with(main)
