"""Gradient masks to wrap around a model whose truth is known, to test the audit on. None of them adds robustness.

They take a module that is trained: the recipes that train it, and with them the robust controls, are on a higher
floor (`surefoot.cli.calibration`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.core.seeding import seeded


class Scaled(nn.Module):
    """Logits times a constant, so large that the softmax saturates and float32 rounds the loss's gradient to zero."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs) * self.factor  # type: ignore[no-any-return]


class Rounded(nn.Module):
    """Pixels rounded to a few levels first: the gradient is zero almost everywhere (Xu et al., 2018, bit depth)."""

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model((inputs * (self.levels - 1)).round() / (self.levels - 1))  # type: ignore[no-any-return]


class Noisy(nn.Module):
    """Gaussian noise on the pixels at each call."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs + self.sigma * torch.randn_like(inputs))  # type: ignore[no-any-return]


class Resized(nn.Module):
    """Shifted and padded at random at each call, as by random resizing and padding (Xie et al., 2018)."""

    def __init__(self, model: nn.Module, margin: int) -> None:
        super().__init__()
        self.model, self.margin = model, margin

    def forward(self, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[2:]
        smaller = height - int(torch.randint(0, self.margin + 1, ()))
        small = nn.functional.interpolate(inputs, size=(smaller, smaller), mode="nearest")
        top = int(torch.randint(0, height - smaller + 1, ()))
        left = int(torch.randint(0, width - smaller + 1, ()))
        padded = nn.functional.pad(small, (left, width - smaller - left, top, height - smaller - top))
        return self.model(padded)  # type: ignore[no-any-return]


class Staircase(nn.Module):
    """Pixels through a staircase whose steps are steep sigmoids: gradients vanish on the steps, explode between them.

    x -> (floor(n x) + sigmoid(steepness (n x - floor(n x) - 1/2))) / n.
    """

    def __init__(self, model: nn.Module, levels: int, steepness: float) -> None:
        super().__init__()
        self.model, self.levels, self.steepness = model, levels, steepness

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = inputs * self.levels
        floor = scaled.floor()
        stairs = (floor + torch.sigmoid(self.steepness * (scaled - floor - 0.5))) / self.levels
        return self.model(stairs)  # type: ignore[no-any-return]


class Wrinkled(nn.Module):
    """Pixels plus a tiny fast sine: the value hardly moves, the gradient's sign is the sine's."""

    def __init__(self, model: nn.Module, frequency: float, height: float) -> None:
        super().__init__()
        self.model, self.frequency, self.height = model, frequency, height

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs + self.height * torch.sin(self.frequency * inputs))  # type: ignore[no-any-return]


class BrokenBackward(torch.autograd.Function):
    """The identity, with a gradient that is `kind`: zero, random signs, or not a number."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if ctx.kind == "zero":
            return torch.zeros_like(gradient), None
        if ctx.kind == "random":
            return torch.randn_like(gradient), None
        return torch.full_like(gradient, torch.nan), None


class BadGradient(nn.Module):
    """A model whose gradient is `zero`, `random` or `nan`; its answers are as before."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(BrokenBackward.apply(inputs, self.kind))  # type: ignore[no-any-return,no-untyped-call]


class Detached(nn.Module):
    """A model without any gradient to its inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs.detach())  # type: ignore[no-any-return]


def distilled(
    model: nn.Module,
    make: Callable[[], nn.Module],
    inputs: Tensor,
    temperature: float,
    *,
    steps: int = 800,
) -> nn.Module:
    """A network distilled at a temperature, to be used at 1: its logits are so large that its softmax saturates.

    Args:
        model: gives the classes that a first network learns at the temperature; a second learns its answers.
        make: a new network of the same classes.
        inputs: `[images, ...]` in [0, 1] to train on.
        temperature: divides both networks' logits while they are trained.
        steps: mini-batches of 64 for each.

    Source:
        Papernot et al., "Distillation as a Defense to Adversarial Perturbations", 2016; broken by Carlini and
        Wagner, 2017.
    """

    def learn(aims: Tensor) -> nn.Module:
        network = make()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(steps):
            rows = torch.randint(len(inputs), (64,), device=inputs.device)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[rows]) / temperature, aims[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return network.eval()

    with seeded(0):
        with torch.no_grad():
            answers = model(inputs)
        first = learn(nn.functional.one_hot(answers.argmax(dim=1), answers.shape[1]).float())
        with torch.no_grad():
            softened = (first(inputs) / temperature).softmax(dim=1)
        return learn(softened)


def masks(eps: float) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Masks on a model that is not robust at `eps`, by what they do; what they do to the pixels is as coarse as `eps`.

    Much coarser, and they are no masks: noise of 0.3 in CIFAR-10, where ε is 8/255, drowns the image and the attack.

    Example:
        >>> next(name for name in masks(0.3) if "rounded" in name)
        'pixels rounded to 4 levels'
    """
    levels, stairs = 1 + round(0.9 / eps), round(2.4 / eps)
    return {
        "logits x 1000": lambda model: Scaled(model, 1000.0),
        f"pixels rounded to {levels} levels": lambda model: Rounded(model, levels),
        "noise at the input": lambda model: Noisy(model, eps),
        "random resizing": lambda model: Resized(model, 2),
        "steep staircase": lambda model: Staircase(model, stairs, 60.0),
        "fast sine on the pixels": lambda model: Wrinkled(model, 300 / eps, eps / 15),
        "zero gradient": lambda model: BadGradient(model, "zero"),
        "random gradient": lambda model: BadGradient(model, "random"),
        "NaN gradient": lambda model: BadGradient(model, "nan"),
        "no gradient": Detached,
    }
