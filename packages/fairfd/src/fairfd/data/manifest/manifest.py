"""The manifest of a benchmark: one row per image with its person, group, approach and split.

FairFD (paper, "Dataset Construction") is balanced over groups, disjoint over persons, and forges faces inside one group
only. The manifest states these facts row by row, so that they can be kept while data are built and checked afterwards.
"""

import csv
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from fairfd.data.manifest import validation as verification
from fairfd.data.manifest.samples import COLUMNS, REAL, Sample, few, meta_of, read_rows
from fairfd.data.manifest.validation import shortcut_warnings
from tenfold.errors import UserError
from tenfold.files import atomic_path

__all__ = ["COLUMNS", "REAL", "Manifest", "Sample", "file_sha256"]

_PATH_FIELDS = ("image", "driving_image", "landmarks", "mask")


@dataclass(frozen=True)
class Manifest:
    """Samples and the folder that their paths are relative to.

    Attributes:
        root: absolute folder; relative paths of the samples start here.
        samples: the rows, in file order.
    """

    root: Path
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @classmethod
    def read(cls, path: Path | str) -> "Manifest":
        """Read a manifest: JSON lines for `.jsonl`, else CSV (UTF-8, with a header).

        Columns beyond the known ones are kept in `meta`.

        Raises:
            UserError: no such file, not UTF-8, a required column is missing, a row's label is not 0 or 1, or a label
                disagrees with its approach (the row numbers are given; the first data row is row 1).
        """
        path = Path(path)
        samples = read_rows(path)
        verification.check_labels(samples, str(path))
        return cls(path.resolve().parent, samples)

    def write(self, path: Path | str) -> None:
        """Write JSON lines (`.jsonl`) or CSV with paths relative to the file's folder; the file appears complete or not at all."""
        path = Path(path)
        rows = [asdict(sample) for sample in self.rebase(path.resolve().parent).samples]
        with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    def rebase(self, root: Path) -> "Manifest":
        """The same samples with paths relative to another folder."""
        root = root.resolve()
        if root == self.root:
            return self
        moved = (
            replace(sample, **{name: self._relative(getattr(sample, name), root) for name in _PATH_FIELDS})
            for sample in self.samples
        )
        return Manifest(root, tuple(moved))

    def path(self, sample: Sample) -> Path:
        """Absolute path of the sample's image."""
        return self.root / sample.image

    def digest(self) -> str:
        """SHA-256 over all rows: names the data in reports."""
        rows = json.dumps([asdict(sample) for sample in self.samples], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(rows.encode()).hexdigest()

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Number of images per cell (split, approach, group)."""
        return Counter((sample.split, sample.approach, sample.group) for sample in self.samples)

    def groups(self) -> tuple[str, ...]:
        """The groups, sorted."""
        return tuple(sorted({sample.group for sample in self.samples}))

    def approaches(self) -> tuple[str, ...]:
        """The approaches, "real" first, then sorted."""
        return tuple(sorted({sample.approach for sample in self.samples}, key=lambda name: (name != REAL, name)))

    def subset(
        self, split: str | Collection[str] | None = None, approach: str | Collection[str] | None = None
    ) -> "Manifest":
        """The samples of these splits and approaches (None: all).

        Raises:
            UserError: nothing is left; the splits and approaches that exist are named.
        """
        splits = {split} if isinstance(split, str) else split
        approaches = {approach} if isinstance(approach, str) else approach
        kept = tuple(
            sample
            for sample in self.samples
            if (splits is None or sample.split in splits) and (approaches is None or sample.approach in approaches)
        )
        if not kept:
            found = sorted({sample.split or "(none)" for sample in self.samples})
            raise UserError(
                f"the manifest has no image with split {split!r} and approach {approach!r}; "
                f"splits: {', '.join(found)}; approaches: {', '.join(self.approaches())}"
            )
        return Manifest(self.root, kept)

    def group_by(self, *names: str) -> "Manifest":
        """The same samples grouped by other attributes: columns or keys of `meta`; several give their combinations.

        Raises:
            UserError: a sample lacks one of the attributes.
        """

        def attribute(sample: Sample, name: str) -> str:
            value = getattr(sample, name) if name in COLUMNS else meta_of(sample).get(name, "")
            if value in ("", None):
                raise UserError(f"{sample.image}: no value for attribute {name!r}; drop the row or choose another")
            return str(value)

        grouped = (replace(s, group=" / ".join(attribute(s, name) for name in names)) for s in self.samples)
        return Manifest(self.root, tuple(grouped))

    def balance(self, by: Literal["identities", "images", "none"] = "identities", seed: int = 0) -> "Manifest":
        """Subsample every group to the smallest one, inside each split and approach.

        "identities" keeps equally many persons, then equally many images, taken from all persons in turn, so that the
        cells are equal; "images" equalises the images only. Which rows stay depends on `seed` and on names, not on
        the order of the rows, and is the same for all approaches whose files have the same names.

        Raises:
            UserError: a sample without group, or without identity when persons are to be balanced.
        """
        if by == "none":
            return self
        if by not in ("identities", "images"):
            raise UserError(f"balance {by!r} is not one of identities, images, none")
        verification.check_groups(self.samples)
        kept = set(self.samples)
        if by == "identities":
            verification.check_identities(self.samples)
            kept = _equal_identities(kept, seed)
        kept = _equal_images(kept, seed)
        return Manifest(self.root, tuple(sample for sample in self.samples if sample in kept))

    def split(self, ratios: Mapping[str, float], seed: int = 0) -> "Manifest":
        """Assign every person to one split, with the ratios kept inside each group (largest remainders).

        Args:
            ratios: e.g. `{"train": 0.72, "val": 0.14, "test": 0.14}`; normalised to sum 1.
            seed: chooses the persons.

        Raises:
            UserError: bad ratios, a sample without group or identity, a person in two groups, a group with too few
                persons, or forgeries whose donor would land in another split (split before building).
        """
        if not ratios or any(not ratio > 0 for ratio in ratios.values()):
            raise UserError(f"split ratios must be positive numbers, not {dict(ratios)}")
        verification.check_groups(self.samples)
        verification.check_identities(self.samples)
        verification.check_one_group(self.samples)
        split_of: dict[str, str] = {}
        for group in self.groups():
            persons = {sample.identity for sample in self.samples if sample.group == group}
            ordered = sorted(persons, key=lambda person: _rank(seed, group, person))
            sizes = _largest_remainders(len(ordered), list(ratios.values()))
            if min(sizes) == 0:
                raise UserError(f"group {group!r} has {len(ordered)} identities: too few for the splits {dict(ratios)}")
            names = [name for name, size in zip(ratios, sizes, strict=True) for _ in range(size)]
            split_of.update(zip(ordered, names, strict=True))
        result = Manifest(self.root, tuple(replace(s, split=split_of[s.identity]) for s in self.samples))
        verification.check_donors(result.samples, "split the pristine images before building forgeries")
        return result

    def verify(
        self, *, allow_duplicates: bool = False, min_identities: int = 20, check_files: bool = True
    ) -> tuple[str, ...]:
        """Check all that the fairness numbers rest on.

        Args:
            allow_duplicates: accept an image that is listed twice.
            min_identities: fewer persons than this in a group of a split give a warning with the expected null floor.
            check_files: also look at the files: present, digest as recorded, codec and size alike in reals and fakes.

        Returns:
            Warnings, one line each.

        Raises:
            UserError: labels disagree with approaches, a row without group, duplicate images, a person in two groups
                or two splits, a donor of another group or split, an empty cell, missing or altered files.
        """
        if not self.samples:
            raise UserError("the manifest has no rows")
        verification.check_labels(self.samples, "the manifest")
        verification.check_groups(self.samples)
        if not allow_duplicates:
            verification.check_duplicates(self.samples)
        verification.check_one_group(self.samples)
        verification.check_one_split(self.samples)
        verification.check_donors(self.samples, "drop these rows")
        verification.check_cells(self.counts())
        warnings = verification.size_warnings(self.samples, min_identities) + verification.cell_warnings(self.counts())
        if check_files:
            _check_files(self)
            warnings += shortcut_warnings([(self.path(s), s.label) for s in self.samples])
        return tuple(warnings)

    def _relative(self, name: str, root: Path) -> str:
        """`name` as seen from `root`, with forward slashes; absolute where the two share no drive."""
        if not name:
            return ""
        target = self.root / name
        try:
            # Path.relative_to climbs upwards only from Python 3.12 on.
            return Path(os.path.relpath(target, root)).as_posix()
        except ValueError:
            return target.as_posix()


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rank(seed: int, *names: str) -> bytes:
    """A seeded random order of names that does not depend on which other names there are."""
    return hashlib.sha256("\x1f".join((str(seed), *names)).encode()).digest()


def _largest_remainders(total: int, ratios: list[float]) -> list[int]:
    shares = [total * ratio / sum(ratios) for ratio in ratios]
    sizes = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: sizes[i] - shares[i])
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes


def _equal_identities(samples: Iterable[Sample], seed: int) -> set[Sample]:
    persons: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for sample in samples:
        persons[sample.split][sample.group].add(sample.identity)
    kept: set[tuple[str, str, str]] = set()
    for split, groups in persons.items():
        size = min(len(people) for people in groups.values())
        for group, people in groups.items():
            chosen = sorted(people, key=lambda person, group=group: _rank(seed, group, person))[:size]
            kept.update((split, group, person) for person in chosen)
    return {sample for sample in samples if (sample.split, sample.group, sample.identity) in kept}


def _equal_images(samples: Iterable[Sample], seed: int) -> set[Sample]:
    cells: dict[tuple[str, str], dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        cells[sample.split, sample.approach][sample.group].append(sample)
    kept: set[Sample] = set()
    for groups in cells.values():
        size = min(len(images) for images in groups.values())
        for images in groups.values():
            kept.update(_in_turn(images, seed)[:size])
    return kept


def _in_turn(images: list[Sample], seed: int) -> list[Sample]:
    """First one image of every person, then a second one of every person that has two, and so on."""

    def rank(sample: Sample) -> bytes:
        return _rank(seed, sample.identity, Path(sample.image).stem)

    seen: Counter[str] = Counter()
    turns = []
    for sample in sorted(images, key=rank):
        # Without identities every image is its own person.
        turns.append((seen[sample.identity] if sample.identity else 0, rank(sample), sample))
        seen[sample.identity] += 1
    return [sample for _, _, sample in sorted(turns, key=lambda turn: turn[:2])]


def _check_files(manifest: Manifest) -> None:
    missing = [sample.image for sample in manifest if not manifest.path(sample).is_file()]
    if missing:
        raise UserError(f"{manifest.root}: {len(missing)} images are missing: {few(missing)}")
    altered = [s.image for s in manifest if s.sha256 and file_sha256(manifest.path(s)) != s.sha256]
    if altered:
        raise UserError(f"{manifest.root}: {len(altered)} images differ from their recorded sha256: {few(altered)}")
