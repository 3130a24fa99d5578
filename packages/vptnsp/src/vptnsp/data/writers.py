"""Writing a split down, so that others can use the very same one."""

from collections.abc import Sequence
from pathlib import Path

from tenfold import UserError
from tenfold.files import atomic_folder, write_text
from vptnsp.data.datasets import FromFiles, LabelledPictures, read_folder, split_by_name
from vptnsp.data.tasks import class_order


def write_split(folder: Path, out: Path, tasks: int, seed: int) -> list[list[str]]:
    """Write `tasks.tsv` (classes of each task), `train.txt` and `val.txt` (paths below the folder).

    Returns:
        The class names of each task.
    """
    pictures = read_folder(folder)
    assert isinstance(pictures.read, FromFiles)
    order = [
        [pictures.class_names[label] for label in task]
        for task in class_order(len(pictures.class_names), tasks, seed).tolist()
    ]
    if any("\t" in name for task in order for name in task):
        raise UserError(f"{folder}: a class folder has a tab in its name")
    everything = pictures.read.paths
    parts = split_by_name(pictures, folder)
    with atomic_folder(out) as temporary:
        _write_parts(temporary, folder, everything, parts)
        write_text(temporary / "tasks.tsv", "".join("\t".join(task) + "\n" for task in order))
    return order


def _write_parts(out: Path, folder: Path, everything: Sequence[Path], parts: Sequence[LabelledPictures]) -> None:
    for name, part in zip(("train", "val"), parts, strict=True):
        assert part.indices is not None
        chosen = [everything[index].relative_to(folder).as_posix() for index in part.indices]
        write_text(out / f"{name}.txt", "".join(f"{path}\n" for path in chosen))
