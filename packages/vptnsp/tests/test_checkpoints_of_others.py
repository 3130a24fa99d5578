"""Weights in the formats that people have: timm's safetensors, a CLIP folder of transformers with its tokenizer."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tenfold import UserError
from tenfold.checkpoints import load_weights
from vptnsp.config import LearnerConfig, TrainConfig
from vptnsp.method.baselines import timm_features
from vptnsp.models.backbones import backbone_weights, build_backbone, class_texts, fingerprint, fit_weights
from vptnsp.models.clip.backbones import ClipTower
from vptnsp.models.clip.heads import TEMPLATES
from vptnsp.models.networks import PromptedViT, image_size, normalisation
from vptnsp.pipeline.inference import fit_folder, predict_pictures
from vptnsp.training.learner import NSPLearner
from vptnsp.training.run import run_closed_form, run_prompts


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of two layers with a tokenizer of single letters, saved as the hub has it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz."
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    shared = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 24,
    }
    config = CLIPConfig(
        projection_dim=24,
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        text_config={
            **shared, "vocab_size": len(words), "max_position_embeddings": 77,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_class_texts_are_unit_averages_of_unit_sentences(clip_folder):
    texts = class_texts(f"clip:{clip_folder}", ["ape", "big_bee"], "cifar")
    assert texts.shape == (2, 24)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert not torch.allclose(texts[0], texts[1])


def test_as_many_sentences_as_the_paper_uses():
    assert {name: len(set(sentences)) for name, sentences in TEMPLATES.items()} == {
        "cifar": 18, "imagenet-r": 7, "domainnet": 12
    }  # fmt: skip
    assert all(sentence.count("{}") == 1 for sentences in TEMPLATES.values() for sentence in sentences)


def test_clip_learns_a_stream_from_its_folder_and_comes_back(clip_folder, tmp_path):
    generator = np.random.default_rng(0)
    for name in ("ape", "bee", "cat", "dog", "elk", "fox"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(5):
            pixels = generator.integers(0, 255, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    for name in ("elk", "fox"):
        (tmp_path / "pictures" / name).rename(tmp_path / f"new-{name}")
    config = TrainConfig(
        backbone=f"clip:{clip_folder}", dataset="folder", root=tmp_path / "pictures", tasks=2, epochs=1, repeats=1,
        batch_size=4, lr=0.001, temperature=1.0, refine_epochs=2, precision="float32",
    )  # fmt: skip
    names = tmp_path / "names.txt"
    names.write_text("ape\nbee\ncat\ndog\n")
    learner, result = run_prompts(dataclasses.replace(config, class_names=names))
    assert len(result["matrix"]) == 2
    learner.save(tmp_path / "learner")
    again = NSPLearner.load(tmp_path / "learner")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again.logits(images), learner.logits(images))
    assert again.gaussians is not None
    (tmp_path / "more").mkdir()
    for name in ("elk", "fox"):
        (tmp_path / f"new-{name}").rename(tmp_path / "more" / name)
    fit_folder(again, tmp_path / "more")
    assert again.logits(images).shape == (2, 6)
    assert {each.name for each in predict_pictures(again, tmp_path / "more").results.values()} <= set(
        again.names.values()
    )
    for method in ("ncm", "ranpac"):
        chosen = dataclasses.replace(config, method=method, class_names=None)
        closed = run_closed_form(chosen, torch.device("cpu"))
        assert len(closed["matrix"]) == 2
    names.write_text("ape\n")
    with pytest.raises(UserError, match="1 names for 4 classes"):
        run_prompts(dataclasses.replace(config, class_names=names))


def test_rivals_see_the_features_of_clips_own_tower(clip_folder):
    vit = build_backbone(LearnerConfig(backbone=f"clip:{clip_folder}"))
    original = vit.detach_prompts()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            timm_features(ClipTower(original), images), original.vision_model(images).pooler_output
        )


def test_timm_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    config = LearnerConfig(backbone="vit_tiny_patch16_224", checkpoint=path, blocks=(0, 11))
    vit = build_backbone(config)
    assert list(vit.prompts()) == ["blocks.0", "blocks.11"]
    assert (image_size(vit), normalisation(vit)) == (224, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(vit.detach_prompts()(images), model.eval()(images))


@pytest.mark.parametrize("form", ["classifier", "nested", "prefixed", "safetensors"])
def test_weights_of_a_whole_classifier_serve_its_backbone(tmp_path, form):
    torch.manual_seed(0)
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=7, depth=1)
    state = whole.state_dict()
    path = tmp_path / "weights"
    if form == "safetensors":
        save_file(state, path)
    elif form == "nested":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    else:
        before = "backbone." if form == "prefixed" else ""
        torch.save({f"{before}{name}": value for name, value in state.items()}, path)
    bare = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    load_weights(bare, fit_weights(backbone_weights(path), bare), path)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        features = whole.eval().forward_head(whole.forward_features(images), pre_logits=True)
        assert torch.equal(bare.eval()(images), features)


def test_position_embeddings_are_resampled_to_another_picture_size(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    config = LearnerConfig(backbone="vit_tiny_patch16_224", checkpoint=tmp_path / "w.pth", image_size=64)
    vit = build_backbone(config)
    assert image_size(vit) == 64
    place = vit.backbone.pos_embed
    assert place.shape == (1, 1 + 4 * 4, 192)
    assert torch.equal(place[:, 0], model.pos_embed[:, 0])
    with torch.no_grad():
        assert vit(torch.rand(1, 3, 64, 64)).shape == (1, 192)


def test_the_embedded_backbone_has_one_picture_size():
    with pytest.raises(UserError, match="--image-size 64"):
        build_backbone(LearnerConfig(image_size=64))


def test_a_backbone_is_known_by_all_its_weights_and_its_picture_size():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=32)
    vit = PromptedViT.from_timm(model, 2, [0])
    mark = fingerprint(vit)
    with torch.no_grad():
        vit.prompts()["blocks.0"].add_(1)
    assert fingerprint(vit) == mark, "prompts are what is learnt"
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias.add_(1e-3)
    assert fingerprint(vit) != mark


def test_the_embedded_backbone_ships_with_trained_weights():
    from vptnsp.models.compact import embedded_architecture, embedded_backbone

    trained, fresh = embedded_backbone(), embedded_architecture()
    assert sum(parameter.numel() for parameter in trained.parameters()) == sum(p.numel() for p in fresh.parameters())
    # A fresh LayerNorm has weights of one.
    assert (trained.norm.weight - 1).abs().max() > 0.01
