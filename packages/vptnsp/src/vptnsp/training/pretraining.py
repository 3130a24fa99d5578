"""Pre-training of the embedded backbone: one classifier over the classes of all banks (`vptnsp pretrain`).

The paper takes its backbones from elsewhere; this is how the small one that ships here was made.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors, write_tensors
from tenfold.runs import RunFolder, autocast, pick_device, seed_everything, track
from vptnsp.config import PretrainConfig
from vptnsp.data.image_banks import CharacterBank, ClassBank, GlyphBank, PhotographBank
from vptnsp.models.compact import EMBEDDED_NAME, MEAN, STD, embedded_architecture, save_backbone

CHECKPOINT_EVERY = 250


def open_banks(config: PretrainConfig) -> list[ClassBank]:
    """The banks that the configuration names; glyphs are always among them."""
    banks: list[ClassBank] = [GlyphBank.create(config.glyph_classes, config.seed)]
    if config.characters is not None:
        banks.append(CharacterBank.read(config.characters, config.alphabets))
    if config.photographs is not None:
        banks.append(PhotographBank.read(config.photographs, config.num_photographs))
    return banks


def draw_batch(
    banks: Sequence[ClassBank], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
    """Draw an equal share from each bank; labels of later banks follow those of earlier ones."""
    shares = [count // len(banks) + (index < count % len(banks)) for index in range(len(banks))]
    pictures, labels, first = [], [], 0
    for bank, share in zip(banks, shares, strict=True):
        drawn, label = bank.draw(share, generator)
        pictures.append(drawn)
        labels.append(label + first)
        first += bank.num_classes
    return torch.cat(pictures), torch.cat(labels)


def normalise(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """From [0, 1] to what the embedded backbone expects."""
    mean, std = (torch.tensor(each, device=pictures.device)[:, None, None] for each in (MEAN, STD))
    return (pictures - mean) / std


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up over the first twentieth, then a cosine to zero."""
    warm = max(1, config.steps // 20)
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def pretrain(out: Path, config: PretrainConfig, device: str = "auto", resume: bool = False) -> dict[str, float | int]:
    """Pre-train the embedded architecture and write `out/vptnsp_tiny_patch8_32.safetensors`.

    Each step draws from a generator seeded by the step, so that a resumed run continues to the same weights.

    Returns:
        Steps, classes, and the mean training accuracy of the last 100 steps.
    """
    place = pick_device(device)
    run = RunFolder.create(out, config, resume)
    seed_everything(config.seed)
    banks = open_banks(config)
    model = embedded_architecture(sum(bank.num_classes for bank in banks)).to(place).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    checkpoint = run.checkpoints / "state.safetensors"
    first = _restore(checkpoint, model, optimizer) if resume and checkpoint.exists() else 0
    run.rewind(first)
    hits: list[float] = []
    for step in track(range(first, config.steps), "pre-training"):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        pictures, labels = draw_batch(banks, config.batch_size, generator)
        pictures, labels = normalise(pictures.to(place)), labels.to(place)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        with autocast(place) if config.precision == "auto" else contextlib.nullcontext():
            logits = model(pictures)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        hits.append((logits.argmax(1) == labels).float().mean().item())
        if (step + 1) % 50 == 0:
            run.log(step=step + 1, loss=loss.item(), accuracy=sum(hits[-50:]) / len(hits[-50:]))
        if (step + 1) % CHECKPOINT_EVERY == 0:
            _store(checkpoint, step + 1, model, optimizer)
    save_backbone(out / f"{EMBEDDED_NAME}.safetensors", model)
    recent = hits[-100:]
    result = {
        "steps": config.steps,
        "classes": sum(bank.num_classes for bank in banks),
        "accuracy": sum(recent) / len(recent) if recent else 0.0,
    }
    run.finish(result)
    return result


def _store(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
    write_tensors(path, tensors, {"step": str(step)})


def _restore(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    tensors, metadata = read_tensors(path)
    step = metadata.get("step", "")
    if not (step.isascii() and step.isdecimal()):
        raise UserError(f"{path}: not a checkpoint of pre-training")
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    load_weights(model, weights, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        _, index, key = f"{name}..".split(".", 2)
        if name.startswith("adam.") and index.isdecimal():
            state.setdefault(int(index), {})[key.removesuffix("..")] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: the optimizer's state does not fit ({error})") from None
    return int(step)
