"""The builder's guarantees: balance, disjoint persons, fixed partners, one path for reals and fakes, the same bytes."""

import hashlib
import json
import multiprocessing
import os
import platform
import select
import signal
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fairfd.data.assembly import step as forging
from fairfd.data.assembly.matching import derangement, driving_images, partner_map, seeded
from fairfd.data.assembly.resume_log import Journal
from fairfd.data.assembly.run import build
from fairfd.data.assembly.worker_pool import end_with_parent, undisturbed, work_off
from fairfd.data.forgers import ForgeResult, SkippedFaceError, create_forger
from fairfd.data.layouts import scan
from fairfd.data.manifest.manifest import REAL, Manifest, Sample, file_sha256
from fairfd.data.synthetic.datasets import write_drawn_faces
from tenfold.data import embedded_pictures
from tenfold.errors import RunLocked, UserError
from tenfold.images import read_image, write_image

SIZE = 40
APPROACHES = ("landmark_swap", "self_blend", "warp_reenact", "region_edit", "gan_upsample_sim")
RATIOS = {"train": 0.5, "test": 0.5}

pytestmark = pytest.mark.filterwarnings("ignore:group .* has .* identities", "ignore:mean landmark shape")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Manifest:
    """Four groups, four persons each, two images each, landmarks beside them."""
    folder = tmp_path_factory.mktemp("drawn")
    write_drawn_faces(folder, persons=4, images=2, size=56, seed=2)
    return scan(folder)


@pytest.fixture(scope="module")
def built(pristine, tmp_path_factory) -> tuple[Manifest, Path]:
    out = tmp_path_factory.mktemp("built") / "out"
    return build(pristine, out, APPROACHES, seed=5, workers=1, size=SIZE, ratios=RATIOS), out


def content(out: Path) -> dict[str, str]:
    """Digest of every file of a benchmark."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_cells_are_equal_persons_disjoint_and_partners_of_the_same_group_and_split(built):
    manifest, _ = built
    assert set(manifest.counts().values()) == {4}
    assert manifest.approaches() == (REAL, *sorted(APPROACHES))
    home = defaultdict(set)
    for sample in manifest:
        home[sample.identity].add((sample.group, sample.split))
    assert all(len(places) == 1 for places in home.values())
    for sample in manifest:
        if sample.label:
            assert sample.source_identity != sample.identity
            assert home[sample.source_identity] == {(sample.group, sample.split)}


def test_partner_and_driving_image_are_the_same_for_every_approach(built):
    manifest, _ = built
    partners, driving = defaultdict(set), defaultdict(set)
    reals = {s.image: s.identity for s in manifest if s.label == 0}
    for sample in manifest:
        if sample.label:
            partners[sample.identity].add(sample.source_identity)
            driving[sample.image.split("/", 1)[1]].add(sample.driving_image)
            assert reals[sample.driving_image] == sample.source_identity
    assert all(len(found) == 1 for found in (*partners.values(), *driving.values()))
    # A derangement: everybody gives once.
    assert sorted(next(iter(p)) for p in partners.values()) == sorted(partners)


def test_the_same_bytes_with_one_worker_and_two(built, pristine, tmp_path):
    manifest, out = built
    again = build(pristine, tmp_path / "out", APPROACHES, seed=5, workers=2, size=SIZE, ratios=RATIOS)
    assert again.samples == manifest.samples
    assert content(tmp_path / "out") == content(out)


def test_another_seed_gives_other_forgeries(built, pristine, tmp_path):
    _, out = built
    build(pristine, tmp_path / "out", ("self_blend",), seed=6, workers=1, size=SIZE, ratios=RATIOS)
    first, second = content(out), content(tmp_path / "out")
    fakes = [name for name in second if name.startswith("self_blend")]
    assert any(first.get(name) != second[name] for name in fakes)


def test_images_are_forged_alike_whatever_else_is_in_the_set(built, pristine, tmp_path):
    manifest, out = built
    some = Manifest(pristine.root, tuple(s for s in pristine if s.group in "AB"))
    build(some, tmp_path / "out", ("self_blend",), seed=5, workers=1, size=SIZE, ratios=RATIOS)
    first, second = content(out), content(tmp_path / "out")
    assert all(first[name] == digest for name, digest in second.items() if name.startswith(("self_blend", "real")))
    assert len(manifest) > 0


def test_reals_and_fakes_share_format_size_and_path_and_fakes_are_marked(built):
    manifest, out = built
    for sample in manifest:
        with Image.open(manifest.path(sample)) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (SIZE, SIZE), "RGB")
            assert ("synthetic" in image.info) == bool(sample.label)
            if sample.label:
                assert sample.approach in image.info["synthetic"]
        assert sample.sha256 == file_sha256(manifest.path(sample))
    # The real image is the decoded, resized original and nothing more; fakes equal it away from the face.
    swap = next(s for s in manifest if s.approach == "landmark_swap")
    real = read_image(out / swap.image.replace("landmark_swap", REAL))
    outside = read_image(out / swap.mask)[..., 0] == 0
    assert np.array_equal(read_image(out / swap.image)[outside], real[outside])


def test_provenance_is_recorded(built):
    manifest, out = built
    meta = json.loads(next(s for s in manifest if s.approach == "self_blend").meta)
    assert meta["forger"] == "self_blend"
    assert meta["version"] == "1"
    assert meta["parameters"]["least_scale"] == 0.95
    assert {"seed", "weights_sha256", "landmarks", "ratio"} <= set(meta)
    assert meta["landmarks"] == "file"
    record = json.loads((out / "build.json").read_text())
    assert record["manifest_sha256"] == manifest.digest()
    assert record["approaches"]["self_blend"]["parameters"] == meta["parameters"]
    assert {"torch", "numpy", "fairfd"} <= set(record["versions"])
    assert len(record["images"]) == 2 * 4 * 6
    assert all(s.landmarks and (out / s.landmarks).is_file() for s in manifest)


def test_the_written_manifest_is_the_returned_one_and_passes_its_own_checks(built):
    manifest, out = built
    read = Manifest.read(out / "manifest.csv")
    assert read.samples == manifest.samples
    assert all("identities" in remark for remark in read.verify())


def test_a_finished_build_is_not_done_again_and_a_new_approach_is_added(built, pristine, tmp_path, monkeypatch):
    out = tmp_path / "out"
    settings_ = {"seed": 5, "workers": 1, "size": SIZE, "ratios": RATIOS}
    build(pristine, out, ("self_blend",), **settings_)
    before = content(out)
    done = []
    monkeypatch.setattr(
        "fairfd.data.assembly.run.forge", lambda job: done.append(tuple(job.forgers)) or forging.forge(job)
    )
    monkeypatch.setattr("fairfd.data.assembly.run.prepare", lambda _: pytest.fail("prepared again"))
    build(pristine, out, ("self_blend",), **settings_)
    assert done == []
    assert content(out) == before
    build(pristine, out, ("self_blend", "region_edit"), **settings_)
    assert set(done) == {("region_edit",)}
    first, second = content(built[1]), content(out)
    assert all(first[name] == digest for name, digest in second.items() if name.startswith("region_edit"))


def test_an_interrupted_build_resumes_to_the_same_bytes(built, pristine, tmp_path, monkeypatch):
    out = tmp_path / "out"
    settings_ = {"seed": 5, "workers": 1, "size": SIZE, "ratios": RATIOS}
    calls = []

    def interrupted(job):
        calls.append(job.image)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forging.forge(job)

    with monkeypatch.context() as patch:
        patch.setattr("fairfd.data.assembly.run.forge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(pristine, out, APPROACHES, **settings_)
    assert not (out / "manifest.csv").exists()
    # A crash in the middle of a line, a damaged image, and a lost one.
    with (out / "build.jsonl").open("a") as journal:
        journal.write('{"key": "self_bl')
    swaps = sorted((out / "landmark_swap").rglob("*.png"))
    swaps[0].write_bytes(b"damaged")
    swaps[1].unlink()
    build(pristine, out, APPROACHES, **settings_)
    assert content(out) == content(built[1])


def test_a_folder_with_other_things_or_another_build_is_refused(pristine, tmp_path):
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no build"):
        build(pristine, tmp_path, ("self_blend",), workers=1, size=SIZE)
    out = tmp_path / "out"
    build(pristine, out, ("self_blend",), workers=1, size=SIZE)
    with pytest.raises(UserError, match="size was 40 and is now 48"):
        build(pristine, out, ("self_blend",), workers=1, size=48)
    with pytest.raises(UserError, match="already holds a build"):
        build(pristine, out, ("self_blend",), workers=1, size=SIZE, resume=False)
    fewer = Manifest(pristine.root, pristine.samples[2:])
    with pytest.raises(UserError, match="other pristine images"):
        build(fewer, out, ("self_blend",), workers=1, size=SIZE)


def test_jpeg_output_uses_one_quality_for_reals_and_fakes(pristine, tmp_path):
    manifest = build(pristine, tmp_path / "out", ("gan_upsample_sim",), workers=1, size=SIZE, format="jpg", quality=80)
    tables = set()
    for sample in manifest:
        with Image.open(manifest.path(sample)) as image:
            assert image.format == "JPEG"
            tables.add(json.dumps({k: list(v) for k, v in image.quantization.items()}))
    assert len(tables) == 1
    assert not any("shortcut" in line for line in manifest.verify())


@dataclass(frozen=True)
class Picky:
    """Skips the faces of some persons."""

    name: ClassVar[str] = "picky"
    needs_landmarks: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    skips: float = 0.0

    def __call__(self, base, driving, base_lm, driving_lm, rng):  # noqa: ARG002  # the protocol's arguments
        if rng.random() < self.skips:
            raise SkippedFaceError("not in the mood")
        return ForgeResult(1 - base)


def test_too_many_skipped_faces_stop_the_build_with_counts_per_group(pristine, tmp_path):
    with pytest.raises(
        UserError, match=r"approach 'p' skipped too many faces: A \d/8, B \d/8.*not in the mood"
    ) as error:
        build(pristine, tmp_path / "out", {"p": Picky(0.5)}, workers=1, size=SIZE)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "manifest.csv").exists()
    listed = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert listed[0] == "approach,image,reason"
    assert all(line.startswith("p,") and line.endswith("not in the mood") for line in listed[1:])


def test_allowed_skips_leave_a_face_out_of_every_row_and_keep_the_cells_equal(pristine, tmp_path):
    forgers = {"p": Picky(0.3), "gan_upsample_sim": create_forger("gan_upsample_sim")}
    manifest = build(pristine, tmp_path / "out", forgers, workers=1, size=SIZE, allow_skips=True)
    assert len(set(manifest.counts().values())) == 1
    assert len(manifest) < 3 * len(pristine)
    bases = {a: {s.image.split("/", 1)[1] for s in manifest if s.approach == a} for a in manifest.approaches()}
    assert bases["real"] == bases["p"] == bases["gan_upsample_sim"]
    assert json.loads((tmp_path / "out" / "build.json").read_text())["skipped"]["p"] > 0


def test_unreadable_images_are_collected_and_only_left_out_when_asked(tmp_path):
    folder = tmp_path / "faces"
    write_drawn_faces(folder, persons=3, images=2, size=SIZE)
    broken = sorted(folder.rglob("*.png"))[0]
    broken.write_bytes(b"not an image")
    manifest = scan(folder)
    with pytest.raises(UserError, match="1 unreadable images") as error:
        build(manifest, tmp_path / "out", ("self_blend",), workers=1, size=SIZE)
    assert broken.name in str(error.value)
    fine = build(manifest, tmp_path / "out", ("self_blend",), workers=1, size=SIZE, skip_bad=True, allow_skips=True)
    assert len(set(fine.counts().values())) == 1
    assert broken.name in (tmp_path / "out" / "skipped.csv").read_text()


def test_a_build_that_never_had_an_image_leaves_no_folder(tmp_path):
    write_drawn_faces(tmp_path / "in", persons=2, images=1, size=SIZE)
    manifest = scan(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="unreadable images"):
        build(manifest, tmp_path / "out", ("self_blend",), workers=1, size=SIZE)
    for path in (tmp_path / "in").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="images are missing"):
        build(manifest, tmp_path / "out", ("self_blend",), workers=1, size=SIZE)
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_build_in_one_folder(pristine, tmp_path):
    out = tmp_path / "out"
    build(pristine, out, ("self_blend",), workers=1, size=SIZE)
    before = content(out)
    # As another living process on this machine would leave it: the parent of this one.
    (out / "run.lock").write_text(f"{os.getppid()}\n{platform.node()}\n")
    with pytest.raises(RunLocked, match="works on this run"):
        build(pristine, out, ("self_blend", "region_edit"), workers=1, size=SIZE)
    (out / "run.lock").unlink()
    assert content(out) == before


def test_photographs_are_cropped_and_refused_otherwise(tmp_path):
    face = read_image(embedded_pictures()["astronaut"])[:300, 60:400]
    for name in ("A1", "A2"):
        write_image(tmp_path / f"photos/{name}.png", face if name == "A1" else face[:, ::-1].copy())
    with pytest.warns(UserWarning, match="one group"), pytest.warns(UserWarning, match="own person"):
        manifest = scan(tmp_path / "photos", "plain", group="all")
    built = build(manifest, tmp_path / "out", ("landmark_swap",), workers=1, size=96, crop=True)
    assert len(built) == 4
    assert {json.loads(s.meta)["landmarks"] for s in built} == {"face finder"}
    wide = Manifest(manifest.root, (replace(manifest.samples[0], image="wide.png"), manifest.samples[1]))
    write_image(tmp_path / "photos/wide.png", np.zeros((40, 90, 3), np.float32))
    with pytest.raises(UserError, match=r"skipped too many faces.*90x40 is no face crop \(crop the faces\)"):
        build(wide, tmp_path / "no", ("landmark_swap",), workers=1, size=96)


def test_finished_forgeries_of_another_tool_are_taken_in_by_name(pristine, tmp_path):
    for sample in pristine:
        write_image(tmp_path / "tool" / sample.image, 1 - read_image(pristine.path(sample)))
    approaches = (f"SomeTool=finished_folder:folder={tmp_path / 'tool'}",)
    manifest = build(pristine, tmp_path / "out", approaches, workers=1, size=SIZE)
    assert manifest.approaches() == (REAL, "SomeTool")
    for sample in manifest:
        if sample.label:
            real = read_image(manifest.root / sample.image.replace("SomeTool", REAL))
            assert np.abs(read_image(manifest.path(sample)) - (1 - real)).max() < 2.1 / 255


def test_finished_forgeries_get_the_frame_of_their_own_base(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for i, shape in enumerate(((40, 50), (50, 40))):
        image = rng.random((*shape, 3)).astype(np.float32)
        write_image(tmp_path / f"faces/{i}.png", image)
        write_image(tmp_path / f"tool/{i}.png", 1 - image)
        samples.append(Sample(f"{i}.png", f"p{i}", "A"))
    manifest = Manifest(tmp_path.resolve() / "faces", tuple(samples))
    tool = (f"t=finished_folder:folder={tmp_path / 'tool'}",)
    built = build(manifest, tmp_path / "out", tool, workers=1, size=SIZE, balance="none")
    for sample in built:
        if sample.label:
            real = read_image(built.root / sample.image.replace("t/", "real/", 1))
            assert np.abs(read_image(built.path(sample)) - (1 - real)).max() < 2.1 / 255


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"approaches": ()}, "give at least one"),
        ({"approaches": ("self_blend", "self_blend")}, "self_blend is given twice"),
        ({"approaches": {"masks": Picky()}}, "masks"),
        ({"approaches": ("no_such",)}, "'no_such' is not one of"),
        ({"size": 8}, "size 8: images of faces have 16"),
        ({"quality": 0}, "quality 0"),
    ],
)
def test_bad_settings_are_one_line_errors_before_any_work(pristine, tmp_path, changes, message):
    arguments = {"approaches": ("self_blend",), "workers": 1, "size": SIZE} | changes
    with pytest.raises(UserError, match=message):
        build(pristine, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_bad_manifests_are_refused_before_any_work(pristine, tmp_path):
    def attempt(*samples: Sample, **settings_: object) -> None:
        build(Manifest(pristine.root, samples), tmp_path / "out", ("self_blend",), workers=1, size=SIZE, **settings_)

    first, *others = pristine.samples
    with pytest.raises(UserError, match="identities in two groups: A/A000"):
        attempt(replace(first, group="B"), *others)
    with pytest.raises(UserError, match="have no identity"):
        attempt(replace(first, identity=""), *others)
    with pytest.raises(UserError, match="have no group"):
        attempt(replace(first, group=""), *others)
    with pytest.raises(UserError, match="group 'A' has one identity"):
        attempt(*(s for s in pristine if s.group != "A" or s.identity.endswith("A000")), balance="none")
    with pytest.raises(UserError, match="too few for the splits"):
        attempt(*pristine.samples, ratios={"a": 0.98, "b": 0.01, "c": 0.01})


def test_equal_file_names_do_not_collide(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for i, folder in enumerate(("x", "y", "z")):
        write_image(tmp_path / folder / "1.png", rng.random((SIZE, SIZE, 3)).astype(np.float32))
        samples.append(Sample(f"{folder}/1.png", "p/q" if i < 2 else "p q", "A"))
    manifest = Manifest(tmp_path.resolve(), tuple(samples))
    built = build(manifest, tmp_path / "out", ("gan_upsample_sim",), workers=1, size=SIZE, balance="none")
    assert len({s.image.lower() for s in built}) == 6


@given(count=st.integers(2, 12), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_derangements_are_permutations_without_fixed_points(count, seed):
    order = derangement(count, np.random.default_rng(seed))
    assert sorted(order) == list(range(count))
    assert all(i != j for i, j in enumerate(order))


def test_derangements_are_uniform():
    rng = np.random.default_rng(0)
    counts = Counter(tuple(derangement(4, rng)) for _ in range(1800))
    assert len(counts) == 9
    assert all(abs(count - 200) < 60 for count in counts.values())
    with pytest.raises(ValueError, match="no derangement"):
        derangement(1, rng)


def test_generators_depend_on_seed_and_names_only():
    assert seeded(1, "a", "b").random() == seeded(1, "a", "b").random()
    others = ((1, "a", "b"), (2, "a", "b"), (1, "ab"), (1, "a", "c"), (1, "c", "b"))
    assert len({seeded(*names).random() for names in others}) == len(others)


def test_pairing_ignores_the_order_of_rows(pristine):
    partners = partner_map(pristine, 3)
    assert partner_map(tuple(reversed(pristine.samples)), 3) == partners
    driving = driving_images(pristine, partners, 3)
    assert driving_images(tuple(reversed(pristine.samples)), partners, 3) == driving


def test_journal_entries_count_only_with_the_same_recipe_and_an_intact_file(tmp_path):
    file = tmp_path / "x.bin"
    file.write_bytes(b"1")
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add("x", "recipe", {"sha256": file_sha256(file), "skipped": ""})
        journal.add("y", "recipe", {"sha256": "", "skipped": "reason"})
    read = Journal(tmp_path / "j.jsonl")
    assert read.find("x", "recipe", file) is not None
    assert read.find("x", "other", file) is None
    assert read.find("z", "recipe", file) is None
    assert read.find("y", "recipe", tmp_path / "absent") == {"sha256": "", "skipped": "reason"}
    file.write_bytes(b"2")
    assert read.find("x", "recipe", file) is None


def test_forgers_that_cannot_travel_are_named(pristine, tmp_path):
    class Local(Picky):
        pass

    with pytest.raises(UserError, match="define them in a module, or use workers=1"):
        build(pristine, tmp_path / "out", {"p": Local()}, workers=2, size=SIZE)
    assert list(work_off(abs, [-1, 2], None)) == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_workers_end_with_a_parent_that_was_killed():
    # The parent is a process that starts this worker as `crew` does and dies without a word.
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        worker = multiprocessing.get_context("fork").Process(target=end_with_parent)
        worker.start()
        os.write(writer, str(worker.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(writer)
    os.read(reader, 20)
    # The worker holds the other end of the pipe until it ends: nothing more is read, and nothing waits for ever.
    assert select.select([reader], [], [], 60)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_the_workers_are_started(number):
    def stop(*_):
        raise KeyboardInterrupt

    def start_workers():
        with undisturbed():
            signal.raise_signal(number)
            done.append("all of the block")

    done = []
    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            start_workers()
        assert done
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
