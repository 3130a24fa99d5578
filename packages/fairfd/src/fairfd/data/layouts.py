"""Scanners: from the ways face sets lie on disk to a manifest (paper, "Dataset Construction": FairFD is built from RFW).

Group labels are read from folders or tables and never guessed from pixels.
"""

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import REAL, Sample, few
from tenfold.errors import UserError
from tenfold.images import list_images
from tenfold.reading import read_json, read_rows, read_text

_SPLITS = ("train", "val", "test")
_REAL_FOLDERS = ("data", "real")


@dataclass(frozen=True)
class ScanOptions:
    """What a layout may need beside the root; which ones it takes is in `LAYOUTS`.

    Attributes:
        demographics: CSV with group labels (columns `image` or `identity` or `video`, `group`, optionally `identity`, `split`).
        group: one group for all images of an unlabelled folder.
        group_column: the column of the table that holds the group.
        images: folder that paths inside a JSON or CSV start from; default: the file's own folder.
        compression: compression level to take where a set has several.
    """

    demographics: Path | None = None
    group: str = ""
    group_column: str = ""
    images: Path | None = None
    compression: str = "c23"


def scan(root: Path, layout: str = "folders", **options: Any) -> Manifest:
    """Make a manifest of the images at `root`.

    Args:
        root: folder, or the JSON / CSV file of the layouts that start from one.
        layout:
            "fairfd": `[dataset/test/]<data|APPROACH>/<group>/[<identity>/]<image>`;
            "rfw": `[test/]data/<group>/<identity>/<image>` with the five-point files `[test/]txts/<group>/<group>_lmk.txt`;
            "folders": `<group>/<identity>/<image>`, landmarks beside an image as `.npy` of the same name;
            "plain": a folder of images and `demographics=` (or `group=` for a single-population folder);
            "deepfakebench": a DeepfakeBench dataset JSON with `demographics=`;
            "aiface": an AI-Face table (Image Path, Gender, Age, Skin Tone, Intersection, Target; or the newer
                Image Path, Ground Truth Gender, Ground Truth Age, Ground Truth Race, Intersection, Target).
        **options: see `ScanOptions`.

    Raises:
        UserError: unknown layout or option, nothing found, or labels missing; the message says how to give them.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    scanner, accepted = LAYOUTS[layout]
    foreign = sorted(name for name, value in options.items() if name not in accepted and value not in (None, ""))
    if foreign:
        known = f"it takes {', '.join(accepted)}" if accepted else "it takes no options"
        raise UserError(f"layout {layout!r} has no option {', '.join(foreign)}; {known}")
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root}: no such file or folder")
    given = {name: value for name, value in options.items() if name in accepted and value is not None}
    for name in ("demographics", "images"):
        if given.get(name):
            given[name] = Path(given[name])
    if "group_column" in given:
        given["group_column"] = _column(given["group_column"])
    manifest = scanner(root, ScanOptions(**given))
    if not manifest.samples:
        raise UserError(f"{root}: no image fits layout {layout!r}; see the layouts of `fairfd scan`")
    return manifest


def _scan_fairfd(root: Path, _: ScanOptions) -> Manifest:
    """`<data|APPROACH>/<group>/...`: all of FairFD is test data; the identity is the folder or the stem without `_NNNN`."""
    base = next((b for b in (root / "dataset" / "test", root / "test") if b.is_dir()), root)
    approaches = [folder for folder in sorted(base.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    if not any(folder.name in _REAL_FOLDERS for folder in approaches):
        raise UserError(f"{base}: no folder `data` with the real images; expected <data|APPROACH>/<group>/<image>")
    samples = []
    for folder in approaches:
        approach = REAL if folder.name in _REAL_FOLDERS else folder.name
        for group, identity, path in _grouped(folder):
            image = path.relative_to(root).as_posix()
            samples.append(Sample(image, identity, group, approach, int(approach != REAL), split="test"))
    return _drop_ambiguous(Manifest(root.resolve(), tuple(samples)))


def _scan_rfw(root: Path, _: ScanOptions) -> Manifest:
    """RFW: pristine images of four groups, with five landmarks per image (eyes, nose, mouth corners) in text files."""
    base = root / "test" if (root / "test").is_dir() else root
    images = base / "data" if (base / "data").is_dir() else base
    samples = []
    points: dict[str, list[float]] = {}
    for folder in sorted(p for p in images.iterdir() if p.is_dir() and p.name not in ("txts",)):
        points |= _five_points(base / "txts" / folder.name / f"{folder.name}_lmk.txt")
    for group, identity, path in _grouped(images):
        meta = json.dumps({"five_points": points[path.name]}) if path.name in points else ""
        samples.append(Sample(path.relative_to(root).as_posix(), identity, group, meta=meta))
    return _drop_ambiguous(Manifest(root.resolve(), tuple(samples)))


def _five_points(path: Path) -> dict[str, list[float]]:
    """Image name -> x1 y1 ... x5 y5; lines are `path label x1 y1 ... x5 y5`."""
    if not path.is_file():
        return {}
    rows = (line.split() for line in read_text(path).splitlines())
    try:
        return {Path(row[0]).name: [float(value) for value in row[2:12]] for row in rows if len(row) >= 12}
    except ValueError as error:
        raise UserError(f"{path}: landmark lines must read `path label x1 y1 ... x5 y5`") from error


def _scan_folders(root: Path, _: ScanOptions) -> Manifest:
    """`<group>/<identity>/<image>`; equal identity names under two groups are two persons."""
    if not root.is_dir() or not any(p.is_dir() and not p.name.startswith(".") for p in root.iterdir()):
        raise UserError(f"{root}: no group folders (<group>/<identity>/<image>); {_HOW_TO_LABEL}")
    samples = [
        Sample(
            image=path.relative_to(root).as_posix(),
            identity=f"{group}/{identity}",
            group=group,
            landmarks=_sidecar(path, root),
        )
        for group, identity, path in _grouped(root)
    ]
    return Manifest(root.resolve(), tuple(samples))


_HOW_TO_LABEL = (
    "groups are never guessed: give a table with columns image,group[,identity] (demographics), "
    "or name one group for the whole folder (group)"
)


def _scan_plain(root: Path, options: ScanOptions) -> Manifest:
    """A folder of images and a table image -> group[, identity, split]; without identities each image is its own person."""
    images = list_images(root)
    if options.demographics is None:
        if not options.group:
            raise UserError(f"{root}: no group labels; {_HOW_TO_LABEL}")
        warnings.warn(
            f"{root}: all {len(images)} images are put in the one group {options.group!r}: "
            "fairness over groups cannot be measured on them",
            stacklevel=3,
        )
        rows = {path: {"group": options.group} for path in images}
    else:
        rows = _match(images, root, _table(options.demographics, ("image", options.group_column or "group")), options)
    samples = tuple(
        Sample(
            image=path.relative_to(root).as_posix(),
            identity=row.get("identity") or path.relative_to(root).with_suffix("").as_posix(),
            group=row[options.group_column or "group"],
            split=row.get("split", ""),
            landmarks=_sidecar(path, root),
        )
        for path, row in rows.items()
    )
    if not any(row.get("identity") for row in rows.values()):
        warnings.warn(f"{root}: no identity column; every image is taken as its own person", stacklevel=3)
    return Manifest(root.resolve(), samples)


def _match(
    images: list[Path], root: Path, table: list[dict[str, str]], options: ScanOptions
) -> dict[Path, dict[str, str]]:
    """Rows of the table by image: matched by path below the root, else by file name, else by stem."""
    names: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        for name in {path.relative_to(root).as_posix(), path.name, path.stem}:
            names[name].append(path)
    matched: dict[Path, dict[str, str]] = {}
    absent, unclear = [], []
    for row in table:
        found = names.get(Path(row["image"]).as_posix(), [])
        if len(found) == 1:
            matched[found[0]] = row
        else:
            (unclear if found else absent).append(row["image"])
    if unclear:
        raise UserError(
            f"{options.demographics}: names that fit several images: {few(unclear)}; give paths below {root}"
        )
    if absent:
        raise UserError(f"{options.demographics}: {len(absent)} images are not in {root}: {few(absent)}")
    unlabelled = [path for path in images if path not in matched]
    if unlabelled:
        warnings.warn(
            f"{root}: {len(unlabelled)} images have no row in {options.demographics} and are left out", stacklevel=4
        )
    return {path: matched[path] for path in images if path in matched}


def _scan_deepfakebench(root: Path, options: ScanOptions) -> Manifest:
    """DeepfakeBench JSON: {set: {label: {split: [{compression:}] {video: {label, frames}}}}}, frame paths below `images`."""
    if root.is_dir():
        raise UserError(f"{root}: name the dataset JSON, e.g. FaceForensics++.json")
    index = read_json(root)
    if options.demographics is None:
        raise UserError(f"{root}: no group labels; give a table with columns identity (or video), group (demographics)")
    column = options.group_column or "group"
    table = _table(options.demographics, (column,))
    group_of = {row.get("identity") or row.get("video") or row.get("image", ""): row[column] for row in table}
    base = (options.images or root.parent).resolve()
    samples, without = [], set()
    for keys, video, entry in _videos(index, ()):
        levels = [key for key in keys if re.fullmatch(r"c\d+|raw", key)]
        if levels and options.compression not in levels:
            continue
        identity, source = _persons(video)
        group = group_of.get(video) or group_of.get(identity)
        if group is None:
            without.add(identity)
            continue
        label = str(entry.get("label", ""))
        approach = REAL if "real" in label.lower() else label
        split = next((key for key in keys if key in _SPLITS), "")
        for frame in entry["frames"]:
            image = str(frame).replace("\\", "/")
            samples.append(
                Sample(
                    image=image,
                    identity=identity,
                    group=group,
                    approach=approach,
                    label=int(approach != REAL),
                    split=split,
                    source_identity=source,
                    landmarks=_if_file(base, re.sub(r"/frames/(.*)\.\w+$", r"/landmarks/\1.npy", image), image),
                    mask=_if_file(base, image.replace("/frames/", "/masks/"), image),
                )
            )
    if without:
        warnings.warn(
            f"{options.demographics}: no group for {len(without)} persons ({few(sorted(without))}); they are left out",
            stacklevel=3,
        )
    if not samples:
        raise UserError(
            f"{root}: no labelled frame; do the identities of {options.demographics} match the video names?"
        )
    return Manifest(base, tuple(samples))


def _videos(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, dict[str, Any]]]:
    """Every entry that lists frames: (keys above it, video name, entry)."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if isinstance(value, dict) and isinstance(value.get("frames"), list):
            yield keys, key, value
        else:
            yield from _videos(value, (*keys, key))


def _persons(video: str) -> tuple[str, str]:
    """(person on the pristine frames, donor or "") from the video names of FaceForensics++, DFD and Celeb-DF."""
    for pattern in (r"(\d{3})_(\d{3})", r"(id\d+)_(id\d+)_\d+", r"(\d{2})_(\d{2})__.*"):
        if found := re.fullmatch(pattern, video):
            return found[1], found[2]
    for pattern in (r"(id\d+)_\d+", r"(\d{2})__.*"):
        if found := re.fullmatch(pattern, video):
            return found[1], ""
    return video, ""


def _scan_aiface(root: Path, options: ScanOptions) -> Manifest:
    """AI-Face table; the group is skin tone or race unless another column is named, the other attributes go to `meta`.

    The newer tables call the attributes "Ground Truth ..." and write them as numbers, which become words here.
    """
    if root.is_dir():
        raise UserError(f"{root}: name the AI-Face table, e.g. test.csv")
    attributes = ("gender", "age", "skin_tone", "race", "intersection")
    table = [_in_words(row) for row in _table(root, ("image_path", "target"))]
    column = options.group_column.removeprefix(_AIFACE_PREFIX) or ("skin_tone" if "skin_tone" in table[0] else "race")
    if bad := [number for number, row in enumerate(table, 1) if not row.get(column)]:
        raise UserError(f"{root}: {column} is missing or empty in rows {few(bad)}; name another with --group-column")
    samples = []
    for number, row in enumerate(table, 1):
        if row["target"] not in ("0", "1"):
            raise UserError(f"{root}: Target of row {number} is {row['target']!r}, not 0 or 1")
        image = row["image_path"].replace("\\", "/").lstrip("/")
        label = int(row["target"])
        generator = image.split("/")[0] if "/" in image else "fake"
        meta = {name: row[name] for name in attributes if row.get(name)}
        samples.append(
            Sample(image, group=row[column], approach=generator if label else REAL, label=label, meta=json.dumps(meta))
        )
    warnings.warn(f"{root}: AI-Face names no identities; intervals will assume independent images", stacklevel=3)
    return Manifest((options.images or root.parent).resolve(), tuple(samples))


_AIFACE_PREFIX = "ground_truth_"

_AIFACE_WORDS: Mapping[str, Mapping[str, str]] = {
    "ground_truth_gender": {"0": "Female", "1": "Male"},
    "ground_truth_age": {"0": "Young", "1": "Middle-aged", "2": "Senior", "3": "Others"},
    "ground_truth_race": {"0": "Asian", "1": "White", "2": "Black", "3": "Others"},
}
"""What the numbers of the newer AI-Face tables mean (README of AI-Face-FairnessBench)."""


def _in_words(row: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(_AIFACE_PREFIX): _AIFACE_WORDS.get(name, {}).get(value, value) for name, value in row.items()
    }


def _grouped(root: Path) -> Iterator[tuple[str, str, Path]]:
    """(group, identity, image) of `<group>/[<identity>/]<image>`; without a folder the stem up to a trailing `_NNNN` names the person."""
    for path in list_images(root):
        group, *middle = path.relative_to(root).parts[:-1] or ("",)
        if group:
            yield group, "/".join(middle) or re.sub(r"_\d+$", "", path.stem), path


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _table(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV; column names in lower case with underscores."""
    rows = [{_column(name): value.strip() for name, value in row.items()} for row in read_rows(path)]
    missing = [name for name in required if not rows or name not in rows[0]]
    if missing:
        raise UserError(f"{path}: column {', '.join(missing)} is missing or the table is empty")
    bad = [number for number, row in enumerate(rows, 1) if any(not row[name] for name in required)]
    if bad:
        raise UserError(f"{path}: {', '.join(required)} empty in rows {few(bad)}; fill them in or drop the rows")
    return rows


def _sidecar(image: Path, root: Path) -> str:
    beside = image.with_suffix(".npy")
    return beside.relative_to(root).as_posix() if beside.is_file() else ""


def _if_file(base: Path, name: str, image: str) -> str:
    return name if name != image and (base / name).is_file() else ""


def _drop_ambiguous(manifest: Manifest) -> Manifest:
    """Leave out persons that lie under two groups: RFW has a few, and their label cannot be told."""
    groups: dict[str, set[str]] = defaultdict(set)
    for sample in manifest:
        groups[sample.identity].add(sample.group)
    ambiguous = {identity for identity, found in groups.items() if len(found) > 1}
    if not ambiguous:
        return manifest
    warnings.warn(f"{manifest.root}: identities in two groups are left out: {few(sorted(ambiguous))}", stacklevel=4)
    return replace(manifest, samples=tuple(s for s in manifest if s.identity not in ambiguous))


LAYOUTS: dict[str, tuple[Callable[[Path, ScanOptions], Manifest], tuple[str, ...]]] = {
    "fairfd": (_scan_fairfd, ()),
    "rfw": (_scan_rfw, ()),
    "folders": (_scan_folders, ()),
    "plain": (_scan_plain, ("demographics", "group", "group_column")),
    "deepfakebench": (_scan_deepfakebench, ("demographics", "group_column", "images", "compression")),
    "aiface": (_scan_aiface, ("group_column", "images")),
}
"""Layout name -> (scanner, options it takes)."""
