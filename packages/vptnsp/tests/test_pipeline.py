"""Three tasks on a tiny ViT, step by step as the official code took them, and CLIP's tower."""

import dataclasses

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tenfold import UserError
from vptnsp.config import LearnerConfig
from vptnsp.models.clip.heads import ClassGaussians, ClipHead, refine_projection_head
from vptnsp.models.networks import PromptedViT
from vptnsp.training.learner import NSPLearner


def tensors_below(data, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): torch.from_numpy(data[key]) for key in data if key.startswith(prefix)}


def golden_learner(data, **changes) -> NSPLearner:
    backbone = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2, num_classes=0
    )
    state = tensors_below(data, "init.")
    prompts = {f"blocks.{index}": state.pop(f"blocks.{index}.prompt.prompt")[0] for index in range(3)}
    backbone.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
    vit = PromptedViT.from_timm(backbone, int(data["cfg.M"]))
    vit.load_prompt_state_dict(prompts)
    config = LearnerConfig(
        epochs=1,
        lr=float(data["cfg.lr"]),
        weight_decay=float(data["cfg.weight_decay"]),
        temperature=float(data["cfg.temperature"]),
        eta1=float(data["cfg.eta1"]),
        eta2=float(data["cfg.eta2"]),
        schedule="paper",
        precision="float32",
        extendable=False,
    )
    return NSPLearner(vit, dataclasses.replace(config, **changes))


def close(ours, expected, tolerance=1e-5):
    np.testing.assert_allclose(ours.detach().numpy(), expected, atol=tolerance * max(1, np.abs(expected).max()), rtol=0)


def run_task(learner, data, task: int, check: bool = True) -> None:
    key = f"task{task}."
    x, labels = torch.from_numpy(data[key + "x"]), torch.from_numpy(data[key + "y"]) + 3 * task
    training = learner.begin_task(list(range(3 * task, 3 * task + 3)))
    with torch.no_grad():
        learner.head.heads[task].weight.copy_(torch.from_numpy(data[key + "head_w0"]))
        learner.head.heads[task].bias.copy_(torch.from_numpy(data[key + "head_b0"]))
    for step, chosen in enumerate(torch.from_numpy(data[key + "batch_idx"])):
        loss = learner.step(training, x[chosen], labels[chosen])
        if check:
            assert loss.item() == pytest.approx(data[key + "total_loss"][step], abs=1e-5)
            close(torch.stack(list(learner.vit.prompts().values())), data[key + "prompts"][step])
            close(learner.head.heads[task].weight, data[key + "head_w"][step])
            close(learner.head.heads[task].bias, data[key + "head_b"][step])
    learner.finish_task(training, x.split(int(data["cfg.cov_batch"])), last=task == 2)


def test_the_full_golden_pipeline(golden):
    data = golden("tiny_pipeline")
    learner = golden_learner(data)
    for task in range(3):
        before = learner.moments
        run_task(learner, data, task)
        key = f"task{task}."
        if task < 2:
            for index, name in enumerate(learner.vit.prompts()):
                for kind in ("C1", "C2"):
                    total = getattr(learner.moments, kind)[name]
                    close(total, data[f"{key}{kind}_total"][index])
                    close(total - (getattr(before, kind)[name] if before else 0), data[f"{key}{kind}_task"][index])
                close(learner.projections[name].features, data[key + "proj1"][index])
                close(learner.projections[name].prompts, data[key + "proj2"][index])
        seen = torch.cat([torch.from_numpy(data[f"task{each}.x"]) for each in range(task + 1)])
        close(learner.features(seen), data[key + "eval_features"])
        close(learner.logits(seen), data[key + "eval_logits"], 2e-5)


@pytest.mark.parametrize(
    "changes",
    [{"projection": "none"}, {"ln_weight": 0.0}, {"eta1": 0.0}, {"convention": "paper"}, {"temperature": 1.0}],
)
def test_another_variant_leaves_the_golden_pipeline(golden, changes):
    data = golden("tiny_pipeline")
    learner = golden_learner(data, **changes)
    for task in range(3):
        run_task(learner, data, task, check=False)
    ours = torch.stack(list(learner.vit.prompts().values())).detach().numpy()
    assert np.abs(ours - data["task2.prompts"][-1]).max() > 1e-4


def test_the_first_task_is_the_same_with_and_without_the_method(golden):
    data = golden("tiny_pipeline")
    finals = []
    for changes in ({}, {"projection": "none", "ln_weight": 0.0}, {"train_prompts": "first-task"}):
        learner = golden_learner(data, **changes)
        run_task(learner, data, 0, check=False)
        finals.append(torch.cat([each.flatten() for each in learner.network.parameters()]))
    assert all(torch.equal(finals[0], each) for each in finals[1:])


def test_frozen_prompts_and_old_heads_do_not_move(golden):
    data = golden("tiny_pipeline")
    learner = golden_learner(data, train_prompts="first-task", projection="none")
    run_task(learner, data, 0, check=False)
    prompts, head = learner.vit.prompt_state_dict(), learner.head.heads[0].weight.clone()
    run_task(learner, data, 1, check=False)
    assert all(torch.equal(value, prompts[name]) for name, value in learner.vit.prompt_state_dict().items())
    assert torch.equal(learner.head.heads[0].weight, head)


def clip_golden_head(data) -> tuple[ClipHead, dict[str, torch.Tensor]]:
    state = tensors_below(data, "init.")
    projection = nn.Linear(32, 24)
    with torch.no_grad():
        projection.weight.copy_(state.pop("head.weight"))
        projection.bias.copy_(state.pop("head.bias"))
    head = ClipHead(projection)
    head.add_task(torch.from_numpy(data["text_features"]))
    torch.testing.assert_close(head.logit_scale.detach(), state.pop("logit_scale"))
    return head, state


def check_clip(data, vit: PromptedViT, head: ClipHead) -> None:
    features = vit(torch.from_numpy(data["x"]))
    logits = head(features)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(data["y"]))
    loss.backward()
    gradients = torch.stack([prompt.grad for prompt in vit.prompts().values()])
    for ours, name in (
        (features, "features"),
        (head.projection(features), "embedding"),
        (logits, "logits"),
        (loss, "loss"),
        (gradients, "grad_prompts"),
        (head.logit_scale.grad, "grad_logit_scale"),
    ):
        np.testing.assert_allclose(
            ours.detach().numpy(), data[name], rtol=1e-4, atol=1e-4 * np.abs(data[name]).max(), err_msg=name
        )


def test_golden_clip_tower_through_timm(golden):
    from functools import partial

    data = golden("clip_head")
    head, state = clip_golden_head(data)
    from timm.layers import get_act_layer

    backbone = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=4, num_heads=4, mlp_ratio=2, num_classes=0, pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5), act_layer=get_act_layer("quick_gelu"),
    )  # fmt: skip
    prompts = {f"blocks.{index}": state.pop(f"blocks.{index}.prompt.prompt")[0] for index in range(3)}
    backbone.load_state_dict(state)
    vit = PromptedViT.from_timm(backbone, 4, range(int(data["end"]) + 1))
    vit.load_prompt_state_dict(prompts)
    check_clip(data, vit, head)


def hugging_face_tower(state: dict[str, torch.Tensor]):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, projection_dim=24, num_hidden_layers=4, num_attention_heads=4,
        image_size=16, patch_size=4,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    inner = model.vision_model
    while hasattr(inner, "vision_model"):
        inner = inner.vision_model
    with torch.no_grad():
        inner.embeddings.class_embedding.copy_(state["cls_token"][0, 0])
        inner.embeddings.position_embedding.weight.copy_(state["pos_embed"][0])
        inner.embeddings.patch_embedding.weight.copy_(state["patch_embed.proj.weight"])
        for index, layer in enumerate(inner.encoder.layers):
            parts = {name.removeprefix(f"blocks.{index}."): value for name, value in state.items()}
            for mine, theirs in (
                (layer.layer_norm1, "norm1"),
                (layer.layer_norm2, "norm2"),
                (layer.self_attn.out_proj, "attn.proj"),
                (layer.mlp.fc1, "mlp.fc1"),
                (layer.mlp.fc2, "mlp.fc2"),
            ):
                mine.weight.copy_(parts[f"{theirs}.weight"])
                mine.bias.copy_(parts[f"{theirs}.bias"])
            for row, part in enumerate((layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)):
                part.weight.copy_(parts["attn.qkv.weight"][32 * row : 32 * row + 32])
                part.bias.copy_(parts["attn.qkv.bias"][32 * row : 32 * row + 32])
        for mine, theirs in ((inner.pre_layrnorm, "norm_pre"), (inner.post_layernorm, "norm")):
            mine.weight.copy_(state[f"{theirs}.weight"])
            mine.bias.copy_(state[f"{theirs}.bias"])
    return model


def test_golden_clip_tower_through_transformers(golden):
    data = golden("clip_head")
    head, state = clip_golden_head(data)
    model = hugging_face_tower(state)
    images = torch.from_numpy(data["x"])
    plain = model(images).image_embeds
    vit = PromptedViT.from_clip(model, 4, range(int(data["end"]) + 1))
    vit.load_prompt_state_dict({f"blocks.{index}": state[f"blocks.{index}.prompt.prompt"][0] for index in range(3)})
    check_clip(data, vit, head)
    assert torch.equal(vit.detach_prompts()(images).image_embeds, plain)


def test_clip_gets_prompts_in_its_first_four_blocks(golden):
    _, state = clip_golden_head(golden("clip_head"))
    assert list(PromptedViT.from_clip(hugging_face_tower(state)).prompts()) == [f"blocks.{i}" for i in range(4)]
    with pytest.raises(UserError, match="not CLIP"):
        PromptedViT.from_clip(nn.Linear(2, 2))


def test_clip_learns_a_task_and_refines_its_projection(golden):
    data = golden("clip_head")
    _, state = clip_golden_head(data)
    torch.manual_seed(0)
    vit = PromptedViT.from_clip(hugging_face_tower(state), 4)
    config = LearnerConfig(
        backbone="clip:here", epochs=2, lr=0.01, temperature=1.0, refine_epochs=3, precision="float32"
    )
    learner = NSPLearner(vit, config)
    images, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 2
    texts = torch.from_numpy(data["text_features"])
    with pytest.raises(UserError, match="one text feature"):
        learner.fit_task([(images, labels)], [(images, labels)], [0, 1])
    before = learner.head.projection.weight.clone()
    learner.fit_task([(images, labels)], [(images, labels)], [0, 1], texts=texts[:2])
    learner.fit_task([(images, labels + 2)], [(images, labels + 2)], [2, 3], texts=texts[2:4])
    assert learner.logits(images).shape == (12, 4)
    assert not torch.equal(before, learner.head.projection.weight)
    assert len(learner.gaussians.means) == 4
    assert not learner.head.projection.weight.requires_grad


def test_class_gaussians_have_unbiased_covariances_and_refinement_lowers_the_loss():
    torch.manual_seed(0)
    features, labels = torch.randn(40, 6) + torch.arange(2).repeat(20)[:, None] * 2, torch.arange(2).repeat(20)
    measured = ClassGaussians.fit(features, labels, 2)
    expected = np.cov(features[labels == 1].numpy().T) + 1e-4 * np.eye(6)
    np.testing.assert_allclose(measured.covariances[1].numpy(), expected, rtol=1e-4, atol=1e-6)
    head = ClipHead(nn.Linear(6, 5))
    head.add_task(torch.randn(2, 5))
    losses = refine_projection_head(head, measured, epochs=20, per_class=64)
    assert losses[-1] < losses[0]
    with pytest.raises(UserError, match="fewer than two"):
        ClassGaussians.fit(features[:3], torch.tensor([0, 0, 1]), 2)
