"""Where the conditions hold to first order and where they leak."""

import numpy as np
import pytest
import torch
from torch import nn

from vptnsp.models.attention import PromptedAttention

KINDS = ("random", "paperB1", "paperB1B2", "alphaB1_paperB2", "alphaB1_sigmaB2")


def attention_output(data, case: int, prompt: torch.Tensor) -> torch.Tensor:
    """S V of all heads, before the output projection, in 64 bits."""
    from timm.layers.attention import Attention

    key = f"case{case}."
    heads = int(data[key + "H"])
    attn, norm = Attention(64, heads, qkv_bias=True).double(), nn.LayerNorm(64, eps=1e-6).double()
    with torch.no_grad():
        for mine, name in (
            (attn.qkv.weight, "qkv_weight"),
            (attn.qkv.bias, "qkv_bias"),
            (norm.weight, "norm1_weight"),
            (norm.bias, "norm1_bias"),
        ):
            mine.copy_(torch.from_numpy(data[key + name]))
        attn.proj.weight.copy_(torch.eye(64))
        attn.proj.bias.zero_()
    layer = PromptedAttention(attn, norm, len(prompt))
    layer.prompt = nn.Parameter(prompt)
    with torch.no_grad():
        return layer(norm(torch.from_numpy(data[key + "tokens"]).double()))


def drifts(data, case: int, kind: str) -> np.ndarray:
    key = f"case{case}."
    prompt, direction = (torch.from_numpy(data[key + name]).double() for name in ("P", f"dP.{kind}"))
    before = attention_output(data, case, prompt)
    return np.array(
        [
            (
                torch.linalg.norm(attention_output(data, case, prompt + t * direction) - before)
                / torch.linalg.norm(before)
            ).item()
            for t in data["t_values"]
        ]
    )


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_golden_drift_and_its_order(golden, case, kind):
    data = golden("consistency")
    ours = drifts(data, case, kind)
    np.testing.assert_allclose(ours, data[f"case{case}.drift.{kind}"], rtol=0.01)
    slope = np.polyfit(np.log(data["t_values"]), np.log(ours), 1)[0]
    uniform, equal = (bool(data[f"case{case}.{name}"]) for name in ("alpha_uniform", "sigma_equal"))
    holds = {
        "random": False,
        "paperB1": False,
        "paperB1B2": uniform and equal,
        "alphaB1_paperB2": equal,
        "alphaB1_sigmaB2": True,
    }[kind]
    assert slope == pytest.approx(2 if holds else 1, abs=0.1)


def test_an_update_that_obeys_the_conditions_disturbs_fifty_times_less(golden):
    data = golden("consistency")
    assert drifts(data, 0, "random")[1] > 50 * drifts(data, 0, "paperB1B2")[1]
