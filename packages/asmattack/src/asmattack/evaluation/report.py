"""What a bench found: rows, as JSON for machines, CSV, Markdown and one HTML page for people; limits and comparisons."""

import base64
import csv
import importlib.metadata
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from asmattack.data.corruptions import UNTREATED
from asmattack.evaluation.metrics import wilson
from tenfold import UserError
from tenfold.config import from_dict
from tenfold.files import write_text
from tenfold.reading import read_json_object

SCHEMA = 2


@dataclass(frozen=True)
class Row:
    """One line: gradients of `source`, answers of `target`. Rates are conditional on a right clean answer; in transfer rows
    on that of all detectors.
    """

    source: str
    target: str
    attack: str
    policy: str
    eps: float
    n: int
    clean_acc: float
    adv_acc: float
    robust_acc: float
    asr: float
    ci_low: float
    ci_high: float
    evasion_rate: float
    false_alarm_rate: float
    mask_area: float
    n_empty_mask: int
    over_budget: int
    zero_grad_fraction: float
    psnr: float
    psnr_inf: int
    psnr_in_mask: float
    ssim: float
    l0: float
    linf: float
    l2: float
    activation_in_mask: float
    activation_shift_in: float
    activation_shift_out: float
    seconds: float
    after: str = UNTREATED
    n_fake: int = 0
    n_real: int = 0
    n_budget_covers_all: int = 0

    def intervals(self, faces: int) -> dict[str, tuple[float, float]]:
        """95 % Wilson interval of every rate.

        Args:
            faces: how many were attacked: what the accuracies are over.
        """
        trials = dict.fromkeys(("clean_acc", "adv_acc", "robust_acc"), faces)
        trials |= {"asr": self.n, "evasion_rate": self.n_fake, "false_alarm_rate": self.n_real}
        return {name: wilson(getattr(self, name), count) for name, count in trials.items()}


SHOWN = (
    "source",
    "target",
    "attack",
    "policy",
    "eps",
    "after",
    "n",
    "clean_acc",
    "robust_acc",
    "asr",
    "evasion_rate",
    "false_alarm_rate",
    "mask_area",
    "psnr",
    "ssim",
)
"""Columns for people."""


@dataclass(frozen=True)
class Example:
    """One face for the page, height x width x 3 in 8 bits each.

    Attributes:
        title: what it is.
        pictures: caption to picture: clean, mask, change magnified, attacked.
    """

    title: str
    pictures: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Report:
    """All rows of a bench.

    Attributes:
        rows: of the table.
        seed: of the bench.
        faces: how many were attacked.
        unreadable: files that were passed over.
        notes: what else a reader must know.
        weights: hash of each detector's weights.
        data: hash of the faces and their labels.
    """

    rows: tuple[Row, ...]
    seed: int
    faces: int
    unreadable: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    data: str = ""

    def json(self) -> str:
        """Strict JSON; NaN and infinity become null."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "versions": {name: importlib.metadata.version(name) for name in ("asmattack", "torch", "timm")},
                "seed": self.seed,
                "faces": self.faces,
                "wide_intervals": self.faces < 50,
                "unreadable": list(self.unreadable),
                "notes": dict(self.notes),
                "weights": dict(self.weights),
                "data": self.data,
                "strongest": [self.rows.index(row) for row in self.strongest()],
                "rows": [self._row(row) for row in self.rows],
            },
            indent=1,
        )

    def _row(self, row: Row) -> dict[str, object]:
        intervals = {name: [_finite(end) for end in ends] for name, ends in row.intervals(self.faces).items()}
        return {key: _finite(value) for key, value in asdict(row).items()} | {"intervals": intervals}

    def strongest(self) -> tuple[Row, ...]:
        """For each detector and budget the white-box row that leaves the least accuracy: its robustness, as far as was tried."""
        least: dict[tuple[str, float], Row] = {}
        for row in self.rows:
            if row.source == row.target and row.after == UNTREATED:
                key = row.target, round(row.eps * 255, 3)
                if key not in least or row.robust_acc < least[key].robust_acc:
                    least[key] = row
        return tuple(least.values())

    def to_json(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        write_text(path, self.json())

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as a table."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, [each.name for each in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        write_text(path, stream.getvalue())

    def markdown(self) -> str:
        """The columns for people as a Markdown table."""
        lines = [f"| {' | '.join(SHOWN)} |", f"|{'---|' * len(SHOWN)}"]
        lines += [f"| {' | '.join(shown(row, name) for name in SHOWN)} |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def to_markdown(self, path: str | Path) -> None:
        """Write the Markdown table."""
        write_text(path, self.markdown())

    def matrix(self, attack: str, policy: str, eps: float, after: str = UNTREATED) -> dict[str, dict[str, Row]]:
        """Source to target to row: the transfer matrix of one attack."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            if (row.attack, row.policy, row.eps, row.after) == (attack, policy, eps, after):
                found.setdefault(row.source, {})[row.target] = row
        return found

    def transfer_mean(self, attack: str, policy: str, eps: float, after: str = UNTREATED) -> dict[str, float]:
        """Source to mean success on all detectors but itself; NaN where there is none."""
        found = {}
        for source, row in self.matrix(attack, policy, eps, after).items():
            others = [each.asr for target, each in row.items() if target != source]
            found[source] = sum(others) / len(others) if others else math.nan
        return found

    def html(self, examples: Sequence[Example] = ()) -> str:
        """One page without script or reference to anything outside it."""
        environment = Environment(
            loader=PackageLoader("asmattack"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        settings = list(dict.fromkeys((row.attack, row.policy, row.eps, row.after) for row in self.rows))
        matrices = [(shown_setting(*each), self.matrix(*each), self.transfer_mean(*each)) for each in settings]
        pictures = [
            (each.title, {name: data_url(picture) for name, picture in each.pictures.items()}) for each in examples
        ]
        return environment.get_template("report.html.j2").render(
            report=self,
            matrices=[each for each in matrices if len(each[1]) > 1],
            columns=SHOWN,
            shown=shown,
            examples=pictures,
        )

    def to_html(self, path: str | Path, examples: Sequence[Example] = ()) -> None:
        """Write the page, whole or not at all."""
        write_text(path, self.html(examples))

    def check(self, min_robust_acc: Mapping[str, float], max_transfer: float | None = None) -> list[str]:
        """Broken limits, one line each; of the attacked pictures as they are, not of treated ones.

        Args:
            min_robust_acc: `attack:levels` (such as `pgd:8`) to the least accuracy under white-box attack, over all policies.
            max_transfer: largest success on a detector whose gradients were not used.

        Raises:
            UserError: a limit that no row can be held against.
        """
        broken = []
        plain = [row for row in self.rows if row.after == UNTREATED]
        for key, least in min_robust_acc.items():
            mine = [row for row in plain if row.source == row.target and f"{row.attack}:{row.eps * 255:g}" == key]
            if not mine:
                raise UserError(
                    f"the report has no white-box row of {key}; it has {', '.join(sorted({f'{row.attack}:{row.eps * 255:g}' for row in plain}))}"
                )
            broken += [
                f"{row.target} under {key}, {row.policy}: robust accuracy {row.robust_acc:.3f} < {least:g}"
                for row in mine
                if not row.robust_acc >= least
            ]
        if max_transfer is not None:
            crossing = [row for row in plain if row.source != row.target]
            if not crossing:
                raise UserError("the report has no transfer row: it holds one detector")
            broken += [
                f"{row.source} to {row.target}, {row.attack}, {row.policy}: transfer {row.asr:.3f} > {max_transfer:g}"
                for row in crossing
                if not row.asr <= max_transfer
            ]
        return broken

    def compare(self, other: "Report") -> list[tuple[Row, Row]]:
        """Rows of both reports with the same source, target, attack, policy and budget: before and after."""

        def key(row: Row) -> tuple[object, ...]:
            return row.source, row.target, row.attack, row.policy, round(row.eps * 255, 3), row.after

        after = {key(row): row for row in other.rows}
        return [(row, after[key(row)]) for row in self.rows if key(row) in after]


@dataclass(frozen=True)
class _Heading:
    """What a file of a report says beside its rows."""

    seed: int
    faces: int
    unreadable: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    data: str = ""


def read_report(path: Path) -> Report:
    """Read what `to_json` wrote.

    Raises:
        UserError: missing, or something else.
    """
    found = read_json_object(path)
    rows = found.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: is no report of `asmattack eval`")
    named = {each.name for each in fields(_Heading)}
    heading = from_dict({key: value for key, value in found.items() if key in named}, _Heading, str(path))
    if heading.faces < 0:
        raise UserError(f"{path}: faces is {heading.faces}")
    return Report(tuple(_read_row(row, path) for row in rows), **vars(heading))


def _read_row(values: dict[str, Any], path: Path) -> Row:
    """A row; what is null in the file was not finite."""
    unknown = {key for key, value in values.items() if value is None}
    finite = {key: 0.0 if key in unknown else value for key, value in values.items() if key != "intervals"}
    row = from_dict(finite, Row, str(path))
    if not all(isinstance(getattr(row, key), float) for key in unknown) or min(row.n, row.n_fake, row.n_real) < 0:
        raise UserError(f"{path}: is no report of `asmattack eval`")
    return replace(row, **dict.fromkeys(unknown, math.nan))


def shown(row: Row, name: str) -> str:
    """A cell for people: budgets in levels, rates with three digits."""
    value = getattr(row, name)
    if name == "eps":
        return f"{value * 255:g}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def shown_setting(attack: str, policy: str, eps: float, after: str = UNTREATED) -> str:
    """An attack for people."""
    return f"{attack}, {policy}, {eps * 255:g}/255" + ("" if after == UNTREATED else f", after {after}")


def data_url(picture: np.ndarray) -> str:
    """An 8-bit picture as a PNG inside the page."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
