"""Training the embedded base model: autoencoder, CLIP, editor, in a run folder that `--resume` continues."""

import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from instructbrush.config import TrainConfig
from instructbrush.data.image_banks import PhotoBank, training_photographs
from instructbrush.data.samplers import draw_edit
from instructbrush.data.vocabulary import build_tokenizer
from instructbrush.models.autoencoders import PatchAutoencoder
from instructbrush.models.checkpoints import TinyModel, network, save_tiny
from instructbrush.models.networks import build_clip, build_scheduler, build_unet, text_tower
from instructbrush.training.checkpoints import all_finite, load_checkpoint, recent_losses, save_checkpoint, set_rate
from instructbrush.training.contrastive import train_clip
from instructbrush.training.step import EditorStep, draw_examples, editor_batch
from tenfold.checkpoints import load_weights
from tenfold.errors import UserError
from tenfold.files import atomic_folder, write_text
from tenfold.random import seed_of
from tenfold.reading import read_json_object
from tenfold.runs import RunFolder, pick_device, track


@dataclass(frozen=True)
class TrainRecord(TrainConfig):
    """What the run folder says: the recipe, and the photographs.

    Attributes:
        photos: folders; none stands for the embedded photographs.
    """

    photos: tuple[str, ...] = ()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of the update after `step` updates: linear warm-up, cosine to zero."""
    warm = max(1, config.steps // 40)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm))) / 2


def train(
    photos: Sequence[Path], config: TrainConfig, out: Path, *, resume: bool = False, device: str = "auto"
) -> dict[str, float]:
    """Train the embedded model and write it to `out/model`.

    Args:
        photos: folders of photographs; none for the embedded ones.
        config: the recipe.
        out: run folder.
        resume: continue the run there.
        device: `auto`, `cpu`, ...; several processes choose their own.

    Returns:
        The losses at the end: `clip`, `editor`.

    Raises:
        UserError: no photographs, sizes that do not fit, or a loss that is not finite.
    """
    accelerator = Accelerator(
        cpu=device == "cpu" or not torch.accelerator.is_available(), device_placement=False, mixed_precision="no"
    )
    _check(config, accelerator.num_processes)
    where = pick_device(device) if device != "auto" and accelerator.num_processes == 1 else accelerator.device
    bank = training_photographs(photos, config.side)
    record = TrainRecord(**asdict(config), photos=tuple(str(each) for each in photos))
    if accelerator.is_main_process:
        RunFolder.create(out, record, resume)
    accelerator.wait_for_everyone()
    folder = RunFolder(out)
    tokenizer = build_tokenizer()
    vae, clip, clip_loss = _foundations(config, bank, tokenizer, folder, accelerator.is_main_process, where)
    run = _EditorRun(config, bank, vae, text_tower(clip).eval(), tokenizer, folder, accelerator, where)
    loss = run.finish()
    if accelerator.is_main_process:
        unet = build_unet(config)
        unet.load_state_dict(run.average)
        save_tiny(out / "model", TinyModel(vae, run.text_encoder, tokenizer, unet.eval(), clip.cpu()))
        folder.finish({"clip": clip_loss, "editor": loss})
    accelerator.wait_for_everyone()
    return {"clip": clip_loss, "editor": loss}


def _check(config: TrainConfig, processes: int) -> None:
    if config.batch_size % processes:
        raise UserError(f"batch size {config.batch_size} cannot be shared by {processes} processes")


def _foundations(
    config: TrainConfig, bank: PhotoBank, tokenizer: CLIPTokenizer, folder: RunFolder, main: bool, device: torch.device
) -> tuple[PatchAutoencoder, CLIPModel, float]:
    """The autoencoder (fitted anew each time: seconds) and the CLIP (taken from the run folder once trained)."""
    drawn = [draw_edit(random.Random(seed_of(config.seed, "fit", each)), bank) for each in range(config.fit_pictures)]
    pictures = torch.stack([each.after for each in drawn] + [each.before for each in drawn]) * 2 - 1
    vae = PatchAutoencoder(latent_channels=config.latent_channels).fit(pictures)
    kept, done = folder.checkpoints / "clip", folder.checkpoints / "clip.json"
    if done.exists():
        loss = read_json_object(done).get("loss")
        if not isinstance(loss, float):
            raise UserError(f"{done}: is damaged; delete it to train the CLIP again")
        return vae, network(CLIPModel, kept), loss
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "clip"))
        clip = build_clip(config, tokenizer).to(device)
    started = time.perf_counter()
    loss = train_clip(clip, tokenizer, bank, config.clip_steps, config.clip_batch, config.clip_rate, config.seed)
    clip = clip.cpu()
    if main:
        shutil.rmtree(kept, ignore_errors=True)
        with atomic_folder(kept) as temporary:
            clip.save_pretrained(temporary)
        folder.rewind(-1)
        folder.log(step=0, clip=loss, seconds=time.perf_counter() - started)
        write_text(done, json.dumps({"loss": loss}) + "\n")  # last: with it all of the above is there
        # As a resumed run reads it: transformers notes more in the configuration of a network that was read.
        return vae, network(CLIPModel, kept), loss
    return vae, clip, loss


class _EditorRun:
    """The editor being trained: what its steps share."""

    def __init__(
        self,
        config: TrainConfig,
        bank: PhotoBank,
        vae: PatchAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        folder: RunFolder,
        accelerator: Accelerator,
        device: torch.device,
    ) -> None:
        self.config, self.bank, self.vae, self.text_encoder, self.tokenizer = config, bank, vae, text_encoder, tokenizer
        self.folder, self.accelerator, self.device = folder, accelerator, device
        self.scheduler: Any = DDPMScheduler.from_config(build_scheduler().config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.seed, "unet"))
            unet = build_unet(config)
        if device.type == "cpu":
            # The fused attention's backward pass is several times slower than plain products on CPUs.
            unet.set_attn_processor(AttnProcessor())
        self.unet = unet.to(device).to(memory_format=torch.channels_last).train()
        self.optimiser = torch.optim.AdamW(self.unet.parameters(), config.learning_rate, weight_decay=1e-3)
        self.average = {name: value.detach().clone() for name, value in self.unet.state_dict().items()}
        self.step = 0
        self.recent: list[float] = []
        self._restore()
        self.module: nn.Module = accelerator.prepare(EditorStep(self.unet))

    @property
    def checkpoint(self) -> Path:
        """Where the place is kept."""
        return self.folder.checkpoints / "editor.safetensors"

    def finish(self) -> float:
        """Make the updates that are left; returns the mean loss since the last line of the log."""
        config, count = self.config, self.accelerator.num_processes
        share = config.batch_size // count
        rows = range(share * self.accelerator.process_index, share * (self.accelerator.process_index + 1))
        left = range(self.step, config.steps)
        for step in track(left, "editor") if self.accelerator.is_main_process else left:
            batch = editor_batch(
                draw_examples(self.bank, step, rows, config.seed),
                self.vae,
                self.text_encoder,
                self.tokenizer,
                self.scheduler,
                step,
                rows,
                config.batch_size,
                config.seed,
            ).to(self.device)
            loss = self.module(batch)
            self._update(loss, step)
            mean = loss.detach() if count == 1 else self.accelerator.reduce(loss.detach(), "mean")
            self.recent.append(float(mean))
            self._after(step + 1)
        lines = [line["editor"] for line in self.folder.lines() if "editor" in line]
        return lines[-1] if lines else float("nan")

    def _update(self, loss: Tensor, step: int) -> None:
        set_rate(self.optimiser, learning_rate(self.config, step))
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        if not all_finite([loss.detach(), norm]):
            raise UserError(f"step {step + 1}: the loss is not finite; lower --learning-rate, --resume continues")
        self.optimiser.step()
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in self.unet.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def _after(self, step: int) -> None:
        self.step = step
        last = step == self.config.steps
        if step % self.config.log_every == 0 or last:
            if self.accelerator.is_main_process:
                rate = learning_rate(self.config, step - 1)
                self.folder.log(step=step, editor=sum(self.recent) / len(self.recent), learning_rate=rate)
            self.recent.clear()
        if (step % self.config.save_every == 0 or last) and self.accelerator.is_main_process:
            weights = {f"unet.{name}": value for name, value in self.unet.state_dict().items()}
            averages = {f"average.{name}": value for name, value in self.average.items()}
            recent = {"recent": torch.tensor(self.recent, dtype=torch.float64)}
            save_checkpoint(self.checkpoint, step, weights | averages | recent, self.optimiser)

    def _restore(self) -> None:
        found = load_checkpoint(self.checkpoint, self.optimiser, self.config.steps)
        if found:
            self.step, tensors = found
            self.recent = recent_losses(tensors, self.checkpoint)
            load_weights(self.unet, _below("average.", tensors), self.checkpoint)
            self.average = {name: value.detach().clone() for name, value in self.unet.state_dict().items()}
            load_weights(self.unet, _below("unet.", tensors), self.checkpoint)
        if self.accelerator.is_main_process:
            self.folder.rewind(self.step)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
