"""Training the embedded model's CLIP: pictures and captions that belong together get similar features (Radford et al. 2021)."""

import random

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from instructbrush.data.image_banks import PhotoBank
from instructbrush.data.samplers import draw_captioned
from tenfold.random import seed_of
from tenfold.runs import autocast, track


def contrastive_loss(
    image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], scale: Float[Tensor, ""], same: Bool[Tensor, "b b"]
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of cosines; the target is shared among equal captions.

    Args:
        image: projected features of pictures.
        text: projected features of their captions.
        scale: inverse temperature.
        same: where two captions are equal.
    """
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(
    clip: CLIPModel, tokenizer: CLIPTokenizer, photos: PhotoBank, steps: int, batch: int, rate: float, seed: int
) -> float:
    """Train in place; returns the mean loss of the last twentieth of the steps.

    Every process of a distributed run trains the same one: the loss needs the whole batch, and it takes minutes.
    """
    device = clip.device
    clip.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(clip.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(steps, 2))
    losses: list[float] = []
    for step in track(range(steps), "clip"):
        drawn = [draw_captioned(random.Random(seed_of(seed, "caption", step, row)), photos) for row in range(batch)]
        tokens = tokenizer([each.caption for each in drawn], padding="max_length", truncation=True, return_tensors="pt")
        ids = tokens.input_ids.to(device)
        images = (torch.stack([each.image for each in drawn]) * 2 - 1).to(device)
        with autocast(device):
            image = clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output)
            text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
        same = (ids[:, None] == ids[None, :]).all(2)
        loss = contrastive_loss(image.float(), text.float(), clip.logit_scale.exp().clamp(max=100), same)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    clip.eval().requires_grad_(False)
    tail = losses[-max(1, steps // 20) :]
    return sum(tail) / max(len(tail), 1)
