"""Draws a figure from its file of JSON lines; no model is run here.

`python -m surefoot.paper.figures FILE.jsonl ...` draws each beside its file.
"""

import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.core.files import atomic_path, checked_lines
from surefoot.core.programs import exit_code
from surefoot.paper.scales import Ends, apart, scales

MARKS = ("o", "s", "^", "D", "v")
ROOM = 0.05
"""Room above the highest and below the lowest line, as a share of what lies between."""
ZOOM = 0.9
"""A surface's labels, which no layout counts, then end above what stands below it."""


def can_draw() -> bool:
    """Is matplotlib installed?"""
    return importlib.util.find_spec("matplotlib") is not None


def draw(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw a figure as PNG.

    Args:
        lines: as `Figure.lines` gives them: about the figure, then a panel each.
        file: where it goes.

    Raises:
        ValueError: matplotlib is not installed, or the lines are no figure's.
    """
    if not can_draw():
        raise ValueError("figures are drawn with matplotlib, which is not installed: pip install 'surefoot[figures]'.")
    if not lines or "figure" not in lines[0] or len(lines) < 2:
        raise ValueError("these lines are not a figure's; give a fig*.jsonl that `surefoot reproduce` wrote.")
    with atomic_path(file) as temporary:
        picture(lines).savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def picture(lines: Sequence[dict[str, Any]]) -> Any:
    """The figure as matplotlib's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    about, *panels = lines
    columns = min(about["columns"], len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (panel, ends) in enumerate(zip(panels, scales(panels), strict=True), start=1):
        axes = figure.add_subplot(rows, columns, index, projection="3d" if "surface" in panel else None)
        draw_panel(axes, panel, ends)
    figure.suptitle(about["title"])
    figure.supxlabel(footnote(f"{about['note']} {about.get('images', '')}".rstrip(), panels), fontsize=7, wrap=True)
    return figure


def footnote(note: str, panels: Sequence[dict[str, Any]]) -> str:
    """The profile's note without its marks of Markdown, and where heights cannot be compared.

    >>> footnote("Profile `quick`.", [])
    'Profile quick.'
    """
    return note.replace("`", "") + (" Each panel is on its own scale." if apart(panels) else "")


def draw_panel(axes: Any, panel: dict[str, Any], ends: Ends | None) -> None:
    """One panel: a surface, lines, or why there is nothing; `ends` is the scale that it shares with others."""
    axes.set_title(panel["title"], fontsize=9)
    if "missing" in panel:
        axes.set_axis_off()
        axes.text(0.5, 0.5, panel["missing"], ha="center", va="center", wrap=True, transform=axes.transAxes)
    elif "surface" in panel:
        surface = panel["surface"]
        e1, e2 = np.meshgrid(surface["e1"], surface["e2"])  # losses are [e2][e1]
        low, high = ends or (None, None)
        axes.plot_surface(e1, e2, np.array(surface["loss"]), cmap="viridis", vmin=low, vmax=high)
        axes.set_zlim(low, high)
        axes.set_box_aspect(None, zoom=ZOOM)
        axes.tick_params(labelsize=7, pad=1)
        axes.set_xlabel("along the gradient's sign", fontsize=8)
        axes.set_ylabel("along random signs", fontsize=8)
        axes.set_zlabel("loss (nats)", fontsize=8)
    else:
        for mark, series in zip(MARKS * len(panel["series"]), panel["series"], strict=False):
            axes.plot(series["x"], series["y"], marker=mark, markersize=3, linewidth=1.2, label=series["name"])
        if panel["log_x"]:
            axes.set_xscale("log")
        axes.set_xlabel(panel["x_label"])
        axes.set_ylabel(panel["y_label"])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        if ends:
            low, high = ends
            room = ROOM * (high - low)
            axes.set_ylim(low - room, high + room)


def main(argv: Sequence[str]) -> int:
    """Draw each file named in `argv`."""
    if not argv:
        print("usage: python -m surefoot.paper.figures FILE.jsonl ...", file=sys.stderr)
        return 2

    def work() -> None:
        for name in argv:
            draw(checked_lines(Path(name)), Path(name).with_suffix(".png"))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
