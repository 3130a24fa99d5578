"""What a build leaves beside the images: the manifest's rows, `skipped.csv`, `build.json`."""

import csv
import io
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from fairfd.data.assembly.plan import RECORD, Plan, provenance
from fairfd.data.assembly.step import Forged, Prepared
from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import REAL, Sample, json_object, meta_of
from tenfold.errors import UserError
from tenfold.files import write_text
from tenfold.reading import read_rows

_MOST_SKIPPED = 0.02

ForgedImages = dict[tuple[str, str], Forged]
"""(approach, image) -> what became of it."""


def benchmark_rows(
    plan: Plan,
    usable: Manifest,
    prepared: dict[str, Prepared],
    forged: ForgedImages,
    partners: dict[str, str],
    driving: dict[str, Sample],
) -> list[Sample]:
    """Rows of all images that every approach could forge, reals first; a face that one approach skipped is left out of all."""
    complete = [s for s in usable if all(not forged[label, s.image].skipped for label in plan.forgers)]
    reals = [_real_row(plan, sample, prepared[sample.image]) for sample in complete]
    rows = list(reals)
    for label, forger in plan.forgers.items():
        facts = provenance(forger) | {"seed": plan.config.seed}
        for sample, real in zip(complete, reals, strict=True):
            result = forged[label, sample.image]
            rows.append(
                replace(
                    real,
                    image=plan.image_name(label, sample.image),
                    approach=label,
                    label=1,
                    source_identity=partners[sample.identity],
                    driving_image=plan.image_name(REAL, driving[sample.image].image),
                    mask=plan.mask_name(label, sample.image) if result.has_mask else "",
                    sha256=result.sha256,
                    meta=json.dumps(facts | json_object(result.meta), ensure_ascii=False, default=str),
                )
            )
    return rows


def _real_row(plan: Plan, sample: Sample, prepared: Prepared) -> Sample:
    meta = meta_of(sample) | {"landmarks": prepared.landmarks_from, "from": sample.image}
    meta.pop("five_points", None)
    return replace(
        sample,
        image=plan.image_name(REAL, sample.image),
        landmarks=plan.landmark_name(sample.image),
        mask="",
        sha256=prepared.sha256,
        meta=json.dumps(meta, ensure_ascii=False),
    )


def check_skipped(plan: Plan, usable: Manifest, forged: ForgedImages, unprepared: dict[str, str]) -> None:
    """List the skipped faces in `skipped.csv`.

    Args:
        plan: the build.
        usable: the images that could be prepared.
        forged: what became of them.
        unprepared: the images that could not, each with the reason.

    Raises:
        UserError: an approach skipped too many faces of a group.
    """
    skipped: dict[str, dict[str, str]] = {label: {} for label in plan.forgers}
    for (label, image), result in sorted(forged.items()):
        if result.skipped:
            skipped[label][image] = result.skipped
    lines = [(REAL, image, reason) for image, reason in unprepared.items()]
    lines += [(label, image, reason) for label, reasons in skipped.items() for image, reason in reasons.items()]
    if lines:
        write_skipped(plan, lines)
    for label, reasons in skipped.items():
        check_shares(plan, usable.samples, label, reasons)


def check_shares(plan: Plan, samples: Sequence[Sample], label: str, reasons: dict[str, str]) -> None:
    """No approach may skip more than the allowed share of any group: skipping one group more is a bias of its own.

    Args:
        plan: the build.
        samples: the images that were tried.
        label: the approach.
        reasons: skipped image -> reason.

    Raises:
        UserError: with the counts per group and the commonest reasons.
    """
    total = Counter(sample.group for sample in samples)
    lost = Counter(sample.group for sample in samples if sample.image in reasons)
    if not plan.config.allow_skips and max(lost[group] / total[group] for group in total) > _MOST_SKIPPED:
        shares = ", ".join(f"{group} {lost[group]}/{total[group]}" for group in sorted(total))
        common = "; ".join(f"{reason} ({count})" for reason, count in Counter(reasons.values()).most_common(3))
        raise UserError(
            f"approach {label!r} skipped too many faces: {shares} (at most {_MOST_SKIPPED:.0%} of a group); "
            f"{common}; mend the landmarks, drop these images or allow skips (see {plan.out / 'skipped.csv'})"
        )


def write_skipped(plan: Plan, lines: Iterable[tuple[str, str, str]]) -> None:
    """Write `skipped.csv`: approach, image, reason."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("approach", "image", "reason"), *lines])
    write_text(plan.out / "skipped.csv", text.getvalue())


def read_unprepared(out: Path) -> list[str]:
    """A line for each pristine image that a finished build had to leave out."""
    listed = out / "skipped.csv"
    rows = read_rows(listed, ("approach", "image", "reason")) if listed.is_file() else []
    return [f"{row['image']}: {row['reason']}" for row in rows if row["approach"] == REAL]


def landmark_remarks(benchmark: Manifest) -> list[str]:
    """A line when the mean landmark shape had to stand in for landmarks."""
    sources = Counter(meta_of(s)["landmarks"] for s in benchmark if s.approach == REAL)
    placed = {name: count for name, count in sources.items() if name in ("face finder", "template")}
    if not placed:
        return []
    told = ", ".join(f"{count} by {name}" for name, count in sorted(placed.items()))
    return [
        f"mean landmark shape placed on images without landmarks ({told}): forgeries are cruder than with real ones"
    ]


def write_record(plan: Plan, benchmark: Manifest, forged: ForgedImages, remarks: Sequence[str]) -> None:
    """Write `build.json`: enough to tell what was built from what, and with what."""
    persons: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in benchmark:
        persons[sample.split, sample.group].add(sample.identity)
    skipped = Counter(label for (label, _), result in forged.items() if result.skipped)
    record = {
        "config": asdict(plan.config),
        "pristine": plan.pristine.digest(),
        "approaches": {label: provenance(forger) for label, forger in plan.forgers.items()},
        "manifest_sha256": benchmark.digest(),
        "images": [
            {"split": split, "approach": approach, "group": group, "count": count}
            for (split, approach, group), count in sorted(benchmark.counts().items())
        ],
        "identities": [
            {"split": split, "group": group, "count": len(people)} for (split, group), people in sorted(persons.items())
        ],
        "skipped": dict(sorted(skipped.items())),
        "remarks": list(remarks),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("fairfd", "tenfold", "torch", "numpy", "scipy", "pillow")},
    }
    write_text(plan.out / RECORD, json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n")
