"""What the tests of all packages share: golden vectors are loaded by name; one thread, so that runs are alike."""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run BLAS, and torch where a test module has imported it, on one thread."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Callable[[str], dict[str, np.ndarray]]:
    """Load `golden/NAME.npz` beside the test module as a dictionary of arrays."""
    folder = request.path.parent / "golden"

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load
