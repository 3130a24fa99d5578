"""Shape annotations are checked while the tests run; golden vectors by name; one thread, so that runs are alike."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping

jaxtyping.install_import_hook("multreid", "beartype.beartype")

import numpy as np  # noqa: E402  # the hook comes first
import pytest  # noqa: E402
import torch  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session", params=["a", "b"])
def golden(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """Both golden sets in turn."""
    with np.load(GOLDEN / f"assoc_{request.param}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(scope="session")
def infrared_labels(golden: dict[str, np.ndarray]) -> np.ndarray:
    """True identities of the infrared instances, renumbered in the shuffled order of the golden centres."""
    identities = golden["gt_ir"]
    means = np.stack([golden["features_ir"][identities == each].mean(0) for each in range(identities.max() + 1)])
    distances = ((golden["centers_ir"][None] - means[:, None]) ** 2).sum(-1)
    return distances.argmin(1)[identities]


@pytest.fixture(scope="session")
def clusters() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Features of well separated identities, and the identities."""

    def make(identities: int, each: int, dimension: int = 16, noise: float = 0.3, seed: int = 0):
        generator = np.random.default_rng(seed)
        person = generator.standard_normal((identities, dimension))
        labels = np.repeat(np.arange(identities), each)
        rows = person[labels] + noise * generator.standard_normal((labels.size, dimension))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels

    return make
