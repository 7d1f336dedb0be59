"""Where a training runs: the device, and the processes that share its batches."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric

from surefoot.training.settings import FitConfig


def is_first_process() -> bool:
    """Is this the process that writes and speaks, where `devices` above 1 or torchrun start several?"""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def started_by_torchrun() -> bool:
    """Is this one of the processes that torchrun starts, on one machine or several?"""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def best_device() -> torch.device:
    """An accelerator that can be used, or the CPU. PyTorch built for CUDA names one on a machine without a GPU too."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def check_device(name: str) -> None:
    """Refuse an accelerator that is not there.

    Raises:
        ValueError: with what to use instead.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch sees no CUDA device here; use device 'cpu' or 'auto'.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but PyTorch sees none here; use device 'cpu' or 'auto'.")


def check_devices(config: FitConfig) -> None:
    """Refuse more devices than there are; on a CPU, more processes than its cores.

    Raises:
        ValueError: with how many there are.
    """
    kind = best_device().type if config.device == "auto" else config.device
    there = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else max(2, os.cpu_count() or 1)
    if config.devices > there:
        raise ValueError(
            f"devices is {config.devices}, but device {kind!r} has room for {there} here; give at most {there}."
        )


def make_fabric(config: FitConfig) -> Fabric:
    """Fabric for these settings, launched; under torchrun on all of its machines, which have as many devices each.

    Raises:
        ValueError: the device that was asked for is not there, or not as many, or torchrun started others.
    """
    check_device(config.device)
    check_devices(config)
    machines = 1
    if started_by_torchrun():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if here != config.devices:
            raise ValueError(
                f"torchrun started {here} process{'es' if here > 1 else ''} on this machine to share each batch, but "
                f"devices is {config.devices}; give {here} (--devices {here})."
            )
        machines = int(os.environ["WORLD_SIZE"]) // here
    with quiet("lightning_fabric.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        fabric = Fabric(
            accelerator=config.device,
            devices=config.devices,
            num_nodes=machines,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        )
        fabric.launch()
    return fabric


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Loggers of these names say nothing below an error meanwhile."""
    levels = [(logger := logging.getLogger(name), logger.level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
