"""Every random number follows from names and numbers, never from what was drawn before: any part of a run can be repeated alone."""

import zlib

import numpy as np
import torch
from torch import Generator


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from numbers and words."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def generator(*key: int | str) -> Generator:
    """A CPU generator of its own for this key."""
    return torch.Generator().manual_seed(seed_of(*key))
