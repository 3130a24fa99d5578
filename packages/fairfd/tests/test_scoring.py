"""Scoring a manifest: order, ranges, unreadable images, grey test images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairfd.data.datasets import ManifestDataset
from fairfd.data.manifest.manifest import Manifest, Sample
from fairfd.evaluation.scores.inference import probabilities, score
from fairfd.models.detectors import create_detector
from fairfd.models.detectors.wrapping import wrap
from tenfold import UserError

SIZE = 16


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Ten flat pictures whose level tells their row."""
    samples = []
    for index in range(10):
        Image.fromarray(np.full((20, 20, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
        approach = "real" if index % 2 == 0 else "swap"
        samples.append(Sample(f"{index}.png", f"p{index // 2}", "AB"[index // 2 % 2], approach, index % 2))
    return Manifest(tmp_path, tuple(samples))


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


@pytest.mark.parametrize(("batch_size", "workers"), [(3, 0), (64, 0), (4, 2)])
def test_rows_keep_the_manifests_order_and_columns(manifest: Manifest, batch_size: int, workers: int) -> None:
    table = score(wrap(brightness, output="prob", in_size=SIZE), manifest, batch_size, "cpu", workers)
    assert np.allclose(table.score, np.arange(10) * 20 / 255, atol=1e-6)
    assert table.image.tolist() == [sample.image for sample in manifest]
    assert table.identity is not None
    assert table.identity.tolist() == [sample.identity for sample in manifest]
    assert table.group.tolist() == [sample.group for sample in manifest]
    assert table.approach.tolist() == [sample.approach for sample in manifest]
    assert table.label.tolist() == [sample.label for sample in manifest]
    assert table.detector == "wrapped"


def test_batch_size_does_not_change_a_networks_scores(manifest: Manifest) -> None:
    torch.manual_seed(0)
    detector = create_detector("small-spsl", in_size=SIZE)
    one, many = score(detector, manifest, 1, "cpu"), score(detector, manifest, 10, "cpu")
    assert np.allclose(one.score, many.score, atol=1e-3)  # bfloat16 where the processor has it
    assert one.detector == "small-spsl"


def test_unreadable_images_are_all_named_at_the_end(manifest: Manifest) -> None:
    (manifest.root / "3.png").write_bytes(b"broken")
    (manifest.root / "7.png").unlink()
    seen = []

    def counting(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return brightness(images)

    detector = wrap(counting, output="prob", in_size=SIZE)
    with pytest.raises(UserError, match=r"2 of 10 images cannot be read.*3\.png.*7\.png"):
        score(detector, manifest, 4, "cpu")
    assert sum(seen) == 8
    table = score(detector, manifest, 4, "cpu", skip_bad=True)
    assert table.image.tolist() == [f"{index}.png" for index in range(10) if index not in (3, 7)]
    assert np.allclose(table.score, np.delete(np.arange(10), [3, 7]) * 20 / 255, atol=1e-6)


def test_nothing_readable_is_an_error_even_when_skipping(manifest: Manifest) -> None:
    for sample in manifest:
        manifest.path(sample).unlink()
    with pytest.raises(UserError, match="none of 10 images"):
        score(wrap(brightness, output="prob", in_size=SIZE), manifest, device="cpu", skip_bad=True)


def test_values_that_are_no_probabilities_are_refused_with_their_images(manifest: Manifest) -> None:
    data = ManifestDataset(manifest, SIZE)
    for value in (float("nan"), -0.1, 3.0):
        with pytest.raises(UserError, match=r"0\.png"):
            probabilities(
                lambda images, v=value: torch.full((len(images),), v), data, range(10), 4, torch.device("cpu")
            )


def test_grey_test_shows_the_luminance(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    manifest = Manifest(tmp_path, (Sample("red.png", "p", "A", "real", 0),))
    detector = wrap(lambda images: images[:, 2].mean((1, 2)), output="prob", in_size=SIZE)
    assert score(detector, manifest, device="cpu").score[0] == 0
    assert score(detector, manifest, device="cpu", colour="gray").score[0] == pytest.approx(0.2989, abs=1e-3)


def test_missing_identities_leave_the_column_out(manifest: Manifest) -> None:
    bare = Manifest(manifest.root, tuple(Sample(s.image, "", s.group, s.approach, s.label) for s in manifest))
    assert score(wrap(brightness, output="prob", in_size=SIZE), bare, device="cpu").identity is None
