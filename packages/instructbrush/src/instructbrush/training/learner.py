"""Optimising an instruction on pairs (paper §4.1, figure 2), and its rivals in the same loop.

The step's pairs, times and noise follow from (seed, step): an interrupted run goes on as if it had not been, and several processes see
what one would.
"""

import contextlib
import copy
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from jaxtyping import Float, Int
from torch import Tensor, nn

from instructbrush.config import LearnConfig, PhraseOptions
from instructbrush.data.datasets import PairSet
from instructbrush.method.losses import combine_guidance, denoising_loss, diffusion_target, stratified_timesteps
from instructbrush.method.parameterization import edit_direction, finite_norms, initial_space, visii_direction_term
from instructbrush.method.sensitivity import InitResult, extract_phrases
from instructbrush.models.attention import Attachment, InjectionState
from instructbrush.models.features import ClipFeatures
from instructbrush.models.instruction import Instruction, Pipeline, check_editor, check_size, encode_text
from instructbrush.training.checkpoints import all_finite, load_checkpoint, recent_losses, save_checkpoint, set_rate
from instructbrush.training.datasets import LatentPairs, encode_pairs
from tenfold.checkpoints import load_weights
from tenfold.errors import UserError
from tenfold.random import keyed_generator
from tenfold.runs import RunFolder, autocast, refused_without_trace, track

Callback = Callable[[int, float], None]
CHECKPOINT = "learn.safetensors"


@dataclass(frozen=True)
class LearnRecord(LearnConfig):
    """What a run folder says: the recipe, the pairs and the editor.

    Attributes:
        base: the editor.
        pairs: names of the pairs.
        size: side of the pictures.
        init: how the initial text was asked for.
        phrases: how its words were chosen.
    """

    base: str = ""
    pairs: tuple[str, ...] = ()
    size: int = 0
    init: str = "phrases"
    phrases: str = ""


@dataclass(frozen=True)
class PairBatch:
    """Rows of one step."""

    source: Float[Tensor, "b c h w"]
    noisy: Float[Tensor, "b c h w"]
    timesteps: Int[Tensor, " b"]
    target: Float[Tensor, "b c h w"]


class InversionStep(nn.Module):
    """The frozen network and the parameters with their loss, as one module that several processes can share.

    Args:
        unet: frozen.
        space: what is learnt.
        null: encoding of the empty text.
        config: the recipe.
        direction: of the pictures in CLIP and CLIP's text projection, for Visii's term.
    """

    def __init__(
        self,
        unet: nn.Module,
        space: Any,
        null: Float[Tensor, "1 l c"],
        config: LearnConfig,
        direction: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self.config = config
        self._frozen: tuple[Any, Tensor, tuple[Tensor, Tensor] | None] = (
            unet,
            null,
            direction,
        )  # in a tuple, so that the weights are not this module's

    def forward(self, batch: PairBatch) -> Float[Tensor, ""]:
        """The loss of a batch."""
        unet, null, direction = self._frozen
        dtype = unet.dtype
        text = self.space.text()
        rows = len(batch.noisy)
        texts, noisy, source, times = text.expand(rows, -1, -1), batch.noisy, batch.source, batch.timesteps
        if self.config.guided:
            texts = torch.cat([texts, null.expand(2 * rows, -1, -1)])
            noisy, times = noisy.repeat(3, 1, 1, 1), times.repeat(3)
            source = torch.cat([source, source, torch.zeros_like(source)])
        inputs = torch.cat([noisy, source], dim=1).to(dtype)
        with autocast(noisy.device) if self.config.precision == "auto" else contextlib.nullcontext():
            prediction = unet(inputs, times, encoder_hidden_states=texts.to(dtype)).sample.float()
        if self.config.guided:
            scales = self.config.loss_guidance, self.config.loss_image_guidance
            prediction = combine_guidance(*prediction.chunk(3), *scales)
        loss = denoising_loss(prediction, batch.target)
        if self.config.method == "visii" and direction is not None:
            loss = 4 * loss + 0.1 * visii_direction_term(text.float(), direction[1], direction[0])
        return loss


def step_order(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Which pairs a step uses: all once before any again, in a new order each time."""
    places = range(step * batch, (step + 1) * batch)
    orders = {
        place // count: torch.randperm(count, generator=keyed_generator(seed, "epoch", place // count))
        for place in places
    }
    return [int(orders[place // count][place % count]) for place in places]


def draw_batch(
    latents: LatentPairs, scheduler: Any, config: LearnConfig, step: int, rows: range, device: torch.device
) -> PairBatch:
    """Pairs, times and noise of a step; `rows` of them.

    Args:
        latents: of all pairs.
        scheduler: of the training.
        config: the recipe.
        step: which.
        rows: out of `config.batch_size`.
        device: of the network.
    """
    draws = keyed_generator(config.seed, "step", step)
    total, mine = scheduler.config.num_train_timesteps, list(rows)
    if config.strict_visii:
        # Each time step once in random order; it fixes the pair and the noise.
        places = range(step * config.batch_size, (step + 1) * config.batch_size)
        times = torch.tensor([step_order(total, 1, place, config.seed)[0] for place in places])
        chosen = [int(each) % len(latents) for each in times]
        shape = latents.after.shape[1:]
        noise = torch.stack(
            [torch.randn(shape, generator=keyed_generator(config.seed, "noise", int(t))) for t in times]
        )
    else:
        chosen = step_order(len(latents), config.batch_size, step, config.seed)
        times = stratified_timesteps(config.batch_size, total, draws)
        noise = torch.randn((config.batch_size, *latents.after.shape[1:]), generator=draws)
    mirrored = latents.flipped if latents.flipped is not None and torch.rand((), generator=draws) < 0.5 else None
    side = mirrored or latents
    index = torch.tensor([chosen[row] for row in mine])
    source, clean = side.before.cpu()[index], side.after.cpu()[index]
    noise, times = noise[mine], times[mine]
    noisy = scheduler.add_noise(clean, noise, times)
    target = diffusion_target(scheduler, clean, noise, times)
    return PairBatch(source.to(device), noisy.to(device), times.to(device), target.to(device))


def learn_instruction(
    pipe: Pipeline,
    pairs: PairSet,
    config: LearnConfig | None = None,
    init: str | InitResult | None = "phrases",
    clip: ClipFeatures | None = None,
    bank: tuple[str, ...] | None = None,
    *,
    phrase_options: PhraseOptions | None = None,
    about: dict[str, Any] | None = None,
    run: Path | None = None,
    resume: bool = False,
    callback: Callback | None = None,
) -> Instruction:
    """Learn an instruction; the editor is left as it was.

    Args:
        pipe: a `StableDiffusionInstructPix2PixPipeline`.
        pairs: before/after pictures.
        config: the recipe.
        init: `phrases` (found with CLIP), `caption` (the after pictures' best phrases, in place of Visii's optimised prompt), `none`, or an instruction in words.
        clip: for `phrases`, `caption` and visii.
        bank: the phrases to choose from; by default the list that the package ships.
        phrase_options: of the choice.
        about: fields of `InstructionConfig` for the file, such as `base_model`, `edit`, `licence`.
        run: folder for log and checkpoints.
        resume: continue the run there.
        callback: receives step and loss.

    Raises:
        UserError: pairs, tokens or partitions that do not fit; a loss that is not finite.
    """
    config, about = config or LearnConfig(), about or {}
    check_editor(pipe)
    check_size(pipe, pairs.before.shape[-1])
    pairs.validate()
    accelerator = Accelerator(cpu=pipe.unet.device.type == "cpu", device_placement=False, mixed_precision="no")
    if config.batch_size % accelerator.num_processes:
        raise UserError(f"batch size {config.batch_size} cannot be shared by {accelerator.num_processes} processes")
    found = initial_text(pipe, pairs, init, clip, bank, phrase_options or PhraseOptions())
    direction = _visii_direction(pairs, clip) if config.method == "visii" else None
    space = initial_space(
        pipe, config.space, found.text, config.tokens, config.partitions, config.words, config.method == "visii"
    ).to(pipe.unet.device)
    record = None
    if run is not None:
        record = LearnRecord(
            **asdict(config),
            base=str(about.get("base_model", "")),
            pairs=pairs.ids,
            size=pairs.before.shape[-1],
            init=init if isinstance(init, str) else "result" if init else "none",
            phrases=str(phrase_options or PhraseOptions()),
        )
    with _run_folder(accelerator, run, record, resume) as folder:
        latents = encode_pairs(pipe, pairs.before, pairs.after, config.flip)
        inversion = _Inversion(pipe, latents, space, config, direction)
        loss = inversion.finish(accelerator, folder, callback)
        train: dict[str, float | int | str] = {
            "method": config.method,
            "steps": config.steps,
            "learning_rate": config.learning_rate,
            "pairs": len(pairs),
            "seed": config.seed,
            "final_loss": loss,
        }
        learnt = inversion.space.instruction(
            pipe,
            **about,
            init_text=found.text,
            phrases_before=tuple(word for word, _ in found.before),
            phrases_after=tuple(word for word, _ in found.after),
            train=train,
        )
        if folder is not None and accelerator.is_main_process:
            folder.finish({**train, "init_text": found.text})
    return learnt


@contextlib.contextmanager
def _run_folder(
    accelerator: Accelerator, path: Path | None, record: LearnRecord | None, resume: bool
) -> Generator[RunFolder | None]:
    """The run folder, where one is asked for: this run's alone, and gone again when nothing has come of it."""
    if path is None:
        yield None
        return
    with refused_without_trace(path) if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process:
            RunFolder.create(path, record, resume)
        accelerator.wait_for_everyone()
        yield RunFolder(path)


def initial_text(
    pipe: Pipeline,
    pairs: PairSet,
    init: str | InitResult | None,
    clip: ClipFeatures | None,
    bank: tuple[str, ...] | None,
    options: PhraseOptions,
) -> InitResult:
    """The instruction that optimisation starts from; see `learn_instruction`.

    Raises:
        UserError: phrases are wanted and there is no CLIP.
    """
    if isinstance(init, InitResult):
        return init
    if init in (None, "none", ""):
        return InitResult((), (), "")
    if init not in ("phrases", "caption"):
        return InitResult((), (), str(init).removeprefix("text:").removeprefix("caption:"))
    if clip is None:
        raise UserError(f"--init {init}: needs a CLIP; give --clip, or start from none or from an instruction")
    if init == "caption":
        options = replace(options, side="after")
    return extract_phrases(pairs.before, pairs.after, clip, bank, options, pipe.tokenizer)


def _visii_direction(pairs: PairSet, clip: ClipFeatures | None) -> tuple[Tensor, Tensor]:
    if clip is None:
        raise UserError("the method visii needs a CLIP: give --clip")
    direction = edit_direction(clip.images(pairs.before), clip.images(pairs.after))
    weight = clip.model.text_projection.weight.detach().float()
    return direction.to(weight.device), weight


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextlib.contextmanager
def training_attention(unet: nn.Module, device: torch.device) -> Generator[None]:
    """On CPUs, plain products in the attention: the fused kernel's backward pass is several times slower there."""
    changed: list[tuple[Any, Any]] = []
    if device.type == "cpu":
        modules: list[Any] = list(unet.modules())
        for module in modules:
            if type(getattr(module, "processor", None)) is AttnProcessor2_0:
                changed.append((module, module.processor))
                module.set_processor(AttnProcessor())
    try:
        yield
    finally:
        for module, processor in changed:
            module.set_processor(processor)


@contextlib.contextmanager
def frozen(pipe: Pipeline) -> Generator[None]:
    """No weight of the editor collects gradients; afterwards all is as it was."""
    parts = [part for part in (pipe.unet, pipe.vae, pipe.text_encoder) if part is not None]
    thawed = [each for part in parts for each in part.parameters() if each.requires_grad]
    for each in thawed:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in thawed:
            each.requires_grad_(True)


class _Inversion:
    """One optimisation: what its steps share."""

    def __init__(
        self,
        pipe: Pipeline,
        latents: LatentPairs,
        space: Any,
        config: LearnConfig,
        direction: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.pipe, self.latents, self.config = pipe, latents, config
        self.device = pipe.unet.device
        self.space = space
        self.scheduler: Any = DDPMScheduler.from_config(pipe.scheduler.config)
        decay = 1e-2 if config.strict_visii else 0.0
        self.optimiser = torch.optim.AdamW(space.parameters(), config.learning_rate, weight_decay=decay)
        self.bound = float(space.text().detach().abs().max())
        null = encode_text(pipe, "").to(self.device) if config.guided else space.text().detach()
        self.module = InversionStep(pipe.unet, space, null, config, direction)
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.recent: list[float] = []
        # Gradients of a 16-bit network are too small for its numbers; the parameters are 32-bit.
        self.loss_scale = 4096.0 if pipe.unet.dtype == torch.float16 else 1.0

    def finish(self, accelerator: Accelerator, folder: RunFolder | None, callback: Callback | None) -> float:
        """Make the updates that are left; returns the mean loss of the last line of the log."""
        config, unet = self.config, self.pipe.unet
        training = unet.training
        start = self._restore(folder, accelerator.is_main_process)
        module = accelerator.prepare(self.module)
        share = config.batch_size // accelerator.num_processes
        rows = range(share * accelerator.process_index, share * (accelerator.process_index + 1))
        mean = float("nan")
        if start == config.steps and folder is not None:
            mean = next((line["loss"] for line in reversed(folder.lines()) if "loss" in line), mean)
        with contextlib.ExitStack() as stack:
            stack.enter_context(frozen(self.pipe))
            stack.enter_context(training_attention(unet, self.device))
            if config.checkpointing:
                unet.train().enable_gradient_checkpointing()
                stack.callback(lambda: unet.train(training).disable_gradient_checkpointing())
            if (injected := self.space.injected()) is not None:
                state = InjectionState(*injected, self.scheduler.config.num_train_timesteps)
                stack.enter_context(Attachment(unet, state, lambda: config.guided))
            left = range(start, config.steps)
            for step in track(left, "learning") if accelerator.is_main_process else left:
                loss = module(draw_batch(self.latents, self.scheduler, config, step, rows, self.device))
                value = self._update(accelerator, loss, step)
                self.recent.append(value)
                if callback is not None:
                    callback(step + 1, value)
                if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                    mean = sum(self.recent) / len(self.recent)
                    self.recent.clear()
                    if folder is not None and accelerator.is_main_process:
                        folder.log(step=step + 1, loss=mean)
                if folder is not None and accelerator.is_main_process:
                    self._save(folder, step + 1)
        if self.best is not None:
            self.space.load_state_dict(self.best[1], strict=False)
        return mean

    def _update(self, accelerator: Accelerator, loss: Tensor, step: int) -> float:
        config = self.config
        set_rate(self.optimiser, config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup)))
        self.optimiser.zero_grad()
        accelerator.backward(loss * self.loss_scale)
        parameters = list(self.space.parameters())
        for each in parameters:
            if each.grad is not None:
                each.grad /= self.loss_scale
        value = loss.item()
        if accelerator.num_processes > 1:
            value = float(accelerator.reduce(loss.detach(), "mean"))
        if not all_finite([loss.detach(), *(each.grad for each in parameters if each.grad is not None)]):
            raise UserError(
                f"step {step + 1}: the loss is not finite ({finite_norms(self.space)}); nothing was saved; "
                "lower --learning-rate, or use --precision float32 (or bfloat16 weights instead of float16)"
            )
        if config.strict_visii:
            nn.utils.clip_grad_value_(parameters, self.bound)
            if self.best is None or value < self.best[0]:
                self.best = (value, copy.deepcopy(self.space.state_dict()))
        else:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        return value

    def _save(self, folder: RunFolder, step: int) -> None:
        if step % self.config.save_every == 0 or step == self.config.steps:
            tensors = {f"space.{name}": value for name, value in self.space.state_dict().items()}
            tensors["recent"] = torch.tensor(self.recent, dtype=torch.float64)
            if self.best is not None:
                tensors["best"] = torch.tensor(self.best[0], dtype=torch.float64)
                tensors |= {f"best.{name}": value for name, value in self.best[1].items()}
            save_checkpoint(folder.checkpoints / CHECKPOINT, step, tensors, self.optimiser)

    def _restore(self, folder: RunFolder | None, main: bool) -> int:
        found = (
            load_checkpoint(folder.checkpoints / CHECKPOINT, self.optimiser, self.config.steps)
            if folder is not None
            else None
        )
        if folder is None:
            return 0
        if found is None:
            if main:
                folder.rewind(0)
            return 0
        step, tensors = found
        place = folder.checkpoints / CHECKPOINT
        load_weights(self.space, _below("space.", tensors), place)
        self.recent = recent_losses(tensors, place)
        if "best" in tensors:
            self.best = (float(tensors["best"]), _below("best.", tensors))
        if main:
            folder.rewind(step)
        return step
