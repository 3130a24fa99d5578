"""Diffusion approaches on tiny random weights, saved on the spot in the diffusers format: nothing is downloaded."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fairfd.data.faces.crops import Pose, place_shape
from fairfd.data.faces.regions import face_region
from fairfd.data.forgers import SkippedFaceError, create_forger
from fairfd.data.forgers import diffusion as approaches
from tenfold.errors import UserError

diffusers = pytest.importorskip("diffusers")

SIZE = 48
LANDMARKS = place_shape(Pose(23.5, 20.0, 13.0))


@pytest.fixture(scope="module")
def base() -> np.ndarray:
    return np.random.default_rng(0).random((SIZE, SIZE, 3)).astype(np.float32)


def kl(folder: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **changes,
    )
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    return kl(tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def stable_diffusion(folder: Path, in_channels: int) -> Path:
    """A Stable Diffusion pipeline of a few thousand random weights, with a two-word vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    (folder / "words").mkdir(parents=True)
    characters = [*map(chr, range(97, 123)), *(f"{chr(c)}</w>" for c in range(97, 123))]
    vocabulary = {word: i for i, word in enumerate([*characters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "words/vocab.json").write_text(json.dumps(vocabulary))
    (folder / "words/merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "words/vocab.json"), str(folder / "words/merges.txt"), model_max_length=16)
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=24,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    vae = diffusers.AutoencoderKL.from_pretrained(kl(folder / "vae-source"))
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50, clip_sample=False, steps_offset=1)
    parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    kind = diffusers.StableDiffusionInstructPix2PixPipeline if in_channels == 8 else diffusers.StableDiffusionPipeline
    pipeline = kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    return folder / "pipeline"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> Callable[[int], Path]:
    made: dict[int, Path] = {}

    def folder(channels: int) -> Path:
        if channels not in made:
            made[channels] = stable_diffusion(tmp_path_factory.mktemp("sd") / "x", channels)
        return made[channels]

    return folder


def forged(name: str, base: np.ndarray, seed: int = 0, **parameters: object):
    forger = create_forger(name, device="cpu", **parameters)
    return forger(base, base[:, ::-1].copy(), LANDMARKS, LANDMARKS, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", ["autoencoder", "tiny"])
def test_vae_resynthesis_replaces_the_face_by_the_decoders_image(kind, base, request):
    weights = str(request.getfixturevalue(kind))
    whole = forged("vae_resynth", base, weights=weights, region="image")
    model = approaches.load_autoencoder(weights, torch.device("cpu"))
    padded = torch.nn.functional.pad(torch.from_numpy(base).permute(2, 0, 1)[None], (0, 16, 0, 16), mode="replicate")
    with torch.no_grad():
        code = model.encode(padded * 2 - 1)
        latent = code.latent_dist.mode() if kind == "autoencoder" else code.latents
        expected = ((model.decode(latent).sample + 1) / 2).clamp(0, 1)[0, :, :SIZE, :SIZE].permute(1, 2, 0).numpy()
    assert np.abs(whole.image - expected).max() < 1e-5
    assert (whole.mask == 1).all()
    face = forged("vae_resynth", base, weights=weights)
    outside = ~face_region(LANDMARKS, SIZE, SIZE)
    assert np.array_equal(face.image[outside], base[outside])
    inside = face.mask == 1
    assert np.abs(face.image[inside] - expected[inside]).max() < 1e-5
    assert not model.training


def test_the_autoencoder_of_a_whole_pipeline_is_found(autoencoder, base, tmp_path):
    (tmp_path / "vae").symlink_to(autoencoder)
    first = forged("vae_resynth", base, weights=str(tmp_path), region="image").image
    assert np.array_equal(first, forged("vae_resynth", base, weights=str(autoencoder), region="image").image)


def test_weights_are_recorded_by_digest(autoencoder, tiny, tmp_path):
    digests = {create_forger("vae_resynth", weights=str(w)).weights_sha256() for w in (autoencoder, tiny)}
    assert len(digests) == 2
    copy = kl(tmp_path / "copy")
    assert create_forger("vae_resynth", weights=str(copy)).weights_sha256() in digests
    assert create_forger("vae_resynth", weights=str(copy)).one_process


@pytest.mark.parametrize(
    ("name", "channels"), [("diffusers_img2img", 4), ("diffusers_inpaint", 4), ("diffusers_instruct", 8)]
)
def test_pipelines_run_from_local_weights_and_depend_on_the_generator_only(name, channels, base, pipelines):
    weights = str(pipelines(channels))
    first, again, other = (forged(name, base, seed, weights=weights, steps=4, prompt="a b") for seed in (1, 1, 2))
    assert first.image.shape == base.shape
    assert first.image.dtype == np.float32
    assert first.image.min() >= 0
    assert first.image.max() <= 1
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    assert first.meta == {"prompt": "a b"}
    outside = first.mask == 0
    assert np.array_equal(first.image[outside], base[outside])
    assert outside.any() == (name != "diffusers_instruct")


def test_prompts_are_drawn_from_alternatives(base, monkeypatch):
    seen = []

    def pipeline(**call: object) -> SimpleNamespace:
        seen.append(call)
        return SimpleNamespace(images=[base[:40, :40]])

    monkeypatch.setattr(approaches, "load_pipeline", lambda *_: pipeline)
    for seed in range(12):
        result = forged("diffusers_img2img", base, seed, weights="/", prompt="old | young")
        assert result.image.shape == base.shape
    assert {call["prompt"] for call in seen} == {"old", "young"}
    assert len({call["generator"].initial_seed() for call in seen}) == 12


def test_inpainting_shows_the_adapter_the_driving_face(base, monkeypatch):
    seen = {}

    class Pipeline:
        def set_ip_adapter_scale(self, scale: float) -> None:
            seen["scale"] = scale

        def __call__(self, **call: object) -> SimpleNamespace:
            seen.update(call)
            return SimpleNamespace(images=[np.zeros_like(base)])

    loaded = []
    monkeypatch.setattr(approaches, "load_pipeline", lambda *arguments: loaded.append(arguments) or Pipeline())
    result = forged("diffusers_inpaint", base, weights="/", ip_adapter="/adapter", ip_adapter_scale=0.5)
    assert loaded[0][0] == "AutoPipelineForInpainting"
    assert loaded[0][3] == "/adapter"
    assert seen["scale"] == 0.5
    assert np.abs(np.asarray(seen["ip_adapter_image"]) / 255 - base[:, ::-1]).max() < 1 / 254
    mask = seen["mask_image"][0, 0].numpy() > 0
    assert np.array_equal(mask, face_region(LANDMARKS, SIZE, SIZE))
    assert np.array_equal(result.image[~mask], base[~mask])
    assert np.allclose(result.image[result.mask == 1], 0)


def test_faces_without_landmarks_are_skipped_unless_the_whole_image_is_replaced(autoencoder, base):
    for name in ("vae_resynth", "diffusers_inpaint"):
        forger = create_forger(name, weights=str(autoencoder), device="cpu")
        with pytest.raises(SkippedFaceError, match="no landmarks"):
            forger(base, base, None, None, np.random.default_rng(0))
    forger = create_forger("vae_resynth", weights=str(autoencoder), device="cpu", region="image")
    assert forger(base, base, None, None, np.random.default_rng(0)).image.shape == base.shape


@pytest.mark.parametrize("name", ["vae_resynth", "diffusers_img2img", "diffusers_inpaint", "diffusers_instruct"])
def test_missing_weights_name_the_local_path_option(name, tmp_path):
    for weights in ("", str(tmp_path / "absent"), "stabilityai/sd-turbo"):
        with pytest.raises(UserError, match=f"{name}: weights .* is not a folder; give local weights"):
            create_forger(name, weights=weights)
    with pytest.raises(UserError, match="region 'nose' is not face or image"):
        create_forger(name, weights=str(tmp_path), region="nose")


def test_folders_without_the_right_model_are_one_line_errors(tmp_path, base, pipelines):
    with pytest.raises(UserError, match="no autoencoder in the diffusers format"):
        forged("vae_resynth", base, weights=str(tmp_path))
    with pytest.raises(UserError, match="holds UNet2DConditionModel; an AutoencoderKL or AutoencoderTiny is needed"):
        forged("vae_resynth", base, weights=str(pipelines(4) / "unet"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="cannot load it as AutoPipelineForImage2Image") as error:
        forged("diffusers_img2img", base, weights=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "StableDiffusionPipeline", "unet": ["payload", "Model"]},
        {"_class_name": ["payload", "Pipeline"]},
        {"_class_name": "NoSuchPipeline"},
        {"_class_name": "StableDiffusionPipeline", "unet": [["payload"], "Model"]},
    ],
)
def test_modules_that_a_pipeline_names_are_not_imported(tmp_path, base, monkeypatch, index):
    (tmp_path / "payload.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names a pipeline|of neither diffusers"):
        forged("diffusers_img2img", base, weights=str(tmp_path))


def test_the_extra_is_named_when_diffusers_is_missing(autoencoder, base, monkeypatch):
    real = builtins.__import__

    def without_diffusers(name: str, *rest: object) -> object:
        if name == "diffusers":
            raise ImportError(name)
        return real(name, *rest)

    approaches.load_autoencoder.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_diffusers)
    with pytest.raises(UserError, match=r"vae_resynth needs the extra: pip install 'fairfd\[diffusion\]'"):
        forged("vae_resynth", base, weights=str(autoencoder))
