"""A finished run, taken apart again: each client's detector, and how it does here, elsewhere and under distortion."""

import dataclasses
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pfrforgery.config import FederationConfig, fingerprint
from pfrforgery.data.datasets import ClientData, DataRequest, ImageSet, client_data, resize_crop
from pfrforgery.evaluation.metrics import OverClients, over_clients
from pfrforgery.method.baselines import ALGORITHMS, Algorithm, create_detector, kept_names, predict_of
from pfrforgery.models.networks import Predict, TwoBranchDetector, fake_probability, load_exactly
from pfrforgery.training.local_training import Turn, branch_logits, choose_predict, fine_tune, score_client
from pfrforgery.training.state import FileStore, read_shared
from tenfold import UserError
from tenfold.config import from_dict
from tenfold.data import to_tensor
from tenfold.files import atomic_folder
from tenfold.folders import FolderReport, work_on_files
from tenfold.images import list_images
from tenfold.reading import read_toml
from tenfold.runs import RunFolder, pick_device, track

Protocol = Literal["personalised", "cross", "unseen", "robust"]
OF_A_RUN = {
    (name,)
    for name in (
        "config.toml",
        "metrics.jsonl",
        "result.json",
        "run.lock",
        "shared.safetensors",
        "checkpoints",
        "personal",
    )
}
"""Names in a run folder that no result may take."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        config: what was run.
        shared: the averaged entries.
        round: the last one.
    """

    folder: Path
    config: FederationConfig
    shared: dict[str, Tensor]
    round: int

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that was run."""
        return ALGORITHMS[self.config.algorithm]

    def data(self, client: int) -> ClientData:
        """A client's images, where they are on this machine."""
        if not 0 <= client < self.config.clients:
            raise UserError(f"--client {client}: {self.folder} has clients 0 to {self.config.clients - 1}")
        return client_data(DataRequest.of(self.config, self.config.clients), client)


def open_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: no run, one without a finished round, or a damaged one.
    """
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder}: holds no run of pfrforgery; make one with `pfrforgery simulate --out {folder}`")
    config = from_dict(read_toml(folder / "config.toml"), FederationConfig, str(folder / "config.toml"))
    path = folder / "shared.safetensors"
    if not path.is_file():
        raise UserError(f"{folder}: no round has finished; continue it with --resume")
    shared, last, _ = read_shared(path, fingerprint(config))
    if RunFolder(folder).is_finished:
        read_result(folder, config)
    return Run(folder, config, shared, last)


def read_result(folder: Path, config: FederationConfig) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        UserError: no finished run, or a result that is damaged or of another run.
    """
    result = RunFolder(folder).result()
    if (result.get("algorithm"), result.get("rounds")) != (config.algorithm, config.rounds):
        raise UserError(f"{folder / 'result.json'}: is damaged, or of another run than config.toml beside it")
    return result


def check_spares_run(folder: Path, out: Path) -> None:
    """Refuse to write over what a run consists of.

    Raises:
        UserError: `out` is one of its files.
    """
    place, run = out.resolve(), folder.resolve()
    if place.is_relative_to(run) and place.relative_to(run).parts[:1] in OF_A_RUN:
        raise UserError(f"{out}: belongs to the run; choose another --out")


def client_detector(run: Run, client: int, device: str = "auto") -> tuple[TwoBranchDetector, Predict]:
    """A client's detector as it would be used, and the branch that decides.

    Raises:
        UserError: no such client, or its part of the run is lost.
    """
    config, algorithm = run.config, run.algorithm
    if not 0 <= client < config.clients:
        raise UserError(f"--client {client}: {run.folder} has clients 0 to {config.clients - 1}")
    model = create_detector(config).to(pick_device(device))
    load_exactly(model, run.shared, algorithm.uploads(model), str(run.folder / "shared.safetensors"))
    names = kept_names(model, algorithm)
    if names:
        store = FileStore(run.folder / "personal", client, fingerprint(config))
        kept = store.load(run.round)
        if kept is not None:
            load_exactly(model, kept.tensors, names, str(store.folder))
    if algorithm.fine_tunes or config.predict == "auto":
        data = run.data(client)
        fine_tune(model, data, algorithm, config, Turn(config.seed, run.round, client))
        return model.eval(), choose_predict(model, data, algorithm, config)
    return model.eval(), predict_of(algorithm, config)


@dataclass(frozen=True)
class Measured:
    """One detector on one set of images.

    Attributes:
        client: whose detector.
        tested_on: whose images, or which distortion.
        predict: the branch that decided.
        images: how many.
        acc: accuracy at 0.5.
        bacc: balanced accuracy.
        auc: of images.
        eer: of images.
        ap: average precision.
        video_acc: accuracy of videos.
        video_auc: of videos.
        video_eer: of videos.
    """

    client: int
    tested_on: str
    predict: str
    images: int
    acc: float
    bacc: float
    auc: float
    eer: float
    ap: float
    video_acc: float
    video_auc: float
    video_eer: float


def evaluate_run(run: Run, protocol: Protocol = "personalised", device: str = "auto") -> list[Measured]:
    """Test every client's detector.

    Args:
        run: the run.
        protocol: `personalised`: on the client's own test images. `cross`: on every client's. `unseen`: the shared branch alone on every
            client's, as a new site would use it. `robust`: on the client's own after JPEG, blur and noise.
        device: to compute on.

    Raises:
        UserError: data that is no longer there.
    """
    measured = []
    for client in track(range(run.config.clients), "testing", run.config.clients):
        model, predict = client_detector(run, client, device)
        for name, images in _test_sets(run, protocol, client):
            decided: Predict = "shared" if protocol == "unseen" else predict
            measured.append(_measure(model, images, run.algorithm, decided, client, name))
    return measured


def _test_sets(run: Run, protocol: Protocol, client: int) -> Iterator[tuple[str, ImageSet]]:
    own = run.data(client)
    if protocol == "personalised":
        yield own.name, own.test
    elif protocol == "robust":
        for name, distort in DISTORTIONS.items():
            yield name, dataclasses.replace(own.test, images=_distorted(own.test.images, distort))
    else:
        for other in range(run.config.clients):
            data = run.data(other)
            yield data.name, data.test


def _measure(
    model: TwoBranchDetector, images: ImageSet, algorithm: Algorithm, predict: Predict, client: int, name: str
) -> Measured:
    scores = score_client(model, images, algorithm, predict)
    frames, videos = scores.frames, scores.videos
    return Measured(
        client,
        name,
        predict,
        len(images),
        frames.acc,
        frames.bacc,
        frames.auc,
        frames.eer,
        frames.ap,
        videos.acc,
        videos.auc,
        videos.eer,
    )


def over_measured(measured: list[Measured], metric: Literal["acc", "auc", "eer"]) -> OverClients:
    """One metric over all that was measured."""
    values = [getattr(each, metric) for each in measured]
    return over_clients(values, [each.images for each in measured], lower_is_better=metric == "eer")


Bytes = UInt8[np.ndarray, "s s 3"]


def _jpeg(quality: int) -> Callable[[Bytes], Bytes]:
    def distort(image: Bytes) -> Bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream))

    return distort


def _blur(sigma: float) -> Callable[[Bytes], Bytes]:
    return lambda image: np.rint(gaussian_filter(image.astype(np.float64), (sigma, sigma, 0))).astype(np.uint8)


def _noise(image: Bytes) -> Bytes:
    rng = np.random.default_rng(int(image.sum()))
    return np.rint((image + rng.normal(0, 0.02 * 255, image.shape)).clip(0, 255)).astype(np.uint8)


DISTORTIONS: dict[str, Callable[[Bytes], Bytes]] = {
    "clean": lambda image: image,
    "jpeg 90": _jpeg(90),
    "jpeg 70": _jpeg(70),
    "jpeg 50": _jpeg(50),
    "blur 0.5": _blur(0.5),
    "blur 1": _blur(1.0),
    "noise 0.02": _noise,
}
"""Of the robustness protocol."""


def _distorted(images: UInt8[Tensor, "n 3 s s"], distort: Callable[[Bytes], Bytes]) -> UInt8[Tensor, "n 3 s s"]:
    changed = np.stack([distort(image) for image in images.permute(0, 2, 3, 1).numpy()])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Prediction:
    """What a detector says of a picture.

    Attributes:
        path: of the picture.
        p_fake: that it is fake, by the branch that decides.
        p_shared: by the shared branch.
        p_personal: by the personal branch; None where there is none.
    """

    path: str
    p_fake: float
    p_shared: float
    p_personal: float | None


def predict_pictures(
    model: TwoBranchDetector, predict: Predict, pictures: Path, image_size: int, batch_size: int = 64
) -> FolderReport[Prediction]:
    """P(fake) of every face crop below a folder that can be read, or of one.

    Raises:
        UserError: no picture, or not one that can be read.
    """

    def read(path: Path) -> UInt8[Tensor, "3 s s"]:
        return (resize_crop(to_tensor(path), image_size) * 255).round().to(torch.uint8)

    found = work_on_files(track(list_images(pictures), "reading"), read, alone=pictures.is_file())
    paths, predictions = list(found.results), {}
    for start in track(range(0, len(paths), batch_size), "predicting"):
        batch = paths[start : start + batch_size]
        logits = branch_logits(model, torch.stack([found.results[path] for path in batch]))
        decided: Float[Tensor, " n"] = fake_probability(logits, predict)
        shared = fake_probability(logits, "shared")
        personal = fake_probability(logits, "personal") if "personal" in logits else None
        for index, path in enumerate(batch):
            alone = float(personal[index]) if personal is not None else None
            values = (float(decided[index]), float(shared[index]))
            if not all(map(math.isfinite, (*values, alone or 0.0))):
                raise UserError(f"{path}: the prediction is not finite")
            predictions[path] = Prediction(str(path), *values, alone)
    return FolderReport(predictions, found.skipped)


def export(run: Run, client: int, out: Path) -> None:
    """Write a client's detector as one folder that `TwoBranchDetector.from_pretrained` reads.

    Raises:
        UserError: an algorithm whose detector is not one network with two branches, or an unwritable folder.
    """
    if run.algorithm.network == "two networks":
        raise UserError(f"{run.folder}: ditto keeps two networks; export takes algorithms with one")
    # Around all of it: a folder that will not do is refused before a detector is adapted to its client.
    with atomic_folder(out) as folder:
        client_detector(run, client, "cpu")[0].save_pretrained(folder)
