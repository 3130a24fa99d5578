"""Score files of any common kind: from columns by whatever names to checked tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import expit

from fairfd.data.scores.files import ROWS, read_columns, require_columns, suffix_of
from fairfd.data.scores.validation import REAL, Coded, Places, encode, listed
from fairfd.evaluation.scores.score_table import MIN_IDENTITIES, ScoreTable, text_column
from tenfold.errors import UserError

JOINED_BY = " & "
"""Between the parts of a combined group, as in "Asian & female"."""


@dataclass(frozen=True)
class ScoreFormat:
    """How to read a score file.

    Its columns are `group`, `label` and `score`; where present also `approach`, `image`, `identity`, `detector`, `video` and
    `source_identity`. Without `approach` all forgeries are of one approach, "fake"; without `label` the approach tells
    which images are real.

    Attributes:
        group_by: columns whose combination makes up the group, e.g. ("race", "gender").
        min_group: leave out groups with fewer identities (images, without identities), with a warning.
        video: column whose frames are averaged: one score per video, approach and person; frames without a video stand alone.
            A file without the column, or None, is scored image by image, as in the paper.
        logits: apply the sigmoid to the scores.
        allow_duplicates: accept the same image under the same approach twice.
        min_identities: groups below this are warned of.
        real: the approach, or the label, that means "not forged"; it is renamed to "real".
        columns: what the file calls our columns, e.g. {"score": "p_fake"}.
        drop_missing: leave out rows in which a needed column is blank, with a warning.
        people: a second file with what the score file lacks: groups, identity, approach, label.
        on: the column that both files have, by which their rows are joined.
    """

    group_by: Sequence[str] = ("group",)
    min_group: int = 0
    video: str | None = "video"
    logits: bool = False
    allow_duplicates: bool = False
    min_identities: int = MIN_IDENTITIES
    real: str = REAL
    columns: Mapping[str, str] = field(default_factory=dict)
    drop_missing: bool = False
    people: str | PathLike[str] | None = None
    on: str = "image"

    def theirs(self, name: str) -> str:
        """What the file calls a column of ours."""
        return self.columns.get(name, name)


FAKE = "fake"
"""The approach of forgeries in a file that names none."""

LABEL_WORDS: Mapping[str, int] = {"real": 0, "genuine": 0, "false": 0, "fake": 1, "forged": 1, "true": 1}
"""Labels in words, in any case; true means fake, as 1 does."""


def read_scores(path: str | PathLike[str], detector: str | None = None, **options: Any) -> ScoreTable:
    """One detector's scores from a file.

    Args:
        path: CSV, TSV or JSON lines (UTF-8; also gzipped: .gz), Parquet or Feather.
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
        path: CSV, TSV or JSON lines (UTF-8; also gzipped: .gz), Parquet or Feather.
        how: to read it.

    Raises:
        UserError: the file cannot be read, a column is missing, or rows are at fault; the
            message names the file and the first rows, counted from 1 after the header.
    """
    source, how = Path(path), how or ScoreFormat()
    columns = _joined_columns(source, how)
    try:
        columns = _completed(columns, how)
        rows = np.arange(len(columns.score))
        if how.drop_missing:
            rows, notes = _without_blanks(columns, how)
        else:
            notes = ()
        return {
            detector: _table(detector, columns, each, how, notes)
            for detector, each in _by_detector(columns.names.get("detector"), source, rows).items()
        }
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


@dataclass(frozen=True)
class _Columns:
    """The columns of a score file under our names.

    Attributes:
        score: P(fake) as written, NaN where it is blank.
        names: columns of text.
        images: names of the images.
    """

    score: Float[np.ndarray, " n"]
    names: Mapping[str, Coded]
    images: Shaped[np.ndarray, " n"] | None


def _joined_columns(source: Path, how: ScoreFormat) -> _Columns:
    """What the score file holds, and what the people's file adds to it."""
    wanted = ("approach", "label", "identity", "detector", "source_identity", *how.group_by, *_video(how))
    # The column that joins is coded; images alone are kept as they are.
    key = (how.on,) if how.people else ()
    score = how.theirs("score")
    image = None if "image" in key else how.theirs("image")
    found = read_columns(source, [how.theirs(name) for name in (*wanted, *key)], [score], image)
    names = {name: found.texts[how.theirs(name)] for name in (*wanted, *key) if how.theirs(name) in found.texts}
    if how.people is not None:
        require_columns(source, found, {how.on: how.theirs(how.on)})
        lacking = [name for name in wanted if name not in names]
        names |= _looked_up(names[how.on], Path(how.people), lacking, how)
    required = {name: how.theirs(name) for name in ("score", *how.group_by) if name not in names}
    if "label" not in names and "approach" not in names:
        required["label"] = how.theirs("label")
    require_columns(source, found, required)
    return _Columns(found.numbers[score], names, found.images)


def _looked_up(key: Coded, path: Path, lacking: Sequence[str], how: ScoreFormat) -> dict[str, Coded]:
    """Columns of the people's file, one row for each row of the score file; blank where it names no such key.

    Raises:
        UserError: it has no such column, or says two things of one key.
    """
    found = read_columns(path, [how.theirs(name) for name in (how.on, *lacking)], ())
    require_columns(path, found, {how.on: how.theirs(how.on)})
    theirs = found.texts[how.theirs(how.on)]
    place = {name: code for code, name in enumerate(theirs.names)}
    # An unknown key leads to the last place, which is blank.
    known = np.array([place.get(name, len(place)) for name in key.names], np.int64)
    columns = {}
    for name in lacking:
        if (column := found.texts.get(how.theirs(name))) is None:
            continue
        said = np.full(len(place) + 1, len(column.names))
        # The first row of a key speaks for it.
        said[theirs.codes[::-1]] = column.codes[::-1]
        torn = said[theirs.codes] != column.codes
        if torn.any():
            raise UserError(f"{path}: {how.on} with two values of {name}, the second at {ROWS.name(torn)}")
        columns[name] = Coded((*column.names, ""), said[known][key.codes])
    if not columns:
        raise UserError(f"{path}: adds nothing; it has {listed(found.names, 12)}, the scores lack {listed(lacking)}")
    return columns


def _video(how: ScoreFormat) -> tuple[str, ...]:
    return (how.video,) if how.video else ()


def _completed(columns: _Columns, how: ScoreFormat) -> _Columns:
    """With the label told by the approach, or the approach by the label, where the file has but one of them."""
    names, real = dict(columns.names), how.real.strip().lower()
    if "label" not in names:
        approach = names["approach"]
        words = tuple("" if not name.strip() else str(int(name.strip().lower() != real)) for name in approach.names)
        names["label"] = Coded(words, approach.codes)
    if "approach" not in names:
        label = names["label"]
        approaches = {0: how.real, 1: FAKE}
        words = tuple(approaches.get(_label(name, how), "") for name in label.names)
        names["approach"] = Coded(words, label.codes)
    elif (written := [name for name in names["approach"].names if name.strip().lower() == real]) != [how.real]:
        # "Real" and "REAL" are the real approach, too.
        names["approach"] = Coded(
            tuple(how.real if name in written else name for name in names["approach"].names), names["approach"].codes
        )
    return replace(columns, names=names)


def _label(text: str, how: ScoreFormat) -> int:
    """0 real, 1 fake, from a number or a word; -1 for anything else."""
    word = text.strip().lower()
    if word == how.real.strip().lower():
        return 0
    if word in LABEL_WORDS:
        return LABEL_WORDS[word]
    try:
        number = float(word)
    except ValueError:
        return -1
    return int(number) if number in (0, 1) else -1


def _labels(column: Coded, how: ScoreFormat, places: Places) -> Int[np.ndarray, " n"]:
    """0 real, 1 fake.

    Raises:
        UserError: naming the first rows that are neither.
    """
    values = np.array([_label(name, how) for name in column.names], np.int8)[column.codes]
    if (wrong := values < 0).any():
        odd = listed(sorted({repr(column.names[code]) for code in np.unique(column.codes[wrong]).tolist()}))
        raise UserError(
            f"labels: neither 0 (real) nor 1 (fake) at {places.name(wrong)} ({odd}); "
            "words are real and fake, false and true, or --real WORD"
        )
    return values


def _without_blanks(columns: _Columns, how: ScoreFormat) -> tuple[Int[np.ndarray, " m"], tuple[str, ...]]:
    """The rows in which no needed column is blank, and what was left out."""
    blanks = {"score": np.isnan(columns.score)}
    for name in ("label", "approach", "identity", *how.group_by):
        column = columns.names.get(name)
        if column is not None and (name != "identity" or _unless_blank(column) is not None):
            blanks[name] = np.array([not text.strip() for text in column.names])[column.codes]
    kept = np.flatnonzero(~np.any(list(blanks.values()), axis=0))
    if not len(kept):
        raise UserError("every row lacks something; " + _counts(blanks))
    dropped = len(columns.score) - len(kept)
    return kept, ((f"left out {dropped} rows that lack something: {_counts(blanks)}",) if dropped else ())


def _counts(blanks: Mapping[str, Bool[np.ndarray, " n"]]) -> str:
    return ", ".join(f"{name} {int(blank.sum())}" for name, blank in blanks.items() if blank.any())


def pool_videos(table: ScoreTable, video: Coded) -> ScoreTable:
    """One row per video, approach, person and group, with the mean score of its frames.

    Args:
        table: one row per frame.
        video: of each frame; a blank one stands alone.
    """
    videos, which_video = encode(video, None, "video")
    blank = video.equals("")
    which_video = np.where(blank, len(videos) + np.arange(len(table)), which_video)
    others = (table.approaches, table.groups, *(() if table.people is None else (table.people,)))
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
    names, codes = encode(table.groups, None, "group")
    people = np.arange(len(table)) if table.people is None else encode(table.people, None, "identity")[1]
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
    detector: str, columns: _Columns, rows: Int[np.ndarray, " n"], how: ScoreFormat, notes: tuple[str, ...]
) -> ScoreTable:
    """One detector's checked rows, pooled and thinned as asked, with their warnings."""
    places, score, names, images = ROWS, columns.score, columns.names, columns.images
    if len(rows) < len(score):
        places, score = ROWS.take(rows), score[rows]
        names = {name: column.take(rows) for name, column in names.items()}
        images = None if images is None else images[rows]
    images = names.get("image", images)
    table = ScoreTable.create(
        expit(score) if how.logits else score,
        _labels(names["label"], how, places),
        _joined([names[name] for name in how.group_by], places),
        names["approach"],
        identity=_unless_blank(names.get("identity")),
        image=images,
        detector=detector,
        real=how.real,
        allow_duplicates=how.allow_duplicates,
        places=places,
    )
    table = replace(table, warnings=(*notes, *_donor_warnings(table, names.get("source_identity"))))
    video = _unless_blank(names.get(how.video)) if how.video else None
    if video is not None:
        table = pool_videos(table, video)
    return without_small_groups(table, how.min_group).with_warnings(how.min_identities)


def _by_detector(column: Coded | None, source: Path, rows: Int[np.ndarray, " n"]) -> dict[str, Int[np.ndarray, " m"]]:
    """The rows of each detector; a blank name stands for the file's."""
    otherwise = source.name[: -len(suffix_of(source))] or source.name
    if column is None:
        return {otherwise: rows}
    names, codes = encode(column.take(rows), None, "detector")
    return {name.strip() or otherwise: rows[codes == code] for code, name in enumerate(names)}


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
    if donors is None or (identity := table.identity) is None:
        return
    group_of = dict(zip(identity.tolist(), table.group.tolist(), strict=True))
    pairs = zip(text_column(donors).tolist(), table.group.tolist(), strict=True)
    crossed = sum(group_of.get(donor, group) != group for donor, group in pairs)
    if crossed:
        yield f"{crossed} forgeries have a donor (source_identity) of another group: their ethnicity is undefined"
