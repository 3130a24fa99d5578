"""The command line end to end: examples as printed, bad input, exit codes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multreid.cli import app
from multreid.data.synthetic import two_modality_features, write_people
from tenfold.cli import examples_of, run

PACKAGE = Path(__file__).parents[1]


def call(line: str) -> int:
    """Run a command line in this process; its exit code."""
    with pytest.raises(SystemExit) as left:
        run(app, shlex.split(line)[1:])
    return left.value.code or 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with people, feature matrices, and a trained run."""
    root = tmp_path_factory.mktemp("place")
    write_people(root / "people", 6, 4, seed=0, look_alikes=False)
    a, b, _, _ = two_modality_features(0, identities=10, per_identity=12, dimension=16)
    np.save(root / "a.npy", a)
    np.save(root / "b.npy", b)
    return root


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("verb", ["train", "associate", "search", "eval", "demo"])
def test_examples_in_the_help_run_as_printed(verb, here, capsys) -> None:
    examples = examples_of(app)[verb]
    assert examples
    for line in examples:
        assert call(line) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert "warning" not in err
    if verb == "associate":
        with np.load(here / "labels.npz") as arrays:
            assert arrays["cross_a"].shape == (120,)
            np.testing.assert_allclose(arrays["soft_cross_a"].sum(1), 1, atol=1e-4)
        assert (here / "labels.csv").read_text().startswith("modality,row,cluster,label,cross_label\na,0,")
        assert re.search(r"transport: \d+ iterations", out)
    if verb == "search":
        assert (here / "sheet.png").stat().st_size > 1000
        assert "24 features were at hand" in out
    if verb == "eval":
        assert 0 <= json.loads((here / "scores.json").read_text())["rank1"] <= 1
    if verb == "demo":
        for name in ("association.png", "labels.png", "search.png"):
            assert (here / "multreid-demo" / name).exists()
        assert "pair F1" in out
        assert "% mAP" in out


def test_version_info_and_help_need_no_torch() -> None:
    code = "import sys\nfrom multreid.cli import app\nfrom tenfold.cli import run\ntry: run(app, ['train', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "--stage-two" in ran.stdout


def test_module_runs_and_leaves_with_two_on_bad_input(tmp_path) -> None:
    command = [sys.executable, "-m", "multreid", "associat", "none.npy", "none.npy", "--out", "labels.npz"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith("multreid: ")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


BAD = {
    "associate a.npy nan.npy --out x.npz": r"nan\.npy: 1 row \(3\) is NaN or infinite",
    "associate a.npy wide.npy --out x.npz": r"a\.npy has 16 columns and wide\.npy has 17",
    "associate a.npy empty.npy --out x.npz": r"empty\.npy: holds no instances",
    "associate a.npy flat.npy --out x.npz": r"flat\.npy: expected a real matrix",
    "associate a.npy zero.npy --out x.npz": r"zero\.npy: 2 rows .* all zero",
    "associate a.npy text.npy --out x.npz": r"text\.npy: cannot read",
    "associate none.npy none.npy --out x.npz": r"none\.npy: cannot read \(No such file",
    "associate a.npy b.npy --k1 0 --out x.npz": r"--k1",
    "associate a.npy b.npy --tolerance -1 --out x.npz": r"--tolerance",
    "associate table.csv b.npy --out table.csv": r"--out table\.csv: is an input",
    "associate a.npy b.npy --out people.npz/x.npz": r"people\.npz",
    "associate a.npy b.npy --out x.txt": r"--out x\.txt: choose a name ending in",
    "associate a.npy b.npy --min-samples 99 --out x.npz": r"a\.npy: no cluster at eps 0\.6 and min_samples 99",
    "associate a.npy b.npy --alpha 3 --out x.npz": r"--alpha",
    "associate a.npy b.npy --method best --out x.npz": r"best",
    "associate a.npy b.npy --out a.npy/x.npz": r"a\.npy",
    "train --visible nowhere --infrared people/infrared --out x": r"nowhere: no such file or folder",
    "train --visible hollow --infrared people/infrared --out x": r"hollow: holds no picture",
    "train --visible cut --infrared people/infrared --preset tiny --out x": r"cut/0001/a\.png: damaged or truncated",
    "train --dataset sysu --root hollow --out x": r"train_id\.txt: no such file",
    "train --visible people/visible --infrared people/infrared --preset huge --out x": r"--preset 'huge'",
    "search nobody.png --gallery people/visible --model trained --out x.png": r"nobody\.png",
    "search people/infrared --gallery hollow --model trained --out x.png": r"hollow: holds no picture",
    "search people/infrared --gallery people/visible --model hollow --out x.png": r"hollow: holds no model",
    "search people/infrared --gallery people/visible --model trained --out x.txt": r"--out x\.txt: name a picture",
    "search people/infrared --gallery people/visible --model trained --top 0 --out x.png": r"--top",
    "search people/infrared/0000/c3_000.png --gallery people/visible --model trained --out people/infrared/0000/c3_000.png": r"is an input",
    "search people/infrared --gallery people/visible --model trained --out people/visible/0000/c1_000.png": r"is an input",
    "search people/infrared --gallery cut --model trained --cache kept --out x.png": r"cut: no picture could be used: .*cut/0001/a\.png: damaged",
    "search cut --gallery people/visible --model trained --out x.png": r"cut/0001/a\.png: damaged",
    "train --visible people/visible --infrared people/infrared --height 0 --out x": r"--height",
    "train --visible people/visible --infrared people/infrared --preset tiny --width 99999 --out x": r"width 99999",
    "train --visible people/visible --infrared people/infrared --preset tiny --eps 1 --out x": r"--eps",
    "train --dataset regdb --root hollow --trial 11 --out x": r"--trial",
    "eval hollow --visible people/visible --infrared people/infrared": r"hollow: holds no model",
    "eval trained --visible loose --infrared people/infrared": r"loose: scores need identities",
    "eval trained --visible strangers --infrared people/infrared": r"no query has a match",
    "eval trained --dataset regdb": r"--root: needed",
    "demo --out people": r"--out people: already there",
    "train --visible people/visible --infrared people/infrared --out x extra": r"extra",
    "associate a.npy b.npy 0.5 --out x.npz": r"0\.5",
    "demo --out x --device toaster": r"--device toaster",
}


@pytest.fixture(scope="module")
def bad_files(place) -> None:
    from multreid.models.networks import TwoStreamResNet

    a = np.load(place / "a.npy")
    spoilt = a.copy()
    spoilt[3, 2] = np.nan
    zero = a.copy()
    zero[:2] = 0
    arrays = {"nan": spoilt, "wide": np.ones((20, 17)), "empty": a[:0], "flat": a[0], "zero": zero}
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    (place / "text.npy").write_text("no numbers here")
    (place / "table.csv").write_bytes((place / "a.npy").read_bytes())
    (place / "people.npz").write_text("in the way")
    (place / "hollow").mkdir()
    picture = next((place / "people" / "visible").rglob("*.png")).read_bytes()
    for name, data in {
        "cut/0001/a.png": picture[:200],
        "loose/a.png": picture,
        "strangers/0999/a.png": picture,
    }.items():
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(data)
    TwoStreamResNet("small", 64, 32).save_pretrained(place / "trained")


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_code_two(line, here, capsys) -> None:
    assert call(f"multreid {line}") == 2
    err = capsys.readouterr().err
    assert re.search(BAD[line], err), err
    assert err.count("\n") == 1
    assert not list(here.glob("x.*"))
    assert not list(here.glob("kept*"))
    assert not (here / "x").exists()


@pytest.mark.usefixtures("bad_files")
def test_unreadable_pictures_of_folders_are_named_and_passed_over(here, capsys) -> None:
    source = sorted((here / "people" / "infrared").rglob("*.png"))[:3]
    for name in ("asked", "kept"):
        (here / "mixed" / name).mkdir(parents=True)
        for number, path in enumerate(source):
            content = path.read_bytes()
            (here / "mixed" / name / f"{number}.png").write_bytes(content[:150] if number == 1 else content)
    line = "multreid search mixed/asked --gallery mixed/kept --gallery-modality infrared --model trained --top 9 --out mixed/sheet.png"
    for at_hand in (0, 2):
        assert call(line) == 3
        out, err = capsys.readouterr()
        assert f"searched 2 pictures ({at_hand} features were at hand) for 2 ->" in out
        assert [each.partition(": damaged")[0] for each in err.splitlines()] == [
            "multreid: skipped: mixed/asked/1.png",
            "multreid: skipped: mixed/kept/1.png",
        ]
    (here / "mixed" / "kept" / "1.png").write_bytes(source[1].read_bytes())
    assert call(line) == 3
    assert "searched 3 pictures (2 features were at hand)" in capsys.readouterr().out


@pytest.mark.usefixtures("bad_files")
def test_odd_pictures_are_answered_too(here) -> None:
    from PIL import Image

    folder = here / "odd"
    folder.mkdir()
    Image.new("L", (1, 1), 128).save(folder / "pixel.png")
    Image.new("P", (30, 20)).save(folder / "palette.png")
    Image.new("RGBA", (5, 90), (9, 99, 9, 9)).save(folder / "alpha.png")
    assert call("multreid search odd --gallery people/visible --model trained --out odd.png") == 0


@pytest.mark.parametrize("suffix", [".parquet"])
def test_parquet_is_written_or_refused_in_one_line(suffix, here, capsys) -> None:
    code = call(f"multreid associate a.npy b.npy --out table{suffix}")
    try:
        import pyarrow.parquet
    except ImportError:
        assert code == 2
        assert "needs pyarrow" in capsys.readouterr().err
        return
    assert code == 0
    assert pyarrow.parquet.read_table(here / f"table{suffix}").num_rows == 240


@pytest.mark.usefixtures("here")
def test_python_example_of_the_readme_runs() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})  # our own text


def test_public_names_are_importable_and_documented() -> None:
    import multreid

    for name in multreid.__all__:
        assert (getattr(multreid, name).__doc__ or "").strip(), name
    assert multreid.__version__ == "0.1.0"
