"""Probes against hand-computed values."""

import math

import torch
from torch import nn

from surefoot.evaluation.probes import logit_distances, losses_along, sample_losses


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
