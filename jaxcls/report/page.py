"""The page of a report: one file that opens from disk and loads nothing."""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.report import plots
from jaxcls.report.advice import Advice
from jaxcls.report.measures import Bin

SMALL = 40  # classes up to which every cell of the confusion matrix is shown
SIZE = 160  # pixels of a thumbnail
# Sorts a table by the column whose heading is clicked.
SCRIPT = """
for (const heading of document.querySelectorAll(".sortable th[data-sort]")) {
  heading.addEventListener("click", () => {
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex, numbers = heading.dataset.sort === "number";
    const down = heading.getAttribute("aria-sort") === (numbers ? "descending" : "ascending");
    const order = (numbers ? -1 : 1) * (down ? -1 : 1);
    const key = (row) => {
      const cell = row.cells[column];
      if (!numbers) return cell.textContent;
      const value = parseFloat(cell.dataset.value);
      return isNaN(value) ? -1 : value;
    };
    const compare = (a, b) => numbers ? a - b
      : a.localeCompare(b, undefined, {numeric: true});
    const rows = [...body.rows].sort((a, b) => order * compare(key(a), key(b)));
    body.append(...rows);
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
  });
}
"""


def render(
    figures: Mapping[str, Any],
    *,
    title: str,
    about: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    advice: Sequence[Advice],
    mistakes: Sequence[Mapping[str, Any]],
    confusion: np.ndarray | None,
) -> str:
    """Returns the page.

    Args:
      figures: of metrics.json.
      title: of the page.
      about: what was evaluated, by name.
      lines: of metrics.jsonl, for the curves.
      advice: to give.
      mistakes: {"image", "label", "prediction", "probability", "picture", "cam"}, the latter two
        JPEGs or None.
      confusion: int [K, K], None: too many classes.
    """
    from markupsafe import Markup

    several, names = "map" in figures, list(figures["per_class"])
    small = confusion is not None and len(names) <= SMALL
    heat, share = plots.heat_map(confusion) if confusion is not None and not small else (None, 1)
    bins = [Bin(**row) for row in figures.get("reliability", ())]
    rejected = figures.get("rejection")
    encoded = lambda picture: base64.b64encode(picture).decode() if picture else ""
    shown = [
        {**it, "picture": encoded(it["picture"]), "cam": encoded(it["cam"])} for it in mistakes
    ]
    return _template().render(
        figures={"intervals": None, **figures},
        title=title,
        about=about,
        classes=len(names),
        names=names,
        several=several,
        advice=advice,
        curves=Markup(plots.curves(lines)),
        reliability=Markup(plots.reliability(bins)) if bins else "",
        rejection=Markup(plots.rejection(rejected)) if rejected else "",
        matrix=_cells(names, confusion) if small else None,
        heat=encoded(heat),
        heat_share=share,
        short=_short,
        mistakes=shown,
        cams=any(it["cam"] for it in shown),
        against=figures.get("against"),
        script=Markup(SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_name("page.html").read_text("utf-8"))


def _cells(names: Sequence[str], confusion: np.ndarray) -> list[list[dict[str, Any]]]:
    """Returns number, colour and tooltip of each cell."""
    rows = []
    for i, counts in enumerate(confusion.tolist()):
        total = max(sum(counts), 1)
        rows.append(
            [
                {
                    "n": n,
                    "right": i == j,
                    "strength": round(15 + 75 * n / total) if n else 0,
                    "title": f"{names[i]} taken for {names[j]}: {n} of {sum(counts)}",
                }
                for j, n in enumerate(counts)
            ]
        )
    return rows


def _short(name: str) -> str:
    """Returns the end of a path: the file and its folder."""
    parts = name.replace("\\", "/").split("/")
    return "/".join(parts[-2:])
