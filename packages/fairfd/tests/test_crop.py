"""Face crops from photographs: finding, aligning, cutting, and the mean landmark shape."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fairfd.data.faces.crops import (
    Pose,
    Square,
    align_mean_face,
    central_square,
    crop_faces,
    cut,
    face_square,
    fill_landmarks,
    find_faces,
    into_square,
    place_shape,
    pose_of,
)
from fairfd.data.faces.landmarks import (
    CROP_EYE_DISTANCE,
    CROP_EYE_HEIGHT,
    SCHEME_68,
    MediaPipeLandmarks,
    complete_five,
    five_points,
    mean_shape,
    read_landmarks,
    template_in_crop,
)
from fairfd.data.layouts import scan
from fairfd.data.manifest.manifest import Manifest
from tenfold.data import embedded_pictures
from tenfold.errors import UserError
from tenfold.images import read_image, write_image

# The astronaut's pupils, read off the picture.
EYES = np.array([[203.0, 101.0], [246.0, 103.0]])


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return read_image(embedded_pictures()["astronaut"])


def test_the_astronauts_face_is_found_and_its_eyes_are_hit(astronaut):
    (pose,) = find_faces(astronaut)
    found = five_points(place_shape(pose))[:2]
    assert np.abs(found - EYES).max() < 5
    assert abs(pose.turn) < 0.2


def test_alignment_mends_a_rough_guess_and_keeps_it_where_there_is_no_face(astronaut):
    middle, distance = EYES.mean(0), np.hypot(*(EYES[1] - EYES[0]))
    rough = Pose(float(middle[0] + 6), float(middle[1] - 5), float(distance * 1.1))
    mended = align_mean_face(astronaut, rough)
    assert np.hypot(mended.x - middle[0], mended.y - middle[1]) < np.hypot(rough.x - middle[0], rough.y - middle[1])
    flat = np.full((120, 120, 3), 0.5, np.float32)
    guess = Pose(60.0, 50.0, 30.0)
    assert align_mean_face(flat, guess) == guess


def test_crops_show_the_eyes_where_the_template_expects_them(astronaut, tmp_path):
    write_image(tmp_path / "photos/sub/astronaut.png", astronaut)
    write_image(tmp_path / "photos/empty.png", np.full((90, 120, 3), 0.4, np.float32))
    report = crop_faces(tmp_path / "photos", tmp_path / "crops", size=128)
    assert [p.relative_to(tmp_path).as_posix() for p in report.written] == ["crops/sub/astronaut.png"]
    assert [p.name for p in report.without_face] == ["empty.png"]
    crop = read_image(report.written[0])
    assert crop.shape == (128, 128, 3)
    eyes = five_points(read_landmarks(report.written[0].with_suffix(".npy")))[:2]
    assert np.hypot(*(eyes[1] - eyes[0])) == pytest.approx(CROP_EYE_DISTANCE * 128, abs=1.5)
    assert eyes.mean(0) == pytest.approx([63.5, CROP_EYE_HEIGHT * 128 - 0.5], abs=1.5)


def test_several_faces_are_numbered_and_small_ones_are_passed_over(astronaut, tmp_path):
    face = astronaut[30:190, 130:320]
    write_image(tmp_path / "photos/pair.png", np.concatenate([face, face], axis=1))
    report = crop_faces(tmp_path / "photos", tmp_path / "all", size=64, faces="all")
    assert [p.name for p in report.written] == ["pair-1.png", "pair-2.png"]
    with pytest.raises(UserError, match="no face of 400 pixels or more found in 1 pictures"):
        crop_faces(tmp_path / "photos", tmp_path / "none", smallest=400)
    assert not (tmp_path / "none").exists()


def test_unreadable_photographs_are_passed_over_and_nothing_is_written_over(astronaut, tmp_path):
    photos = tmp_path / "photos"
    write_image(photos / "astronaut.png", astronaut)
    (photos / "broken.png").write_bytes((photos / "astronaut.png").read_bytes()[:2000])
    report = crop_faces(photos, tmp_path / "crops", size=64)
    assert [path.name for path in report.written] == ["astronaut.png"]
    assert len(report.skipped) == 1
    assert "broken.png" in report.skipped[0]
    with pytest.raises(UserError, match="--overwrite"):
        crop_faces(photos, tmp_path / "crops", size=64)
    crop_faces(photos, tmp_path / "crops", size=64, overwrite=True)
    before = (photos / "astronaut.png").read_bytes()
    with pytest.raises(UserError, match="is an input"):
        crop_faces(photos, photos, size=64, overwrite=True)
    assert (photos / "astronaut.png").read_bytes() == before
    write_image(photos / "astronaut.jpg", astronaut)
    with pytest.raises(UserError, match="both would become"):
        crop_faces(photos, tmp_path / "shared", size=64)
    assert not (tmp_path / "shared").exists()


def test_a_folder_without_any_face_is_an_error(tmp_path):
    write_image(tmp_path / "wall.png", np.full((64, 64, 3), 0.5, np.float32))
    with pytest.raises(UserError, match=r"no face of 48 pixels or more found in 1 pictures \(wall\.png\)"):
        crop_faces(tmp_path, tmp_path / "out")


def test_cutting_at_the_border_mirrors_the_picture():
    image = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3) / 60
    patch = cut(image, Square(-2, -1, 4), 4)
    assert np.array_equal(patch[1:, 2:], image[:3, :2])
    assert np.array_equal(patch[0], patch[1])
    assert np.array_equal(patch[:, 1], patch[:, 2])


def test_positions_follow_the_resized_square():
    image = np.zeros((40, 60, 3), np.float32)
    image[21, 33] = 1
    square = Square(10, 5, 30)
    resized = cut(image, square, 60)
    x, y = into_square(np.array([[33.0, 21.0]]), square, 60)[0]
    rows, columns = np.nonzero(resized[..., 0] == resized[..., 0].max())
    assert abs(rows.mean() - y) < 0.1
    assert abs(columns.mean() - x) < 0.1
    assert central_square(40, 60) == Square(10, 0, 40)


def test_pose_of_placed_shapes_is_the_pose():
    pose = Pose(40.0, 50.0, 30.0, 0.2)
    found = pose_of(place_shape(pose))
    assert (found.x, found.y, found.eye_distance, found.turn) == pytest.approx((40, 50, 30, 0.2), abs=0.6)
    unknown = pose_of(np.random.default_rng(0).uniform(10, 90, (30, 2)))
    assert 10 < unknown.x < 90
    side = face_square(pose).side
    assert side == round(found.eye_distance / CROP_EYE_DISTANCE)


def test_the_mean_shape_is_symmetric_with_unit_eye_distance():
    shape = mean_shape()
    mirror = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    assert shape[: len(mirror)] * [-1, 1] == pytest.approx(shape[mirror], abs=1e-9)
    eyes = [shape[list(eye)].mean(0) for eye in SCHEME_68.eyes]
    assert eyes[1] - eyes[0] == pytest.approx([1, 0], abs=1e-9)
    assert eyes[0][1] == pytest.approx(0, abs=0.02)
    assert shape.shape == (68, 2)
    assert sorted(SCHEME_68.jaw + SCHEME_68.inner) == list(range(68))


def test_five_points_are_completed_by_a_similarity(tmp_path):
    placed = place_shape(Pose(100.0, 90.0, 40.0, -0.1))
    assert complete_five(five_points(placed)) == pytest.approx(placed, abs=1e-9)
    np.save(tmp_path / "five.npy", five_points(placed))
    assert read_landmarks(tmp_path / "five.npy") == pytest.approx(placed, abs=1e-9)
    template = template_in_crop(100, 100)
    assert five_points(template)[:2].mean(0) == pytest.approx([49.5, 35.5], abs=0.5)


@pytest.mark.parametrize("bad", [np.zeros((4, 2)), np.zeros((68, 3)), np.full((68, 2), np.nan)])
def test_bad_landmark_files_are_one_line_errors(tmp_path, bad):
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(UserError, match=r"bad\.npy: landmarks of shape"):
        read_landmarks(tmp_path / "bad.npy")
    (tmp_path / "text.npy").write_text("1 2 3")
    for name in ("text.npy", "absent.npy"):
        with pytest.raises(UserError, match=f"{name}: cannot read"):
            read_landmarks(tmp_path / name)


def test_mediapipe_is_an_extra_with_a_clear_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(UserError, match=r"pip install 'fairfd\[mediapipe\]'"):
        MediaPipeLandmarks(tmp_path / "face.task")


def test_mediapipe_mesh_points_become_68_landmarks_in_pixels(tmp_path, monkeypatch):
    mesh = np.random.default_rng(0).random((478, 2))
    faces = [[SimpleNamespace(x=x, y=y) for x, y in mesh]]
    landmarker = SimpleNamespace(detect=lambda _: SimpleNamespace(face_landmarks=faces))
    vision = SimpleNamespace(
        FaceLandmarkerOptions=lambda **options: options,
        FaceLandmarker=SimpleNamespace(create_from_options=lambda _: landmarker),
    )
    fake = SimpleNamespace(
        tasks=SimpleNamespace(vision=vision, BaseOptions=lambda **options: options),
        Image=lambda **picture: picture,
        ImageFormat=SimpleNamespace(SRGB=1),
    )
    monkeypatch.setitem(sys.modules, "mediapipe", fake)
    with pytest.raises(UserError, match="no such face landmarker model"):
        MediaPipeLandmarks(tmp_path / "face.task")
    (tmp_path / "face.task").touch()
    detect = MediaPipeLandmarks(tmp_path / "face.task")
    points = detect(np.zeros((20, 40, 3), np.float32))
    assert points.shape == (68, 2)
    # The chin is mesh point 152, the nose's tip point 4.
    assert points[[8, 30]] == pytest.approx(mesh[[152, 4]] * [40, 20] - 0.5)
    faces.clear()
    assert detect(np.zeros((20, 40, 3), np.float32)) is None


def test_a_landmark_pass_fills_what_is_missing_and_goes_on_where_it_stopped(tmp_path):
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"faces/A/p/{name}.png", np.full((8, 8, 3), 0.1 * ord(name) % 1, np.float32))
    np.save(tmp_path / "faces/A/p/a.npy", np.ones((6, 2)))
    manifest = scan(tmp_path / "faces")
    calls = []

    def detect(image: np.ndarray) -> np.ndarray | None:
        calls.append(image)
        return None if len(calls) == 2 else np.full((7, 2), 3.0)

    filled = fill_landmarks(manifest, tmp_path / "points", detect)
    assert [bool(s.landmarks) for s in filled] == [True, True, False]
    assert (read_landmarks(manifest.root / filled.samples[1].landmarks) == 3).all()
    assert filled.samples[0] == manifest.samples[0]
    fill_landmarks(manifest, tmp_path / "points", detect)
    assert len(calls) == 3
    filled.write(tmp_path / "m.csv")
    assert Manifest.read(tmp_path / "m.csv").samples[1].landmarks == "points/A/p/b.npy"
