"""What `test_distributed.py` trains, in one process or in as many as Fabric starts: FOLDER DEVICES."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from surefoot.data import Dataset, Split
from surefoot.objectives import FgsmAT, NormalTraining
from surefoot.training import FitConfig, Phase, fit
from surefoot.training.machines import make_fabric


class InDouble(nn.Module):
    """A network whose arithmetic is float64 from the pixels on."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs.double())
        return logits


def images(count: int) -> Split:
    torch.manual_seed(count)
    return Split(torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8), torch.randint(10, (count,)))


def dataset() -> Dataset:
    return Dataset("random", images(64), images(16), images(8), 10, tuple("0123456789"))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "plain": InDouble(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)),
        "batch-norm": InDouble(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Linear(64, 10)),
    }


def main(folder: Path, devices: int) -> None:
    """Train both networks; the plain one with adversarial samples for two epochs, the other for a single step."""
    config = FitConfig(batch_size=16, learning_rate=0.1, device="cpu", devices=devices)
    fabric = make_fabric(config)
    for name, model in networks().items():
        plain = name == "plain"
        phase = Phase(FgsmAT(0.1, share=1.0) if plain else NormalTraining(), epochs=2 if plain else 1)
        own = config if plain else FitConfig(batch_size=64, learning_rate=0.1, device="cpu", devices=devices)
        fit(model, dataset(), [phase], own, run_dir=folder / name, fabric=fabric)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
