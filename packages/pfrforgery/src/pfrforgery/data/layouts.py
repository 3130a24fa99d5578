"""Face crops as the public sets lay them out on disk. Videos are folders of frames here: crops are made beforehand.

Every reader gives rows of a manifest whose paths are relative to the folder that was scanned.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from pfrforgery.data.manifest import SPLITS, Row, check_rows, hashed_split
from tenfold import UserError
from tenfold.images import list_images
from tenfold.reading import read_json, read_json_object, read_text

Layout = Literal["folders", "ffpp", "celebdf", "dfdc", "wilddeepfake", "deeperforensics"]
FF_MANIPULATIONS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")


def scan(root: Path, layout: Layout = "folders", train_share: float = 0.7) -> list[Row]:
    """List the face crops of a set.

    Args:
        root: its folder.
        layout: how it is laid out.
        train_share: share of the videos that train where the set itself does not say.

    Raises:
        UserError: no such folder, nothing found in that layout, or lists that contradict the files.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    rows = _READERS[layout](root, train_share)
    if not rows:
        raise UserError(f"{root}: holds no crops in the layout {layout}")
    check_rows(rows, str(root))
    return rows


def count_table(rows: list[Row]) -> list[tuple[str, str, int, int]]:
    """Source, split, number of real and of fake images, for a person to check."""
    keys = sorted({(row.source, row.split) for row in rows})
    return [
        (
            source,
            split,
            sum(row.label == "real" for row in rows if (row.source, row.split) == (source, split)),
            sum(row.label == "fake" for row in rows if (row.source, row.split) == (source, split)),
        )
        for source, split in keys
    ]


def _pictures(root: Path, *parts: str) -> list[tuple[Path, tuple[str, ...]]]:
    """Pictures below a subfolder, each with the parts of its path below it; none when there is no such subfolder."""
    base = root.joinpath(*parts)
    if not base.is_dir():
        return []
    try:
        found = list_images(base)
    except UserError:
        return []
    return [(path.relative_to(root), path.relative_to(base).parts) for path in found]


def _folders(root: Path, train_share: float) -> list[Row]:
    """`CLIENT[/SPLIT]/{real,fake}/[VIDEO/]IMAGE`, the split above or below the label; one client's folder serves as well."""
    rows = []
    for path, parts in _pictures(root):
        folders = parts[:-1]
        labels = [part for part in folders if part in ("real", "fake")]
        if len(labels) != 1:
            continue
        splits = [part for part in folders if part in SPLITS]
        rest = [part for part in folders if part not in ("real", "fake", *SPLITS)]
        is_first_named = bool(folders) and folders[0] not in ("real", "fake", *SPLITS)
        source = rest.pop(0) if is_first_named else root.name
        name = rest or [path.stem]
        video = "/".join([source, labels[0], *name])
        # Without the label: a fake that is named like its original is not tested on where the original was learnt.
        split = splits[0] if splits else hashed_split("/".join([source, *name]), train_share)
        rows.append(Row(path.as_posix(), labels[0], source, split, f"{split}/{video}" if splits else video))
    return rows


def _ffpp(root: Path, train_share: float) -> list[Row]:
    """FaceForensics++: `original_sequences/youtube/C/*/NNN/` and `manipulated_sequences/M/C/*/NNN_MMM/`, `splits/*.json`."""
    of_id = _ff_splits(root)
    rows = []
    places = [("original_sequences/youtube", "real", "ffpp/original")]
    places += [(f"manipulated_sequences/{name}", "fake", f"ffpp/{name}") for name in FF_MANIPULATIONS]
    for place, label, source in places:
        for path, parts in _pictures(root, *place.split("/")):
            name = parts[-2] if len(parts) > 1 else path.stem
            first = name.split("_")[0]
            if of_id and first not in of_id:
                raise UserError(f"{path}: video {name} is in none of the lists of {root / 'splits'}")
            # A fake belongs to the split of its pair of source videos.
            split = of_id.get(first) or hashed_split(first, train_share)
            rows.append(Row(path.as_posix(), label, source, split, f"{source}/{name}"))
    return rows


def _ff_splits(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in SPLITS:
        path = root / "splits" / f"{split}.json"
        if path.exists():
            pairs = read_json(path)
            if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
                raise UserError(f"{path}: not a list of pairs of video numbers")
            found |= {identifier: split for pair in pairs for identifier in pair}
    return found


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _celebdf(root: Path, train_share: float) -> list[Row]:
    """Celeb-DF-v2: `Celeb-real/`, `YouTube-real/`, `Celeb-synthesis/`, each VIDEO/IMAGE; the listed videos test (there, 1 = real)."""
    listing = root / "List_of_testing_videos.txt"
    testing = None
    if listing.exists():
        lines = [line.split() for line in read_text(listing).splitlines() if line.strip()]
        testing = {Path(line[-1]).with_suffix("").as_posix(): line[0] for line in lines}
    rows = []
    for folder, label in (("Celeb-real", "real"), ("YouTube-real", "real"), ("Celeb-synthesis", "fake")):
        for path, parts in _pictures(root, folder):
            video = f"{folder}/{parts[-2] if len(parts) > 1 else path.stem}"
            if testing is None:
                split = hashed_split(video, train_share)
            else:
                split = "test" if video in testing else "train"
                if testing.get(video, "") == ("0" if label == "real" else "1"):
                    raise UserError(f"{listing}: says that {video} is not {label}; in that list 1 is real")
            rows.append(Row(path.as_posix(), label, "celebdf", split, f"celebdf/{video}"))
    return rows


def _dfdc(root: Path, train_share: float) -> list[Row]:
    """DFDC: `PART/metadata.json` with `VIDEO.mp4: {label: REAL or FAKE, split, original}` beside `PART/VIDEO/IMAGE`."""
    rows = []
    for listing in sorted(root.rglob("metadata.json")):
        part = listing.parent.relative_to(root)
        about = _dfdc_videos(listing)
        for path, parts in _pictures(root, *part.parts):
            video = parts[0] if len(parts) > 1 else path.stem
            if video not in about:
                raise UserError(f"{path}: video {video} is not in {listing}")
            label, original = about[video]
            # A fake goes where its original goes.
            split = hashed_split(Path(original).stem if original else video, train_share)
            rows.append(Row(path.as_posix(), label, "dfdc", split, f"dfdc/{part.as_posix()}/{video}"))
    return rows


def _dfdc_videos(listing: Path) -> dict[str, tuple[str, str | None]]:
    """Label and original of each video, by name."""
    found: dict[str, tuple[str, str | None]] = {}
    for name, entry in read_json_object(listing).items():
        entry = entry if isinstance(entry, dict) else {}
        label, original = entry.get("label"), entry.get("original")
        if not isinstance(label, str) or not isinstance(original, str | None):
            raise UserError(f"{listing}: not DFDC metadata (VIDEO: {{label, original}})")
        found[Path(name).stem] = (label.lower(), original)
    return found


def _wilddeepfake(root: Path, train_share: float) -> list[Row]:  # noqa: ARG001  # the set is split as distributed
    """WildDeepfake, unpacked: `{real,fake}_{train,test}/.../SEQUENCE/IMAGE`."""
    rows = []
    for label in ("real", "fake"):
        for split in ("train", "test"):
            for path, parts in _pictures(root, f"{label}_{split}"):
                sequence = "/".join(parts[:-1]) or path.stem
                rows.append(
                    Row(path.as_posix(), label, "wilddeepfake", split, f"wilddeepfake/{label}_{split}/{sequence}")
                )
    return rows


def _deeperforensics(root: Path, train_share: float) -> list[Row]:
    """DeeperForensics-1.0: `manipulated_videos/VARIANT/VIDEO/`, `source_videos/VIDEO/`, `lists/splits/*.txt`."""
    of_video: dict[str, str] = {}
    for split in SPLITS:
        path = root / "lists" / "splits" / f"{split}.txt"
        if path.exists():
            of_video |= {Path(line.strip()).stem: split for line in read_text(path).split()}
    rows = []
    for folder, label in (("source_videos", "real"), ("manipulated_videos", "fake")):
        for path, parts in _pictures(root, folder):
            video = "/".join(parts[:-1]) or path.stem
            split = of_video.get(Path(video).name) or hashed_split(video, train_share)
            source = "deeperforensics/source" if label == "real" else f"deeperforensics/{parts[0]}"
            rows.append(Row(path.as_posix(), label, source, split, f"{source}/{video}"))
    return rows


_READERS: dict[Layout, Callable[[Path, float], list[Row]]] = {
    "folders": _folders,
    "ffpp": _ffpp,
    "celebdf": _celebdf,
    "dfdc": _dfdc,
    "wilddeepfake": _wilddeepfake,
    "deeperforensics": _deeperforensics,
}


def gather(roots: Sequence[str], folder: Path, train_share: float = 0.7) -> list[Row]:
    """List the crops of several sets, with paths relative to where the manifest will lie.

    Args:
        roots: `LAYOUT:FOLDER`, or `FOLDER` for one folder per client.
        folder: of the manifest to be.
        train_share: of the videos, where a set does not say.

    Raises:
        UserError: an unknown layout, a missing or empty folder, or one image in two sets.
    """
    rows: list[Row] = []
    for root in roots:
        name, colon, rest = root.partition(":")
        layout, path = (name, Path(rest)) if colon and name in get_args(Layout) else ("folders", Path(root))
        if colon and name not in get_args(Layout) and not path.exists():
            raise UserError(f"{root}: no layout {name}; use {', '.join(get_args(Layout))}")
        base = Path(os.path.relpath(path.resolve(), folder.resolve()))
        found = scan(path, layout, train_share)  # ty: ignore[invalid-argument-type]  # one of the layouts
        rows += [replace(row, path=(base / row.path).as_posix()) for row in found]
    check_rows(rows, " and ".join(roots))
    return rows
