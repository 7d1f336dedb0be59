"""Probes against hand-computed values."""

import math

import torch
from torch import nn

from surefoot.evaluation.probes import gradient_agreement, logit_distances, losses_along, sample_losses


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


def test_losses_along_a_direction_stay_in_the_pixel_range() -> None:
    inputs, direction = torch.tensor([[0.9, 0.5]]), torch.tensor([[1.0, -1.0]])
    found = losses_along(nn.Identity(), inputs, torch.tensor([0]), direction, [0.0, 0.3])
    expected = [math.log1p(math.exp(-0.4)), math.log1p(math.exp(0.2 - 1.0))]  # 0.9 + 0.3 is clipped to 1
    assert torch.allclose(found.flatten(), torch.tensor(expected))


def test_losses_and_distances_are_taken_in_evaluation_mode() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.Identity()).train()
    inputs = torch.tensor([[0.3, 0.7]])
    assert torch.allclose(sample_losses(net, inputs, torch.tensor([1])), torch.tensor([math.log1p(math.exp(-0.4))]))
    assert torch.allclose(logit_distances(net, inputs, torch.tensor([[0.3, 0.3]])), torch.tensor([0.4]))
    assert net.training


def test_gradients_of_a_linear_model_agree_and_opposite_ones_do_not() -> None:
    net = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0]]))
    here, there = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.9, 0.1]])
    assert torch.allclose(gradient_agreement(net, here, there, torch.tensor([0])), torch.ones(1))

    class Valley(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = (x - 0.5).square().sum(1, keepdim=True)
            return torch.cat([z, torch.zeros_like(z)], 1)

    assert torch.allclose(
        gradient_agreement(Valley(), torch.tensor([[0.3, 0.5]]), torch.tensor([[0.7, 0.5]]), torch.tensor([0])),
        -torch.ones(1),
    )


def test_a_gradient_that_is_zero_agrees_with_nothing_and_a_tiny_one_still_counts() -> None:
    flat = linear([[0.0, 0.0], [0.0, 0.0]])
    tiny = linear([[1e-30, 0.0], [0.0, 0.0]])
    here, there, labels = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.9, 0.1]]), torch.tensor([0])
    assert gradient_agreement(flat, here, there, labels).item() == 0
    assert torch.allclose(gradient_agreement(tiny, here, there, labels), torch.ones(1))
