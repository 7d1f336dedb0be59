"""Small networks that learn a model's answers, to craft on: the black-box attack on a model without its gradients."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surefoot.attacks import PGD
from surefoot.core.failures import type_name
from surefoot.core.geometry import check_tensor
from surefoot.core.gradients import crafting
from surefoot.core.seeding import seeded


def small_network(inputs: Tensor, classes: int) -> nn.Module:
    """Two convolutions and a hidden layer, sized from `inputs`; two hidden layers for what is no image."""
    if inputs.dim() != 4:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 128), nn.ReLU(), nn.Linear(128, classes))
    channels, height, width = inputs.shape[1:]
    side = 2 if min(height, width) >= 16 else 1
    convolutions = nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=side, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    with torch.no_grad():
        width = convolutions(torch.zeros(1, channels, height, width)).shape[1]
    return nn.Sequential(*convolutions, nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, classes))


def check_others(others: Tensor, inputs: Tensor) -> None:
    """Refuse further images that the model may not be asked about as it is about `inputs`.

    Raises:
        TypeError: no tensor.
        ValueError: none, of another shape or type, elsewhere, or pixels outside [0, 1].
    """
    check_tensor("others", others)
    kinds = [(each.shape[1:], each.dtype, each.device) for each in (others, inputs)]
    if kinds[0] != kinds[1] or len(others) == 0:
        shape = f"[images, {', '.join(map(str, inputs.shape[1:]))}]"
        given, wanted = (f"{type_name(kind)} on {device}" for _, kind, device in kinds)
        raise ValueError(
            f"others have shape {list(others.shape)}, {given}; give images of shape {shape}, "
            f"{wanted}, as inputs are, or None."
        )
    low, high = torch.aminmax(others)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"others range from {low.item():.4g} to {high.item():.4g}; give pixels in [0, 1], or None.")


class InFloat32(nn.Module):
    """A network in float32 for inputs of any type: those of the model that it imitates."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs.float())  # type: ignore[no-any-return]


def train_substitute(
    model: nn.Module,
    inputs: Tensor,
    classes: int,
    *,
    eps: float | None = None,
    steps: int = 600,
    seed: int = 0,
    deadline: float = float("inf"),
) -> nn.Module:
    """A small network that gives each of `inputs` the class that `model` gives it.

    Args:
        model: what is imitated; asked once for each input and for a noisy copy.
        inputs: `[images, ...]` in [0, 1], not those that are attacked later.
        eps: where given, trained on PGD samples of this radius, which transfer to robust models.
        steps: mini-batches of 64 at most.
        deadline: in seconds of `time.perf_counter`; training stops there.

    Returns:
        The network in evaluation mode, on the device of `inputs`; it is in float32 and takes inputs of any type.
    """
    with seeded(seed), torch.inference_mode(False), torch.enable_grad():
        asked, inputs = inputs.dtype, inputs.float()
        noisy = (inputs + 0.3 * torch.randn_like(inputs)).clamp(0, 1)
        pool = torch.cat([inputs, noisy])
        with crafting(model) as frozen, torch.no_grad():
            labels = torch.cat([frozen(part.to(asked)).argmax(dim=1) for part in torch.split(pool, 256)])
        with torch.device("cpu"):  # whatever the caller's default device and type are
            network = InFloat32(small_network(inputs, classes).float()).to(inputs.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        attack = None if eps is None else PGD(eps, steps=3, step_size=min(1.0, eps / 2))
        for _ in range(steps):
            rows = torch.randint(len(pool), (64,), device=inputs.device)
            images, targets = pool[rows], labels[rows]
            if attack is not None:
                images = attack(network, images, targets)
            optimizer.zero_grad()
            F.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
            with torch.device("cpu"):  # where an older PyTorch's Adam counts its steps
                optimizer.step()
            if time.perf_counter() > deadline:
                break
    return network.eval()
