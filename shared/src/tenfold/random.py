"""Random numbers from keys: each follows from names and numbers, never from what was drawn before.

Any part of a run can so be repeated alone: a resumed run draws what an uninterrupted one draws, and a worker process what
the main process would.
"""

import zlib

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from numbers and words, such as `seed_of(seed, "memory", task, index)`.

    Zeros at the end do not count (numpy's SeedSequence fills up with them): tell purposes apart by a word.

    Args:
        key: whole numbers from 0, and words.

    Raises:
        ValueError: a negative number.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator of torch of its own for this key; see `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*key))


def keyed_numpy(*key: int | str) -> np.random.Generator:
    """A generator of numpy of its own for this key; see `seed_of`."""
    return np.random.default_rng(seed_of(*key))
