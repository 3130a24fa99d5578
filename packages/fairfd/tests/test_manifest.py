"""The manifest: reading, writing, balancing, splitting, and the checks that fairness numbers rest on."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairfd.data.manifest.manifest import COLUMNS, Manifest, Sample, file_sha256
from tenfold.errors import UserError
from tenfold.images import write_image

HEADER = "image,identity,group,approach,label\n"


def people(counts: dict[str, int], images: int = 3, approaches: tuple[str, ...] = ("real",)) -> tuple[Sample, ...]:
    """`counts` persons per group with `images` each, under every approach."""
    return tuple(
        Sample(f"{approach}/{group}/{person}/{image}.png", f"{group}{person}", group, approach, int(approach != "real"))
        for approach in approaches
        for group, count in counts.items()
        for person in range(count)
        for image in range(images)
    )


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


text = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8)


@given(values=st.lists(st.tuples(text, text, text), min_size=1, max_size=4), suffix=st.sampled_from([".csv", ".jsonl"]))
@settings(max_examples=25, deadline=None)
def test_a_written_manifest_reads_back_equal(tmp_path_factory, values, suffix):
    samples = tuple(
        Sample(f"{i}.png", identity, group, "real" if i % 2 else "swap", (i + 1) % 2, meta=meta)
        for i, (identity, group, meta) in enumerate(values)
    )
    folder = tmp_path_factory.mktemp("manifest")
    path = folder / f"m{suffix}"
    Manifest(folder.resolve(), samples).write(path)
    assert Manifest.read(path).samples == samples


def test_fields_with_commas_quotes_and_line_breaks_survive_csv(tmp_path):
    sample = Sample("a.png", 'Doe, "J"', "x\ny", meta='{"note": "a, b"}')
    Manifest(tmp_path, (sample,)).write(tmp_path / "m.csv")
    assert Manifest.read(tmp_path / "m.csv").samples == (sample,)


def test_paths_are_written_relative_to_the_manifest(tmp_path):
    images, elsewhere = tmp_path / "images", tmp_path / "lists" / "here"
    sample = Sample("a/1.png", "p", "A", landmarks="a/1.npy", driving_image="a/2.png")
    manifest = Manifest(images.resolve(), (sample,))
    manifest.write(elsewhere / "m.csv")
    read = Manifest.read(elsewhere / "m.csv")
    (moved,) = read
    assert moved.image == "../../images/a/1.png"
    assert moved.mask == ""
    assert read.path(moved).resolve() == manifest.path(sample).resolve()


def test_unknown_columns_are_kept_in_meta_and_can_be_grouped_by(tmp_path):
    path = written(tmp_path, "image,group,approach,label,gender\na.png,A,real,0,f\nb.png,B,real,0.0,m\n")
    manifest = Manifest.read(path)
    assert json.loads(manifest.samples[0].meta) == {"gender": "f"}
    assert manifest.samples[1].label == 0
    assert manifest.group_by("group", "gender").groups() == ("A / f", "B / m")
    with pytest.raises(UserError, match="no value for attribute 'age'"):
        manifest.group_by("age")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,group\na.png,A\n", "column approach, label is missing"),
        (HEADER + "a.png,p,A,real,1\n", "disagree in rows 1"),
        (HEADER + "a.png,p,A,real,0\nb.png,p,A,swap,0\n", "disagree in rows 2"),
        (HEADER + "a.png,p,A,real,two\n", "label is not 0 or 1 in rows 1"),
        (HEADER + "a.png,p,A\n", "rows 1 have more or fewer fields"),
        (HEADER + "a.png,p,A,real,0,extra\n", "rows 1 have more or fewer fields"),
    ],
)
def test_bad_manifests_are_one_line_errors(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        Manifest.read(written(tmp_path, content))
    assert "\n" not in str(error.value)
    assert "manifest.csv" in str(error.value)


def test_disagreeing_labels_name_the_first_five_rows(tmp_path):
    rows = "".join(f"{i}.png,p,A,real,1\n" for i in range(7))
    with pytest.raises(UserError, match="rows 1, 2, 3, 4, 5 and 2 more"):
        Manifest.read(written(tmp_path, HEADER + rows))


def test_a_manifest_that_is_not_text_is_an_error(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(UserError, match="not UTF-8"):
        Manifest.read(path)
    with pytest.raises(UserError, match="cannot read"):
        Manifest.read(tmp_path / "absent.csv")


def test_a_broken_json_line_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a", "group": "A", "approach": "real", "label": 0}\n{"image": \n')
    with pytest.raises(UserError, match="row 2: is not valid JSON"):
        Manifest.read(path)
    path.write_text('{"image": "a"}\n')
    with pytest.raises(UserError, match="row 1 needs the keys"):
        Manifest.read(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path.resolve(), people({"A": 1}))
    manifest.write(tmp_path / "m.csv")
    before = (tmp_path / "m.csv").read_bytes()
    monkeypatch.setattr("fairfd.data.manifest.manifest.csv.DictWriter.writerows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        manifest.write(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]


def test_subset_names_what_exists_when_nothing_is_left():
    manifest = Manifest(Path("/"), people({"A": 2}, approaches=("real", "swap")))
    assert len(manifest.subset(approach="swap")) == 6
    assert len(manifest.subset(approach=("real", "swap"))) == 12
    with pytest.raises(UserError, match="approaches: real, swap"):
        manifest.subset(split="test")


def test_balancing_by_identities_makes_all_cells_equal_and_keeps_every_person():
    uneven = people({"A": 9, "B": 4}, 3) + tuple(Sample(f"x/{i}.png", "B0", "B") for i in range(5))
    balanced = Manifest(Path("/"), uneven).balance("identities", seed=3)
    persons = defaultdict(set)
    for sample in balanced:
        persons[sample.group].add(sample.identity)
    assert {group: len(found) for group, found in persons.items()} == {"A": 4, "B": 4}
    assert len(set(balanced.counts().values())) == 1


def test_balancing_takes_the_same_bases_for_every_approach_and_ignores_row_order():
    samples = people({"A": 7, "B": 3}, 4, ("real", "swap", "edit"))
    manifest = Manifest(Path("/"), samples)
    for by in ("identities", "images"):
        balanced = manifest.balance(by, seed=1)
        bases = {
            approach: {s.image.split("/", 1)[1] for s in balanced if s.approach == approach}
            for approach in balanced.approaches()
        }
        assert bases["real"] == bases["swap"] == bases["edit"]
        shuffled = Manifest(Path("/"), tuple(samples[i] for i in np.random.default_rng(0).permutation(len(samples))))
        assert set(shuffled.balance(by, seed=1).samples) == set(balanced.samples)
        assert set(manifest.balance(by, seed=2).samples) != set(balanced.samples)
    assert manifest.balance("none") is manifest


@given(
    sizes=st.lists(st.integers(4, 30), min_size=1, max_size=3),
    ratios=st.lists(st.floats(0.15, 1), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_splits_are_disjoint_in_persons_and_keep_the_ratios_inside_each_group(sizes, ratios, seed):
    counts = {chr(65 + i): size for i, size in enumerate(sizes)}
    shares = dict(zip(("train", "val", "test"), ratios, strict=False))
    manifest = Manifest(Path("/"), people(counts, 2))
    if min(sizes) * min(ratios) / sum(ratios) < 1:
        # A share below one person may round to none, which is refused.
        return
    split = manifest.split(shares, seed)
    home = defaultdict(set)
    for sample in split:
        home[sample.identity].add(sample.split)
    assert all(len(splits) == 1 for splits in home.values())
    for group, size in counts.items():
        found = Counter(next(iter(s)) for person, s in home.items() if person.startswith(group))
        for name, ratio in shares.items():
            assert abs(found[name] - size * ratio / sum(ratios)) < 1
    assert [s.image for s in split] == [s.image for s in manifest]


def test_bad_splits_are_refused():
    manifest = Manifest(Path("/"), people({"A": 2}))
    with pytest.raises(UserError, match="must be positive"):
        manifest.split({"train": 0.0, "test": 1.0})
    with pytest.raises(UserError, match="too few for the splits"):
        manifest.split({"train": 0.3, "val": 0.3, "test": 0.4})
    with pytest.raises(UserError, match="rows 1 have no identity"):
        Manifest(Path("/"), (Sample("a.png", "", "A"),)).split({"train": 1.0})
    swapped = tuple(replace(s, approach="swap", label=1, source_identity="A1") for s in people({"A": 2})[:3])
    with pytest.raises(UserError, match="split the pristine images before building"):
        Manifest(Path("/"), people({"A": 2}) + swapped).split({"train": 0.5, "test": 0.5})


def at(**changes: object) -> tuple[Sample, ...]:
    """Two groups of two persons under two approaches, with the last sample changed."""
    samples = people({"A": 2, "B": 2}, 1, ("real", "swap"))
    return (*samples[:-1], replace(samples[-1], **changes))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ((), "no rows"),
        (at(label=0), "disagree in rows 8"),
        (at(group=""), "rows 8 have no group"),
        (at(image="swap/A/0/0.png"), "listed more than once: swap/A/0/0.png"),
        (at(identity="A0"), "identities in two groups: A0; fix the labels or drop them"),
        (at(split="test"), "identities in two splits: B1"),
        (at(source_identity="A0"), "donor of another group or split in rows 8"),
        (at()[:-2], "empty cells: swap x B"),
    ],
)
def test_verify_names_the_rows_or_persons_at_fault(samples, message):
    with pytest.raises(UserError, match=message) as error:
        Manifest(Path("/"), samples).verify(check_files=False)
    assert "\n" not in str(error.value)


def test_verify_accepts_duplicates_when_asked_and_donors_of_the_same_group():
    samples = at(source_identity="B0")
    Manifest(Path("/"), samples).verify(check_files=False)
    Manifest(Path("/"), (*samples, samples[0])).verify(check_files=False, allow_duplicates=True)


def test_verify_warns_of_small_groups_with_the_null_floor_and_of_unequal_cells():
    samples = people({"A": 4, "B": 4}, 1, ("real", "swap"))
    remarks = Manifest(Path("/"), samples[:-1]).verify(check_files=False)
    assert any("group 'A' has 4 identities" in line and "AADPD near 0.31" in line for line in remarks)
    assert any("swap 3-4" in line for line in remarks)
    assert Manifest(Path("/"), samples).verify(check_files=False, min_identities=4) == ()


def test_verify_says_when_identities_are_unknown():
    samples = tuple(replace(s, identity="") for s in people({"A": 2, "B": 2}))
    assert any("independent images" in line for line in Manifest(Path("/"), samples).verify(check_files=False))


def test_verify_finds_missing_and_altered_files(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, np.zeros((4, 4, 3), np.float32))
    good = Sample("a.png", "p", "A", sha256=file_sha256(path))
    manifest = Manifest(tmp_path.resolve(), (good,))
    manifest.verify()
    with pytest.raises(UserError, match=r"1 images are missing: b\.png"):
        Manifest(tmp_path.resolve(), (good, Sample("b.png", "q", "A"))).verify()
    write_image(path, np.ones((4, 4, 3), np.float32))
    with pytest.raises(UserError, match="differ from their recorded sha256"):
        manifest.verify()


def test_verify_reports_codec_shortcuts(tmp_path):
    pixels = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    samples = []
    for i in range(4):
        write_image(tmp_path / f"{i}.jpg", pixels)
        write_image(tmp_path / f"{i}.png", pixels)
        samples += [Sample(f"{i}.jpg", f"p{i}", "A"), Sample(f"{i}.png", f"p{i}", "A", "swap", 1)]
    remarks = Manifest(tmp_path.resolve(), tuple(samples)).verify()
    assert any("codec/size shortcut: format" in line for line in remarks)


def test_the_digest_names_the_rows():
    manifest = Manifest(Path("/a"), people({"A": 2}))
    assert manifest.digest() == Manifest(Path("/b"), people({"A": 2})).digest()
    assert manifest.digest() != Manifest(Path("/a"), people({"A": 3})).digest()
    assert COLUMNS[0] == "image"
