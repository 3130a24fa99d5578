"""Score files of the authors' code."""

import numpy as np
import pytest

from fairfd.evaluation.audit.uncertainty import bootstrap
from fairfd.evaluation.scores.official import read_official_scores
from fairfd.method.fairness import fairness
from tenfold.errors import UserError

METHODS = ("data", "FaceSwap", "Dual_Generator_Face_Reen")
RACES = ("African", "Asian", "Caucasian", "Indian")


@pytest.fixture
def saved(tmp_path):
    """saved_confidences of two models."""
    rng = np.random.default_rng(0)
    for model in ("xception", "spsl"):
        folder = tmp_path / "saved_confidences" / model
        folder.mkdir(parents=True)
        for method in METHODS:
            for race in RACES:
                mean = 0.3 if method == "data" else 0.6
                np.save(folder / f"{method}_{race}.npy", np.clip(rng.normal(mean, 0.2, 30), 0, 1).astype(np.float32))
    return tmp_path / "saved_confidences"


def test_each_model_becomes_a_table_without_identities(saved):
    tables = read_official_scores(saved)
    assert sorted(tables) == ["spsl", "xception"]
    table = tables["spsl"]
    rates = table.rate_table()
    assert rates.approaches == ("real", "Dual_Generator_Face_Reen", "FaceSwap")
    assert rates.groups == RACES
    assert (rates.n == 30).all()
    expected = (np.load(saved / "spsl" / "data_Asian.npy") < 0.5).mean()
    assert rates.accuracy[0, 1] == pytest.approx(expected)
    assert fairness(rates)["AADPD"] > 0


def test_only_unclustered_intervals_are_promised(saved):
    table = read_official_scores(saved)["xception"]
    assert any("only unclustered intervals are possible" in line for line in table.warnings)
    assert any("assumes independent images" in line for line in table.warnings)
    assert bootstrap(table.rate_table(), 50).low["AADPD"] is not None


def test_one_models_folder_is_enough(saved):
    assert list(read_official_scores(saved / "spsl")) == ["spsl"]


def test_missing_cells_are_named_not_made_up(saved):
    (saved / "spsl" / "FaceSwap_Indian.npy").unlink()
    table = read_official_scores(saved)["spsl"]
    assert any("missing score files: FaceSwap_Indian.npy" in line for line in table.warnings)
    with pytest.raises(UserError, match="no image in FaceSwap/Indian"):
        fairness(table.rate_table())
    for race in RACES:
        (saved / "spsl" / f"data_{race}.npy").unlink()
    assert any("no data_<race>.npy" in line for line in read_official_scores(saved)["spsl"].warnings)


def test_a_column_vector_is_a_vector(saved):
    path = saved / "spsl" / "data_Asian.npy"
    np.save(path, np.load(path)[:, None])
    assert len(read_official_scores(saved)["spsl"]) == 12 * 30


def test_pickles_and_other_files_are_refused_by_name(saved, tmp_path):
    path = saved / "spsl" / "FaceSwap_Asian.npy"
    for content, message in (
        (np.array([None, 1.0], dtype=object), "holds Python objects"),
        (np.zeros((3, 2)), "one P\\(fake\\) per image"),
        (np.array([1, 0]), "one P\\(fake\\) per image"),
        (np.array([0.1, 1.4]), "must be finite and in"),
        (np.array([0.1, np.nan]), "must be finite and in"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(UserError, match=message) as caught:
            read_official_scores(saved)
        assert str(path) in str(caught.value)
    path.unlink()
    np.save(saved / "spsl" / "scores.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"named <method>_<race>.npy"):
        read_official_scores(saved)
    with pytest.raises(UserError, match="no such folder"):
        read_official_scores(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no score files"):
        read_official_scores(tmp_path / "empty")
