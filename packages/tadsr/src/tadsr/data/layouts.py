"""Test sets as they lie on disk: pairs of low and high quality, or pictures of one kind."""

from dataclasses import dataclass
from pathlib import Path

from tadsr.config import Layout
from tenfold import UserError
from tenfold.data import pair_files
from tenfold.images import list_images


@dataclass(frozen=True)
class Entry:
    """One test picture.

    Attributes:
        name: its path below the set, suffix aside.
        low: the low-quality file, or None where it is made from `high` by the bicubic protocol.
        high: the high-quality file, or None where there is no reference.
    """

    name: str
    low: Path | None
    high: Path | None

    @property
    def file(self) -> Path:
        """What stands for the picture in reports: the low-quality file where there is one."""
        found = self.low or self.high
        assert found is not None
        return found


def read_set(root: Path, layout: Layout = "auto") -> list[Entry]:
    """The pictures of a test set.

    Args:
        root: its folder.
        layout: imagenet-test: `lq/` and `gt/`, same names. celeba-test: `lq/` and `hq/`. realsr: `NAME_LR4.png` beside `NAME_HR.png`, in any
            subfolders. realset65: low quality only. hr: high quality only. auto: the first of these that fits, hr at last.

    Raises:
        UserError: no such folder, no picture, or a picture without its partner.
    """
    if layout == "auto":
        layout = _guess(root)
    match layout:
        case "imagenet-test":
            return _paired(root / "lq", root / "gt")
        case "celeba-test":
            return _paired(root / "lq", root / "hq")
        case "realsr":
            return _realsr(root)
        case "realset65":
            return [Entry(_name(path, root), path, None) for path in list_images(root)]
        case _:
            return [Entry(_name(path, root), None, path) for path in list_images(root)]


def _guess(root: Path) -> Layout:
    if (root / "lq").is_dir() and (root / "gt").is_dir():
        return "imagenet-test"
    if (root / "lq").is_dir() and (root / "hq").is_dir():
        return "celeba-test"
    if root.is_dir() and any(root.rglob("*_LR4.*")):
        return "realsr"
    return "hr"


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix() if root.is_dir() else path.stem


def _paired(low: Path, high: Path) -> list[Entry]:
    return [Entry(_name(first, low), first, second) for first, second in pair_files(low, high)]


def _realsr(root: Path) -> list[Entry]:
    entries = []
    for low in list_images(root):
        if low.stem.endswith("_LR4"):
            high = low.with_name(low.stem.removesuffix("_LR4") + "_HR" + low.suffix)
            if not high.is_file():
                raise UserError(f"{low}: its partner {high.name} is missing")
            entries.append(Entry(_name(low, root).removesuffix("_LR4"), low, high))
    if not entries:
        raise UserError(f"{root}: holds no NAME_LR4.png beside a NAME_HR.png")
    return entries
