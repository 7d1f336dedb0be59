"""The lines of `surefoot benchmark`, as Markdown tables: `python -m surefoot.report.benchmarks FILE`."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.core.files import checked_lines
from surefoot.core.programs import exit_code
from surefoot.report.tables import markdown_table

Line = Mapping[str, Any]


def attacks_table(lines: Iterable[Line]) -> str:
    """The lines of `surefoot benchmark attacks`, a row a contestant; times are of one image."""
    header = ["model", "what", "library", "ms an image", "/ limit", "robust %", "mean l2"]
    return markdown_table(header, [attack_row(line) for line in lines], left=3)


def attack_row(line: Line) -> list[str]:
    steps = f"-{line['steps']}"
    what = {
        "pgd": "PGD" + steps,
        "accuracy": f"accuracy under PGD{steps}",
        "deepfool": "DeepFool",
        "cw": f"C&W-{line['attack_fields'].get('search_steps')}x{line['steps']}",
    }
    return [
        model_label(line["model"]),
        f"{what[line['attack']]}, {line['images']} images",
        f"{line['library']} {line['precision']}",
        told(line["seconds"], 1000 / line["images"], 2),
        told(line["ratio_to_limit"], 1, 2),
        told(line["robust_accuracy"], 100, 1),
        told(line["mean_l2"], 1, 2),
    ]


def model_label(name: str) -> str:
    """A run's folder as its recipe; a network as it is.

    >>> model_label("runs/mnist/sat-r1/0"), model_label("resnet-18")
    ('mnist/sat-r1', 'resnet-18')
    """
    parts = Path(name).parts
    return "/".join(parts[-3:-1]) if len(parts) >= 3 else name


def step_cost_table(lines: Iterable[Line]) -> str:
    """The lines of `surefoot benchmark step-cost`, a row an objective; units are forwards of one sample a sample."""
    columns = ["units", "floor", "FBP", "ms a step", "/ floor", "images/s", "% of peak", "MiB"]
    return markdown_table(["network", "objective", *columns], [step_row(line) for line in lines], left=2)


def step_row(line: Line) -> list[str]:
    mode = "" if line["mode"] == "eager" else f", {line['mode']}"
    return [
        f"{line['model']}, batch {line['batch']}, {line['precision']}{mode}",
        line["objective"],
        told(line["units"], 1, 2),
        told(line["floor_units"], 1, 2),
        told(line["crafting_passes"], 1, 0),
        told(line["seconds_per_step"], 1000, 2),
        told(line["ratio_to_floor"], 1, 2),
        told(line["images_per_second"], 1, 0),
        told(line["share_of_peak"], 100, 0),
        told(line["peak_memory"], 2.0**-20, 0),
    ]


def captured_table(lines: Sequence[Line]) -> str:
    """Steps run one kernel after the other beside the same steps as one CUDA graph, a row an objective."""
    pairs: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        network = f"{line['model']}, batch {line['batch']}, {line['precision']}"
        pairs.setdefault((network, line["objective"]), {})[line["mode"]] = line
    rows = []
    for (network, objective), modes in pairs.items():
        captured = modes.get("captured", {})
        eager_seconds, seconds = (each.get("seconds_per_step") for each in (modes.get("eager", {}), captured))
        rows.append(
            [
                network,
                objective,
                told(eager_seconds, 1000, 2),
                told(seconds, 1000, 2),
                told(eager_seconds / seconds if eager_seconds and seconds else None, 1, 1),
                told(captured.get("ratio_to_floor"), 1, 2),
                told(captured.get("images_per_second"), 1, 0),
            ]
        )
    header = ["network", "objective", "eager ms", "captured ms", "times faster", "captured / floor", "images/s"]
    return markdown_table(header, rows, left=2)


def told(value: float | None, scale: float, decimals: int) -> str:
    """A number for a table; nothing where there is none.

    >>> told(0.5, 100, 1), told(None, 1, 0)
    ('50.0', '')
    """
    return "" if value is None else f"{value * scale:.{decimals}f}"


def show(file: Path) -> None:
    """Print the table of a file."""
    lines = checked_lines(file)
    if lines and "objective" in lines[0]:
        captured = any(line["mode"] == "captured" for line in lines)
        print(captured_table(lines) if captured else step_cost_table(lines))
    else:
        print(attacks_table(lines))


def main(args: Sequence[str]) -> int:
    """Print the table of each file named in `args`."""
    if not args:
        print("usage: python -m surefoot.report.benchmarks FILE ...", file=sys.stderr)
        return 2

    def work() -> None:
        for name in args:
            show(Path(name))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
