"""Shape annotations are checked while the tests run; golden vectors are loaded by name; one thread, so that runs are alike."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

jaxtyping.install_import_hook("cskopt", "beartype.beartype")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch and BLAS on one thread."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    """Load `tests/golden/NAME.npz` as tensors, floats in 64 bits."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            found = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
        return {key: each.double() if each.is_floating_point() else each for key, each in found.items()}

    return load
