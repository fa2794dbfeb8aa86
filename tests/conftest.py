"""Settings that all tests share."""

import os
from pathlib import Path

import pytest
import torch

from support import sitecustomize  # noqa: F401  (declares torchvision's operators where they can't be loaded)

SUPPORT = Path(__file__).parent / "support"
SHARED = Path(__file__).parents[2] / "shared"

collect_ignore_glob = ["support/loads_*.py"]  # programs that want arguments

# Subprocesses of the tests find `sitecustomize` by themselves.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # 80 in the processes that pytest-xdist starts; output to a file is wider
torch.set_num_threads(1)  # small tensors: threads only wait for each other


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and weights beside the checkout; skips the test where there is none."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no data and weights at {SHARED}")
    return SHARED
