"""Prompted attention and second moments."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from tenfold import UserError
from vptnsp.method.second_moments import SecondMoments, collect_second_moments, exact_conditions
from vptnsp.models.attention import PromptedAttention, UnsupportedBackboneError, attention_to_prompts
from vptnsp.models.networks import PromptedViT


class OneBlock(nn.Module):
    """A backbone that is a single block, for the golden vectors of one."""

    num_features = 32

    def __init__(self, block: Block, tokens: torch.Tensor) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])
        self.tokens = tokens

    def forward_features(self, images):  # noqa: ARG002  # the golden vectors begin with tokens
        return self.blocks[0](self.tokens)

    def forward_head(self, tokens, pre_logits):  # noqa: ARG002  # timm's signature
        return tokens.mean(1)


def golden_block(data, repetition: int) -> PromptedViT:
    key = f"rep{repetition}."
    names = [name.removeprefix(key + "param.") for name in data if name.startswith(key + "param.")]
    state = {name: torch.from_numpy(data[f"{key}param.{name}"]) for name in names if name != "prompt.prompt"}
    block = Block(
        32,
        4,
        mlp_ratio=2,
        qkv_bias="attn.qkv.bias" in state,
        init_values=1.0 if "ls1.gamma" in state else None,
        norm_layer=lambda dim, **_: nn.LayerNorm(dim, eps=1e-6),
    )
    block.load_state_dict(state)
    tokens = torch.from_numpy(data[key + "x"]).requires_grad_()
    model = PromptedViT(OneBlock(block, tokens), "one block", [block], [0], 4)
    model.load_prompt_state_dict({"blocks.0": torch.from_numpy(data[key + "param.prompt.prompt"][0])})
    return model


@pytest.mark.parametrize("repetition", [0, 1, 2])
def test_golden_block(golden, repetition):
    data, key = golden("block"), f"rep{repetition}."
    model = golden_block(data, repetition)
    x, images = model.backbone.tokens, torch.zeros(3, 3, 1, 1)
    y = model.backbone.forward_features(images)
    (y * torch.from_numpy(data[key + "grad_out"])).sum().backward()
    prompt = model.prompts()["blocks.0"]
    moments = collect_second_moments(model, [images])
    for ours, name in (
        (y, "y"),
        (prompt.grad, "grad_prompt"),
        (x.grad, "grad_x"),
        (moments.C1["blocks.0"], "C1"),
        (moments.C2["blocks.0"], "C2"),
    ):
        expected = data[key + name]
        np.testing.assert_allclose(ours.detach().numpy(), expected, atol=2e-5 * np.abs(expected).max(), rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extra_keys_and_values_equal_concatenated_tokens(small_vit, dtype):
    """Prompts before or after the tokens, as in the paper, give what the appended keys and values give."""
    block = small_vit().blocks[0].to(dtype)
    x, prompt = torch.randn(2, 9, 32, dtype=dtype), torch.rand(3, 32, dtype=dtype)
    wrapped = PromptedAttention(block.attn, block.norm1, 3)
    wrapped.prompt = nn.Parameter(prompt)
    ours = wrapped(block.norm1(x))
    every = prompt.expand(2, -1, -1)
    appended = block.attn(block.norm1(torch.cat([x, every], 1)))[:, :9]
    prepended = block.attn(block.norm1(torch.cat([every, x], 1)))[:, 3:]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours, appended, atol=tolerance, rtol=0)
    torch.testing.assert_close(ours, prepended, atol=tolerance, rtol=0)


def test_prompts_change_the_features_and_leave_without_a_trace(small_vit):
    backbone, images = small_vit(), torch.randn(2, 3, 16, 16)
    before = backbone(images)
    model = PromptedViT.from_timm(backbone, 4)
    assert not torch.allclose(model(images), before)
    model(images).sum().backward()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "prompt" not in name)
    assert torch.equal(model.detach_prompts()(images), before)


def test_no_prompts_at_all_are_the_plain_attention(small_vit):
    block, x = small_vit().blocks[0], torch.randn(2, 9, 32)
    torch.testing.assert_close(PromptedAttention(block.attn, block.norm1, 0)(x), block.attn(x), atol=1e-6, rtol=0)


def test_attention_to_prompts_is_the_softmax_column():
    q, k, prompt_keys = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(3, 6, 4)
    logits = q @ torch.cat([k, prompt_keys.expand(2, -1, -1, -1)], 2).transpose(2, 3) / 2
    torch.testing.assert_close(attention_to_prompts(q, k, prompt_keys), logits.softmax(-1)[..., 5:])


def naive_moments(model: PromptedViT, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Omega_1^T Omega_1 from the stacked definition, storing every token."""
    found = {}

    def record(name, layer):
        def hook(_, __, qkv):
            queries = layer.split_heads(qkv)[0]
            rows = torch.einsum("bhnd,hdc->bhnc", queries, layer.key_weights()).reshape(-1, 32).double()
            found[name] = rows.T @ rows / len(rows)

        return hook

    handles = [layer.attn.qkv.register_forward_hook(record(name, layer)) for name, layer in model.attentions().items()]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def test_head_space_moments_equal_the_stacked_definition(small_vit):
    model, images = PromptedViT.from_timm(small_vit(), 4), torch.randn(6, 3, 16, 16)
    ours, naive = collect_second_moments(model, [images]), naive_moments(model, images)
    for name, moment in naive.items():
        torch.testing.assert_close(ours.C1[name], moment, rtol=0, atol=1e-6 * moment.abs().max().item())
        for each in (ours.C1[name], ours.C2[name]):
            assert torch.linalg.eigvalsh(each).min() > -1e-8
        assert 0 < ours.C2[name].trace() <= 1


def test_order_of_images_and_prompts_does_not_matter(small_vit):
    model, images = PromptedViT.from_timm(small_vit(), 4), torch.randn(6, 3, 16, 16)
    one = collect_second_moments(model, [images])
    other = collect_second_moments(model, [images.flip(0)])
    order = torch.tensor([2, 0, 3, 1])
    model.load_prompt_state_dict({name: value[order] for name, value in model.prompt_state_dict().items()})
    permuted = collect_second_moments(model, [images])
    for name in one.C1:
        torch.testing.assert_close(one.C1[name], other.C1[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(permuted.C1[name], one.C1[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(permuted.C2[name], one.C2[name][order][:, order], rtol=1e-4, atol=1e-7)


def test_official_weighting_counts_batches_and_token_weighting_images(small_vit):
    model, images = PromptedViT.from_timm(small_vit(), 4), torch.randn(6, 3, 16, 16)
    name = "blocks.1"
    whole = collect_second_moments(model, [images]).C1[name]
    halves = collect_second_moments(model, images.split(3)).C1[name]
    uneven = collect_second_moments(model, images.split(4)).C1[name]
    by_token = collect_second_moments(model, images.split(4), weighting="token").C1[name]
    torch.testing.assert_close(halves / 2, whole, rtol=1e-5, atol=1e-6)
    assert (uneven / 2 - whole).abs().max() > 1e-3 * whole.abs().max()
    torch.testing.assert_close(by_token, whole, rtol=1e-5, atol=1e-6)


def test_moments_merge_by_sum_or_by_images_and_survive_a_file(small_vit):
    model = PromptedViT.from_timm(small_vit(), 4)
    first = collect_second_moments(model, [torch.randn(2, 3, 16, 16)])
    second = collect_second_moments(model, [torch.randn(6, 3, 16, 16)])
    name = "blocks.0"
    torch.testing.assert_close(first.merge(second).C1[name], first.C1[name] + second.C1[name])
    torch.testing.assert_close(first.merge(second, "mean").C2[name], 0.25 * first.C2[name] + 0.75 * second.C2[name])
    again = SecondMoments.from_state_dict(first.state_dict())
    assert again.num_samples == 2
    assert torch.equal(again.C1[name], first.C1[name])


def test_moments_grow_batch_by_batch_to_those_of_one_pass(small_vit):
    model, images = PromptedViT.from_timm(small_vit(), 4), torch.randn(7, 3, 16, 16)
    summed, averaged, name = SecondMoments(), SecondMoments(), "blocks.1"
    for batch in images.split(3):
        summed.update(model, batch)
        averaged.update(model, batch, "mean")
    whole = collect_second_moments(model, images.split(3))
    by_image = collect_second_moments(model, images.split(3), weighting="token")
    assert summed.num_samples == averaged.num_samples == 7
    for moments, expected in ((summed, whole), (averaged, by_image)):
        torch.testing.assert_close(moments.C1[name], expected.C1[name])
        torch.testing.assert_close(moments.C2[name], expected.C2[name])
    with pytest.raises(UserError, match="cannot be merged"):
        summed.update(PromptedViT.from_timm(small_vit(), 4, [0]), images)


def test_exact_conditions_scale_by_norm_weight_and_prompt_spread(small_vit):
    model, images = PromptedViT.from_timm(small_vit(), 4), [torch.randn(4, 3, 16, 16)]
    paper = collect_second_moments(model, images)
    exact = collect_second_moments(model, images, conditions="exact")
    layer = model.attentions()["blocks.2"]
    weight, spread = layer.norm.weight.double(), layer.prompt.std(1, correction=0).double()
    torch.testing.assert_close(exact.C1["blocks.2"], weight.diag() @ paper.C1["blocks.2"] @ weight.diag())
    torch.testing.assert_close(
        exact_conditions(paper, model).C2["blocks.2"], (1 / spread).diag() @ paper.C2["blocks.2"] @ (1 / spread).diag()
    )


def test_moments_leave_no_hook_and_store_no_token_matrix(small_vit):
    model = PromptedViT.from_timm(small_vit(), 4)
    collect_second_moments(model, [torch.randn(2, 3, 16, 16)])
    assert not any(layer.attn.qkv._forward_hooks for layer in model.attentions().values())
    assert all(layer.attn.fused_attn for layer in model.attentions().values())


def test_pictures_that_are_not_finite_are_reported_by_layer(small_vit):
    model = PromptedViT.from_timm(small_vit(), 4)
    with pytest.raises(UserError, match=r"blocks\.0"):
        collect_second_moments(model, [torch.full((2, 3, 16, 16), float("nan"))])
    with pytest.raises(UserError, match="no images"):
        collect_second_moments(model, [])


def test_unknown_kinds_of_blocks_are_refused_by_name():
    from timm.models.vision_transformer import ParallelScalingBlock

    parallel = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=4, block_fn=ParallelScalingBlock
    )
    with pytest.raises(UnsupportedBackboneError, match="ParallelScalingBlock"):
        PromptedViT.from_timm(parallel)
    normalised = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=4, qk_norm=True)
    with pytest.raises(UnsupportedBackboneError, match="allow_qk_norm"):
        PromptedViT.from_timm(normalised)
    assert PromptedViT.from_timm(normalised, allow_qk_norm=True)(torch.randn(1, 3, 16, 16)).shape == (1, 32)
    with pytest.raises(UnsupportedBackboneError, match="no `blocks`"):
        PromptedViT.from_timm(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"), [({"num_prompts": 0}, "num_prompts"), ({"blocks": [3]}, "0 to 2"), ({"blocks": []}, "none")]
)
def test_bad_prompt_places_are_refused(small_vit, options, message):
    with pytest.raises(UserError, match=message):
        PromptedViT.from_timm(small_vit(), **options)


def test_shallow_prompts_sit_in_the_first_block_alone(small_vit):
    model = PromptedViT.from_timm(small_vit(), 4, blocks=[0])
    assert list(model.prompts()) == ["blocks.0"]
    assert model.prompts()["blocks.0"].abs().max() <= 1
