"""Fixtures and settings that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from pyar.native import _C, has_kernels

# The same examples on every run: a failure seen once can be seen again.
hypothesis.settings.register_profile("pyar", derandomize=True, deadline=None, max_examples=30, database=None)
hypothesis.settings.load_profile("pyar")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "each_level: test_native.py repeats this test on every instruction-set level")
    # The tests are many small operations: on a busy machine torch's threads would mostly wait for one another. What
    # must not depend on the number of threads is tested with several.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that the kernels are written for, where it is there."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device, or torch none of CUDA")
    if request.param == "cuda" and not has_kernels("cuda"):
        pytest.skip("pyar is built without CUDA")
    return torch.device(request.param)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Lets a test change torch's number of threads, and have so many, whatever processors there are."""
    before = torch.get_num_threads()
    if _C is not None:
        _C.pretend_processors(256)
    yield
    torch.set_num_threads(before)
    if _C is not None:
        _C.pretend_processors(0)
