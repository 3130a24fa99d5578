"""Who is forged with whom (paper, "Dataset Construction"): one partner per person, of the same group, for all approaches.

For each image of a person one image of the partner drives the forgery, again for all approaches alike, so that approaches
differ in nothing but the approach.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from fairfd.data.manifest.samples import Sample
from tenfold.errors import UserError


def seeded(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names only, not on order, workers or other images."""
    digest = hashlib.sha256("\x1f".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def derangement(count: int, rng: np.random.Generator) -> list[int]:
    """A uniformly drawn permutation without fixed points (drawn until it has none: e = 2.7 times on average)."""
    if count < 2:
        raise ValueError("one element has no derangement")
    identity = np.arange(count)
    while True:
        drawn = rng.permutation(count)
        if (drawn != identity).all():
            return drawn.tolist()


def partner_map(samples: Iterable[Sample], seed: int) -> dict[str, str]:
    """Person -> partner of the same group and split, never oneself.

    Raises:
        UserError: a group has a single person in a split.
    """
    persons: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in samples:
        persons[sample.split, sample.group].add(sample.identity)
    partners: dict[str, str] = {}
    for (split, group), people in sorted(persons.items()):
        ordered = sorted(people)
        if len(ordered) < 2:
            where = f" of split {split!r}" if split else ""
            raise UserError(f"group {group!r}{where} has one identity ({ordered[0]}): nobody of the group to pair with")
        order = derangement(len(ordered), seeded(seed, "partners", split, group))
        partners.update((person, ordered[other]) for person, other in zip(ordered, order, strict=True))
    return partners


def driving_images(samples: Iterable[Sample], partners: dict[str, str], seed: int) -> dict[str, Sample]:
    """Image -> the image of the partner that drives its forgeries."""
    images: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        images[sample.identity].append(sample)
    for of_person in images.values():
        of_person.sort(key=lambda sample: sample.image)
    driving = {}
    for person, own in images.items():
        choice = images[partners[person]]
        for sample in own:
            driving[sample.image] = choice[int(seeded(seed, "driving", sample.image).integers(len(choice)))]
    return driving
