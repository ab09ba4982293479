"""The pictures of a report: SVG whose colours are the page's, light or dark."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from jaxcls.report.measures import Bin

# What matplotlib is told, and the variable of the page that takes its place.
COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--blue)",
    "#050505": "var(--orange)",
}
INK, SOFT, LINE, BLUE, ORANGE = COLOURS
POINTS = 400  # of a curve at most: more are averaged
LEAST = 224  # pixels of a picture's side by itself, at least
HEAT = 200  # cells of a heat map's side at most: more classes share one


def curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns loss, accuracy and learning rate over the epochs; "" without a log.

    Args:
      lines: of metrics.jsonl.
    """
    training = [line for line in lines if line["split"] == "train"]
    evaluations = [line for line in lines if line["split"] == "eval"]
    if not training:
        return ""
    mixed = any("top1_mixed" in line for line in training)
    measure = "map" if any("map" in line for line in evaluations) else "top1"
    panels = [
        ("Loss", (("training", training, "loss"), ("evaluation", evaluations, "loss"))),
        (
            "Accuracy" if measure == "top1" else "mAP",
            (
                ("training, mixed labels" if mixed else "training", training,
                 "top1_mixed" if mixed else measure),
                ("evaluation", evaluations, measure),
            ),
        ),
        ("Learning rate", (("", training, "lr"),)),
    ]  # fmt: skip
    panels = [panel for panel in panels if any(_points(x, key)[0].size for _, x, key in panel[1])]
    if not panels:
        return ""
    with _figure("curves", 3.3 * len(panels), 2.6) as (figure, svg):
        for i, (title, series) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            for (label, of, key), colour in zip(series, (SOFT, BLUE)):
                x, y = _points(of, key)
                if not len(x):
                    continue
                few = "o" if len(x) <= 30 and label == "evaluation" else None
                colour = colour if label else ORANGE
                axes.plot(x, y, color=colour, label=label, marker=few, markersize=2.5, lw=1.5)
            if series[0][0]:
                axes.legend(frameon=False, handlelength=1.2)
    return svg()


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns epochs and values, as means of neighbours where they are many."""
    known = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    points = np.array(known, float).reshape(-1, 2)
    if len(points) > POINTS:
        parts = np.array_split(points, POINTS)
        points = np.array([part.mean(0) for part in parts])
    return points[:, 0], points[:, 1]


def reliability(bins: Sequence[Bin]) -> str:
    """Returns the reliability diagram: accuracy over probability, and how many images."""
    with _figure("reliability", 3.6, 3.6) as (figure, svg):
        axes, below = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1), "hspace": 0.12}
        )
        there = [bin for bin in bins if bin.images]
        centres = [(bin.low + bin.high) / 2 for bin in there]
        width = bins[0].high - bins[0].low
        axes.bar(centres, [b.accuracy for b in there], 0.9 * width, color=BLUE, alpha=0.75)
        axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--")
        axes.plot([b.probability for b in there], [b.accuracy for b in there], "o", color=ORANGE,
                  markersize=3)  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        total = max(sum(bin.images for bin in bins), 1)
        shares = [100 * bin.images / total for bin in there]
        below.bar(centres, shares, 0.9 * width, color=SOFT, alpha=0.75)
        below.set(xlabel="probability of the prediction", ylabel="% of images")
    return svg()


def rejection(found: Mapping[str, Any]) -> str:
    """Returns the accuracy of the accepted images over the share that is rejected.

    Args:
      found: "rejection" of the figures; the dot is where the network's threshold is.
    """
    percent = lambda x: 100 * np.asarray(x, float)
    with _figure("rejection", 3.6, 2.4) as (figure, svg):
        axes = figure.subplots()
        curve = found["curve"]
        axes.plot(percent(curve["rejected"]), percent(curve["accuracy"]), color=BLUE, lw=1.5)
        axes.plot(percent(found["rejected"]), percent(found["accuracy"]), "o", color=ORANGE,
                  markersize=4)  # fmt: skip
        axes.set(xlabel="% of images rejected", ylabel="% right of the others")
    return svg()


@contextlib.contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Gives an empty figure of so many inches, and a function that returns its SVG afterwards."""
    import matplotlib as mpl  # only where something is drawn: it takes half a second
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "font.size": 8.5,
        "font.family": "sans-serif",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.facecolor": "none",
        "axes.edgecolor": LINE,
        "axes.labelcolor": SOFT,
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": INK,
        "text.parse_math": False,  # a name may have dollars
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same picture every time
        "svg.id": f"plot-{name}",
    }
    with mpl.rc_context({k: v for k, v in style.items() if k in mpl.rcParams}):
        figure = Figure(figsize=(width, height))
        edges = {"left": 0.5 / width, "right": 1 - 0.1 / width}
        edges |= {"bottom": 0.42 / height, "top": 1 - 0.28 / height}
        figure.subplots_adjust(**edges, wspace=0.18)  # quicker than a layout that is measured
        canvas, out = FigureCanvasSVG(figure), io.StringIO()
        yield figure, lambda: _coloured(out.getvalue())
        with warnings.catch_warnings(action="ignore"):  # a glyph that is missing here: browsers
            canvas.print_svg(out, metadata={"Date": None})


def _coloured(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, count=1, flags=re.S)  # the white paper
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'width="([\d.]+)pt"', r'style="width: 100%; max-width: \1pt"', svg, count=1)
    return re.sub("|".join(COLOURS), lambda colour: COLOURS[colour[0]], svg)


# -- Pixels ----------------------------------------------------------------------------------------


def heat_map(confusion: np.ndarray) -> tuple[bytes, int]:
    """Returns a PNG of the mistakes of many classes, and how many classes share a cell.

    A cell is the darker, the more images of its labels (rows) were taken for its predictions; what
    is right, the diagonal, is left out.
    """
    wrong = np.array(confusion, np.float64)
    np.fill_diagonal(wrong, 0)
    share = -(-len(wrong) // HEAT)
    room = -len(wrong) % share
    wrong = np.pad(wrong, (0, room)).reshape(-1, share, (len(wrong) + room) // share, share)
    cells = wrong.sum((1, 3))
    strength = np.sqrt(cells / max(cells.max(), 1))
    pixels = np.zeros((*cells.shape, 4), np.uint8)
    pixels[..., :3] = (200, 90, 40)  # blue, green, red
    pixels[..., 3] = np.round(255 * strength)
    return _encoded(".png", pixels), share


def thumbnail(image: np.ndarray, size: int, heat: np.ndarray | None = None) -> bytes:
    """Returns a JPEG of uint8 pixels [H, W, C], with where a network looked laid over it.

    Args:
      image: of any number of channels; of others than 1 and 3 the first three or one are shown.
      size: pixels of the picture.
      heat: [h, w] in [0, 1].
    """
    channels = 3 if image.shape[-1] >= 3 else 1
    pixels = np.repeat(image[..., :1], 3, -1) if channels == 1 else image[..., 2::-1]
    flag = cv2.INTER_AREA if len(pixels) > size else cv2.INTER_NEAREST
    pixels = cv2.resize(np.ascontiguousarray(pixels), (size, size), interpolation=flag)
    if heat is not None:
        levels = cv2.resize(np.round(255 * np.nan_to_num(heat)).astype(np.uint8), (size, size),
                            interpolation=cv2.INTER_CUBIC)  # fmt: skip
        coloured = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)
        pixels = cv2.addWeighted(pixels, 0.5, coloured, 0.5, 0)
    return _encoded(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])


def _encoded(suffix: str, pixels: np.ndarray, options: Sequence[int] = ()) -> bytes:
    done, encoded = cv2.imencode(suffix, pixels, options)
    assert done, suffix
    return encoded.tobytes()
