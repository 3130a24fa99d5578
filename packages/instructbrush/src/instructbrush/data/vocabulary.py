"""The words of the embedded base model, and a CLIP tokenizer in which each of them is one token."""

from collections import Counter
from itertools import pairwise

from transformers import CLIPTokenizer

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.7, 0.2),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.9, 0.85, 0.15),
    "purple": (0.55, 0.15, 0.7),
    "orange": (0.95, 0.55, 0.1),
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.06),
}
SHAPES = ("circle", "square", "triangle", "cross")
TEXTURES = ("plain", "striped", "dotted")
STYLE_WORDS = (
    "dark",
    "bright",
    "gray",
    "colorful",
    "pale",
    "harsh",
    "tinted",
    "warm",
    "cold",
    "sepia",
    "negative",
    "night",
    "sunset",
    "foggy",
    "blurry",
    "sketch",
    "poster",
    "framed",
    "vignette",
    "glowing",
    "duotone",
    "sky",
    "ground",
)
GRAMMAR = ("turn", "it", "into", "make", "remove", "on", "and", "slightly", "strongly", "photo", ",", "a", "the")

WORDS = (*GRAMMAR, *COLOURS, *SHAPES, *TEXTURES, *STYLE_WORDS)
TEXT_LENGTH = 16
"""Tokens of an instruction, start and end included."""


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each word is one token (Sennrich et al. 2016)."""
    pieces = [(*word[:-1], word[-1] + "</w>") for word in words]
    merges = []
    while any(len(each) > 1 for each in pieces):
        pairs = Counter(pair for each in pieces for pair in pairwise(each))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(each, best) for each in pieces]
    return merges


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def build_tokenizer() -> CLIPTokenizer:
    """A `CLIPTokenizer` whose vocabulary is `WORDS`; other words are spelt out in letters."""
    # The printable characters that byte-level encoding leaves as they are.
    letters = [chr(code) for code in range(33, 127)]
    merges = learn_merges(WORDS)
    entries = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    entries += dict.fromkeys(first + second for first, second in merges)
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)  # ty: ignore[invalid-argument-type]  # pairs are what it takes
