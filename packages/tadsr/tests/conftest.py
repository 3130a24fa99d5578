"""Shape annotations are checked while the tests run; golden vectors are loaded by name; one thread, so that runs are alike."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

jaxtyping.install_import_hook("tadsr", "beartype.beartype")

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


def fill(model: Any, seed: int, keys: list[str]) -> Any:
    """Fill a network from numpy's generator, as the golden vectors were made: the j-th key from seed + j."""
    import torch

    state = model.state_dict()
    for index, key in enumerate(keys):
        mine = key.replace("weight_orig", "parametrizations.weight.original")
        shape = state[mine].shape
        w = np.random.RandomState(seed + index).standard_normal(int(np.prod(shape)))
        if len(shape) <= 1:
            w = 1 + 0.1 * w if key.endswith("weight") else 0.1 * w
        elif key.endswith("relative_position_bias_table"):
            w = 0.2 * w
        else:
            w = w / np.sqrt(np.prod(shape[1:]))
        state[mine] = torch.from_numpy(w.reshape(tuple(shape)).astype(np.float32))
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="session")
def seeded_unet() -> Any:
    """The 4-level UNet of the golden vectors."""
    from inspect import signature

    from tadsr.networks import ResShiftUNet

    about = json.loads((GOLDEN / "unet4_taps.json").read_text())
    options = {key: value for key, value in about["config"].items() if key in signature(ResShiftUNet).parameters}
    unet = fill(ResShiftUNet(**options), about["fill_seed"], about["fill_keys_sorted"])
    return unet.requires_grad_(False)


@pytest.fixture
def seeded_discriminator() -> Any:
    """The discriminator of the golden vectors, before its spectral norms have converged."""
    from tadsr.discriminator import TimeAwareDiscriminator

    about = json.loads((GOLDEN / "discriminator.json").read_text())
    discriminator = TimeAwareDiscriminator((32, 64, 64, 128, 128), about["embed_dim"], about["c_dim"])
    return fill(discriminator, about["fill_seed"], about["fill_keys_sorted"])
