"""The picture of `predict`: accuracy over latency, a panel for each batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcls import scatter
from jaxcls.scatter import COLOURS, MARKERS, SOFT, Anchors

COLUMNS = 3  # of panels


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a picture of what was measured, see `figure`.

    Args:
      rows: of `predict`, with "p50_ms".
      path: .svg, .png or .pdf.
    """
    scatter.save(lambda: figure(rows), path, "predict")


def figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Returns the figure: the height of a network is its top-1; without any, its multiply-adds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = [row for row in rows if row.get("top1") is not None]
    unknown = sorted({row["model"] for row in rows if row.get("top1") is None})
    shown, key = (known, "top1") if known else (rows, "macs")
    batches = sorted({row["batch"] for row in shown})
    kinds = list(dict.fromkeys(kind_of(row) for row in shown))
    looks = {
        kind: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, kind in enumerate(kinds)
    }
    columns = 2 if len(batches) == 4 else min(len(batches), COLUMNS)
    lines = -(-len(batches) // columns)
    models = len({row["model"] for row in shown})
    width, height = min(8.0, 5.0 + 0.08 * models), min(11.0, 3.4 + 0.13 * models)
    found = Figure(figsize=(max(7.0, width * columns), height * lines + 0.9), layout="constrained")
    FigureCanvasAgg(found)
    panels = found.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(batches) :]:
        axes.set_visible(False)
    places = []
    for axes, batch in zip(panels.flat, batches):
        its = [row for row in shown if row["batch"] == batch]
        places.append((axes, _panel(axes, its, key, looks)))
        images = "1 image" if batch == 1 else f"{batch} images"
        axes.set_title(f"{images} a call", loc="left", fontsize=10, fontweight="bold")
    whose = " or ".join(sorted({row["top1_from"] for row in known}))
    # what 8 bits cost is not known here
    whose += ", in float32" if any(row["precision"] == "int8" for row in shown) else ""
    for axes in panels[:, 0]:
        axes.set_ylabel(f"top-1, % ({whose})" if known else "multiply-adds of an image, G")
    threads = {row["threads"] for row in shown if row["device"] == "cpu"}
    device = " and ".join(sorted({row["device"] for row in shown}))
    device += f", {min(threads)} thread{'s' * (min(threads) > 1)}" if threads else ""
    left_out = f"; no accuracy is known of {_few(unknown)}" if known and unknown else ""
    found.supxlabel(f"median latency of a call, ms ({device}){left_out}", fontsize=9, color=SOFT)
    legend: dict[str, Any] = {}
    for axes, _ in places:  # a contender may have failed with one of the batches
        handles, labels = axes.get_legend_handles_labels()
        legend = dict(zip(labels, handles)) | legend
    legend = {kind: legend[kind] for kind in kinds}
    found.legend(legend.values(), legend.keys(), loc="outside upper left", frameon=False,
                 ncols=min(len(kinds), 6), fontsize=9, handletextpad=0.2)  # fmt: skip
    found.draw_without_rendering()
    found.set_layout_engine("none")  # names are placed where the axes are now
    for axes, anchors in places:
        scatter.write_names(axes, anchors, found.dpi / 72)
    return found


def kind_of(row: Mapping[str, Any]) -> str:
    """Returns what the legend says of a row."""
    own = row["precision"] in ("float32", "int8")
    return row["format"] if own else f"{row['format']} {row['precision']}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, looks: Mapping) -> Anchors:
    """Draws the marks of a batch, and returns where: names come last, when axes have a place."""
    scale = 1e9 if key == "macs" else 1.0
    axes.set_xscale("log")
    if key == "macs":
        axes.set_yscale("log")
    x = [row["p50_ms"] for row in rows]
    y = [row[key] / scale for row in rows]
    scatter.grid(axes, "xy" if key == "macs" else "x")
    axes.set_xlim(min(x) / 1.25, max(x) * 1.25 * (max(x) / min(x)) ** 0.12)
    if key == "top1":
        room = 0.08 * (max(y) - min(y)) or 1.0
        axes.set_ylim(min(y) - room, max(y) + room)
    anchors: Anchors = {}
    for row, at in zip(rows, zip(x, y)):
        anchors.setdefault(row["model"], []).append(at)
    for its in anchors.values():
        if len(its) > 1:
            places = [at[0] for at in its]
            axes.plot([min(places), max(places)], [its[0][1]] * 2, color="#b9c1cb", lw=1, zorder=1)
    for kind, (colour, marker) in looks.items():
        its = [(a, b) for row, a, b in zip(rows, x, y) if kind_of(row) == kind]
        if its:
            axes.scatter(*zip(*its), s=30, color=colour, marker=marker, label=kind, zorder=3,
                         edgecolor="white", linewidth=0.5)  # fmt: skip
    return anchors
