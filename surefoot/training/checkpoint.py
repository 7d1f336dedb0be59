"""Weights that fit their model or are refused: safetensors, or a state_dict, which is read without running code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from surefoot.core.files import CheckpointError, is_pickled, load_tensors, save_tensors
from surefoot.core.gradients import plain_module
from surefoot.models.layers import Normalize

METRICS, SELECTED, LAST, STATE = "metrics.jsonl", "model.safetensors", "last.safetensors", "state.ckpt"
"""A line an epoch; the selected epoch's weights; the last one's; all that is needed to go on."""
LOCK = ".lock"
"""A file in a run's folder that is held while it is trained; not part of the run."""
WRITTEN = (METRICS, SELECTED, LAST, STATE)
"""What `fit` writes to a run's folder."""

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DDP and DataParallel, torch.compile, and Lightning's modules write before the names of a model's weights."""


def check_fits(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors whose names or shapes are not those of `wanted`.

    Raises:
        CheckpointError: naming the first difference.
    """
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    wrong = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if not (missing or extra or wrong):
        return
    if wrong:
        what = f"{wrong[0]} has shape {list(tensors[wrong[0]].shape)}, not {list(wanted[wrong[0]].shape)}"
    else:
        what = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}, which the model lacks"
    raise CheckpointError(f"{path} is of another model: {what}; give the weights of this model.")


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights and buffers as safetensors, atomically.

    Args:
        model: any module, out of DDP's and torch.compile's wrappers; tied weights are written each for itself.
        path: the file; its folder is made where missing.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_weights(nn.Linear(2, 2), Path(folder) / "model.safetensors")
        ...     sorted(read_weights(Path(folder) / "model.safetensors"))
        ['bias', 'weight']
    """
    save_tensors(Path(path), plain_module(model).state_dict(), {})


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of a state_dict that torch.save wrote, alone or under `state_dict`.

    The latter is read by PyTorch's restricted unpickler (`weights_only`), which makes tensors and runs no code.

    Raises:
        CheckpointError: a missing or damaged file, or one with anything but tensors in it.
    """
    if not is_pickled(path):
        return load_tensors(path)[0]
    again = "save it again with safetensors.torch.save_file(model.state_dict(), path)."
    if is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript program, which holds code; write a function that returns torch.jit.load of it, "
            "and give that as package.module:factory, without --weights."
        )
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds pickled code, which surefoot never runs; {again}") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); use another checkpoint.") from error
    if isinstance(saved, Mapping) and isinstance(saved.get("state_dict"), Mapping):
        saved = saved["state_dict"]
    if not isinstance(saved, Mapping) or not all(isinstance(tensor, Tensor) for tensor in saved.values()):
        raise CheckpointError(f"{path} holds more than a model's weights; {again}")
    return saved


def is_torchscript(path: Path) -> bool:
    """Did torch.jit.save write it?"""
    try:
        with ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, BadZipFile):
        return False


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights that `read_weights` can read into a model of the same shape, in place.

    Args:
        model: changed in place.
        path: safetensors, or a state_dict that torch.save wrote. Names may carry what a wrapper writes before all of
            them, as DDP's `module.`; of a model with its normalisation in front, as `surefoot.models.build_model`
            makes one, they may be the network's alone, as whoever normalises outside of the model saves them.

    Raises:
        CheckpointError: those of `read_weights`, or weights of another model, of one that normalises otherwise, or of
            this one behind a normalisation.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> with TemporaryDirectory() as folder:
        ...     save_weights(one, Path(folder) / "model.safetensors")
        ...     load_weights(other, Path(folder) / "model.safetensors")
        >>> torch.equal(one.weight, other.weight)
        True
    """
    module, tensors = plain_module(model), dict(read_weights(Path(path)))
    in_front = isinstance(getattr(module, "normalize", None), Normalize)
    if in_front and not any(name.endswith("normalize.mean") for name in tensors):
        module, in_front = module.get_submodule("network"), False
    wanted = module.state_dict()
    tensors = out_of_wrappers(tensors, wanted)
    check_not_behind_normalisation(Path(path), tensors, wanted)
    check_fits(Path(path), tensors, wanted)
    for name in ("mean", "std") if in_front else ():
        theirs, ours = tensors[f"normalize.{name}"].flatten(), wanted[f"normalize.{name}"].flatten()
        if not torch.equal(theirs.to(ours), ours):
            raise CheckpointError(
                f"{path} is of a model that normalises by the {name} {shown(theirs)}, and here {name} is "
                f"{shown(ours)}; give the same."
            )
    module.load_state_dict(tensors)


def check_not_behind_normalisation(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse the weights of this network behind a normalisation that it is here without.

    Raises:
        CheckpointError: with the mean and std to give.
    """
    names = [*(f"network.{name}" for name in wanted), "normalize.mean", "normalize.std"]
    tensors = out_of_wrappers(dict(tensors), dict.fromkeys(names))
    if tensors.keys() == set(names) and all(
        tensors[f"network.{name}"].shape == tensor.shape for name, tensor in wanted.items()
    ):
        mean, std = (tensors[f"normalize.{name}"].flatten() for name in ("mean", "std"))
        raise CheckpointError(
            f"{path} is of this network behind a normalisation; give --mean {shown(mean)} and --std {shown(std)}, in "
            "Python build_model(..., mean=, std=)."
        )


def shown(values: Tensor) -> str:
    """A mean or deviation of each channel, as a user writes it.

    >>> shown(torch.tensor([0.1, 0.25]))
    '0.1 0.25'
    """
    return " ".join(f"{value:.6g}" for value in values.tolist())


def out_of_wrappers(tensors: dict[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without what a wrapper wrote before all of their names, where that makes them the wanted ones.

    >>> list(out_of_wrappers({"module._orig_mod.weight": torch.zeros(1)}, {"weight": torch.zeros(1)}))
    ['weight']
    """
    bare = tensors
    while bare and bare.keys() != wanted.keys():
        prefix = next((each for each in WRAPPERS if all(name.startswith(each) for name in bare)), None)
        if prefix is None:
            return tensors
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
    return bare
