"""Second moments of what earlier tasks' features produce, in one streaming pass (paper §4.3, Alg. 1 lines 19-24; official code).

No token is stored. Per head only the Gram matrix of the queries is kept, d x d, and expanded once at the end:
Omega_1^T Omega_1 = sum_h W_k,h^T (Q_h^T Q_h) W_k,h. Hooks on the model's own `qkv` layers do the work; fused attention stays on.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenfold import UserError
from vptnsp.models.attention import PromptedAttention, attention_to_prompts
from vptnsp.models.networks import PromptedViT

Conditions = Literal["paper", "exact"]
Accumulation = Literal["sum", "mean"]
Weighting = Literal["official", "token"]
Consistency = Literal["keys", "inputs"]


@dataclass
class SecondMoments:
    """C_1 and C_2 of each prompted layer, in 64 bits; empty to begin with.

    Attributes:
        C1: of Q W_k^T over heads, tokens and images (paper eq. 24).
        C2: of the attention to the prompts (paper eq. 25).
        num_samples: images seen.
    """

    C1: dict[str, Float[Tensor, "d d"]] = field(default_factory=dict)
    C2: dict[str, Float[Tensor, "m m"]] = field(default_factory=dict)
    num_samples: int = 0

    def update(self, model: PromptedViT, images: Float[Tensor, "b 3 h w"], accum: Accumulation = "sum") -> None:
        """Add one batch of images, for those who have no loader (see `collect_second_moments`).

        Args:
            model: with the prompts just trained.
            images: preprocessed as for evaluation.
            accum: `sum` adds the batch's mean (official code); `mean` keeps the mean over all images.

        Raises:
            UserError: no images, other layers or shapes than so far, or values that are not finite.
        """
        batch = collect_second_moments(model, [images])
        merged = self.merge(batch, accum) if self.num_samples else batch
        self.C1, self.C2, self.num_samples = merged.C1, merged.C2, merged.num_samples

    def merge(self, other: "SecondMoments", accum: Accumulation = "sum") -> "SecondMoments":
        """Those of two sets of images together.

        Args:
            other: of the newer images.
            accum: `sum` adds (official code, each task counts by its number of batches); `mean` weighs by the number of images.

        Raises:
            UserError: other layers or shapes.
        """
        if self.C1.keys() != other.C1.keys():
            raise UserError(f"moments of layers {sorted(self.C1)} and {sorted(other.C1)} cannot be merged")
        total = self.num_samples + other.num_samples
        old, new = (1.0, 1.0) if accum == "sum" else (self.num_samples / total, other.num_samples / total)

        def combine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: old * first[name] + new * second[name].to(first[name].device) for name in first}

        return SecondMoments(combine(self.C1, other.C1), combine(self.C2, other.C2), total)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat, for safetensors."""
        tensors = {f"C1.{name}": value for name, value in self.C1.items()}
        tensors |= {f"C2.{name}": value for name, value in self.C2.items()}
        return tensors | {"num_samples": torch.tensor(self.num_samples)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "SecondMoments":
        """From what `state_dict` returned.

        Raises:
            UserError: something else.
        """
        by_kind: dict[str, dict[str, Tensor]] = {"C1": {}, "C2": {}}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if name and kind in by_kind and value.ndim == 2 and value.shape[0] == value.shape[1]:
                by_kind[kind][name] = value
            elif key != "num_samples":
                raise UserError(f"{key} is no second moment")
        samples = state.get("num_samples")
        if samples is None or samples.ndim or samples.dtype != torch.long or samples < 1:
            raise UserError("second moments do not say of how many images they are")
        return cls(by_kind["C1"], by_kind["C2"], int(samples))


def query_gram(queries: Float[Tensor, "b h n d"]) -> Float[Tensor, "h d d"]:
    """Q_h^T Q_h of each head, divided by the number of rows B H N."""
    rows = queries.transpose(0, 1).flatten(1, 2)
    return rows.transpose(1, 2) @ rows / (rows.shape[0] * rows.shape[1])


def expand_to_inputs(gram: Float[Tensor, "h d d"], key_weights: Float[Tensor, "h d c"]) -> Float[Tensor, "c c"]:
    """sum_h W_k,h^T G_h W_k,h: the second moment of Q W_k^T from the Gram matrices of the queries (paper eq. 24)."""
    weights = key_weights.detach().to(gram)
    return torch.einsum("hdc,hde,hef->cf", weights, gram, weights)


def aggregation_moment(attention: Float[Tensor, "b h n m"]) -> Float[Tensor, "m m"]:
    """S_P^T S_P over batch, heads and tokens, divided by their number (paper eq. 25)."""
    rows = attention.flatten(0, 2)
    return rows.T @ rows / len(rows)


def input_moment(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "d d"]:
    """LN(X)^T LN(X) over batch and tokens, divided by their number: what gradient-projection methods use instead."""
    rows = tokens.flatten(0, 1)
    return rows.T @ rows / len(rows)


def exact_conditions(moments: SecondMoments, model: PromptedViT) -> SecondMoments:
    """The conditions with LayerNorm's weight and the prompts' spread kept: diag(a) C_1 diag(a) and diag(1/s) C_2 diag(1/s).

    The paper drops both, which leaves a first-order leak wherever a is not uniform or the prompts' standard deviations
    differ. `a` is the weight of the layer's LayerNorm, `s` the current standard deviation of each prompt.
    """
    C1, C2 = {}, {}
    for name, layer in model.attentions().items():
        weight = layer.norm.weight.detach().to(moments.C1[name])
        spread = layer.prompt.detach().std(1, correction=0).to(moments.C2[name])
        C1[name] = weight[:, None] * moments.C1[name] * weight
        C2[name] = moments.C2[name] / (spread[:, None] * spread)
    return SecondMoments(C1, C2, moments.num_samples)


class _LayerRecorder:
    """Sums the per-batch means of one layer while images pass through it."""

    def __init__(self, layer: PromptedAttention, consistency: Consistency) -> None:
        self.layer = layer
        self.consistency = consistency
        attn, (prompts, channels), device = layer.attn, layer.prompt.shape, layer.prompt.device
        # Apple's MPS has no 64-bit floats.
        place = torch.device("cpu") if device.type == "mps" else device
        shape = (attn.num_heads, attn.head_dim, attn.head_dim) if consistency == "keys" else (channels, channels)
        # From zero: of several processes, one may see no batch at all.
        self.features = torch.zeros(shape, dtype=torch.float64, device=place)
        self.aggregation = torch.zeros(prompts, prompts, dtype=torch.float64, device=place)
        self.weight = 1.0
        with torch.no_grad():
            self.prompt_keys = layer.prompt_keys_values()[0]

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor], qkv: Tensor) -> None:
        queries, keys, _ = self.layer.split_heads(qkv)
        features = query_gram(queries) if self.consistency == "keys" else input_moment(inputs[0])
        aggregation = aggregation_moment(attention_to_prompts(queries, keys, self.prompt_keys))
        self.features += self.weight * features.to(self.features)
        self.aggregation += self.weight * aggregation.to(self.aggregation)

    def moments(self) -> tuple[Tensor, Tensor]:
        """C_1 and C_2 so far."""
        if self.consistency == "inputs":
            return self.features, self.aggregation
        return expand_to_inputs(self.features, self.layer.key_weights()), self.aggregation


@contextlib.contextmanager
def _recording(model: PromptedViT, consistency: Consistency) -> Generator[dict[str, _LayerRecorder]]:
    recorders = {name: _LayerRecorder(layer, consistency) for name, layer in model.attentions().items()}
    handles = [each.layer.attn.qkv.register_forward_hook(each) for each in recorders.values()]
    was_training = model.training
    model.eval()
    try:
        yield recorders
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect_second_moments(
    model: PromptedViT,
    loader: Iterable[Any],
    *,
    conditions: Conditions = "paper",
    device: torch.device | None = None,
    weighting: Weighting = "official",
    consistency: Consistency = "keys",
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> SecondMoments:
    """One pass over a task's training images, after it has been learnt (paper Alg. 1 lines 19-24).

    Args:
        model: with the prompts just trained; it is put in evaluation mode, and never under autocast.
        loader: yields batches of images, or (images, labels). Give it the evaluation transform: augmented images are not
            what the features to be preserved are made of, and nothing here can tell.
        conditions: `paper` (eq. 24-25), or `exact` to apply `exact_conditions` to the result.
        device: where to compute; the model's by default.
        weighting: `official` sums the means of the batches, so that a smaller last batch counts for more; `token` weighs
            every image the same.
        consistency: `keys` for the paper's Q W_k^T; `inputs` for LN(X) (see `input_moment`).
        reduce: sums a tensor over processes, where each sees other batches.

    Raises:
        UserError: no batch, or a layer with entries that are not finite.
    """
    place = device or next(model.parameters()).device
    seen = 0
    with _recording(model, consistency) as recorders, torch.autocast(place.type, enabled=False):
        for batch in loader:
            images = batch[0] if isinstance(batch, list | tuple) else batch
            for each in recorders.values():
                each.weight = 1.0 if weighting == "official" else float(len(images))
            model.features(images.to(place).float())
            seen += len(images)
    if reduce is None and seen == 0:
        raise UserError("no images to collect second moments from")
    moments = _gather(recorders, seen, weighting, reduce)
    return moments if conditions == "paper" else exact_conditions(moments, model)


def _gather(
    recorders: Mapping[str, _LayerRecorder],
    seen: int,
    weighting: Weighting,
    reduce: Callable[[Tensor], Tensor] | None,
) -> SecondMoments:
    C1, C2 = {}, {}
    total = seen if reduce is None else int(reduce(torch.tensor(float(seen))).item())
    for name, recorder in recorders.items():
        pair = recorder.moments()
        if reduce is not None:
            pair = tuple(reduce(each) for each in pair)
        for kind, moment in zip((C1, C2), pair, strict=True):
            if not torch.isfinite(moment).all():
                raise UserError(f"{name}: second moments are NaN or infinite; check the images and the learning rate")
            kind[name] = moment if weighting == "official" else moment / total
    return SecondMoments(C1, C2, total)
