"""The command line in process: every example, files kept as they are, mistakes in one line."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from PIL import Image
from safetensors.torch import load_file, save_file

import tadsr
from tadsr import demo as demonstration
from tadsr.cli import app
from tadsr.data.layouts import read_set
from tadsr.data.transforms import to_eight_bits
from tadsr.evaluation.protocols import bicubic, evaluate, load_pair
from tadsr.models import pretrained as converters
from tadsr.models.checkpoints import WEIGHTS, save_pipeline
from tadsr.models.compact import CompactDenoiser
from tadsr.models.networks import ResShiftUNet
from tadsr.pipeline import pipeline as pipeline_module
from tadsr.pipeline.pipeline import TADSRPipeline
from tenfold import UserError
from tenfold.cli import examples_of, run
from tenfold.images import read_picture, write_image


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the examples of the help run."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for index in range(2):
        small = rng.random((13, 16, 3)).astype(np.float32)
        smooth = np.asarray(Image.fromarray((small * 255).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC))
        write_image(folder / f"photos/{index}.png", smooth.astype(np.float32) / 255)
    write_image(folder / "photo.jpg", smooth[:40, :32].astype(np.float32) / 255)
    return folder


def call(*arguments):
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as left:
        run(app, [str(each) for each in arguments])
    return left.value.code


LIGHT = ("upscale", "train-teacher", "distill", "eval", "compare", "degrade", "demo")


def test_the_examples_of_the_help_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(demonstration, "PICTURES", {"chelsea": (40, 120)})
    examples = examples_of(app)
    for verb in LIGHT:
        for example in examples[verb]:
            if "--tile" not in example:
                assert call(*shlex.split(example)[1:]) == 0, (example, capsys.readouterr().err)
    assert Image.open("upscaled/photo.png").size == (128, 160)
    assert Path("sheet.png").exists()
    assert json.loads(Path("scores.json").read_text())["means"]["bicubic"]["psnr_y"] > 10
    assert Path("runs/student/model/model_index.json").exists()
    assert Path("tadsr-demo/comparison.png").exists()
    assert "upscaled 1 picture" in capsys.readouterr().out


def test_alpha_and_sixteen_bits_are_kept(tmp_path):
    rng = np.random.default_rng(1)
    rgb, alpha = rng.random((9, 7, 3)).astype(np.float32), np.ones((9, 7), np.float32)
    write_image(tmp_path / "deep.png", rgb, alpha=alpha, bit_depth=16)
    assert call("upscale", tmp_path / "deep.png", "-o", tmp_path / "large.png") == 0
    picture = read_picture(tmp_path / "large.png")
    assert picture.rgb.shape == (36, 28, 3)
    assert picture.bit_depth == 16
    assert picture.alpha is not None
    assert picture.alpha.min() > 0.99


def picture(path, seed=0, side=8):
    write_image(path, np.random.default_rng(seed).random((side, side, 3)).astype(np.float32))
    return path


@pytest.mark.parametrize("verb", ["upscale --tile 0 --out", "degrade"])
def test_one_rule_for_folders(tmp_path, capsys, verb):
    verb, *options = verb.split()
    photos, out = tmp_path / "photos", tmp_path / "out"
    picture(photos / "a.png")
    picture(photos / "deep/b.jpg", 1)
    (photos / "broken.png").write_bytes(b"no picture")
    assert call(verb, photos, *options, out) == 3
    output = capsys.readouterr()
    assert "2 pictures" in output.out
    assert "skipped" in output.err
    assert "broken.png" in output.err
    results = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert results == {"a.png", "deep/b.png"}
    first = (out / "a.png").read_bytes()
    assert call(verb, photos, *options, out) == 2, "results are there"
    assert call(verb, photos, *options, out, "--overwrite") == 3
    assert (out / "a.png").read_bytes() == first
    before = (photos / "a.png").read_bytes()
    for target in (photos, photos / "a.png"):
        assert call(verb, photos / "a.png", *options, target, "--overwrite") == 2
        assert "would be overwritten" in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == before
    picture(photos / "a.jpg")
    assert call(verb, photos, *options, tmp_path / "new") == 2
    assert "both would become" in capsys.readouterr().err
    assert call(verb, photos / "broken.png", *options, tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


def test_a_damaged_picture_does_not_change_how_the_others_are_degraded(tmp_path):
    for index in range(3):
        picture(tmp_path / f"photos/{index}.png", index, 32)
    assert call("degrade", tmp_path / "photos", tmp_path / "whole", "--kind", "train") == 0
    (tmp_path / "photos/1.png").write_bytes(b"")
    assert call("degrade", tmp_path / "photos", tmp_path / "rest", "--kind", "train") == 3
    assert (tmp_path / "rest/2.png").read_bytes() == (tmp_path / "whole/2.png").read_bytes()


def test_sets_are_judged_without_their_damaged_pictures(tmp_path, capsys):
    for name in "ab":
        picture(tmp_path / f"set/{name}.png", side=32)
    (tmp_path / "set/c.png").write_bytes(b"no picture")
    options = ["--model", "fidelity"]
    assert call("eval", tmp_path / "set", *options, "--json", tmp_path / "s.json") == 3
    assert json.loads((tmp_path / "s.json").read_text())["pictures"] == 2
    assert call("compare", tmp_path / "set", *options, "--out", tmp_path / "sheet.png") == 3
    assert "c.png" in capsys.readouterr().err
    for verb, option in (("eval", "--json"), ("compare", "--out")):
        assert call(verb, tmp_path / "set", *options, option, tmp_path / "set/a.png") == 2
        assert "would be overwritten" in capsys.readouterr().err
    assert call("eval", tmp_path / "set", *options, "--border", 11) == 2
    assert "border of 11" in capsys.readouterr().err


def spoil(change):
    """A change of the index or of a configuration of a saved model, as one function of the folder."""

    def spoilt(folder):
        part, key, value = change
        content = json.loads((folder / part).read_text())
        (folder / part).write_text(json.dumps(content | {key: value} if key else value))

    return spoilt


SPOILT = {
    "a module of its own": (spoil(("model_index.json", "unet", ["payload", "Network"])), None),
    "a class of its own": (spoil(("unet/config.json", "_class_name", "Network")), "expected one of CompactDenoiser"),
    "a class that is no name": (spoil(("unet/config.json", "_class_name", [])), "expected one of"),
    "another pipeline": (spoil(("model_index.json", "_class_name", "DDPMPipeline")), "no tadsr model"),
    "a list": (spoil(("unet/config.json", None, [1])), "expected an object"),
    "words for numbers": (spoil(("unet/config.json", "channels", "x")), "channels is 'x'"),
    "no width": (spoil(("unet/config.json", "channels", 0)), "channels is 0"),
    "an absurd width": (spoil(("unet/config.json", "channels", 60_000)), "do not fit|can be built"),
    "half a width": (spoil(("unet/config.json", "channels", 95.5)), "can be built"),
    "another width": (spoil(("unet/config.json", "channels", 64)), "do not fit"),
    "another factor": (spoil(("vae/config.json", "factor", 2)), "do not go together"),
    "an absurd chain": (spoil(("scheduler/scheduler_config.json", "num_train_timesteps", 10**9)), "num_train"),
    "too many steps": (spoil(("model_index.json", "steps", 16)), "its chain has 15"),
    "an odd scale": (spoil(("model_index.json", "scale", True)), "scale is True"),
    "no weights": (lambda folder: (folder / "unet" / WEIGHTS).unlink(), "no such file"),
    "cut weights": (lambda folder: (folder / "unet" / WEIGHTS).write_bytes(b"\x08" + bytes(9)), "damaged"),
    "weights of nothing": (lambda folder: save_file({"x": torch.zeros(1)}, folder / "unet" / WEIGHTS), "do not fit"),
    "weights that are none": (lambda folder: spoil_weights(folder / "unet" / WEIGHTS), "NaN"),
}


def spoil_weights(path):
    tensors = load_file(path)
    save_file({name: value * torch.nan for name, value in tensors.items()}, path)


@pytest.mark.parametrize("case", SPOILT)
def test_a_strangers_model_runs_no_code_and_is_refused_in_one_line(tmp_path, monkeypatch, case):
    folder = tmp_path / "model"
    shutil.copytree(Path(tadsr.__file__).parent / "weights/fidelity", folder)
    (tmp_path / "payload.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    change, message = SPOILT[case]
    change(folder)
    if message is None:
        assert TADSRPipeline.load(folder).config.scale == 4
    else:
        with pytest.raises(UserError, match=message) as caught:
            TADSRPipeline.load(folder)
        assert "\n" not in str(caught.value)
    assert "payload" not in sys.modules


def test_a_revision_is_for_the_hub(tmp_path, monkeypatch, capsys):
    asked = []

    def fetch(model, revision, files):
        asked.append((model, revision))
        assert "unet/config.json" in files
        return Path(tadsr.__file__).parent / "weights/fidelity"

    picture(tmp_path / "a.png", side=80)
    monkeypatch.setattr(pipeline_module, "model_folder", fetch)
    assert call("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", "o/n", "--revision", "v1") == 0
    assert call("eval", tmp_path / "a.png", "--model", "fidelity", "--model", "o/n", "--revision", "v2") == 0
    assert asked == [("o/n", "v1"), ("o/n", "v2")]
    assert call("upscale", tmp_path / "a.png", "-o", tmp_path / "c.png", "--revision", "v1") == 2
    assert "--revision is for models of the Hub" in capsys.readouterr().err


def test_help_loads_no_torch():
    script = "import sys, tadsr.cli; print(sorted({'torch', 'diffusers', 'timm', 'transformers', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 5)])
def test_any_size_grows_four_times(size):
    pipeline = TADSRPipeline.load("fidelity")
    (result,) = pipeline(np.random.default_rng(0).random((*size, 3)), output_type="np").images
    assert result.shape == (4 * size[0], 4 * size[1], 3)


def test_tiles_leave_no_seam():
    pipeline = TADSRPipeline.load("fidelity")
    low = torch.rand(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    whole = pipeline(low, tile=None, output_type="pt").images
    tiled = pipeline(low, tile=56, tile_overlap=40, output_type="pt").images
    # bf16 rounds differently for other shapes; a seam would be ten times this.
    assert (whole - tiled).abs().max() < 0.03
    assert (whole - tiled).abs().mean() < 1e-3


def test_the_same_seed_gives_the_same_picture_and_batches_are_their_pictures():
    pipeline = TADSRPipeline.load("fidelity")
    low = torch.rand(2, 3, 12, 12)
    first, second = (pipeline(low, output_type="pt").images for _ in range(2))
    assert torch.equal(first, second)
    assert pipeline(list(low), batch_size=2, output_type="pt").images.shape == (2, 3, 48, 48)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.full((3, 4, 4), torch.nan), {}, "NaN"),
        (torch.full((3, 4, 4), 2.0), {}, r"\[0, 1\]"),
        (torch.zeros(2, 4, 4), {}, "3 channels"),
        (torch.zeros(3, 4, 4), {"scale": 2}, "enlarges 4 times"),
        (torch.zeros(3, 4, 4), {"num_inference_steps": 16}, "1 to 15"),
        (torch.zeros(3, 4, 4), {"num_inference_steps": -1}, "1 to 15"),
    ],
)
def test_bad_pictures_and_options_are_named(image, options, message):
    with pytest.raises(UserError, match=message):
        TADSRPipeline.load("fidelity")(image, **options)


def broken(folder):
    folder.mkdir(exist_ok=True)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    torch.save({"a": torch.zeros(1)}, folder / "other.pth")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "upscale missing.jpg",
        "upscale empty",
        "upscale cut.png",
        "upscale photo.jpg --model nowhere/at-all",
        "upscale photo.jpg --model empty",
        "upscale photo.jpg --steps 99",
        "upscale photo.jpg --sampler euler",
        "upscale photo.jpg --tile 8 --overlap 9",
        "upscale photo.jpg --out cut.png/inside",
        "upscale photo.jpg --device cuda:7",
        "train-teacher --out run",
        "train-teacher empty --out run",
        "train-teacher photos --out run --preset huge",
        "train-teacher photos --out run --preset tiny --crop 30",
        "train-teacher photos --out run --preset tiny --crop 4000",
        "train-teacher photos --out run --preset tiny --steps 0",
        "train-teacher photos --out run --preset tiny --batch-size -1",
        "train-teacher photos --out run --preset tiny --save-every 0",
        "train-teacher photos --out run --preset tiny --ema 1",
        "train-teacher photos --out run --preset tiny --learning-rate 0",
        "train-teacher photos --out run --preset tiny --timesteps 1",
        "train-teacher photos --out run --preset tiny --min-noise-level 2",
        "train-teacher photos --out run --preset tiny --degradation faces",
        "train-teacher photos --out run --preset tiny --network swin --crop 32",
        "train-teacher photos --out cut.png --preset tiny",
        "distill teacher photos --out run --preset tiny --lambda-adv -1",
        "distill teacher photos --out run --preset tiny --logits 0",
        "distill teacher photos --out run --preset tiny --degradation faces",
        "distill empty photos --out run --preset tiny",
        "distill photos photos --out run",
        "distill teacher empty --out run --preset tiny",
        "eval missing",
        "eval photos --lpips-weights other.pth",
        "eval photos --layout imagenet-test",
        "eval photos --layout realsr",
        "compare empty",
        "degrade missing small",
        "degrade photos small --kind fog",
        "convert --unet missing.pth --vae missing.pth --out model",
        "convert --unet other.pth --vae other.pth --out model",
        "convert --unet other.pth --vae other.pth --family x8 --out model",
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(place, command, monkeypatch, capsys):
    monkeypatch.chdir(broken(place))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(place.rglob("*"))
    assert call(*shlex.split(command)) == 2
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("tadsr: ") and "warning" not in line]) == 1
    assert sorted(place.rglob("*")) == before


def test_a_distance_of_ones_own_is_among_the_measures(tmp_path):
    write_image(tmp_path / "a.png", np.random.default_rng(0).random((32, 32, 3)).astype(np.float32))

    def distance(one, other):
        return (one - other).abs().mean()

    means = evaluate(read_set(tmp_path), {"bicubic": bicubic}, with_learned=False, lpips=distance).means
    pair = load_pair(read_set(tmp_path)[0])
    assert means["bicubic"]["lpips"] == pytest.approx(float(distance(to_eight_bits(bicubic(pair.low)), pair.high)))


def test_layouts(tmp_path, capsys):
    rng = np.random.default_rng(0)
    high, low = rng.random((32, 32, 3)).astype(np.float32), rng.random((8, 8, 3)).astype(np.float32)
    for layout, pairs in {
        "imagenet-test": ("lq/a.png", "gt/a.png"),
        "celeba-test": ("lq/a.png", "hq/a.png"),
        "realsr": ("Canon/Canon_001_LR4.png", "Canon/Canon_001_HR.png"),
        "realset65": ("a.png", None),
    }.items():
        write_image(tmp_path / layout / pairs[0], low)
        if pairs[1]:
            write_image(tmp_path / layout / pairs[1], high)
        chosen = ["--layout", layout] if layout == "realset65" else []
        assert call("eval", tmp_path / layout, "--model", "fidelity", *chosen) == 0
        assert "1 picture of" in capsys.readouterr().out


def test_a_saved_pipeline_is_a_diffusers_pipeline(tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = TADSRPipeline.load("teacher")
    assert pipeline.config.steps == 0
    pipeline.save_pretrained(tmp_path / "model")
    again = TADSRPipeline.from_pretrained(tmp_path / "model")
    made = TADSRPipeline(
        CompactDenoiser.from_pretrained(tmp_path / "model/unet").eval(), pipeline.vae, pipeline.scheduler, steps=0
    )
    assert isinstance(again, DiffusionPipeline)
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    assert index["unet"] == ["tadsr", "CompactDenoiser"]
    save_pipeline(tmp_path / "parts", pipeline.unet, pipeline.vae, pipeline.scheduler, scale=4, steps=0)
    for file in ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()
    low = torch.rand(1, 3, 8, 8)
    for other in (again, made):
        # Whatever the processor: the layout of the weights decides the order of the sums.
        assert other.unet.conv_in.weight.stride() == pipeline.unet.conv_in.weight.stride()
        assert pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(pipeline(low, output_type="pt").images, other(low, output_type="pt").images)


@pytest.mark.parametrize("teacher", [False, True])
def test_public_checkpoints_convert_and_run(tmp_path, monkeypatch, capsys, teacher):
    torch.manual_seed(0)
    small = {"image_size": 8, "model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": (1, 1)}
    small |= {"swin_embed_dim": 32, "window_size": 4, "lq_size": 8}
    monkeypatch.setitem(converters.FAMILIES, "realsrx4", small)
    vae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        latent_channels=3,
        num_vq_embeddings=16,
    )
    monkeypatch.setattr(converters, "vq_f4", lambda: VQModel.from_config(vae.config))
    original = json.loads((Path(__file__).parent / "golden/keys_autoencoder_vq_f4.json").read_text())
    state = {}
    for key, entry in original.get("keys", original).items():
        value = vae.state_dict()[converters.vq_key(key, 3)]
        state[key] = value[:, :, None, None] if value.ndim == 2 and len(entry["shape"]) == 4 else value
    torch.save(state, tmp_path / "vae.pth")
    unet = {f"module.{key}": value for key, value in ResShiftUNet(**small).state_dict().items()}
    torch.save({"state_dict": unet}, tmp_path / "unet.pth")
    files = ["--unet", tmp_path / "unet.pth", "--vae", tmp_path / "vae.pth", "--family", "realsrx4"]
    converted = tmp_path / "converted"
    assert call("convert", *files, "--out", converted, *(["--teacher"] if teacher else [])) == 0
    assert "non-commercial" in capsys.readouterr().out
    write_image(tmp_path / "photo.png", np.random.default_rng(0).random((13, 20, 3)).astype(np.float32))
    assert call("upscale", tmp_path / "photo.png", "--model", converted, "-o", tmp_path / "large.png") == 0
    assert Image.open(tmp_path / "large.png").size == (80, 52)
    assert TADSRPipeline.load(converted).config.steps == (0 if teacher else 1)
    assert call("convert", *files, "--out", converted) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_window_network_pads_and_runs():
    torch.manual_seed(0)
    source = TADSRPipeline.load("fidelity")
    unet = ResShiftUNet(
        image_size=8,
        in_channels=48,
        out_channels=48,
        model_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=(1, 1),
        swin_embed_dim=32,
        window_size=4,
        lq_size=8,
    )
    pipeline = TADSRPipeline(unet.eval(), source.vae, source.scheduler)
    assert pipeline(torch.rand(1, 3, 9, 13), tile=16, tile_overlap=8, output_type="pt").images.shape == (1, 3, 36, 52)
