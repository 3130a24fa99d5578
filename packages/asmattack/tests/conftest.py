"""Shape annotations are checked while the tests run; golden vectors are loaded by name; one thread, so that runs are alike."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

jaxtyping.install_import_hook("asmattack", "beartype.beartype")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run BLAS, and torch where a test module has imported it, on one thread."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Load `tests/golden/NAME.npz` as a dictionary of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load
