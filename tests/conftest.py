"""What every test file needs before it is read."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.pages import CHROMIUM, FLAGS

# Decoded data sets go to a folder of this run, never to the user's cache.
CACHE = tempfile.mkdtemp(prefix="surefoot-cache-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["SUREFOOT_CACHE"] = CACHE

# One thread, here and in the processes that tests start: what they compute is too small to share out, and beside
# other work threads that wait for each other take forty times as long.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples each time, and no clock: a busy machine must not turn a test red.
settings.register_profile(
    "surefoot", derandomize=True, deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("surefoot")

# torch says some things once a process only: then which test turns red would depend on their order.
torch.set_warn_always(True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test draws what an earlier one left, nor has its threads."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on PATH, and SUREFOOT_CHROMIUM names none")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield running
        running.close()
