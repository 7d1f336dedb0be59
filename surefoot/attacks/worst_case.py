"""The worst of several attacks for each sample: one that is fooled leaves, the next attack gets the rest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from surefoot.core.geometry import check_batch, check_labels
from surefoot.core.gradients import CHANGES_INPUTS, crafting
from surefoot.core.losses import answered, full_precision, margin
from surefoot.core.types import Attack, check_attacks

Logits = Callable[[Tensor], Tensor]
"""`inputs [batch, ...] -> logits [batch, classes]`, both in float32 or float64."""

Run = Callable[[Logits, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(model, inputs, labels, clean logits) -> (adv_inputs, fooled [batch])`, of samples that were right so far."""


@contextmanager
def in_full_precision(model: nn.Module, inputs: Tensor) -> Iterator[Logits]:
    """`crafting`, without autocast: the model is given the type of `inputs`, all the rest is float32 or wider."""
    with crafting(model, inputs) as frozen, torch.autocast(inputs.device.type, enabled=False):
        yield lambda images: full_precision(frozen(images.to(inputs.dtype)))


def fool_in_turn(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    runs: Callable[[int], Iterable[Run]],
    *,
    stop_when_fooled: bool = True,
) -> Tensor:
    """Each run in turn on the samples that none before it fooled, nor the clean input; or each on all of them.

    Args:
        model, inputs, labels: what an attack is called with.
        runs: makes the runs, given the number of classes.
        stop_when_fooled: a sample leaves once it is misclassified; False gives every run every sample.

    Returns:
        Shaped and typed as `inputs`: the clean input where it is misclassified, else the first input that fools,
        else what the first run made. Unless `stop_when_fooled` that with the largest margin of what the runs made.

    Raises:
        ValueError: fewer than two classes, a label that is none of them, or a model that writes to its inputs.
    """
    check_batch(inputs, labels)
    if len(inputs) == 0:
        return inputs.detach().clone()
    with in_full_precision(model, inputs) as logits_of:
        clean, labels = full_precision(inputs.detach()).clone(), labels.clone()
        with torch.no_grad():
            logits = logits_of(clean)
        if not torch.equal(clean, full_precision(inputs.detach())):
            raise ValueError(CHANGES_INPUTS)
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"the model's logits have shape {list(logits.shape)}; give [batch, classes] with two classes or more."
            )
        classes = logits.shape[1]
        check_labels(labels, classes)
        adv_inputs = clean.clone()
        rows = ((answered(logits) == labels) | (not stop_when_fooled)).nonzero().squeeze(1)
        largest = torch.full_like(logits[:, 0], -torch.inf)
        for number, run in enumerate(runs(classes)):
            if len(rows) == 0:
                break
            found, fooled = run(logits_of, clean[rows], labels[rows], logits[rows])
            if stop_when_fooled:
                kept, left = fooled | (number == 0), rows[~fooled]
            else:
                with torch.no_grad():
                    reached = margin(logits_of(found), labels)
                kept, left = (reached > largest) | (number == 0), rows
                largest = torch.where(kept, reached, largest)
            adv_inputs[rows[kept]] = found[kept]
            rows = left
        return adv_inputs.to(inputs.dtype)


@dataclass(frozen=True)
class WorstCase:
    """Every attack in turn on the samples that are not fooled yet; robust is what survives them all.

    Args:
        attacks: at least one, in the order to run; cheap ones first save the most.

    Called with `(model, inputs [batch, ...] in [0, 1], labels [batch] int64)` it returns inputs of the same
    shape: the clean one where it is misclassified, else the first that fools the model, else what the first
    attack made. The model's verdict and the attacks run without autocast.

    Cost: that of each attack on the samples that reach it, and one forward a sample before and after each.

    Raises:
        ValueError: no attacks; and what the attacks raise.
        TypeError: something among them that cannot be called.

    Example:
        >>> from surefoot.attacks import FGSM
        >>> net, x, y = nn.Linear(2, 2), torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
        >>> worst = WorstCase((FGSM(eps=0.1), FGSM(eps=0.3)))(net, x, y)
        >>> bool((worst - x).abs().max() <= 0.3 + 1e-6)
        True

    Source:
        Carlini et al., "On Evaluating Adversarial Robustness", 2019: accuracy over attacks is a minimum for each
        sample, not over the attacks' accuracies.
    """

    attacks: Sequence[Attack]

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", check_attacks(self.attacks))
        if not self.attacks:
            raise ValueError("attacks is empty; give at least one attack.")

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        def run(attack: Attack, logits_of: Logits, clean: Tensor, labels: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            adv_inputs = full_precision(attack(model, clean.to(inputs.dtype), labels))
            with torch.no_grad():
                return adv_inputs, answered(logits_of(adv_inputs)) != labels

        return fool_in_turn(model, inputs, labels, lambda _: [partial(run, attack) for attack in self.attacks])
