"""What every test file needs before it is read."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

# `tests.tables` and `surefoot` must be found under plain `pytest` too, not only under `python -m pytest`.
ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

# Decoded data sets go to a folder of this run, never to the user's cache.
CACHE = tempfile.mkdtemp(prefix="surefoot-cache-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["SUREFOOT_CACHE"] = CACHE

# The same examples each time, and no clock: a busy machine must not turn a test red.
settings.register_profile(
    "surefoot", derandomize=True, deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("surefoot")

# torch says some things once a process only: then which test turns red would depend on their order.
torch.set_warn_always(True)
