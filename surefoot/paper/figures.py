"""Draws a figure from its file of JSON lines; no model is run here.

`python -m surefoot.paper.figures FILE.jsonl ...` draws each beside its file.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.core.files import atomic_path

MARKS = ("o", "s", "^", "D", "v")


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
        raise ValueError("these lines are no figure's; give a fig*.jsonl that `surefoot reproduce` wrote.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    about, *panels = lines
    columns = min(about["columns"], len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    for index, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, index, projection="3d" if "surface" in panel else None)
        draw_panel(axes, panel)
    figure.suptitle(about["title"])
    figure.supxlabel(about["note"], fontsize=7, wrap=True)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def draw_panel(axes: Any, panel: dict[str, Any]) -> None:
    """One panel: a surface, lines, or why there is nothing."""
    axes.set_title(panel["title"], fontsize=9)
    if "missing" in panel:
        axes.set_axis_off()
        axes.text(0.5, 0.5, panel["missing"], ha="center", va="center", wrap=True, transform=axes.transAxes)
    elif "surface" in panel:
        surface = panel["surface"]
        e1, e2 = np.meshgrid(surface["e1"], surface["e2"])  # losses are [e2][e1]
        axes.plot_surface(e1, e2, np.array(surface["loss"]), cmap="viridis")
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


def main(argv: Sequence[str]) -> int:
    """Draw each file named in `argv`."""
    try:
        for name in argv:
            text = Path(name).read_text(encoding="utf-8")
            draw([json.loads(line) for line in text.splitlines()], Path(name).with_suffix(".png"))
    except (OSError, ValueError) as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
