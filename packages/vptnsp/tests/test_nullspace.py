"""The nullity rule and the projections."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from vptnsp.method.null_space import (
    equal_norm_slowdown,
    null_space_basis,
    null_space_index,
    null_space_projection,
    nullity,
    projection_from_basis,
    spectrum,
)


def random_moment(dim: int, seed: int = 0, decay: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    values = torch.arange(1, dim + 1, dtype=torch.float64) ** -(2 * decay)
    return (basis * values) @ basis.T


def test_the_null_set_of_every_golden_spectrum_is_exact(golden):
    data = golden("nullity")
    for case in range(int(data["num_cases"])):
        key = f"case{case:03d}_"
        mask = data[key + "mask"].astype(bool)
        first = null_space_index(data[key + "svals"], value=float(data[key + "offset"]))
        assert first == len(mask) - mask.sum(), key
        assert mask[first:].all(), key


def test_golden_projections(golden):
    data = golden("projection")
    for case in range(int(data["num_cfgs"])):
        key = f"cfg{case}_"
        mode = "times" if data[key + "mode_is_times"] else "adaptive"
        for side in "12":
            projection, dimension = null_space_projection(
                torch.from_numpy(data[f"{key}C{side}"]),
                float(data[f"{key}eta{side}"]),
                mode=mode,
                value=float(data[f"{key}value{side}"]),
            )
            assert dimension == int(data[f"{key}nullity{side}"])
            np.testing.assert_allclose(projection.numpy(), data[f"{key}proj{side}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("dim", [4, 32, 130])
def test_a_strict_projection_is_symmetric_psd_of_unit_norm_and_not_idempotent(dim):
    B, R = null_space_projection(random_moment(dim), 1.0)
    torch.testing.assert_close(B, B.T)
    assert torch.linalg.eigvalsh(B).min() > -1e-9
    assert torch.linalg.matrix_norm(B).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(B @ B, B / math.sqrt(R))
    assert B.trace().item() == pytest.approx(math.sqrt(R), abs=1e-6)
    assert torch.linalg.matrix_rank(B) == R


def test_eta_mixes_the_projection_with_the_identity():
    C = random_moment(24)
    strict, R = null_space_projection(C, 1.0)
    eye = torch.eye(24, dtype=torch.float64)
    assert torch.equal(null_space_projection(C, 0.0)[0], eye)
    torch.testing.assert_close(null_space_projection(C, 0.7)[0], 0.7 * strict + 0.3 * eye)
    vectors = spectrum(C).vectors
    torch.testing.assert_close(strict @ vectors[:, -R:], vectors[:, -R:] / math.sqrt(R))
    assert (strict @ vectors[:, : 24 - R]).abs().max() < 1e-5


@given(scale=st.sampled_from([2.0**-20, 2.0**-3, 2.0, 2.0**15]), dim=st.sampled_from([4, 17, 140]))
@settings(max_examples=15, deadline=None)
def test_the_projection_does_not_depend_on_the_scale(scale, dim):
    C = random_moment(dim)
    one, first = null_space_projection(C, 0.9)
    other, second = null_space_projection(scale * C, 0.9)
    assert first == second
    torch.testing.assert_close(one, other)


@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_four_prompts_have_a_nullity_of_two_or_three(values):
    svals = np.sort(np.array(values, dtype=np.float32))[::-1].copy()
    if len(set(svals.tolist())) == 4:
        assert 4 - null_space_index(svals) in (2, 3)


def test_the_papers_convention_excludes_the_knee():
    C = random_moment(40)
    assert nullity(C, convention="paper") == nullity(C) - 1
    assert null_space_basis(C).shape == (40, nullity(C))


def test_projection_is_equivariant_to_rotations():
    C = random_moment(16)
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    one, _ = null_space_projection(turn @ C @ turn.T, 0.9)
    other, _ = null_space_projection(C, 0.9)
    torch.testing.assert_close(one, turn @ other @ turn.T, atol=1e-5, rtol=0)


def test_other_nullity_modes():
    svals = np.array([8.0, 4.0, 2.0, 1.0, 1.0], dtype=np.float32)
    assert null_space_index(svals, mode="times", value=2.0) == 2
    assert null_space_index(svals, mode="fixed", value=2.0) == 3
    assert null_space_index(svals, mode="energy", value=0.25) == 2
    orthogonal = projection_from_basis(null_space_basis(random_moment(8), mode="fixed", value=3.0), 1.0, "none")
    torch.testing.assert_close(orthogonal @ orthogonal, orthogonal)


def test_the_slowdown_has_the_norm_of_the_projection_and_no_direction():
    B, _ = null_space_projection(random_moment(20), 0.97)
    slow = equal_norm_slowdown(B)
    assert torch.linalg.matrix_norm(slow).item() == pytest.approx(torch.linalg.matrix_norm(B).item())
    torch.testing.assert_close(slow, slow[0, 0] * torch.eye(20, dtype=torch.float64))


def test_a_zero_moment_leaves_every_direction_and_warns():
    with pytest.warns(UserWarning, match="every direction"):
        assert nullity(torch.zeros(5, 5, dtype=torch.float64)) == 5


@pytest.mark.parametrize(
    ("moment", "options", "message"),
    [
        (torch.eye(2), {}, "needs 3 singular values"),
        (torch.full((4, 4), float("nan")), {}, "NaN"),
        (torch.eye(4), {"mode": "fixed", "value": 9.0}, "1 to 4"),
    ],
)
def test_what_has_no_null_space_is_refused(moment, options, message):
    with pytest.raises(UserError, match=message):
        nullity(moment, **options)


def test_eta_outside_the_unit_interval_is_refused():
    with pytest.raises(UserError, match="eta"):
        null_space_projection(torch.eye(4), 1.5)
