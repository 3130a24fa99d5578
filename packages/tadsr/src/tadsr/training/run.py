"""The two trainings, from folders of photographs to pipelines: a teacher, then a student of it."""

from collections.abc import Sequence
from pathlib import Path

from tadsr.config import DistillConfig, TeacherConfig, TrainConfig
from tadsr.models.checkpoints import PipelineParts
from tadsr.models.registry import Autoencoder, Network, create_network, create_scheduler, latent_factor
from tadsr.training.loop import fit
from tadsr.training.step import Distiller
from tadsr.training.teacher import TeacherTraining
from tenfold import UserError
from tenfold.runs import seed_everything


def train_teacher(
    folders: Sequence[Path], config: TeacherConfig, out: Path, resume: bool = False, device: str = "auto"
) -> dict[str, float]:
    """Train a ResShift teacher and leave its pipeline in `out/model`.

    Args:
        folders: of photographs.
        config: the recipe.
        out: the run folder.
        resume: continue the run in `out`.
        device: where to compute.

    Returns:
        The last logged losses.
    """
    seed_everything(config.seed)
    unet, vae = create_network(config.network)
    _check_crop(config, unet, vae)
    training = TeacherTraining(unet, vae, create_scheduler(config.timesteps, config.min_noise_level), config)
    return fit(training, folders, config, out, resume, device)


def distill(
    teacher: PipelineParts,
    folders: Sequence[Path],
    config: DistillConfig,
    out: Path,
    resume: bool = False,
    device: str = "auto",
) -> dict[str, float]:
    """Distil a teacher into a one-step student and leave its pipeline in `out/model`.

    Args:
        teacher: its pipeline.
        folders: of photographs.
        config: the recipe.
        out: the run folder.
        resume: continue the run in `out`.
        device: where to compute.

    Returns:
        The last logged losses.
    """
    if teacher.config.scale != config.scale:
        raise UserError(
            f"--degradation {config.degradation} is for scale {config.scale}; this teacher enlarges {teacher.config.scale} times"
        )
    _check_crop(config, teacher.unet, teacher.vae)
    seed_everything(config.seed)
    distiller = Distiller(teacher.unet, teacher.vae, teacher.scheduler, config)
    return fit(distiller, folders, config, out, resume, device)


def _check_crop(config: TrainConfig, unet: Network, vae: Autoencoder) -> None:
    multiple = unet.multiple * latent_factor(vae)
    if config.crop % multiple:
        raise UserError(f"--crop {config.crop}: this network needs a multiple of {multiple}")
