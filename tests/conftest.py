"""Settings for all tests.

`MHA_TUTOR_REQUIRE_GPU=1` (set by `make test-gpu`) turns a missing CUDA device into a failure;
without it a test marked `gpu` is skipped and says so. This file needs pytest and torch only, so
that it loads in an environment that was not made for this project.
"""

import os

import pytest
import torch

REQUIRE_GPU = os.environ.get("MHA_TUTOR_REQUIRE_GPU") == "1"

if not torch.cuda.is_available():
    # Triton reads this when it is first imported, and parts of torch import it.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_sessionstart(session):
    """Stop at once when CUDA was asked for and is not there."""
    if REQUIRE_GPU and not torch.cuda.is_available():
        pytest.exit(
            f"CUDA was asked for, but torch {torch.__version__} finds no CUDA device", returncode=1
        )


def pytest_ignore_collect(collection_path):
    """Leave files without a GPU test alone when only those run: they may need more packages."""
    if REQUIRE_GPU and collection_path.suffix == ".py":
        return True if "mark.gpu" not in collection_path.read_text(encoding="utf-8") else None
    return None


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device (make test-gpu)"))
