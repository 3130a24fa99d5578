"""Shape annotations are checked while the tests run; the networks of the golden vectors."""

import json
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

jaxtyping.install_import_hook("tadsr", "beartype.beartype")

GOLDEN = Path(__file__).parent / "golden"


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

    from tadsr.models.networks import ResShiftUNet

    about = json.loads((GOLDEN / "unet4_taps.json").read_text())
    options = {key: value for key, value in about["config"].items() if key in signature(ResShiftUNet).parameters}
    unet = fill(ResShiftUNet(**options), about["fill_seed"], about["fill_keys_sorted"])
    return unet.requires_grad_(False)


@pytest.fixture
def seeded_discriminator() -> Any:
    """The discriminator of the golden vectors, before its spectral norms have converged."""
    from tadsr.models.discriminator import TimeAwareDiscriminator

    about = json.loads((GOLDEN / "discriminator.json").read_text())
    discriminator = TimeAwareDiscriminator((32, 64, 64, 128, 128), about["embed_dim"], about["c_dim"])
    return fill(discriminator, about["fill_seed"], about["fill_keys_sorted"])
