"""Training a ResShift teacher: predict z_0 from q(z_t | z_0, z_y) at a uniform time (ResShift)."""

from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from tadsr.config import TeacherConfig
from tadsr.data.transforms import enlarge
from tadsr.models.checkpoints import save_pipeline
from tadsr.models.diffusion import Denoiser, Latent, ResShiftScheduler, Times, predict
from tadsr.models.registry import Autoencoder, Network, in_fast_layout
from tadsr.training.loop import Batch, frozen_copy, update_ema


def teacher_loss(
    denoiser: Denoiser,
    scheduler: ResShiftScheduler,
    z_0: Latent,
    z_y: Latent,
    lq: Tensor,
    t: Times,
    noise: Latent,
) -> Float[Tensor, " b"]:
    """Mean squared error of the predicted z_0, per sample.

    Args:
        denoiser: the network.
        scheduler: its chain.
        z_0: latent of the high-resolution image.
        z_y: latent of the enlarged low-quality image.
        lq: low-quality image in [-1, 1].
        t: times.
        noise: standard normal.
    """
    z_t = scheduler.add_noise(z_0, z_y, noise, t)
    x0 = scheduler.predict_x0(predict(denoiser, scheduler, z_t, t, lq), z_t, t, z_y)
    return (x0.float() - z_0).square().mean((1, 2, 3))


@torch.no_grad()
def encode(vae: Autoencoder, image: Float[Tensor, "b 3 _h _w"]) -> Latent:
    """Latent of a picture in [-1, 1], before quantisation, in float32."""
    return vae.encode(image).latents.float()


class TeacherTraining:
    """A teacher in training; see `loop.Trainee`.

    Args:
        unet: the network.
        vae: the autoencoder, frozen.
        scheduler: the chain.
        config: the recipe.
    """

    def __init__(self, unet: Network, vae: Autoencoder, scheduler: ResShiftScheduler, config: TeacherConfig) -> None:
        self.unet, self.vae, self.scheduler, self.config = unet, vae.eval().requires_grad_(False), scheduler, config
        self.ema = frozen_copy(unet)
        self.optimiser = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self._called: nn.Module = unet
        self.counts: dict[str, int] = {}

    def modules(self) -> dict[str, nn.Module]:
        """The network that is trained."""
        return {"unet": self.unet}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """One, under the name whose learning rate is scheduled."""
        return {"student": self.optimiser}

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap the network for several processes."""
        device = next(self.unet.parameters()).device
        for module in (self.vae, self.ema):
            in_fast_layout(module.to(device))
        self._called = accelerator.prepare(self.unet)

    def step(self, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
        """One optimiser step."""
        z_0, z_y = encode(self.vae, batch.hr), encode(self.vae, enlarge(batch.lr, self.config.scale))
        t = batch.times(0, len(self.scheduler.etas))
        self._called.train()
        loss = teacher_loss(self._called, self.scheduler, z_0, z_y, batch.lr, t, batch.normal(1, z_0)).mean()
        self.optimiser.zero_grad()
        accelerator.backward(loss)
        self.optimiser.step()
        update_ema(self.ema, self.unet, self.config.ema)
        return {"loss": loss.detach()}

    def export(self, folder: Path) -> None:
        """Write the averaged network as a pipeline."""
        save_pipeline(folder, self.ema, self.vae, self.scheduler, scale=self.config.scale, steps=0)
