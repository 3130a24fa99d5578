"""Shape annotations are checked while the tests run; an untrained editor stands in for the shipped one."""

import jaxtyping
import pytest

jaxtyping.install_import_hook("instructbrush", "beartype.beartype")


@pytest.fixture(scope="session")
def sizes():
    """Of a network that takes milliseconds."""
    from instructbrush.config import Sizes

    return Sizes(
        side=32, latent_channels=8, channels=16, text_width=32, text_layers=1, vision_width=32, vision_layers=1
    )


@pytest.fixture(scope="session")
def tiny_model(sizes):
    """An untrained editor of the embedded kind."""
    import torch

    from instructbrush.data.vocabulary import build_tokenizer
    from instructbrush.models.autoencoders import PatchAutoencoder
    from instructbrush.models.checkpoints import TinyModel
    from instructbrush.models.networks import build_clip, build_unet, text_tower

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        clip = build_clip(sizes, tokenizer).eval().requires_grad_(False)
        unet = build_unet(sizes).eval().requires_grad_(False)
        vae = PatchAutoencoder(latent_channels=8).fit(torch.rand(8, 3, 32, 32) * 2 - 1)
    return TinyModel(vae, text_tower(clip).eval().requires_grad_(False), tokenizer, unet, clip)


@pytest.fixture
def pipe(tiny_model):
    """Its pipeline."""
    return tiny_model.pipeline()


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory):
    """The editor on disk."""
    from instructbrush.models.checkpoints import save_tiny

    folder = tmp_path_factory.mktemp("editor") / "model"
    save_tiny(folder, tiny_model)
    return folder


@pytest.fixture
def pairs():
    """Four pairs of 32 pixels whose edit is a change of tone."""
    import torch

    from instructbrush.data.datasets import PairSet

    before = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return PairSet(tuple("abcd"), before, (before * torch.tensor([0.9, 0.6, 0.3])[:, None, None]).clamp(0, 1))
