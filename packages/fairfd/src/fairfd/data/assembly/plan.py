"""The plan of a build: which pristine images, which approaches, where everything goes, and whether it can go there."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fairfd.config import MOST_WORKERS
from fairfd.data.assembly.matching import partner_map
from fairfd.data.assembly.resume_log import recipe_of
from fairfd.data.assembly.step import Encoding
from fairfd.data.forgers.registry import Forger, parameters_of, parse_approach
from fairfd.data.manifest import validation as verification
from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import REAL, few
from tenfold.errors import UserError
from tenfold.files import write_text
from tenfold.options import Seed, check_fields
from tenfold.reading import read_json_object

# Folders of a benchmark that are no approaches.
_RESERVED = (REAL, "landmarks", "masks")

MOST_PIXELS = 8192
"""Of a side."""

RECORD = "build.json"
"""The file that says what was built from what."""


@dataclass(frozen=True)
class BuildConfig:
    """What determines a benchmark, apart from the images and the approaches.

    Attributes:
        seed: of partners, driving images, subsampling and forgeries.
        size: side of all images, pixels.
        format: "png" or "jpg".
        quality: of JPEG, the same for reals and fakes.
        balance: "identities" (then images), "images" or "none".
        crop: cut faces out of photographs first.
        ratios: persons per split; empty: the splits of the manifest.
        allow_skips: accept that an approach skips more than 2 % of a group's faces.
        skip_bad: leave unreadable images out instead of stopping.
    """

    seed: Seed = 0
    size: int = 256
    format: Literal["png", "jpg"] = "png"
    quality: int = 95
    balance: Literal["identities", "images", "none"] = "identities"
    crop: bool = False
    ratios: Mapping[str, float] | None = None
    allow_skips: bool = False
    skip_bad: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked build.

    Attributes:
        pristine: the balanced, split pristine images.
        out: folder of the benchmark.
        config: what determines it.
        forgers: approach -> forger.
        names: image -> `<group>/<identity>/<stem>` of the output files.
        workers: processes.
    """

    pristine: Manifest
    out: Path
    config: BuildConfig
    forgers: dict[str, Forger]
    names: dict[str, str]
    workers: int

    @property
    def encoding(self) -> Encoding:
        """How every image is written."""
        return Encoding(self.config.size, self.config.format, self.config.quality)

    def image_name(self, approach: str, image: str) -> str:
        """Path of an output image below `out`."""
        return f"{approach}/{self.names[image]}.{self.config.format}"

    def mask_name(self, approach: str, image: str) -> str:
        """Path of the mask of a forgery below `out`."""
        return f"masks/{approach}/{self.names[image]}.png"

    def landmark_name(self, image: str) -> str:
        """Path of a prepared image's landmarks below `out`."""
        return f"landmarks/{self.names[image]}.npy"


def make_plan(
    manifest: Manifest, out: Path, approaches: Sequence[str] | Mapping[str, Forger], config: BuildConfig, workers: int
) -> Plan:
    """Check everything that can be checked before the first image is decoded.

    Raises:
        UserError: bad settings, approaches or manifest; missing images; a group with a single person in a split.
    """
    _check_config(config)
    if not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"workers is {workers}; give 1 to {MOST_WORKERS}")
    forgers = _forgers(approaches)
    pristine = _pristine(manifest, config)
    missing = [sample.image for sample in pristine if not pristine.path(sample).is_file()]
    if missing and not config.skip_bad:
        raise UserError(
            f"{manifest.root}: {len(missing)} images are missing: {few(missing)}; drop them, or leave them out by skip_bad"
        )
    return Plan(pristine, out, config, forgers, output_names(pristine), workers)


def _check_config(config: BuildConfig) -> None:
    check_fields(config)
    if not 16 <= config.size <= MOST_PIXELS:
        raise UserError(f"size {config.size}: images of faces have 16 to {MOST_PIXELS} pixels")
    if config.format not in ("png", "jpg"):
        raise UserError(f"format {config.format!r} is not png or jpg")
    if not 1 <= config.quality <= 100:
        raise UserError(f"quality {config.quality} is not between 1 and 100")


def _forgers(approaches: Sequence[str] | Mapping[str, Forger]) -> dict[str, Forger]:
    pairs = list(approaches.items()) if isinstance(approaches, Mapping) else [parse_approach(a) for a in approaches]
    labels = [label for label, _ in pairs]
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise UserError(f"approach {', '.join(twice)} is given twice; tell them apart by LABEL=NAME:...")
    bad = [label for label in labels if label in _RESERVED or not re.fullmatch(r"[A-Za-z][\w.-]*", label)]
    if not pairs or bad:
        raise UserError(
            f"approaches {', '.join(bad) or '(none)'}: give at least one word that is not {', '.join(_RESERVED)}"
        )
    return dict(pairs)


def _pristine(manifest: Manifest, config: BuildConfig) -> Manifest:
    """The balanced, split pristine images, checked."""
    pristine = manifest.subset(approach=REAL)
    verification.check_groups(pristine.samples)
    verification.check_identities(pristine.samples)
    verification.check_duplicates(pristine.samples)
    verification.check_one_group(pristine.samples)
    if config.ratios:
        pristine = pristine.split(config.ratios, config.seed)
    verification.check_one_split(pristine.samples)
    balanced = pristine.balance(config.balance, config.seed)
    # Found now rather than after an hour of forging.
    partner_map(balanced, config.seed)
    return balanced


def output_names(pristine: Manifest) -> dict[str, str]:
    """Image -> `<group>/<identity>/<stem>` for the output files; a digest tells equal names apart."""
    plain = {
        s.image: f"{_slug(s.group)}/{_slug(s.identity.removeprefix(s.group + '/'))}/{_slug(Path(s.image).stem)}"
        for s in pristine
    }
    counts = Counter(name.lower() for name in plain.values())
    return {
        image: name if counts[name.lower()] == 1 else f"{name}-{recipe_of(image)[:8]}" for image, name in plain.items()
    }


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return kept.strip(".") or "_"


def open_folder(plan: Plan, resume: bool) -> None:
    """Make the folder, or check that it holds a build of the same kind.

    Raises:
        UserError: it holds something else, a build with other settings, or a build at all when `resume` is off.
    """
    out, record = plan.out, plan.out / RECORD
    settings = {"config": asdict(plan.config), "pristine": plan.pristine.digest()}
    if record.is_file():
        if not resume:
            raise UserError(f"{out}: already holds a build; resume it or choose another folder")
        before = read_json_object(record)
        old, new = before.get("config"), json.loads(json.dumps(settings["config"]))
        if not isinstance(old, dict):
            raise UserError(f"{record}: is of no build; choose another folder")
        # What may be skipped decides about the end of a build only.
        changed = [k for k in new if k not in ("allow_skips", "skip_bad") and old.get(k) != new[k]]
        if changed:
            told = ", ".join(f"{k} was {old.get(k)!r} and is now {new[k]!r}" for k in changed)
            raise UserError(f"{out}: cannot resume with another configuration ({told}); choose another folder")
        if before.get("pristine") != settings["pristine"]:
            raise UserError(f"{out}: holds a build of other pristine images; choose another folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty and holds no build; choose another folder")
    else:
        write_text(record, json.dumps(settings, indent=2) + "\n")


def withdraw(out: Path) -> None:
    """Take back the folder of a build that stopped before its first image.

    Args:
        out: made by this build; one that holds anything but the build's own notes is left as it is.
    """
    notes = {RECORD, "build.jsonl", "skipped.csv"}
    files = [path for path in out.rglob("*") if not path.is_dir()]
    if {path.relative_to(out).as_posix() for path in files} <= notes:
        shutil.rmtree(out, ignore_errors=True)


def provenance(forger: Forger) -> dict[str, Any]:
    """Name, version, parameters and digest of the weights of a forger."""
    digest = getattr(forger, "weights_sha256", None)
    return {
        "forger": getattr(forger, "name", type(forger).__name__),
        "version": getattr(forger, "version", "1"),
        "parameters": parameters_of(forger),
        "weights_sha256": digest() if callable(digest) else "",
    }
