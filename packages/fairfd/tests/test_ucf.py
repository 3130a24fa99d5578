"""UCF's normalisation, decoder and losses; inference reads the common path alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fairfd.models.detectors.ucf import ConditionalDecoder, Head, adain, reconstruction_loss, require_pairs
from tenfold import UserError

GOLDEN = np.load(Path(__file__).parent / "golden" / "ffd_recce_ucf_modules.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def test_adain_reproduces_the_golden_map() -> None:
    assert torch.allclose(adain(golden("adain_content"), golden("adain_style")), golden("adain_out"), atol=1e-5)


def test_adain_gives_content_the_moments_of_the_style() -> None:
    content, style = torch.randn(2, 3, 5, 5), 4 * torch.randn(2, 3, 6, 6) + 1
    out = adain(content, style)
    assert torch.allclose(out.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    assert torch.allclose(out.std((2, 3)), style.std((2, 3)), atol=1e-3)


def test_reconstruction_loss_is_the_sum_of_four_means() -> None:
    torch.manual_seed(0)
    decoder = ConditionalDecoder().eval()
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    style, content = torch.randn(4, 512, 2, 2), torch.randn(4, 512, 2, 2)
    (x1, x2), (f1, f2), (c1, c2) = x.chunk(2), style.chunk(2), content.chunk(2)
    terms = [(x1, f1, c1), (x2, f2, c2), (x1, f2, c1), (x2, f1, c2)]
    with torch.no_grad():
        expected = sum((decoder(f, c, (32, 32)) - image).abs().mean() for image, f, c in terms)
        assert torch.allclose(reconstruction_loss(decoder, x, style, content), torch.as_tensor(expected), atol=1e-5)


def test_heads_drop_scores_in_training_only() -> None:
    head, features = Head(7), torch.randn(3, 256)
    assert torch.equal(head.eval()(features), head(features))
    assert head(features).shape == (3, 7)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [0, 0, 1], [1, 1, 0, 0]])
def test_batches_that_are_not_pairs_are_refused(labels: list[int]) -> None:
    with pytest.raises(UserError, match="all reals, then as many fakes"):
        require_pairs(torch.tensor(labels), "ucf")
