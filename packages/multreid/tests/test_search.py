"""Galleries with kept features, exact and approximate search, contact sheets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from multreid.data.synthetic import write_people
from multreid.evaluation.figures import contact_sheet, plot_labels, plot_scores, ranked_paths
from multreid.method.nearest_neighbors import nearest, squared_distances
from multreid.models.networks import TwoStreamResNet
from multreid.pipeline.gallery import (
    build_index,
    gallery_index,
    open_gallery,
    query_features,
    search_exact,
    search_index,
)
from tenfold import UserError
from tenfold.images import read_image, write_image

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> TwoStreamResNet:
    torch.manual_seed(0)
    return TwoStreamResNet("small", 32, 16).eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_people(tmp_path / "people", 3, 3, seed=0)[0]


def test_gallery_features_are_computed_once_and_memory_mapped(model, folder) -> None:
    first = open_gallery(folder, "visible", model, device=CPU)
    second = open_gallery(folder, "visible", model, device=CPU)
    assert (first.reused, second.reused) == (0, 9)
    assert isinstance(second.features, np.memmap)
    np.testing.assert_array_equal(first.features, second.features)
    assert first.folder.is_relative_to(folder / ".multreid")


def test_only_new_and_changed_pictures_are_computed_again(model, folder, tmp_path) -> None:
    cache = tmp_path / "cache"
    before = open_gallery(folder, "visible", model, device=CPU, cache=cache)
    write_image(folder / "0001" / "c1_000.png", np.full((64, 32, 3), 0.9, np.float32))
    write_image(folder / "0009" / "c1_000.png", np.full((64, 32, 3), 0.1, np.float32))
    (folder / "0002" / "c4_002.png").unlink()
    after = open_gallery(folder, "visible", model, device=CPU, cache=cache)
    assert after.reused == 7
    assert len(after.paths) == 9
    assert after.folder == before.folder
    alone = [query_features(model, path, "visible", CPU)[1][0] for path in after.paths]
    np.testing.assert_allclose(after.features, np.stack(alone), atol=1e-2)


def test_another_model_or_modality_has_its_own_features(model, folder) -> None:
    first = open_gallery(folder, "visible", model, device=CPU)
    assert open_gallery(folder, "infrared", model, device=CPU).folder != first.folder
    torch.manual_seed(1)
    assert open_gallery(folder, "visible", TwoStreamResNet("small", 32, 16).eval(), device=CPU).folder != first.folder


def test_damaged_cache_is_made_again(model, folder) -> None:
    kept = open_gallery(folder, "visible", model, device=CPU)
    (kept.folder / "features.npy").write_bytes(b"short")
    assert open_gallery(folder, "visible", model, device=CPU).reused == 0
    for wrong in ("[]", '{"files": 3}', '{"files": {"a.png": "x"}}', "{"):
        (kept.folder / "files.json").write_text(wrong)
        assert open_gallery(folder, "visible", model, device=CPU).reused == 0


@pytest.mark.parametrize(("queries", "gallery"), [(7, 300), (1, 70000), (100, 66000)])
def test_nearest_is_exact_however_the_work_is_cut(queries, gallery) -> None:
    generator = np.random.default_rng(0)
    a, b = (
        generator.standard_normal((queries, 6)).astype(np.float32),
        generator.standard_normal((gallery, 6)).astype(np.float32),
    )
    rows, distances = nearest(a, b, 5)
    whole = squared_distances(a, b)
    np.testing.assert_allclose(distances, np.sort(whole, axis=1)[:, :5], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(whole, rows, 1), distances, atol=1e-4)


def test_search_gives_no_more_than_there_is() -> None:
    rows, distances = search_exact(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), 10)
    assert rows.shape == (3, 3)
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-6)


def test_index_finds_what_exact_search_finds(model, folder, clusters) -> None:
    pytest.importorskip("faiss")
    features = clusters(100, 40, 32, 0.4)[0]
    index = build_index(features)
    found, exact = search_index(index, features[:50], 5)[0], search_exact(features[:50], features, 5)[0]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, exact, strict=True)]) > 0.9
    kept = open_gallery(folder, "visible", model, device=CPU)
    assert gallery_index(kept).ntotal == gallery_index(kept).ntotal == 9


def test_missing_faiss_is_one_line(monkeypatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"faiss is not installed .*multreid\[faiss\]"):
        build_index(np.eye(4, dtype=np.float32))


def test_contact_sheet_shows_a_row_per_query(folder, tmp_path) -> None:
    paths = sorted(folder.rglob("*.png"))
    found, far = ranked_paths(paths, np.array([[0, 1, -1], [2, 3, 4]]), np.array([[0.1, 0.2, 9.0], [0.0, 0.5, 0.7]]))
    assert [len(each) for each in found] == [2, 3]
    contact_sheet(paths[:2], found, far, tmp_path / "sheet.png")
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[1] == 4 * (96 + 8) + 8
    assert sheet.shape[0] == 2 * (192 + 30 + 8) + 8
    assert 0.1 < sheet.mean() < 0.9


def test_plots_are_pictures(tmp_path) -> None:
    plot_scores({"MULT": 0.9, "OT": 0.8}, "scores", tmp_path / "scores.png")
    plot_labels(np.eye(6, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 0]], np.arange(7), "labels", tmp_path / "labels.png")
    assert read_image(tmp_path / "scores.png").std() > 0.05
    assert read_image(tmp_path / "labels.png").std() > 0.05
