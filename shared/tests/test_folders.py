"""One rule for verbs that turn files into files."""

from pathlib import Path

import numpy as np
import pytest

from tenfold.errors import UserError, WriteError
from tenfold.folders import Job, check_jobs, plan_outputs, work_on_files
from tenfold.images import write_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg", "deep/a.png", "c.gif"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path.with_suffix(".png"), np.zeros((4, 4, 3), np.float32))
        path.with_suffix(".png").rename(path)
    return tmp_path / "photos"


def test_a_folder_keeps_its_shape(photos: Path, tmp_path: Path) -> None:
    jobs = plan_outputs(photos, tmp_path / "out", suffix="_x", endings={".png", ".jpg"})
    targets = [job.target.relative_to(tmp_path / "out").as_posix() for job in jobs]
    assert sorted(targets) == ["a_x.png", "b_x.jpg", "c_x.png", "deep/a_x.png"]
    assert not (tmp_path / "out").exists(), "planning makes nothing"


def test_one_picture_goes_to_a_file_or_a_folder(photos: Path, tmp_path: Path) -> None:
    assert plan_outputs(photos / "a.png", tmp_path / "o.png")[0].target == tmp_path / "o.png"
    assert plan_outputs(photos / "b.jpg", tmp_path / "o.jpg", endings={".jpg"})[0].target == tmp_path / "o.jpg"
    assert plan_outputs(photos / "b.jpg", tmp_path / "out")[0].target == tmp_path / "out/b.png"


def test_an_input_is_never_an_output(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(photos / "a.png")
    for overwrite in (False, True):
        for source, out in (
            (photos, photos),
            (photos / "a.png", photos / "a.png"),
            (photos / "a.png", tmp_path / "link.png"),
        ):
            with pytest.raises(UserError, match="is an input"):
                plan_outputs(source, out, overwrite=overwrite, endings={".png", ".jpg"})
    with pytest.raises(UserError, match="is an input"):
        check_jobs([Job(tmp_path / "x", tmp_path / "y"), Job(tmp_path / "y", tmp_path / "z")], overwrite=True)


def test_two_inputs_never_share_an_output(photos: Path, tmp_path: Path) -> None:
    (photos / "a.jpg").write_bytes((photos / "a.png").read_bytes())
    with pytest.raises(UserError, match="both would become"):
        plan_outputs(photos, tmp_path / "out")


def test_existing_results_are_kept_unless_told(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "o.png").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        plan_outputs(photos / "a.png", tmp_path / "o.png")
    assert plan_outputs(photos / "a.png", tmp_path / "o.png", overwrite=True)


def test_places_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file/x", tmp_path / "file"):
        with pytest.raises(UserError):
            plan_outputs(photos, out)
    with pytest.raises(WriteError, match="cannot write"):
        plan_outputs(photos / "a.png", tmp_path / ("x" * 300 + ".png"))
    with pytest.raises(UserError, match="no such file"):
        plan_outputs(tmp_path / "none", tmp_path / "out")


def test_what_cannot_be_read_is_passed_over_and_named() -> None:
    def work(path: Path) -> str:
        if path.name == "bad":
            raise UserError(f"{path}: not\n a picture")
        return path.name

    report = work_on_files([Path("a"), Path("bad"), Path("b")], work)
    assert list(report.results.values()) == ["a", "b"]
    assert report.skipped == ["bad: not a picture"]
    assert report.exit_code == 3
    assert work_on_files([Path("a")], work).exit_code == 0
    with pytest.raises(UserError, match="no file could be used: bad"):
        work_on_files([Path("bad")], work)
    with pytest.raises(UserError, match=r"^bad: not"):
        work_on_files([Path("bad")], work, alone=True)


def test_a_full_disk_ends_the_work() -> None:
    done = []

    def work(path: Path) -> None:
        done.append(path)
        raise WriteError("disk full")

    with pytest.raises(WriteError):
        work_on_files([Path("a"), Path("b")], work)
    assert len(done) == 1
