"""What one detector said about every image: the table that every evaluation starts from.

The paper scores single images; nothing is pooled here. Group labels come with the data and are never guessed.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.dtypes import StringDType
from numpy.typing import ArrayLike

from fairfd.data.scores.validation import (
    POSITIONS,
    REAL,
    Coded,
    Places,
    Threshold,
    check_labels_match_approaches,
    check_lengths,
    checked_labels,
    checked_scores,
    decide,
    encode,
    encode_approaches,
    group_of_identity,
)
from fairfd.evaluation.audit.uncertainty import small_group_warnings
from fairfd.evaluation.metrics import Utility, auc, utility
from fairfd.method.rates import ASSUMES_INDEPENDENT, RateTable
from tenfold.errors import UserError
from tenfold.files import atomic_path

if TYPE_CHECKING:
    from fairlearn.metrics import MetricFrame

Text = Shaped[np.ndarray, " n"]
"""A column of strings, numpy's StringDType."""

COLUMNS = ("image", "identity", "group", "approach", "label", "score", "detector")
"""Of a score file, in the order in which they are written."""

INVERTED_AUC = 0.35
"""Below this, scores are taken to be P(real) by mistake; they are never flipped."""

_AT_A_TIME = 65536
"""Names that are Python strings at a time."""

MIN_IDENTITIES = 20
"""Groups with fewer persons are warned of."""


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """One detector's scores. Make it with `ScoreTable.create` or `fairfd.read_scores`, which check it.

    Attributes:
        image: name of each image (of each video, where frames were pooled).
        people: person on the pristine base image, or None where unknown: images then count as independent.
        groups: sensitive group.
        approaches: "real" or the forgery approach.
        label: 0 real, 1 fake.
        score: P(fake) in [0, 1].
        detector: name.
        warnings: one line each.
    """

    image: Text
    people: Coded | None
    groups: Coded
    approaches: Coded
    label: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    detector: str = "detector"
    warnings: tuple[str, ...] = ()

    @property
    def identity(self) -> Text | None:
        """`people` as a column of strings."""
        return None if self.people is None else text_column(self.people)

    @property
    def group(self) -> Text:
        """`groups` as a column of strings."""
        return text_column(self.groups)

    @property
    def approach(self) -> Text:
        """`approaches` as a column of strings."""
        return text_column(self.approaches)

    @classmethod
    def create(
        cls,
        score: ArrayLike,
        label: ArrayLike,
        group: ArrayLike | Coded,
        approach: ArrayLike | Coded,
        identity: ArrayLike | Coded | None = None,
        image: ArrayLike | Coded | None = None,
        detector: str = "detector",
        real: str | int = REAL,
        allow_duplicates: bool = False,
        places: Places = POSITIONS,
    ) -> "ScoreTable":
        """A checked table from columns of equal length.

        Args:
            score: P(fake) in [0, 1].
            label: 0 real, 1 fake.
            group: strings or integers.
            approach: strings or integers; real images carry `real`.
            identity: strings or integers.
            image: names; rows are numbered where there are none.
            detector: name.
            real: the approach that means "not forged"; it is renamed to "real".
            allow_duplicates: accept the same image under the same approach twice.
            places: how rows are called in messages.

        Raises:
            UserError: scores not finite or outside [0, 1], labels not 0 or 1 or at odds
                with the approach, a blank group, approach or identity, an identity in two groups, duplicate images.
        """
        scores, labels = checked_scores(score, places), checked_labels(label, places)
        group_names, groups = _filled(encode(group, None, "group"), "group", places)
        approach_names, approaches = _filled(encode_approaches(approach, real), "approach", places)
        images = text_column([str(row + places.first) for row in range(len(scores))] if image is None else image)
        check_lengths(score=scores, label=labels, group=groups, approach=approaches, image=images)
        check_labels_match_approaches(labels, approaches, places)
        people = None
        if identity is not None:
            names, identities = _filled(encode(identity, None, "identity"), "identity", places)
            check_lengths(score=scores, identity=identities)
            group_of_identity(identities, names, groups, group_names)
            people = Coded(names, identities)
        if image is not None and not allow_duplicates:
            _check_distinct(images, approaches, places)
        return cls(
            image=images,
            people=people,
            groups=Coded(group_names, groups),
            approaches=Coded(approach_names, approaches),
            label=labels,
            score=scores,
            detector=detector,
        )

    def with_warnings(self, min_identities: int = MIN_IDENTITIES) -> "ScoreTable":
        """The table with what a reader must know added to its warnings.

        Args:
            min_identities: groups below this are warned of, with the noise floor at these sizes.
        """
        return replace(self, warnings=(*self.warnings, *_score_warnings(self), *_people_warnings(self, min_identities)))

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "ScoreTable":
        """Some of the rows, by index or mask."""
        return replace(
            self,
            image=self.image[rows],
            people=None if self.people is None else self.people.take(rows),
            groups=self.groups.take(rows),
            approaches=self.approaches.take(rows),
            label=self.label[rows],
            score=self.score[rows],
        )

    def rate_table(self, threshold: Threshold = 0.5) -> RateTable:
        """Counts of correct decisions, see `RateTable.from_scores`."""
        return RateTable.from_scores(
            self.score, self.label, self.groups, self.approaches, self.people, threshold=threshold
        )

    def utility(self, threshold: Threshold = 0.5) -> Utility:
        """AUC, accuracy and so on, see `fairfd.utility`."""
        return utility(self.score, self.label, self.groups, self.approaches, threshold)

    def write(self, path: str | PathLike[str]) -> None:
        """Write the table as `.csv` or `.jsonl`, whole or not at all; `read_scores` reads it back.

        Raises:
            UserError: another suffix, or a place that cannot be written.
        """
        write_score_tables(path, [self])


def write_score_tables(path: str | PathLike[str], tables: Iterable[ScoreTable]) -> None:
    """Write the tables of several detectors into one `.csv` or `.jsonl` file, whole or not at all.

    Args:
        path: the file.
        tables: `fairfd.read_score_tables` gives them back, but for their warnings.

    Raises:
        UserError: another suffix, or a place that cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise UserError(f"{target}: scores are written as .csv or .jsonl")
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as lines:
        if suffix == ".csv":
            writer = csv.writer(lines, lineterminator="\n")
            writer.writerow(COLUMNS)
            for table in tables:
                writer.writerows(_rows(table))
        else:
            for table in tables:
                lines.writelines(
                    json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n" for row in _rows(table)
                )


def to_metric_frame(table: ScoreTable, threshold: Threshold = 0.5) -> "MetricFrame":
    """The table as fairlearn's `MetricFrame`: accuracy and rate of "fake", by group within approach.

    Mind that fairlearn gives 0 for a rate without images to compute it from, and resamples images, not identities.

    Args:
        table: one detector's scores.
        threshold: one threshold, or one per group; a tie is fake.

    Raises:
        UserError: fairlearn is not installed.
    """
    try:
        from fairlearn.metrics import MetricFrame, selection_rate
    except ImportError as error:
        raise UserError("a MetricFrame needs fairlearn; install it with `pip install fairlearn`") from error
    names, codes = encode(table.groups, None, "group")
    called = decide(table.score, codes, names, threshold).astype(np.int64)

    def accuracy(truth: Any, prediction: Any) -> float:
        return float(np.mean(np.asarray(truth) == np.asarray(prediction)))

    return MetricFrame(
        metrics={"accuracy": accuracy, "called_fake": selection_rate},
        y_true=table.label,
        y_pred=called,
        sensitive_features={"group": table.group.tolist()},
        control_features={"approach": table.approach.tolist()},
    )


def text_column(values: ArrayLike | Coded) -> Text:
    """Strings, integers or a coded column as a column of strings."""
    if isinstance(values, Coded):
        return np.array(values.names, dtype=StringDType())[values.codes]
    column = np.asarray(values) if not isinstance(values, list | tuple) else values
    if isinstance(column, np.ndarray) and column.dtype.kind == "T":
        return column
    return np.array([str(value) for value in column], dtype=StringDType())


def _filled(coded: Coded, what: str, places: Places) -> Coded:
    """The coded column, known to have no blanks."""
    blank = np.isin(coded.codes, [code for code, name in enumerate(coded.names) if not name.strip()])
    if blank.any():
        raise UserError(f"{what}: blank at {places.name(blank)}; fill it in or leave the rows out (--drop-missing)")
    return coded


def _check_distinct(image: Text, approaches: Int[np.ndarray, " n"], places: Places) -> None:
    """No image occurs twice under one approach."""
    parts = (image[start : start + _AT_A_TIME].tolist() for start in range(0, len(image), _AT_A_TIME))
    # Hashes take an eighth of the memory of a dictionary of names; only where two are equal are the names compared.
    hashes = np.fromiter((hash(name) for part in parts for name in part), np.int64, len(image)) ^ approaches
    ranked = np.sort(hashes)
    suspects = np.flatnonzero(np.isin(hashes, ranked[1:][ranked[1:] == ranked[:-1]]))
    seen: set[tuple[str, int]] = set()
    again = np.zeros(len(image), bool)
    for row, pair in zip(
        suspects.tolist(), zip(image[suspects].tolist(), approaches[suspects].tolist(), strict=True), strict=True
    ):
        again[row] = pair in seen
        seen.add(pair)
    if again.any():
        raise UserError(
            f"image: the same image again at {places.name(again)}; leave the copies out, or allow them (--allow-duplicates)"
        )


def _score_warnings(table: ScoreTable) -> Iterator[str]:
    area = auc(table.score, table.label)
    if area < INVERTED_AUC:
        yield f"scores look inverted: AUC {area:.3f}; are they P(real) in place of P(fake)?"


def _people_warnings(table: ScoreTable, min_identities: int) -> tuple[str, ...]:
    if table.identity is None:
        return (f"no identity column: every interval {ASSUMES_INDEPENDENT}",)
    return small_group_warnings(table.rate_table(), min_identities)


def _rows(table: ScoreTable) -> Iterator[tuple[Any, ...]]:
    """The rows of a file, in the order of `COLUMNS`; an unknown identity is blank."""
    # By way of numpy's shortest text: 0.7 in float32 is written 0.7, and so meets the threshold 0.7 again.
    exact = table.score.dtype == np.float64
    score = table.score if exact else table.score.astype(str).astype(np.float64)
    return zip(
        table.image.tolist(),
        [""] * len(table) if table.identity is None else table.identity.tolist(),
        table.group.tolist(),
        table.approach.tolist(),
        table.label.tolist(),
        score.tolist(),
        [table.detector] * len(table),
        strict=True,
    )
