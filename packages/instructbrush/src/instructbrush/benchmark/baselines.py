"""Every way of editing that the benchmark compares, under one name each (paper §5)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from instructbrush.data.datasets import PairSet
from instructbrush.method.sensitivity import PhraseOptions
from instructbrush.models.backbones import Editor
from instructbrush.models.instruction import Instruction
from instructbrush.pipeline.inference import ApplyOptions, edit_batch
from instructbrush.training.learner import LearnConfig, learn_instruction
from tenfold.errors import UserError

Method = Literal[
    "copy",
    "affine-color",
    "text",
    "visii",
    "visii-strict",
    "textual-inversion",
    "text-embed",
    "kv",
    "kv-no-init",
    "kv-caption",
    "kv-j5",
    "kv-4",
    "kv-guided",
]
METHODS: tuple[str, ...] = get_args(Method)
"""copy returns its input; affine-color fits a colour map; text uses the words; visii, textual-inversion and text-embed learn text; kv is
the paper's method, and what follows varies its start, its partitions, its tokens or its loss."""

Edit = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b 3 h w"]]


@dataclass(frozen=True)
class Learnt:
    """A method that has seen the training pairs.

    Attributes:
        edit: what it does to pictures.
        loss: its final training loss, where it has one.
        instruction: the instruction, where it has one.
    """

    edit: Edit
    loss: float = float("nan")
    instruction: Instruction | None = None


def recipe_of(method: str, config: LearnConfig) -> tuple[LearnConfig, str]:
    """The recipe and the start of a learnt method."""
    plain = replace(config, method="kv", loss="plain", strict_visii=False)
    variants: dict[str, tuple[LearnConfig, str]] = {
        "visii": (replace(plain, method="visii"), "caption"),
        "visii-strict": (replace(plain, method="visii", strict_visii=True), "caption"),
        "textual-inversion": (replace(plain, method="textual-inversion", tokens=None), "none"),
        "text-embed": (replace(plain, method="text-embed"), "phrases"),
        "kv": (plain, "phrases"),
        "kv-no-init": (plain, "none"),
        "kv-caption": (plain, "caption"),
        "kv-j5": (replace(plain, partitions=5), "phrases"),
        "kv-4": (replace(plain, tokens=4), "phrases"),
        "kv-guided": (replace(plain, loss="guided"), "phrases"),
    }
    return variants[method]


def learn_method(
    editor: Editor,
    method: str,
    train: PairSet,
    words: str,
    config: LearnConfig,
    options: ApplyOptions,
    *,
    bank: tuple[str, ...] | None = None,
    phrase_options: PhraseOptions | None = None,
    rates: dict[str, float] | None = None,
) -> Learnt:
    """Learn from training pairs by one of METHODS.

    Args:
        editor: the frozen editor.
        method: a name in METHODS.
        train: the pairs.
        words: the instruction in words, for `text`.
        config: the recipe of learnt methods.
        options: how pictures are edited.
        bank: phrases of the initialisation.
        phrase_options: of the choice.
        rates: learning rates of methods that need their own.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"method {method}: there are {', '.join(METHODS)}")
    if method == "copy":
        return Learnt(lambda images: images)
    if method == "affine-color":
        matrix = fit_affine_colour(train.before, train.after)
        return Learnt(lambda images: apply_affine_colour(matrix, images))
    if method == "text":
        return _instructed(editor, Instruction.from_text(editor.pipe, words, **editor.about), options)
    recipe, init = recipe_of(method, config)
    if rates and method in rates:
        recipe = replace(recipe, learning_rate=rates[method])
    clip: Any = editor.clip if init in ("phrases", "caption") or recipe.method == "visii" else None
    learnt = learn_instruction(
        editor.pipe, train, recipe, init, clip, bank, phrase_options=phrase_options, about=editor.about
    )
    return _instructed(editor, learnt, options)


def _instructed(editor: Editor, instruction: Instruction, options: ApplyOptions) -> Learnt:
    loss = float(instruction.about.train.get("final_loss", float("nan")))
    return Learnt(lambda images: edit_batch(editor.pipe, instruction, images, options), loss, instruction)


def fit_affine_colour(before: Float[Tensor, "k 3 h w"], after: Float[Tensor, "k 3 h w"]) -> Float[Tensor, "4 3"]:
    """The least-squares affine map from RGB to RGB."""
    first, second = (each.movedim(1, -1).reshape(-1, 3).double() for each in (before, after))
    design = torch.cat([first, torch.ones(len(first), 1, dtype=torch.float64)], dim=1)
    # The driver that also solves flat pictures, whose colours do not span the space.
    return torch.linalg.lstsq(design, second, driver="gelsd").solution.float()


def apply_affine_colour(matrix: Float[Tensor, "4 3"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Map the colours of pictures in [0, 1], clipped."""
    mapped = torch.einsum("bchw,cd->bdhw", images, matrix[:3]) + matrix[3][:, None, None]
    return mapped.clamp(0, 1)
