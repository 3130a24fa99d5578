"""Writing a split down, so that others can use the very same one."""

from pathlib import Path

from tenfold import UserError
from tenfold.files import write_text
from vptnsp.pictures import FromFiles, read_folder, stratified_split
from vptnsp.streams import class_order


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
    for name, part in zip(("train", "val"), stratified_split(pictures, seed), strict=True):
        assert part.indices is not None
        chosen = [everything[index].relative_to(folder).as_posix() for index in part.indices]
        write_text(out / f"{name}.txt", "".join(f"{path}\n" for path in chosen))
    write_text(out / "tasks.tsv", "".join("\t".join(task) + "\n" for task in order))
    return order
