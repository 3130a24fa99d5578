"""Whole detectors with a public implementation's weights give that implementation's scores.

The vectors `whole_NAME.npz` come from DeepfakeBench's own classes (commit 8a4a7bf), `keras_NAME.npz` from MesoNet's own Keras
models under TensorFlow. Weights follow from the names of their entries, so that no weights are kept: the files hold names,
shapes and outputs.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from fairfd.models.detectors import create_detector
from fairfd.models.detectors.detector import Detector
from fairfd.models.detectors.pgfdd import PgFddDetector
from fairfd.models.detectors.pretrained import from_deepfakebench, load_deepfakebench
from tenfold import UserError

Golden = Callable[[str], dict[str, np.ndarray]]
WHOLE = {
    **{name: name for name in ("xception", "core", "spsl", "f3net", "ffd", "recce", "ucf", "srm", "capsule", "meso4")},
    "mesoinception4": "mesoinception",
}
FLOAT32, FLOAT64 = 1e-4, 1e-5
"""Allowed differences as a share of the range of the logits; the official classes' own two precisions differ by 1e-5 at most."""


def official_entry(name: str, shape: list[int], seed: int, gain: float) -> np.ndarray:
    """The value of a state dict's entry, drawn from its name."""
    rng, last = np.random.default_rng([seed, zlib.crc32(name.encode())]), name.split(".")[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "running_mean":
        value = 0.1 * rng.standard_normal(shape)
    elif last == "bias":
        value = 0.05 * rng.standard_normal(shape)
    elif last == "running_var" or (last == "weight" and len(shape) == 1):
        value = rng.uniform(0.5, 1.5, shape)
    elif last == "weight":
        value = rng.standard_normal(shape) * (gain / np.sqrt(np.prod(shape[1:])))
    else:
        value = rng.standard_normal(shape)
    return np.asarray(value, np.float32)


def official_state(vectors: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The whole state dict; tensors that the class computes itself are left at 0, for nothing may read them."""
    fixed = set(vectors["constants"].tolist())
    seed, gain = int(vectors["seed"]), float(vectors["gain"])
    entries = zip(vectors["names"].tolist(), json.loads(str(vectors["shapes"])), strict=True)
    return {
        name: torch.zeros(shape) if name in fixed else torch.from_numpy(official_entry(name, shape, seed, gain))
        for name, shape in entries
    }


def official_input(vectors: dict[str, np.ndarray]) -> Tensor:
    x = np.random.default_rng([int(vectors["seed"]), 1]).standard_normal(tuple(vectors["input_shape"]))
    x[1] *= 0.25
    return torch.from_numpy(x.astype(np.float32))


def logits_of(detector: Detector, x: Tensor) -> np.ndarray:
    """What `logits` of the vectors are; capsule's are probabilities, ours their logarithms."""
    with torch.no_grad():
        logits = detector.eval().detect(x).logits
    return (logits.softmax(1) if detector.name == "capsule" else logits).numpy()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


@pytest.mark.parametrize("name", list(WHOLE))
def test_detector_equals_deepfakebenchs_class(golden: Golden, tmp_path: Path, name: str) -> None:
    vectors = golden(f"whole_{WHOLE[name]}")
    x = official_input(vectors)
    torch.save(official_state(vectors), tmp_path / "checkpoint.pth")
    detector = create_detector(name, f"deepfakebench:{tmp_path / 'checkpoint.pth'}", in_size=x.shape[-1])
    found = logits_of(detector, x)
    assert difference(found, vectors["logits"]) < FLOAT32
    # Also of capsule, whose official P(fake) is the softmax of a probability.
    assert np.allclose(softmax(found, axis=1)[:, 1], vectors["prob"], atol=1e-4)
    if name != "core":
        # CORE is an Xception with another loss: once is enough.
        assert difference(logits_of(detector.double(), x.double()), vectors["logits_double"]) < FLOAT64


def test_probability_is_that_of_an_image_in_0_to_1(golden: Golden, tmp_path: Path) -> None:
    vectors = golden("whole_meso4")
    torch.save(official_state(vectors), tmp_path / "checkpoint.pth")
    detector = create_detector("meso4", f"deepfakebench:{tmp_path / 'checkpoint.pth'}")
    fake = detector.predict_proba((official_input(vectors) + 1) / 2)
    assert np.allclose(fake.numpy(), vectors["prob"], atol=1e-4)


def test_pgfdds_encoders_are_ucfs(golden: Golden) -> None:
    vectors = golden("whole_ucf")
    state = from_deepfakebench(official_state(vectors), "ucf")
    detector = PgFddDetector(inference="shared")
    assert not detector.load_state_dict(state, strict=False).unexpected_keys
    assert difference(logits_of(detector, official_input(vectors)), vectors["logits"]) < FLOAT32
    detector.encoder_d.load_state_dict(detector.encoder_f.state_dict())
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(detector.encoder_d(x), detector.encoder_f(x))


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_distributed_and_averaged_checkpoints_are_unwrapped(golden: Golden, tmp_path: Path, prefix: str) -> None:
    vectors = golden("whole_meso4")
    state = {prefix + name: value for name, value in official_state(vectors).items()}
    torch.save({"state_dict": state | {"n_averaged": torch.tensor(7)}}, tmp_path / "swa.pth")
    detector = create_detector("meso4", f"deepfakebench:{tmp_path / 'swa.pth'}")
    assert difference(logits_of(detector, official_input(vectors)), vectors["logits"]) < FLOAT32


@pytest.mark.parametrize("name", ["dag-fdd", "daw-fdd"])
def test_names_of_one_logit_detectors_are_xceptions(golden: Golden, name: str) -> None:
    names = golden("whole_xception")["names"].tolist()
    with torch.device("meta"):
        own = create_detector(name).state_dict().keys()
    assert from_deepfakebench(dict.fromkeys(names, torch.zeros(())), name).keys() == own


def test_checkpoint_of_another_detector_is_refused(golden: Golden, tmp_path: Path) -> None:
    torch.save(official_state(golden("whole_meso4")), tmp_path / "meso4.pth")
    with pytest.raises(UserError, match="does not fit mesoinception4"):
        load_deepfakebench(create_detector("mesoinception4"), tmp_path / "meso4.pth")


# ---------------------------------------------------------------------------------------------------------- MesoNet's Keras


def keras_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a Keras weight, drawn from its name."""
    rng, last = np.random.default_rng([3, zlib.crc32(name.encode())]), name.rsplit("/", 1)[-1]
    if last == "moving_mean:0":
        value = 0.1 * rng.standard_normal(shape)
    elif last in ("bias:0", "beta:0"):
        value = 0.05 * rng.standard_normal(shape)
    elif last in ("gamma:0", "moving_variance:0"):
        value = rng.uniform(0.5, 1.5, shape)
    else:
        value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])) * 1.4
    return value.astype(np.float32)


def write_keras(path: Path, vectors: dict[str, np.ndarray]) -> str:
    """A weights file as Keras 2 writes it; its address for `pretrained`."""
    with h5py.File(path, "w") as file:
        for name, shape in zip(vectors["names"].tolist(), vectors["shapes"].tolist(), strict=True):
            file[name] = keras_weight(name, tuple(map(int, shape.split(","))))
    return f"mesonet:{path}"


@pytest.mark.parametrize("name", ["meso4", "mesoinception4"])
def test_mesonets_keras_weights_give_keras_scores(golden: Golden, tmp_path: Path, name: str) -> None:
    vectors = golden(f"keras_{name}")
    images = np.random.default_rng([3, 1]).random((2, 256, 256, 3))
    images[1] = images[1] * 0.25 + 0.5
    detector = create_detector(name, write_keras(tmp_path / "weights.h5", vectors))
    fake = detector.predict_proba(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2))
    # The authors' models say how real an image is.
    assert np.allclose(fake.numpy(), 1 - vectors["real"], atol=1e-5)


def test_keras_files_that_do_not_fit_are_refused(golden: Golden, tmp_path: Path) -> None:
    address = write_keras(tmp_path / "weights.h5", golden("keras_meso4"))
    with pytest.raises(UserError, match="does not fit mesoinception4"):
        create_detector("mesoinception4", address)
    with pytest.raises(UserError, match="is for meso4 and mesoinception4"):
        create_detector("small-rgb", address)
    with pytest.raises(UserError, match="1 of another shape: fc1"):
        create_detector("meso4", address, in_size=128)
    (tmp_path / "weights.h5").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"weights\.h5: cannot read as a Keras weights file"):
        create_detector("meso4", address)
    with pytest.raises(UserError, match=r"missing\.h5: cannot read"):
        create_detector("meso4", f"mesonet:{tmp_path / 'missing.h5'}")
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(UserError, match="it holds no layers"):
        create_detector("meso4", f"mesonet:{tmp_path / 'empty.h5'}")
