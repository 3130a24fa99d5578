"""Score files: from CSV, TSV or JSON lines to checked tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from fairfd.data.scores.files import ROWS, read_columns, require_columns
from fairfd.data.scores.validation import REAL, Coded, Places, encode, listed
from fairfd.evaluation.scores.score_table import MIN_IDENTITIES, ScoreTable, text_column
from tenfold.errors import UserError

JOINED_BY = " & "
"""Between the parts of a combined group, as in "Asian & female"."""


@dataclass(frozen=True)
class ScoreFormat:
    """How to read a score file.

    Its columns are `group`, `approach`, `label` and `score`; where present also `image`, `identity`, `detector`, `video` and
    `source_identity`.

    Attributes:
        group_by: columns whose combination makes up the group, e.g. ("race", "gender").
        min_group: leave out groups with fewer identities (images, without identities), with a warning.
        video: column whose frames are averaged: one score per video, approach and person; frames without a video stand alone.
            A file without the column, or None, is scored image by image, as in the paper.
        logits: apply the sigmoid to the scores.
        allow_duplicates: accept the same image under the same approach twice.
        min_identities: groups below this are warned of.
        real: the approach that means "not forged"; it is renamed to "real".
        columns: what the file calls our columns, e.g. {"score": "p_fake"}.
    """

    group_by: Sequence[str] = ("group",)
    min_group: int = 0
    video: str | None = "video"
    logits: bool = False
    allow_duplicates: bool = False
    min_identities: int = MIN_IDENTITIES
    real: str = REAL
    columns: Mapping[str, str] = field(default_factory=dict)


def read_scores(path: str | PathLike[str], detector: str | None = None, **options: Any) -> ScoreTable:
    """One detector's scores from a file.

    Args:
        path: `.csv` or `.tsv` (UTF-8, with a header) or `.jsonl`.
        detector: which one, where the file holds several.
        **options: the fields of `ScoreFormat`.

    Raises:
        UserError: as `read_score_tables`; or the file holds several detectors and none, or another, was named.
    """
    tables = read_score_tables(path, ScoreFormat(**options))
    if detector is None and len(tables) == 1:
        return next(iter(tables.values()))
    if detector not in tables:
        asked = "several detectors" if detector is None else f"no detector {detector}"
        raise UserError(f"{path}: {asked}; choose one of {listed(tuple(tables), 20)}")
    return tables[detector]


def read_score_tables(path: str | PathLike[str], how: ScoreFormat | None = None) -> dict[str, ScoreTable]:
    """The scores of each detector in a file, by its name; a file without `detector` is one, named after the file.

    Args:
        path: `.csv` or `.tsv` (UTF-8, with a header) or `.jsonl`.
        how: to read it.

    Raises:
        UserError: the file cannot be read, a column is missing, or rows are at fault; the
            message names the file and the first rows, counted from 1 after the header.
    """
    source, how = Path(path), how or ScoreFormat()
    known = ("approach", "image", "identity", "detector", "source_identity", *how.group_by)
    theirs = {name: how.columns.get(name, name) for name in (*known, *([how.video] if how.video else []))}
    their_score, their_label = how.columns.get("score", "score"), how.columns.get("label", "label")
    found = read_columns(source, dict.fromkeys(theirs.values()), (their_score, their_label))
    require_columns(
        source, found, [their_label, theirs["approach"], their_score, *(theirs[name] for name in how.group_by)]
    )
    columns = {name: found.texts[column] for name, column in theirs.items() if column in found.texts}
    try:
        score, label = found.numbers[their_score], found.numbers[their_label]
        score = expit(score) if how.logits else score
        return {
            detector: _table(
                detector,
                score[rows],
                label[rows],
                {name: column.take(rows) for name, column in columns.items()},
                rows,
                how,
            )
            for detector, rows in _by_detector(columns.get("detector"), source.stem, found.rows).items()
        }
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def pool_videos(table: ScoreTable, video: Coded) -> ScoreTable:
    """One row per video, approach, person and group, with the mean score of its frames.

    Args:
        table: one row per frame.
        video: of each frame; a blank one stands alone.
    """
    videos, which_video = encode(video, None, "video")
    blank = video.equals("")
    which_video = np.where(blank, len(videos) + np.arange(len(table)), which_video)
    others = (table.approach, table.group, *(() if table.identity is None else (table.identity,)))
    coded = [encode(column, None, "column") for column in others]
    sizes = (len(videos) + len(table), *(len(names) for names, _ in coded))
    cell = np.ravel_multi_index((which_video, *(codes for _, codes in coded)), sizes)
    _, first, which = np.unique(cell, return_index=True, return_inverse=True)
    mean = np.bincount(which, weights=table.score) / np.bincount(which)
    order = np.argsort(first)
    pooled = table.take(first[order])
    names = np.where(blank, table.image, text_column(video))[first[order]]
    note = f"averaged {len(table)} frames into {len(pooled)} videos"
    # The mean of scores that are all 1 may exceed it by a rounding.
    return replace(pooled, image=names, score=np.clip(mean[order], 0.0, 1.0), warnings=(*table.warnings, note))


def without_small_groups(table: ScoreTable, min_group: int) -> ScoreTable:
    """Leave out groups with fewer than `min_group` identities (images, without identities), and say so.

    Raises:
        UserError: no group is left.
    """
    if min_group < 1:
        return table
    names, codes = encode(table.group, None, "group")
    people = np.arange(len(table)) if table.identity is None else encode(table.identity, None, "identity")[1]
    first = np.unique(people, return_index=True)[1]
    sizes = np.bincount(codes[first], minlength=len(names))
    small = sizes < min_group
    if not small.any():
        return table
    if small.all():
        raise UserError(f"every group has fewer than {min_group} members; lower min_group or combine fewer columns")
    named = listed([f"{names[s]} ({sizes[s]})" for s in np.flatnonzero(small)])
    note = f"left out groups with fewer than {min_group} members: {named}"
    return replace(table.take(~small[codes]), warnings=(*table.warnings, note))


def _table(
    detector: str,
    score: Float[np.ndarray, " n"],
    label: Float[np.ndarray, " n"],
    names: Mapping[str, Coded],
    rows: Int[np.ndarray, " n"],
    how: ScoreFormat,
) -> ScoreTable:
    """One detector's checked rows, pooled and thinned as asked, with their warnings."""
    table = ScoreTable.create(
        score,
        label,
        _joined([names[name] for name in how.group_by], ROWS.take(rows)),
        names["approach"],
        identity=_unless_blank(names.get("identity")),
        image=_unless_blank(names.get("image")),
        detector=detector,
        real=how.real,
        allow_duplicates=how.allow_duplicates,
        places=ROWS.take(rows),
    )
    table = replace(table, warnings=tuple(_donor_warnings(table, names.get("source_identity"))))
    video = _unless_blank(names.get(how.video)) if how.video else None
    if video is not None:
        table = pool_videos(table, video)
    return without_small_groups(table, how.min_group).with_warnings(how.min_identities)


def _by_detector(column: Coded | None, otherwise: str, rows: int) -> dict[str, Int[np.ndarray, " n"]]:
    """The rows of each detector; a blank name stands for the file's."""
    if column is None:
        return {otherwise: np.arange(rows)}
    names, codes = encode(column, None, "detector")
    return {name.strip() or otherwise: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def _joined(parts: Sequence[Coded], places: Places) -> Coded:
    """Combined groups; a combination with a blank part is at fault."""
    if len(parts) == 1:
        return parts[0]
    blank = np.any([part.equals("") for part in parts], axis=0)
    if blank.any():
        raise UserError(f"group: a part is blank at {places.name(blank)}; fill it in or leave the rows out")
    sizes = tuple(len(part.names) for part in parts)
    cells, codes = np.unique(np.ravel_multi_index([part.codes for part in parts], sizes), return_inverse=True)
    named = zip(*np.unravel_index(cells, sizes), strict=True)
    names = tuple(JOINED_BY.join(part.names[code] for part, code in zip(parts, cell, strict=True)) for cell in named)
    return Coded(names, codes)


def _unless_blank(column: Coded | None) -> Coded | None:
    """The column, or None when the file lacks it or never fills it in."""
    return None if column is None or bool(column.equals("").all()) else column


def _donor_warnings(table: ScoreTable, donors: Coded | None) -> Iterator[str]:
    """Swaps across groups leave a face of undefined ethnicity (paper, "no undefined ethnicity")."""
    if donors is None or table.identity is None:
        return
    group_of = dict(zip(table.identity.tolist(), table.group.tolist(), strict=True))
    pairs = zip(text_column(donors).tolist(), table.group.tolist(), strict=True)
    crossed = sum(group_of.get(donor, group) != group for donor, group in pairs)
    if crossed:
        yield f"{crossed} forgeries have a donor (source_identity) of another group: their ethnicity is undefined"
