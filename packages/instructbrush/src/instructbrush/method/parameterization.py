"""What may be learnt: keys and values (the method), the encoded text (Visii's place), or new words (Textual Inversion's place)."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from instructbrush.models.instruction import Instruction, Pipeline, encode_text
from tenfold.errors import UserError


@runtime_checkable
class Space(Protocol):
    """A set of parameters that stands for an instruction."""

    def text(self) -> Float[Tensor, "1 l c"]:
        """The encoded text of the instruction rows."""
        ...

    def injected(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None:
        """Keys and values by layer, where these are what is learnt."""
        ...

    def instruction(self, pipe: Pipeline, **about: Any) -> Instruction:
        """What has been learnt so far."""
        ...


class KeyValueSpace(nn.Module):
    """gK and gV of every layer and partition (paper §4.1), starting at the initial text's.

    Args:
        start: an instruction made by `Instruction.from_text`.
    """

    def __init__(self, start: Instruction) -> None:
        super().__init__()
        self.layers = list(start.keys)
        self.keys = nn.ParameterList([nn.Parameter(start.keys[name].clone()) for name in self.layers])
        self.values = nn.ParameterList([nn.Parameter(start.values[name].clone()) for name in self.layers])
        self.start = start
        self.register_buffer("embedding", start.text_embedding.clone(), persistent=False)

    def text(self) -> Float[Tensor, "1 l c"]:
        """The initial text, constant."""
        return self.embedding  # ty: ignore[invalid-explicit-return]  # the buffer

    def injected(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The parameters by layer."""
        return (
            dict(zip(self.layers, self.keys, strict=True)),
            dict(zip(self.layers, self.values, strict=True)),
        )

    def instruction(self, pipe: Pipeline, **about: Any) -> Instruction:  # noqa: ARG002  # as the other spaces
        """A copy of the parameters."""
        keys, values = (
            {name: value.detach().cpu().clone() for name, value in each.items()} for each in self.injected()
        )
        return Instruction(keys, values, self.start.text_embedding.cpu(), self.start.about).described(**about)


class TextSpace(nn.Module):
    """The encoded text itself; tokens that `free` leaves out stay as they are (as Visii resets them).

    Args:
        embedding: encoding of the initial text.
        free: tokens that may move; None for all.
    """

    def __init__(self, embedding: Float[Tensor, "1 l c"], free: Bool[Tensor, " l"] | None = None) -> None:
        super().__init__()
        self.moving = nn.Parameter(embedding.float().clone())
        self.register_buffer("initial", embedding.float().clone(), persistent=False)
        length = embedding.shape[1]
        self.register_buffer("free", torch.ones(length).bool() if free is None else free, persistent=False)

    def text(self) -> Float[Tensor, "1 l c"]:
        """The embedding with the fixed tokens put back."""
        return torch.where(self.free[None, :, None], self.moving, self.initial)  # ty: ignore[not-subscriptable, no-matching-overload]  # buffers

    def injected(self) -> None:
        """Nothing: the text goes through the projections."""
        return

    def instruction(self, pipe: Pipeline, **about: Any) -> Instruction:
        """The embedding projected: all slots, one partition."""
        return Instruction.from_embedding(pipe, self.text().detach(), **about)


class WordSpace(nn.Module):
    """Input embeddings of new words, through the frozen text encoder (Gal et al. 2023): `turn it into * * ... *`.

    Args:
        pipe: the editor, with its text encoder.
        words: how many.
        prefix: the words before them.
    """

    def __init__(self, pipe: Pipeline, words: int, prefix: str = "turn it into") -> None:
        super().__init__()
        if pipe.tokenizer is None or pipe.text_encoder is None:
            raise UserError("the pipeline has no text encoder: new words need one")
        self._encoder = [pipe.text_encoder]  # in a list, so that its weights are not this module's
        opening = pipe.tokenizer(prefix).input_ids[:-1]
        room = pipe.tokenizer.model_max_length - len(opening) - 1
        if not 1 <= words <= room:
            raise UserError(f"tokens {words}: this editor's text has room for 1 to {room} new words")
        end = pipe.tokenizer.eos_token_id
        ids = opening + opening[-1:] * words
        ids += [end] + [pipe.tokenizer.pad_token_id] * (pipe.tokenizer.model_max_length - len(ids) - 1)
        self.register_buffer("ids", torch.tensor([ids]), persistent=False)
        self.places = slice(len(opening), len(opening) + words)
        table = pipe.text_encoder.get_input_embeddings()
        self.moving = nn.Parameter(table.weight[opening[-1]].detach().float().expand(words, -1).clone())

    def text(self) -> Float[Tensor, "1 l c"]:
        """The encoder's output with the new words in their places."""

        def place(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            parts = (output[:, : self.places.start], self.moving[None].to(output), output[:, self.places.stop :])
            return torch.cat(parts, dim=1)

        encoder = self._encoder[0]
        handle = encoder.get_input_embeddings().register_forward_hook(place)
        try:
            return encoder(self.ids.to(encoder.device))[0].to(self.moving.device)
        finally:
            handle.remove()

    def injected(self) -> None:
        """Nothing: the text goes through the projections."""
        return

    def instruction(self, pipe: Pipeline, **about: Any) -> Instruction:
        """The encoded text projected: all slots, one partition."""
        return Instruction.from_embedding(pipe, self.text().detach(), **about)


def own_tokens(pipe: Pipeline, text: str) -> Bool[Tensor, " l"]:
    """The tokens of a text itself: not the start token, and nothing from the first end token on.

    Raises:
        UserError: the text has no words.
    """
    count = min(len(pipe.tokenizer(text).input_ids) - 2, pipe.tokenizer.model_max_length - 2)
    if count < 1:
        raise UserError("the initial text has no words whose tokens could move; give another --init")
    place = torch.arange(pipe.tokenizer.model_max_length)
    return (place >= 1) & (place <= count)


def visii_direction_term(
    embedding: Float[Tensor, "1 l c"], projection: Float[Tensor, "d c"], direction: Float[Tensor, "1 d"]
) -> Float[Tensor, ""]:
    """-clamp(cos(d, n(W_proj mean_tokens(c))), -1, 0.5): Visii's pull towards the direction of the pictures in CLIP.

    Args:
        embedding: the encoded text.
        projection: CLIP's text projection.
        direction: see `edit_direction`.
    """
    mean = nn.functional.normalize(embedding.mean(1) @ projection.T, dim=1)
    return -(mean * direction).sum(1).clamp(-1, 0.5).mean()


def edit_direction(before: Float[Tensor, "k d"], after: Float[Tensor, "k d"]) -> Float[Tensor, "1 d"]:
    """n(mean f(y) - mean f(x)) on features that are not normalised (Visii)."""
    return nn.functional.normalize((after.mean(0) - before.mean(0))[None], dim=1)


def initial_space(
    pipe: Pipeline, kind: str, text: str, tokens: int | None, partitions: int, words: int, own: bool
) -> nn.Module:
    """The parameters to learn, at the initial text.

    Raises:
        UserError: m, J or the words do not fit the editor.
    """
    if kind == "kv":
        return KeyValueSpace(Instruction.from_text(pipe, text, tokens, partitions))
    if kind == "text":
        return TextSpace(encode_text(pipe, text), own_tokens(pipe, text) if own else None)
    return WordSpace(pipe, words)


def finite_norms(module: nn.Module) -> str:
    """The norms of the parameters, for an error message."""
    norms = [float(each.detach().norm()) for each in module.parameters()]
    worst = max((each for each in norms if math.isfinite(each)), default=float("nan"))
    return f"largest finite parameter norm {worst:.3g}, {sum(not math.isfinite(each) for each in norms)} not finite"
