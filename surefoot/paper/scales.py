"""One scale for the panels of a figure that show the same, so that what is flat looks flat."""

import math
from collections.abc import Sequence
from typing import Any

SURFACE = "surface"
LEAST = 0.1
"""Of a shared scale: lines that would fill less of it could not be told apart, and keep their own."""

Ends = tuple[float, float]


def scales(panels: Sequence[dict[str, Any]]) -> list[Ends | None]:
    """For each panel the ends of the scale that it shares, of its losses or of its y values; None is its own.

    Surfaces share one always; lines with the same label do where each panel's would fill enough of it.

    >>> low, high, steep = ({"y_label": "loss", "series": [{"y": [0.0, end]}]} for end in (1.0, 2.0, 50.0))
    >>> scales([low, high]), scales([low, steep]), scales([low])
    ([(0.0, 2.0), (0.0, 2.0)], [None, None], [None])
    """
    groups: dict[str, list[Ends]] = {}
    for panel in panels:
        if values := heights(panel):
            groups.setdefault(label(panel), []).append((min(values), max(values)))
    shared: dict[str, Ends] = {}
    for name, ends in groups.items():
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        fills = min(high - low for low, high in ends) >= LEAST * (high - low)
        if len(ends) > 1 and low < high and (name == SURFACE or fills):
            shared[name] = (low, high)
    return [shared.get(label(panel)) if heights(panel) else None for panel in panels]


def label(panel: dict[str, Any]) -> str:
    """What is shown upwards."""
    return SURFACE if "surface" in panel else str(panel.get("y_label", ""))


def heights(panel: dict[str, Any]) -> list[float]:
    """The losses of a surface, the y values of lines, as far as they are numbers; none of a panel that is missing."""
    rows = panel["surface"]["loss"] if "surface" in panel else [line["y"] for line in panel.get("series", ())]
    return [value for row in rows for value in row if math.isfinite(value)]


def apart(panels: Sequence[dict[str, Any]]) -> bool:
    """Do panels with the same label stand on scales of their own?

    >>> low, steep = ({"y_label": "loss", "series": [{"y": [0.0, end]}]} for end in (1.0, 50.0))
    >>> apart([low, steep]), apart([low])
    (True, False)
    """
    alone = [label(panel) for panel, ends in zip(panels, scales(panels), strict=True) if heights(panel) and not ends]
    return len(alone) > len(set(alone))
