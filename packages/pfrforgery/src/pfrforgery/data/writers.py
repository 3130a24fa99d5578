"""The embedded faces as folders, `CLIENT/SPLIT/{real,fake}/NNNN.png`: for trying what reads folders."""

from pathlib import Path

from pfrforgery.data.datasets import EMBEDDED, ClientData, DataRequest, client_data
from tenfold import UserError
from tenfold.files import atomic_folder
from tenfold.images import write_image


def write_faces(out: Path, data: str, clients: int, images: int, size: int = 32, seed: int = 0) -> int:
    """Write an embedded set, 70 % of it for training.

    Args:
        out: folder to fill.
        data: `drawn:tints`, `drawn:families` or `photos:families`.
        clients: folders to write.
        images: of each client.
        size: side in pixels.
        seed: of the drawing.

    Returns:
        The number of pictures.

    Raises:
        UserError: no such set, numbers out of range, or a folder that is not empty.
    """
    if data not in EMBEDDED:
        raise UserError(f"--data {data}: use {', '.join(EMBEDDED)}")
    if clients < 1 or images < 4:
        raise UserError(f"{clients} clients of {images} images: at least 1 of 4 are needed")
    train = round(0.7 * images)
    request = DataRequest(data, clients, size, train, images - train, 0.8, seed, 0.0)
    with atomic_folder(out) as folder:
        return sum(_write_client(folder, client_data(request, number)) for number in range(clients))


def _write_client(out: Path, data: ClientData) -> int:
    for split, images in (("train", data.train), ("test", data.test)):
        for index, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
            path = out / data.name / split / ("fake" if label else "real") / f"{index:04d}.png"
            write_image(path, image.permute(1, 2, 0).numpy().astype("float32") / 255)
    return len(data.train) + len(data.test)
