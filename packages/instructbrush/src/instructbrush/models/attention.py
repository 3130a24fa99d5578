"""Attention-based instruction: learned keys and values take the place of the projected text's first tokens (paper §4.1).

    K = [gK; (W_K c)_{m+1..l}],  V = [gV; (W_V c)_{m+1..l}]

in every cross-attention layer, and only in the rows that carry the instruction. Two realisations give the same numbers: a diffusers
attention processor, and forward hooks on the projections, which also work beside LoRA, attention slicing and IP-Adapters.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.errors import UserError

Route = Literal["auto", "processor", "hooks"]


def inject(
    projected: Float[Tensor, "b l d"], learned: Float[Tensor, "_ m d"], rows: Bool[Tensor, " b"] | None
) -> Float[Tensor, "b l d"]:
    """Replace the first m tokens of some rows, out of place.

    Args:
        projected: keys or values of the text, not yet split into heads.
        learned: keys or values of the instruction, one for all rows or one for each.
        rows: which rows carry the instruction; None for all.
    """
    count = learned.shape[1]
    prefix = learned.to(projected.dtype).expand(projected.shape[0], -1, -1)
    replaced = torch.cat([prefix, projected[:, count:]], dim=1)
    return replaced if rows is None else torch.where(rows[:, None, None], replaced, projected)


@dataclass
class InjectionState:
    """What the layers read during a forward pass.

    Attributes:
        keys: gK of each layer, (J, m, d).
        values: gV of each layer.
        total: number of training time steps T.
        rows: rows that carry the instruction; None for all. Set before each pass.
        parts: time partition, one or one for each row. Set before each pass.
        met: layers that were injected in this pass.
    """

    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    total: int
    rows: Tensor | None = None
    parts: int | Tensor = 0
    met: set[str] = field(default_factory=set)

    def key(self, layer: str, projected: Tensor) -> Tensor:
        """The keys of a layer with the instruction in place."""
        return inject(projected, self._of(self.keys[layer], projected), self.rows)

    def value(self, layer: str, projected: Tensor) -> Tensor:
        """The values of a layer with the instruction in place."""
        self.met.add(layer)
        return inject(projected, self._of(self.values[layer], projected), self.rows)

    def _of(self, learned: Tensor, projected: Tensor) -> Tensor:
        chosen = learned[self.parts : self.parts + 1] if isinstance(self.parts, int) else learned[self.parts]
        return chosen.to(projected.device)

    def begin(self, batch: int, timestep: float | int | Tensor, guided: bool, device: torch.device) -> None:
        """Set rows and partition for a pass.

        Raises:
            RuntimeError: guidance is on and the rows are not in three equal groups.
        """
        self.met.clear()
        count = next(iter(self.keys.values())).shape[0]
        if guided and batch % 3:
            raise RuntimeError(f"guidance is on and the batch has {batch} rows: not three equal groups")
        self.rows = torch.arange(batch, device=device) < batch // 3 if guided else None
        if isinstance(timestep, Tensor) and timestep.numel() > 1:
            self.parts = partition_index(timestep.to(device), self.total, count)
        else:
            self.parts = int(partition_index(float(timestep), self.total, count))


class InjectedProcessor:
    """diffusers' `AttnProcessor2_0` with an instruction. A plain object: as a module it would enter the network's weights.

    Args:
        layer: name of the attention module.
        state: shared by all layers.
    """

    def __init__(self, layer: str, state: InjectionState) -> None:
        self.layer = layer
        self.state = state

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Cross-attention of `hidden_states` to the text, its first tokens replaced."""
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        batch = hidden_states.shape[0]
        text = _attended_text(attn, hidden_states, encoder_hidden_states)
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, text.shape[1], batch)
            mask = mask.view(batch, attn.heads, -1, mask.shape[-1])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        key = _split_heads(self.state.key(self.layer, attn.to_k(text)), attn.heads)
        value = _split_heads(self.state.value(self.layer, attn.to_v(text)), attn.heads)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out = out.transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


def _attended_text(attn: Any, hidden_states: Tensor, text: Tensor | None) -> Tensor:
    if text is None:
        return hidden_states
    return attn.norm_encoder_hidden_states(text) if attn.norm_cross else text


def _split_heads(x: Float[Tensor, "b n d"], heads: int) -> Float[Tensor, "b {heads} n _"]:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def cross_attention_layers(unet: nn.Module) -> dict[str, Any]:
    """The cross-attention modules of a UNet by name.

    Raises:
        UserError: there is none, or one projects keys and values at once.
    """
    found = {
        name: module
        for name, module in unet.named_modules()
        if name.endswith(".attn2") and isinstance(module, Attention) and module.to_k is not None
    }
    if not found:
        raise UserError(f"{type(unet).__name__}: not supported, it has no .attn2 layers with keys and values of a text")
    fused = [name for name, module in found.items() if module.fused_projections]
    if fused:
        raise UserError(f"{fused[0]}: keys and values are fused; call unfuse_qkv_projections first")
    return found


def project_text(attn: Any, text: Float[Tensor, "1 l c"]) -> tuple[Float[Tensor, "l d"], Float[Tensor, "l d"]]:
    """Keys and values that a layer makes of a text."""
    weight = attn.to_k.weight
    # Offloaded layers fetch their weights, and move what they are given, when they are called.
    text = text.to(weight.dtype) if weight.is_meta else text.to(weight.device, weight.dtype)
    text = attn.norm_encoder_hidden_states(text) if attn.norm_cross else text
    return attn.to_k(text)[0], attn.to_v(text)[0]


_attached: "weakref.WeakKeyDictionary[nn.Module, Attachment]" = weakref.WeakKeyDictionary()


class Attachment:
    """An instruction in place in a UNet, until `remove` or the end of a `with` block.

    Args:
        unet: a `UNet2DConditionModel`.
        state: the keys and values, by layer.
        guided: asked before each pass whether the rows are the three groups of guidance.
        route: `processor`, `hooks`, or `auto`: the processor where all layers have diffusers' stock one.

    Raises:
        UserError: another instruction is in place, or the layers do not have the same names.
    """

    def __init__(
        self, unet: nn.Module, state: InjectionState, guided: Callable[[], bool], route: Route = "auto"
    ) -> None:
        if unet in _attached:
            raise UserError("an instruction is in place already; detach it first")
        layers = cross_attention_layers(unet)
        if missing := sorted(layers.keys() ^ state.keys.keys()):
            raise UserError(f"the instruction and the network do not have the same layers: {', '.join(missing[:3])}")
        self.unet, self.state, self._guided = unet, state, guided
        self._handles: list[Any] = []
        self._processors: dict[str, Any] = {}
        stock = all(type(attn.processor) is AttnProcessor2_0 for attn in layers.values())
        if route == "processor" or (route == "auto" and stock):
            for name, attn in layers.items():
                self._processors[name] = attn.processor
                attn.set_processor(InjectedProcessor(name, state))
        else:
            for name, attn in layers.items():
                self._handles.append(attn.to_k.register_forward_hook(_hook(state.key, name)))
                self._handles.append(attn.to_v.register_forward_hook(_hook(state.value, name)))
        self._handles.append(unet.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._handles.append(unet.register_forward_hook(self._check))
        _attached[unet] = self

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        self.state.begin(sample.shape[0], timestep, self._guided(), sample.device)

    def _check(self, *_: Any) -> None:
        if bypassed := sorted(self.state.keys.keys() - self.state.met):
            raise RuntimeError(f"{bypassed[0]}: its attention processor bypasses to_k and to_v; use a stock one")

    def remove(self) -> None:
        """Put the network back as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        layers: dict[str, Any] = dict(self.unet.named_modules())
        for name, processor in self._processors.items():
            layers[name].set_processor(processor)
        self._processors.clear()
        _attached.pop(self.unet, None)

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def attachment_of(unet: nn.Module) -> Attachment | None:
    """What is in place in a UNet, if anything."""
    return _attached.get(unet)


def _hook(replace: Callable[[str, Tensor], Tensor], layer: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return replace(layer, output)

    return hook


def partition_index(
    t: float | int | Shaped[Tensor, "..."],
    T: int,
    J: int,  # the paper's symbols
) -> int | Shaped[Tensor, "..."]:
    """p(t) = min(floor(t J / T), J - 1): which part of the time axis a step falls in.

    Args:
        t: time steps in 0..T-1; some samplers use fractional ones.
        T: number of training time steps.
        J: number of parts.

    Raises:
        UserError: J outside 1..T.
    """
    if not 1 <= J <= T:
        raise UserError(f"partitions {J}: must be 1 to {T}")
    if not isinstance(t, Tensor):
        return min(math.floor(t * J / T), J - 1)
    if t.is_floating_point():
        return (t.double() * J / T).floor().long().clamp(max=J - 1)
    return torch.div(t * J, T, rounding_mode="floor").clamp(max=J - 1)
