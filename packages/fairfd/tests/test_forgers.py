"""Forgery approaches: what they change, what they leave alone, when they refuse, how they are named."""

import pickle
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fairfd.data.faces.crops import Pose, Square, place_shape
from fairfd.data.faces.landmarks import SCHEME_17, SCHEME_68
from fairfd.data.faces.regions import RegionError, eye_distance, face_parts, face_region
from fairfd.data.forgers import (
    Forger,
    ForgeResult,
    SkippedFaceError,
    create_forger,
    forger_names,
    parameters_of,
    parse_approach,
    register_forger,
    summary_of,
)
from fairfd.data.forgers.landmark_swap import match_colours
from fairfd.data.forgers.self_blend import elastic, move, soften
from fairfd.data.forgers.warp_reenact import expression_difference, limit, random_expression
from fairfd.data.synthetic.datasets import draw_faces
from tenfold.errors import UserError
from tenfold.images import write_image

SIZE = 64
CLASSICAL = ("landmark_swap", "self_blend", "warp_reenact", "region_edit", "gan_upsample_sim")


@dataclass(frozen=True)
class Pair:
    base: np.ndarray
    driving: np.ndarray
    base_lm: np.ndarray
    driving_lm: np.ndarray


@pytest.fixture(scope="module")
def drawn() -> Pair:
    """Two drawn persons with their 17 exact landmarks."""
    faces = draw_faces((2, 0, 0, 0), 1, SIZE, torch.Generator().manual_seed(3))
    images = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in faces.images]
    return Pair(images[0], images[1], *(p.double().numpy() for p in faces.points))


@pytest.fixture(scope="module")
def placed(drawn) -> Pair:
    """The same images with the 68-point mean shape."""
    shape = place_shape(Pose(31.5, 28.0, 17.0))
    return replace(drawn, base_lm=shape, driving_lm=shape + 1)


def forged(name: str, pair: Pair, seed: int = 0, **parameters: object) -> ForgeResult:
    forger = create_forger(name, **parameters)
    return forger(pair.base, pair.driving, pair.base_lm, pair.driving_lm, np.random.default_rng(seed))


@pytest.mark.parametrize("points", ["drawn", "placed"])
@pytest.mark.parametrize("name", CLASSICAL)
def test_a_forgery_changes_the_masked_face_and_nothing_else(name, points, request):
    pair = request.getfixturevalue(points)
    result = forged(name, pair)
    assert result.image.shape == pair.base.shape
    assert result.image.dtype == np.float32
    assert result.image.min() >= 0
    assert result.image.max() <= 1
    assert result.mask.dtype == np.float32
    outside = result.mask == 0
    assert 0.3 < outside.mean() < 0.99
    assert np.array_equal(result.image[outside], pair.base[outside])
    assert np.abs(result.image - pair.base).max() > 0.02


@pytest.mark.parametrize("name", CLASSICAL)
def test_the_same_generator_state_gives_the_same_bytes(name, drawn):
    first, second = forged(name, drawn, 7), forged(name, drawn, 7)
    assert np.array_equal(first.image, second.image)
    assert first.meta == second.meta
    assert create_forger(name).deterministic


def test_inputs_are_not_written_to(drawn):
    frozen = replace(drawn, base=drawn.base.copy(), driving=drawn.driving.copy())
    frozen.base.flags.writeable = frozen.driving.flags.writeable = False
    for name in CLASSICAL:
        forged(name, frozen)


@pytest.mark.parametrize("name", ["landmark_swap", "self_blend", "warp_reenact", "region_edit"])
def test_unusable_landmarks_are_a_reason_to_skip(name, drawn):
    centre = np.array([31.5, 31.5])
    cases = {
        "no landmarks": None,
        "landmarks outside the image": drawn.base_lm + 40,
        "below 5%": centre + 0.05 * (drawn.base_lm - centre),
        "landmarks without area": np.tile(centre, (17, 1)),
    }
    for reason, points in cases.items():
        with pytest.raises(SkippedFaceError, match=reason):
            forged(name, replace(drawn, base_lm=points))
    wide = drawn.base_lm.copy()
    wide[:, 0] = np.interp(wide[:, 0], (wide[:, 0].min(), wide[:, 0].max()), (-8, 71))
    with pytest.raises(SkippedFaceError, match=r"touches the border|outside the image"):
        forged(name, replace(drawn, base_lm=wide))


def test_a_swap_puts_the_donors_features_on_the_bases_landmarks(drawn):
    marked = drawn.driving.copy()
    x, y = drawn.driving_lm[13].round().astype(int)
    marked[y - 2 : y + 3, x - 2 : x + 3] = (0, 1, 0)
    for blend in ("poisson", "feather"):
        plain = forged("landmark_swap", drawn, blend=blend, colour_transfer=False).image
        with_mark = forged("landmark_swap", replace(drawn, driving=marked), blend=blend, colour_transfer=False).image
        change = np.abs(with_mark - plain).sum(2)
        row, column = np.unravel_index(change.argmax(), change.shape)
        assert np.hypot(column - drawn.base_lm[13, 0], row - drawn.base_lm[13, 1]) < 4


def test_a_swap_with_oneself_is_no_change(drawn):
    own = replace(drawn, driving=drawn.base, driving_lm=drawn.base_lm)
    assert np.abs(forged("landmark_swap", own).image - drawn.base).max() < 2e-3


def test_a_swap_skips_a_donor_that_is_cut_off_or_has_other_landmarks(drawn, placed):
    with pytest.raises(SkippedFaceError, match="68 and 17 landmarks"):
        forged("landmark_swap", replace(drawn, driving_lm=placed.base_lm))
    with pytest.raises(SkippedFaceError, match="outside the image"):
        forged("landmark_swap", replace(drawn, driving_lm=drawn.driving_lm - 30))
    with pytest.raises(UserError, match="blend 'magic' is not poisson or feather"):
        create_forger("landmark_swap", blend="magic")


def test_colours_are_matched_in_mean_and_deviation():
    rng = np.random.default_rng(0)
    image = rng.random((20, 20, 3)).astype(np.float32)
    reference = (0.3 + 0.9 * rng.random((20, 20, 3)) * 0.5).astype(np.float32)
    region = rng.random((20, 20)) < 0.5
    gain_limit = reference[region].std(0) / image[region].std(0)
    matched = match_colours(image, reference, region)
    assert matched[region].mean(0) == pytest.approx(reference[region].mean(0), abs=1e-5)
    assert matched[region].std(0) == pytest.approx(image[region].std(0) * gain_limit.clip(0.7, 1.4), rel=1e-4)


def test_self_blend_draws_its_published_ratios_and_moves_little(drawn):
    metas = [forged("self_blend", drawn, seed).meta for seed in range(25)]
    assert {m["ratio"] for m in metas} == {0.25, 0.5, 0.75, 1.0}
    assert all(0.95 - 1e-4 <= m["scale"] <= 1 / 0.95 + 1e-4 for m in metas)
    assert max(abs(m["shift"][1]) for m in metas) <= 0.03 * SIZE
    assert max(abs(m["shift"][0]) for m in metas) <= 0.015 * SIZE


def test_moving_scales_about_the_centre_and_shifts():
    image = np.zeros((21, 21, 3), np.float32)
    image[10, 14] = 1
    assert np.unravel_index(move(image, (2.0, -3.0), 1.0)[..., 0].argmax(), (21, 21)) == (12, 11)
    assert np.unravel_index(move(image, (0.0, 0.0), 1.5)[..., 0].argmax(), (21, 21)) == (10, 16)
    assert np.allclose(move(image, (0.0, 0.0), 1.0), image)


def test_softened_masks_rise_from_zero_to_one_near_the_mask():
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), bool)
    mask[12:52, 16:48] = True
    bent = elastic(mask, 12.0, 2.0, rng)
    assert bent.dtype == bool
    assert 0.5 < bent.sum() / mask.sum() < 1.5
    assert (elastic(mask, 0.0, 2.0, rng) == mask).all()
    soft = soften(mask, 0.25, rng)
    assert soft.max() == pytest.approx(1)
    assert soft[:4].max() < 0.01


def test_expressions_are_compared_with_pose_and_proportions_taken_out(placed):
    points = placed.base_lm
    turned = 1.3 * points @ np.array([[0.98, -0.2], [0.2, 0.98]]) + 5
    assert np.abs(expression_difference(points, turned, SCHEME_68)).max() < 1e-9
    opened = points.copy()
    lips = list(SCHEME_68.mouth[:7])
    opened[lips, 1] -= 3
    motion = expression_difference(points, opened, SCHEME_68)
    still = [*SCHEME_68.jaw, *SCHEME_68.nose]
    assert np.abs(motion[still]).max() == 0
    assert motion[lips, 1].max() < -1


def test_reenactment_follows_the_driving_expression_or_draws_one(placed, drawn):
    assert forged("warp_reenact", placed).meta["expression"] == "random"
    opened = placed.base_lm.copy()
    opened[list(SCHEME_68.mouth[7:12]), 1] += 4
    assert forged("warp_reenact", replace(placed, driving_lm=opened)).meta["expression"] == "driving landmarks"
    motion = random_expression(drawn.base_lm, SCHEME_17, np.random.default_rng(0))
    assert np.abs(motion[[*SCHEME_17.jaw, *SCHEME_17.nose]]).max() == 0
    long = limit(motion * 100, 2.0)
    assert np.linalg.norm(long, axis=1).max() == pytest.approx(2.0)


def test_reenactment_moves_the_bases_own_lip_where_the_driving_lip_is(placed):
    lowered = placed.base_lm.copy()
    lowered[list(SCHEME_68.mouth), 1] += np.where(np.isin(SCHEME_68.mouth, (56, 57, 58)), 6.0, 0.0)
    x, y = placed.base_lm[57].round().astype(int)
    marked = placed.base.copy()
    marked[y - 1 : y + 2, x - 1 : x + 2] = (0, 1, 0)
    results = [forged("warp_reenact", replace(placed, base=b, driving_lm=lowered)).image for b in (placed.base, marked)]
    change = np.abs(results[1] - results[0]).sum(2)
    rows = np.indices(change.shape)[0]
    assert (rows * change).sum() / change.sum() > y + 1


def test_parts_must_be_known_for_edits_and_reenactment(drawn):
    unknown = replace(drawn, base_lm=drawn.base_lm[:16])
    for name in ("warp_reenact", "region_edit"):
        with pytest.raises(SkippedFaceError, match="parts of 16 landmarks are not known"):
            forged(name, unknown)
    assert face_parts(unknown.base_lm) == {}
    assert eye_distance(unknown.base_lm) > 0
    assert face_region(unknown.base_lm, SIZE, SIZE).any()


def test_region_edit_reports_part_and_scale(drawn):
    metas = [forged("region_edit", drawn, seed).meta for seed in range(20)]
    assert {m["part"] for m in metas} == {"left eye and right eye", "left brow and right brow", "nose", "mouth"}
    assert all(1.15 <= max(m["scale"], 1 / m["scale"]) <= 1.41 for m in metas)


def test_gan_upsampling_works_without_landmarks_and_leaves_a_checkerboard(drawn):
    flat = replace(drawn, base=np.full((SIZE, SIZE, 3), 0.5, np.float32), base_lm=None)
    result = forged("gan_upsample_sim", flat)
    middle = result.image[28:36, 28:36, 0] - 0.5
    row, column = np.indices(middle.shape)
    sign = 1 - 2 * ((row + column) % 2)
    assert np.allclose(middle * sign, 0.5 * result.meta["gain"], atol=1e-3)


def test_regions_stay_inside_the_outline(placed):
    region = face_region(placed.base_lm, SIZE, SIZE)
    y, x = np.nonzero(region)
    jaw = placed.base_lm[list(SCHEME_68.jaw)]
    assert x.min() > jaw[:, 0].min()
    assert y.max() < jaw[:, 1].max()
    with pytest.raises(RegionError, match="no landmarks"):
        face_region(None, SIZE, SIZE)


def test_forgers_are_registered_listed_and_described():
    assert set(CLASSICAL) < set(forger_names())
    assert {"vae_resynth", "diffusers_img2img", "diffusers_inpaint", "diffusers_instruct", "external"} < set(
        forger_names()
    )
    for name in CLASSICAL:
        forger = create_forger(name)
        assert isinstance(forger, Forger)
        assert forger.name == name
        assert summary_of(name).endswith(".")
        assert pickle.loads(pickle.dumps(forger)) == forger


def test_no_classical_forger_carries_the_name_of_a_published_method():
    published = {
        "simswap",
        "fastreen",
        "dualgenerator",
        "maskgan",
        "stargan",
        "stylegan",
        "dcface",
        "face2diffusion",
        "fsrt",
    }
    assert not published & {name.replace("_", "") for name in forger_names()}


def test_a_users_forger_is_registered_by_decorator():
    @register_forger("darken")
    class Darken:
        def __init__(self, amount: float = 0.5) -> None:
            self.amount = amount

        def __call__(self, base, *_):
            return ForgeResult(base * np.float32(self.amount))

    forger = create_forger("darken", amount=0.25)
    assert (forger.name, forger.needs_landmarks, forger.deterministic) == ("darken", True, True)
    assert parameters_of(forger) == {"amount": 0.25}
    for bad in ("real", "two words", ""):
        with pytest.raises(UserError, match="cannot name a forger"):
            register_forger(bad)
    with pytest.raises(UserError, match="is taken by"):
        register_forger("landmark_swap")(Darken)


@pytest.mark.parametrize(
    ("text", "label", "parameters"),
    [
        ("landmark_swap", "landmark_swap", {"blend": "poisson", "colour_transfer": True}),
        (
            "landmark_swap:blend=feather,colour_transfer=false",
            "landmark_swap",
            {"blend": "feather", "colour_transfer": False},
        ),
        ("soft=landmark_swap:softness=0.4", "soft", {"softness": 0.4}),
        ("Tool=external:command=run {base},{driving} --o={out},timeout=3", "Tool", {"timeout": 3.0}),
    ],
)
def test_approaches_are_parsed_with_label_and_typed_parameters(text, label, parameters):
    found, forger = parse_approach(text)
    assert found == label
    assert parameters.items() <= parameters_of(forger).items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such", "'no_such' is not one of"),
        ("landmark_swap:size=3", "unexpected keyword argument"),
        ("landmark_swap:softness=wide", "is not of type float"),
        ("landmark_swap:colour_transfer=perhaps", "is not of type bool"),
        ("landmark_swap:feather", "is not key=value"),
        ("two words", "write NAME"),
    ],
)
def test_bad_approaches_are_one_line_errors(text, message):
    with pytest.raises(UserError, match=message):
        parse_approach(text)


COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"


def command(tmp_path: Path, program: str) -> str:
    script = tmp_path / "tool.py"
    script.write_text(program)
    return f"'{sys.executable}' '{script}'"


def test_an_external_command_reads_and_writes_files(tmp_path, drawn):
    tool = command(tmp_path, COPY)
    taken = forged("external", drawn, command=f"{tool} {{driving}} {{out}} ignored-{{base}}")
    assert np.abs(taken.image - drawn.driving).max() < 1 / 254
    assert "{base}" in taken.meta["command"]


def test_external_commands_are_not_run_by_a_shell(tmp_path, drawn):
    tool = command(tmp_path, COPY)
    canary = tmp_path / "canary"
    forged("external", drawn, command=f"{tool} {{base}} {{out}} ; touch {canary}")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("program", "timeout", "reason"),
    [
        ("raise SystemExit('bad face')", 60.0, "left with 1: bad face"),
        ("pass", 60.0, "wrote no readable"),
        ("import time; time.sleep(60)", 0.2, "took more than 0.2 s"),
    ],
)
def test_a_failing_command_is_a_reason_to_skip(tmp_path, drawn, program, timeout, reason):
    tool = command(tmp_path, program)
    with pytest.raises(SkippedFaceError, match=reason):
        forged("external", drawn, command=f"{tool} {{base}} {{out}}", timeout=timeout)


def test_bad_external_commands_are_one_line_errors(drawn):
    for bad in ("", "tool {base}", "tool {out}"):
        with pytest.raises(UserError, match=r"must contain \{base\} and \{out\}"):
            create_forger("external", command=bad)
    with pytest.raises(UserError, match="cannot be split"):
        create_forger("external", command="tool '{base} {out}")
    with pytest.raises(UserError, match="cannot run '/no/such/tool'"):
        forged("external", drawn, command="/no/such/tool {base} {out}")


def test_finished_forgeries_are_matched_by_path_then_by_name(tmp_path, drawn):
    write_image(tmp_path / "A/p1/x.png", drawn.driving)
    write_image(tmp_path / "B/p2/x.png", drawn.base)
    write_image(tmp_path / "y.jpg", drawn.driving)
    forger = create_forger("finished_folder", folder=str(tmp_path))
    assert forger.find("real/A/p1/x.jpg") == tmp_path / "A/p1/x.png"
    assert forger.find("anywhere/m.01_y.png".replace("m.01_", "")) == tmp_path / "y.jpg"
    with pytest.raises(SkippedFaceError, match="no finished forgery named x"):
        forger.find("C/p3/x.png")
    with pytest.raises(SkippedFaceError, match="no finished forgery named z"):
        forger.find("z.png")
    with pytest.raises(UserError, match="works by file name"):
        forged("finished_folder", drawn, folder=str(tmp_path))
    with pytest.raises(UserError, match="is not a folder of forgeries"):
        create_forger("finished_folder", folder=str(tmp_path / "absent"))
    assert parameters_of(forger) == {"folder": str(tmp_path)}


def test_finished_forgeries_are_framed_like_their_bases(tmp_path, drawn):
    write_image(tmp_path / "a.png", drawn.driving)
    write_image(tmp_path / "b.png", drawn.driving[:32, :32])
    write_image(tmp_path / "c.png", drawn.driving[:20])
    forger = create_forger("finished_folder", folder=str(tmp_path))
    square = Square(8, 4, 40)
    framed = forger.take("a.png", square, (SIZE, SIZE), 40).image
    assert np.abs(framed - drawn.driving[4:44, 8:48]).max() < 1 / 254
    assert forger.take("b.png", square, (SIZE, SIZE), 40).image.shape == (40, 40, 3)
    with pytest.raises(SkippedFaceError, match="forgery of 64x20 for a base of 40x40"):
        forger.take("c.png", square, (SIZE, SIZE), 40)
