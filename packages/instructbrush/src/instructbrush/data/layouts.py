"""Benchmark folders in the manner of TOP-Bench: effects with training pairs, test pairs and an instruction in words (paper §5)."""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from instructbrush.config import Fit
from instructbrush.data.datasets import PairSet, folder_pairs, read_rgb
from instructbrush.data.tasks import EFFECTS, LEARNT, TESTED, bank, draw_pairs
from tenfold.config import from_dict
from tenfold.errors import UserError
from tenfold.files import atomic_folder, write_text
from tenfold.images import write_image
from tenfold.options import Count, check_fields
from tenfold.reading import read_json_object, read_text
from tenfold.runs import track

FORMAT = "topbench/1"
INDEX = "topbench.json"


@dataclass(frozen=True)
class EffectEntry:
    """One effect of a benchmark.

    Attributes:
        name: its folder.
        group: global or local.
        instruction: in words, for the text baseline.
        train: number of training pairs.
        test: number of test pairs.
    """

    name: str
    group: Literal["global", "local"]
    instruction: str
    train: Count
    test: Count

    def __post_init__(self) -> None:
        """Refuse names that lead out of the folder: results are written under them."""
        check_fields(self)
        if self.name in ("", ".", "..") or {"/", "\\", "\0"} & set(self.name):
            raise UserError(f"name: {self.name!r} is no name of an effect's folder")


@dataclass(frozen=True)
class TopBench:
    """A benchmark folder.

    Attributes:
        root: the folder.
        effects: what it holds.
    """

    root: Path
    effects: tuple[EffectEntry, ...]

    @classmethod
    def read(cls, root: Path) -> "TopBench":
        """Read the index.

        Raises:
            UserError: missing, or not of this format.
        """
        index = Path(root) / INDEX
        if not index.exists():
            raise UserError(f"{index}: no such file; `bench make` or `bench import` writes one")
        content = read_json_object(index)
        if content.get("format") != FORMAT:
            raise UserError(f"{index}: its format is not {FORMAT}")
        effects = content.get("effects")
        if not isinstance(effects, list) or not effects or not all(isinstance(each, dict) for each in effects):
            raise UserError(f"{index}: names no effects")
        entries = tuple(from_dict(each, EffectEntry, str(index)) for each in effects)
        if len({each.name for each in entries}) < len(entries):
            raise UserError(f"{index}: names an effect twice")
        return cls(Path(root), entries)

    def write(self) -> None:
        """Write the index and each effect's instruction."""
        for each in self.effects:
            write_text(self.root / each.name / "instruction.txt", each.instruction + "\n")
        content: dict[str, Any] = {"format": FORMAT, "effects": [asdict(each) for each in self.effects]}
        write_text(self.root / INDEX, json.dumps(content, indent=2) + "\n")

    def pairs(self, effect: EffectEntry, split: Literal["train", "test"], size: int, fit: Fit = "crop") -> PairSet:
        """The pairs of an effect."""
        return PairSet.from_folder(self.root / effect.name, size, fit, split)


def make_embedded(
    root: Path, *, side: int = 48, train: int = 10, test: int = 5, seed: int = 0, names: tuple[str, ...] = ()
) -> TopBench:
    """Write the embedded benchmark: edits of embedded photographs and drawn scenes that the embedded model was not taught.

    Args:
        root: an empty or new folder.
        side: of the pictures.
        train: pairs to learn from, of each effect.
        test: pairs to judge by, cut from other photographs.
        seed: of the draw.
        names: effects; none for all.

    Raises:
        UserError: an unknown effect, or a folder that holds something.
    """
    if unknown := [name for name in names if name not in EFFECTS]:
        raise UserError(f"effect {unknown[0]}: there are {', '.join(EFFECTS)}")
    if train < 1 or test < 1:
        raise UserError(f"{train} training and {test} test pairs: at least 1 of each")
    if side < 16 or side % 4:
        raise UserError(f"side {side}: must be a multiple of 4, at least 16")
    chosen = names or tuple(EFFECTS)
    entries = tuple(EffectEntry(name, EFFECTS[name].group, EFFECTS[name].closest, train, test) for name in chosen)
    with atomic_folder(root) as temporary:
        for name in chosen:
            for split, count, sources, salt in (("train", train, LEARNT, 0), ("test", test, TESTED, 1)):
                drawn = draw_pairs(name, count, bank(sources, side), 2 * seed + salt)
                for index in range(count):
                    for member, images in enumerate((drawn.before, drawn.after)):
                        path = temporary / name / split / f"{index:02d}_{member}.png"
                        write_image(path, images[index].permute(1, 2, 0).numpy())
        TopBench(temporary, entries).write()
    return TopBench(root, entries)


def import_flat(source: Path, root: Path, *, train: int = 10, test: int = 5, local: tuple[str, ...] = ()) -> TopBench:
    """Take over folders of pairs, one an effect (`EFFECT/ID_0.png`, `EFFECT/ID_1.png`): first the training pairs, then the test pairs.

    Args:
        source: with one folder an effect; `instruction.txt` in it is taken over.
        root: an empty or new folder.
        train: pairs to learn from.
        test: pairs to judge by.
        local: effects that change one thing only.

    Raises:
        UserError: no effects, or one with too few pairs.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    folders = sorted(each for each in source.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not folders:
        raise UserError(f"{source}: holds no folders; one an effect is expected")
    found = {each.name: folder_pairs(each) for each in folders}
    for name, pairs in found.items():
        if len(pairs) < train + test:
            raise UserError(f"{source / name}: has {len(pairs)} pairs, {train + test} are needed")
    entries = []
    with atomic_folder(root) as temporary:
        for name, pairs in track(found.items(), "copying", len(found)):
            text = source / name / "instruction.txt"
            words = read_text(text).strip() if text.is_file() else name.replace("_", " ")
            for split, part in (("train", pairs[:train]), ("test", pairs[train : train + test])):
                (temporary / name / split).mkdir(parents=True)
                for index, pair in enumerate(part):
                    for member, path in enumerate(pair):
                        shutil.copyfile(path, temporary / name / split / f"{index:02d}_{member}{path.suffix.lower()}")
            entries.append(EffectEntry(name, "local" if name in local else "global", words, train, test))
        TopBench(temporary, tuple(entries)).write()
    return TopBench(root, tuple(entries))


def check(root: Path) -> list[str]:
    """What is wrong with a benchmark folder, a line for each fault; nothing when all is well.

    Pictures must be readable and of one size in each pair, the counts as the index says, no picture both in training and in test,
    an instruction present. Pairs without a difference are warned about.
    """
    faults = []
    bench = TopBench.read(root)
    for effect in track(bench.effects, "checking"):
        hashes: dict[str, set[str]] = {}
        if not (root / effect.name / "instruction.txt").is_file():
            faults.append(f"{effect.name}: no instruction.txt")
        for split, expected in (("train", effect.train), ("test", effect.test)):
            try:
                pairs = folder_pairs(root / effect.name / split)
            except UserError as error:
                faults.append(f"{effect.name}: {error}")
                continue
            if len(pairs) != expected:
                faults.append(f"{effect.name}/{split}: {len(pairs)} pairs, the index says {expected}")
            faults += [fault for pair in pairs if (fault := _fault_of(*pair))]
            hashes[split] = {hashlib.sha256(path.read_bytes()).hexdigest() for pair in pairs for path in pair}
        if shared := hashes.get("train", set()) & hashes.get("test", set()):
            faults.append(f"{effect.name}: {len(shared)} pictures are both in train and in test")
    return faults


def _fault_of(before: Path, after: Path) -> str:
    try:
        first, second = read_rgb(before), read_rgb(after)
    except UserError as error:
        return str(error)
    if first.shape != second.shape:
        return f"{after}: differs in size from {before.name}"
    if (first == second).all():
        warnings.warn(f"{after}: is the same as {before.name}", stacklevel=2)
    return ""
