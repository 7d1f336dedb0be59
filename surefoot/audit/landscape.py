"""The loss around images: surfaces (Eq. 12), how far it is from linear, and its course along a direction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from surefoot.attacks.gradient_sign import random_signs
from surefoot.audit.record import Surface
from surefoot.core.gradients import NO_GRADIENT, crafting, input_gradient
from surefoot.core.losses import cross_entropy, full_precision, margin
from surefoot.core.seeding import seeded
from surefoot.core.types import PerSampleLoss
from surefoot.evaluation.probes import sample_losses


def gradients(model: nn.Module, inputs: Tensor, labels: Tensor, loss: PerSampleLoss = cross_entropy) -> Tensor:
    """Each sample's gradient of its own loss, shaped as `inputs`; zeros of a model that gives none."""
    with crafting(model) as frozen:
        if labels.is_inference():  # autograd saves them, which it refuses for tensors made under inference_mode
            labels = labels.clone()
        try:
            return input_gradient(frozen, inputs, lambda logits: loss(logits, labels))[0]
        except ValueError as error:
            if str(error) != NO_GRADIENT:
                raise
            return torch.zeros_like(inputs)


def loss_surface(
    model: nn.Module, image: Tensor, label: int, eps: float, *, points: int = 21, seed: int = 0
) -> tuple[list[float], list[float], list[list[float]]]:
    """The cross-entropy at clip(x + e1 sign(gradient) + e2 sign(noise), 0, 1) (Eq. 12).

    Args:
        model: returns logits `[batch, classes]`.
        image: `[channels, height, width]` in [0, 1].
        label: its class.
        eps: in pixel units; e1 and e2 go from -eps to eps.
        points: along each side, at least 2; an odd number has the image itself in the middle.
        seed: of the noise.

    Returns:
        e1, e2, and the losses `[e2][e1]` in nats.

    Raises:
        ValueError: fewer than two points.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> e1, e2, loss = loss_surface(net, torch.rand(1, 2, 2), 0, 0.1, points=3)
        >>> [round(each, 3) for each in e1], len(loss), len(loss[0])
        ([-0.1, 0.0, 0.1], 3, 3)

    Source:
        Vivek and Babu, "Regularizers for Single-step Adversarial Training", 2020, Eq. 12 and Fig. 3, 4, 10. Their
        images are not clipped to [0, 1]; these are, for no image lies outside.
    """
    if points < 2:
        raise ValueError(f"points is {points}; a surface needs at least 2 along each side.")
    labels = torch.tensor([label], device=image.device)
    along = gradients(model, image[None], labels).sign()
    with seeded(seed):
        across = random_signs(image[None])
    steps = torch.linspace(-eps, eps, points, device=image.device)
    shape = [-1, *[1] * image.dim()]
    grid = torch.cat([(image + e2 * across + steps.view(shape) * along).clamp(0, 1) for e2 in steps]).to(image.dtype)
    losses = torch.cat([sample_losses(model, part, labels.expand(len(part))) for part in torch.split(grid, 256)])
    sides = steps.tolist()
    return sides, sides, losses.view(points, points).tolist()


def local_linearity_errors(
    model: nn.Module,
    inputs: Tensor,
    others: Sequence[Tensor],
    labels: Tensor,
    *,
    seed: int = 0,
) -> Tensor:
    """How far the margin is from its tangent, as a share of what both of them move.

    |l(x') - l(x) - (x' - x) grad l(x)| / (|l(x') - l(x)| + |(x' - x) grad l(x)|), the median over the points x'
    given: 0 where the margin is linear, 1 where the gradient says nothing of it, or the opposite.

    Args:
        model: returns logits `[batch, classes]`.
        inputs: `[batch, ...]` in [0, 1], and `others`, points near them of the same shape; of an even number the
            median is the lower of the two in the middle.
        labels: int64 `[batch]`.
        seed: of what the model draws, the same at each point: what changes is the place alone.

    Returns:
        `[batch]`, in [0, 1]; NaN where neither the margin nor its tangent moves.

    Source:
        After the local linearity measure of Qin et al., "Adversarial Robustness through Local Linearization", 2019;
        theirs is the largest difference in nats, which grows with the logits. This one has no unit.
    """
    with seeded(seed):
        here = full_precision(gradients(model, inputs, labels, margin))

    def at(points: Tensor) -> Tensor:
        with seeded(seed), crafting(model) as frozen, torch.no_grad():
            return margin(frozen(points), labels)

    base, shares = at(inputs), []
    for other in others:
        moved = at(other) - base
        tangent = (full_precision(other - inputs) * here).flatten(1).sum(dim=1)
        scale = moved.abs() + tangent.abs()
        shares.append(torch.where(scale > 0, (moved - tangent).abs() / scale, torch.nan))
    # The lower median, on the CPU: not every GPU has one, nor CUDA under torch.use_deterministic_algorithms.
    middle = torch.stack(shares).cpu().nanquantile(0.5, dim=0, interpolation="lower")
    return middle.to(inputs.device)


def largest_error(model: nn.Module, image: Tensor, label: int, eps: float, *, points: int = 32, seed: int = 0) -> float:
    """The largest distance of the cross-entropy from its tangent over random points of the ball, in nats."""
    labels = torch.tensor([label], device=image.device)
    gradient = full_precision(gradients(model, image[None], labels))
    with seeded(seed):
        noise = torch.empty(points, *image.shape, device=image.device).uniform_(-eps, eps)
        corners = eps * torch.cat([noise[: points // 2].sign(), gradient.sign()])
    others = (image + torch.cat([noise, corners])).clamp(0, 1).to(image.dtype)
    losses = sample_losses(model, torch.cat([image[None], others]), labels.expand(len(others) + 1))
    tangent = (full_precision(others - image) * gradient).flatten(1).sum(dim=1)
    return float((losses[1:] - losses[0] - tangent).abs().max())


def surface(
    model: nn.Module, image: Tensor, label: int, eps: float, *, sample: int, names: Sequence[str], seed: int = 0
) -> Surface:
    """The record of one image's surface."""
    e1, e2, loss = loss_surface(model, image, label, eps, seed=seed)
    with crafting(model) as frozen, torch.no_grad():
        prediction = int(frozen(image[None]).argmax())
    return Surface(
        sample=sample,
        label=names[label],
        prediction=names[prediction],
        eps=eps,
        e1=e1,
        e2=e2,
        loss=loss,
        local_linearity_error=largest_error(model, image, label, eps, seed=seed),
    )
