"""Checks of a manifest: the facts that fairness numbers rest on (paper, "Dataset Construction").

Every check raises one line that names the rows or persons at fault and says what to do. Row 1 is the first data row.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fairfd.data.manifest.samples import REAL, Sample, few
from tenfold.errors import UserError


def check_labels(samples: Iterable[Sample], where: str) -> None:
    """Label 0 exactly where the approach is "real"."""
    numbered = list(enumerate(samples, 1))
    bad = [number for number, sample in numbered if sample.label not in (0, 1)]
    if bad:
        raise UserError(f"{where}: label is not 0 or 1 in rows {few(bad)}")
    bad = [number for number, sample in numbered if (sample.approach == REAL) != (sample.label == 0)]
    if bad:
        raise UserError(f'{where}: label 0 and approach "real" must go together; they disagree in rows {few(bad)}')


def check_groups(samples: Iterable[Sample]) -> None:
    """Every row has a group."""
    bad = [number for number, sample in enumerate(samples, 1) if not sample.group]
    if bad:
        raise UserError(f"rows {few(bad)} have no group; fill the group column or drop them (it is never guessed)")


def check_identities(samples: Iterable[Sample]) -> None:
    """Every row has an identity."""
    bad = [number for number, sample in enumerate(samples, 1) if not sample.identity]
    if bad:
        raise UserError(f"rows {few(bad)} have no identity; fill the identity column (or balance by images)")


def check_duplicates(samples: Iterable[Sample]) -> None:
    """No image is listed twice."""
    twice = [image for image, count in Counter(sample.image for sample in samples).items() if count > 1]
    if twice:
        raise UserError(f"images listed more than once: {few(twice)}; drop the copies or allow duplicates")


def _values_of(samples: Iterable[Sample], name: str) -> dict[str, set[str]]:
    values: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.identity:
            values[sample.identity].add(getattr(sample, name))
    return values


def check_one_group(samples: Iterable[Sample]) -> None:
    """No person is in two groups."""
    bad = [identity for identity, groups in _values_of(samples, "group").items() if len(groups) > 1]
    if bad:
        raise UserError(f"identities in two groups: {few(bad)}; fix the labels or drop them")


def check_one_split(samples: Iterable[Sample]) -> None:
    """No person is in two splits."""
    bad = [identity for identity, splits in _values_of(samples, "split").items() if len(splits) > 1]
    if bad:
        raise UserError(f"identities in two splits: {few(bad)}; a person belongs to one split")


def check_donors(samples: Collection[Sample], remedy: str) -> None:
    """Donors come from the group and split of the base image: no cross-group face ("undefined ethnicity")."""
    home = {sample.identity: (sample.group, sample.split) for sample in samples}
    strangers = [
        number
        for number, sample in enumerate(samples, 1)
        if sample.source_identity
        and home.get(sample.source_identity, (None,)) != (sample.group, sample.split)
        # A donor that has no image of its own in the manifest cannot be checked.
        and sample.source_identity in home
    ]
    if strangers:
        raise UserError(f"donor of another group or split in rows {few(strangers)}; {remedy}")


def check_cells(counts: Counter[tuple[str, str, str]]) -> None:
    """Every approach of a split has images of every group of that split."""
    rows = {(split, approach) for split, approach, _ in counts}
    groups = {(split, group) for split, _, group in counts}
    empty = [
        f"{approach} x {group}" + (f" ({split})" if split else "")
        for split, approach in sorted(rows)
        for home, group in sorted(groups)
        if home == split and (split, approach, group) not in counts
    ]
    if empty:
        raise UserError(f"empty cells: {few(empty)}; every approach of a split needs images of every group")


def cell_warnings(counts: Counter[tuple[str, str, str]]) -> list[str]:
    """A line when an approach has unequal numbers of images over the groups."""
    if len(set(counts.values())) == 1 or all(approach == REAL for _, approach, _ in counts):
        return []
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for (split, approach, _), count in counts.items():
        sizes[split, approach].add(count)
    uneven = [f"{approach} {min(s)}-{max(s)}" for (_, approach), s in sorted(sizes.items()) if len(s) > 1]
    return [f"unequal numbers of images over groups: {few(uneven)}; balance before comparing"] if uneven else []


def size_warnings(samples: Iterable[Sample], min_identities: int) -> list[str]:
    """A line for every group with few persons, with the AADPD that an unbiased detector would show there."""
    persons: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in samples:
        persons[sample.split, sample.group].add(sample.identity)
    if any("" in people for people in persons.values()):
        return ["images without identity: intervals will assume independent images"]
    # An unbiased detector shows AADPD near 0.62 / sqrt(identities): .062 at 100, .028 at 500, .011 at 2,857 per group
    # (simulated: 12 rows, 5 images per person, logistic-normal person effect of 0.8).
    return [
        f"group {group!r}{f' of split {split!r}' if split else ''} has {len(people)} identities (fewer than "
        f"{min_identities}): an unbiased detector would show an AADPD near {0.62 / len(people) ** 0.5:.2f}"
        for (split, group), people in sorted(persons.items())
        if len(people) < min_identities
    ]


_LEAKS_FROM = 0.6
_RARE = 0.02


@dataclass(frozen=True)
class Shortcut:
    """How far one property of the files gives the label away.

    Attributes:
        trait: "format", "size" or "quantisation tables".
        balanced_accuracy: of the best rule that sees this trait alone; 0.5 = no shortcut, 1 = perfect.
        usual_real: its most frequent value in genuine images.
        usual_fake: its most frequent value in fakes.
    """

    trait: str
    balanced_accuracy: float
    usual_real: str
    usual_fake: str


def measure_shortcuts(images: Sequence[tuple[Path, int]], limit: int = 500) -> tuple[Shortcut, ...]:
    """Balanced accuracy of telling real from fake by file format, size and JPEG quantisation tables.

    Args:
        images: (file, label) with label 0 = real, 1 = fake.
        limit: headers read per class, evenly spaced.

    Returns:
        One record per trait; none when a class is absent. Unreadable files are passed over.
    """
    traits = {label: _traits(_spread([p for p, y in images if y == label], limit)) for label in (0, 1)}
    if not traits[0] or not traits[1]:
        return ()
    names = ("format", "size", "quantisation tables")
    return tuple(
        _shortcut(name, Counter(t[i] for t in traits[0]), Counter(t[i] for t in traits[1]))
        for i, name in enumerate(names)
    )


def shortcut_warnings(images: Sequence[tuple[Path, int]], limit: int = 500) -> list[str]:
    """One line for each trait that separates the classes with balanced accuracy of 0.6 or more."""
    return [
        f"codec/size shortcut: {found.trait} alone tells real from fake with balanced accuracy "
        f"{found.balanced_accuracy:.2f} (real mostly {found.usual_real}, fake mostly {found.usual_fake}); "
        "re-encode both the same way"
        for found in measure_shortcuts(images, limit)
        if found.balanced_accuracy >= _LEAKS_FROM
    ]


def _spread(paths: list[Path], limit: int) -> list[Path]:
    if len(paths) <= limit:
        return paths
    return [paths[i] for i in np.linspace(0, len(paths) - 1, limit).round().astype(int)]


def _traits(paths: list[Path]) -> list[tuple[str, str, str]]:
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
                tables = getattr(image, "quantization", None)
                found.append((str(image.format), f"{width}x{height}", _quality(tables)))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            # Whether a file can be read is for the readers to report; the probe looks at the others.
            continue
    return found


def _quality(tables: dict[int, list[int]] | None) -> str:
    """A short name for JPEG quantisation tables: their means, which fall as quality rises."""
    if not tables:
        return "none"
    return "mean " + "/".join(f"{sum(table) / len(table):.1f}" for table in tables.values())


def _shortcut(name: str, real: Counter[str], fake: Counter[str]) -> Shortcut:
    """Best rule on one discrete trait: 1/2 sum over values of max(P(value|real), P(value|fake))."""
    p = {value: (real[value] / real.total(), fake[value] / fake.total()) for value in real | fake}
    frequent = [pair for pair in p.values() if max(pair) >= _RARE]
    # Values that hardly occur (photographs that all have their own size) would separate any two samples: lump them.
    rest = tuple(1 - sum(pair[i] for pair in frequent) for i in (0, 1))
    accuracy = sum(max(pair) for pair in (*frequent, rest)) / 2
    return Shortcut(name, accuracy, real.most_common(1)[0][0], fake.most_common(1)[0][0])
