"""Detectors that detect nothing: sanity rows for any table of results.

Two of them score zero on all twelve fairness metrics, which is why `fairfd.utility_gate` exists; the group oracle has a
gap of 1 on every row.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fairfd.data.scores.validation import encode, listed
from tenfold.errors import UserError


def all_fake(images: int) -> Float[np.ndarray, " n"]:
    """Calls every image fake."""
    return np.ones(images)


def all_real(images: int) -> Float[np.ndarray, " n"]:
    """Calls every image real."""
    return np.zeros(images)


def random_scores(images: int, seed: int = 0) -> Float[np.ndarray, " n"]:
    """Scores drawn from U(0, 1), whatever the image."""
    return np.random.default_rng(seed).random(images)


def group_oracle(groups: ArrayLike, flagged: str | int) -> Float[np.ndarray, " n"]:
    """Calls fake exactly the images of one group.

    Args:
        groups: sensitive group of each image.
        flagged: the group.

    Raises:
        UserError: no image has that group.
    """
    names, codes = encode(groups, None, "group")
    if str(flagged) not in names:
        raise UserError(f"no image of group {flagged}; choose among {listed(names)}")
    return (codes == names.index(str(flagged))).astype(np.float64)


def trivial_detectors(groups: ArrayLike, seed: int = 0) -> dict[str, Float[np.ndarray, " n"]]:
    """Scores of the trivial rows: "all-fake", "all-real", "random" and "group-oracle" (the first group flagged).

    Args:
        groups: sensitive group of each image.
        seed: of the random row.
    """
    names, codes = encode(groups, None, "group")
    images = len(codes)
    return {
        "all-fake": all_fake(images),
        "all-real": all_real(images),
        "random": random_scores(images, seed),
        "group-oracle": group_oracle(groups, names[0]),
    }
