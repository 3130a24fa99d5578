"""The distillation losses against the golden vectors, and the identities that define them."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from tadsr.method.losses import (
    gradient_loss,
    hsd_gradient,
    regression_loss,
    score_weight,
    sds_gradient,
    vsd_gradient,
)
from tadsr.models.diffusion import ResShiftScheduler, one_step_sample
from tadsr.models.discriminator import MultipleDiscriminator, TimeAwareDiscriminator, hinge_d, hinge_g, mean_logit

GOLDEN = Path(__file__).parent / "golden"


def analytic(x, t, lq):
    """The network of the golden vectors."""
    rolled = 0.6 * x - 0.2 * torch.tanh(torch.roll(x, 1, dims=-1))
    return rolled + 0.02 * t.reshape(-1, 1, 1, 1) + 0.3 * lq.mean(1, keepdim=True)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def latents():
    z_s, z_t, y, noise, lq = random(5, 3, 3, 8, 8)
    return z_s, z_t, y, torch.tensor([0, 1, 2]), noise, lq


@pytest.mark.parametrize("name", ["A", "B"])
@pytest.mark.parametrize("double", [False, True])
def test_hsd_and_sds(golden, name, double):
    arrays = golden("hsd")
    want = {key[2:]: torch.from_numpy(np.asarray(value)) for key, value in arrays.items() if key.startswith(f"{name}/")}
    four = {"num_train_timesteps": 4, "min_noise_level": 0.2}
    scheduler = ResShiftScheduler(**(four if name == "B" else {}))
    torch.testing.assert_close(
        score_weight(scheduler, want["t"], want["y"]).flatten(), want["w_t"], atol=1e-4, rtol=1e-5, check_dtype=False
    )
    z_s, z_t, y, t, noise, lq = (want[key] for key in ("z_student", "z_teacher", "y", "t", "noise", "lq"))
    key = f"ds{int(double)}"
    g = hsd_gradient(analytic, scheduler, z_s, z_t, y, t, noise, lq, double_scale=double)
    # The weight at t = 0 is 25.
    for rows, tolerance in ((slice(0, 1), 2e-4), (slice(1, None), 5e-5)):
        torch.testing.assert_close(g[rows], want[f"{key}_g"][rows], atol=tolerance, rtol=0)
    sds = sds_gradient(analytic, scheduler, z_s, y, t, noise, lq, double_scale=double)
    for rows, tolerance in ((slice(0, 1), 2e-4), (slice(1, None), 5e-5)):
        torch.testing.assert_close(sds[rows], want[f"{key}_g_sds"][rows], atol=tolerance, rtol=0)
    if not double:
        torch.testing.assert_close(gradient_loss(g, z_s), want["loss_per_sample"], atol=2e-4, rtol=0)


def test_hsd_vanishes_at_the_teacher_and_sds_does_not(latents):
    _, z_t, y, t, noise, lq = latents
    scheduler = ResShiftScheduler()
    assert hsd_gradient(analytic, scheduler, z_t, z_t, y, t, noise, lq).abs().max() == 0
    assert sds_gradient(analytic, scheduler, z_t, y, t, noise, lq).abs().max() > 0.1


def test_hsd_is_the_difference_of_implied_noises(latents):
    z_s, z_t, y, t, noise, lq = latents
    scheduler = ResShiftScheduler()

    def implied(z):
        a = scheduler.add_noise(z, y, noise, t)
        return scheduler.predict_noise(a, analytic(scheduler.scale_model_input(a, t), t, lq), t, y)

    g = hsd_gradient(analytic, scheduler, z_s, z_t, y, t, noise, lq)
    tolerance = 1e-4 * score_weight(scheduler, t, z_s)
    assert ((g - (implied(z_s) - implied(z_t))).abs() < tolerance).all()


def test_hsd_of_a_linear_teacher_knows_neither_condition_nor_noise(latents):
    z_s, z_t, y, t, noise, lq = (each.double() if each.is_floating_point() else each for each in latents)
    scheduler = ResShiftScheduler()

    def linear(x, *_):
        return 0.7 * x + 0.1 * x.roll(1, -1)

    first = hsd_gradient(linear, scheduler, z_s, z_t, y, t, noise, lq)
    second = hsd_gradient(linear, scheduler, z_s, z_t, y * 3, t, noise.flip(0), lq)
    torch.testing.assert_close(first, second, atol=1e-9, rtol=0)


def test_hsd_of_a_blind_teacher_is_weighted_regression(latents):
    z_s, z_t, y, t, noise, lq = latents
    scheduler = ResShiftScheduler()
    g = hsd_gradient(lambda x, *_: torch.zeros_like(x), scheduler, z_s, z_t, y, t, noise, lq)
    torch.testing.assert_close(g, score_weight(scheduler, t, z_s) * (z_s - z_t))


def test_hsd_of_a_perfect_denoiser_vanishes(latents):
    z_s, z_t, y, t, noise, lq = (each.double() if each.is_floating_point() else each for each in latents)
    scheduler = ResShiftScheduler()

    def perfect(x, times, _):
        y2, noise2 = torch.cat([y, y]), torch.cat([noise, noise])
        eta = scheduler.at(scheduler.etas, times, x)
        a = x * scheduler.at((1 + 4 * scheduler.etas).sqrt(), times, x)
        return (a - eta * y2 - scheduler.noise_scale(times, x) * noise2) / (1 - eta)

    assert hsd_gradient(perfect, scheduler, z_s, z_t, y, t, noise, lq).abs().max() < 1e-9


def test_the_input_is_scaled_once_and_times_are_passed_on(latents):
    z_s, z_t, y, t, noise, lq = latents
    scheduler, seen = ResShiftScheduler(), []

    def recording(x, times, _):
        seen.append((x, times))
        return x

    hsd_gradient(recording, scheduler, z_s, z_t, y, t, noise, lq)
    ((x, times),) = seen
    assert times.tolist() == [0, 1, 2, 0, 1, 2]
    wanted = scheduler.scale_model_input(scheduler.add_noise(z_s, y, noise, t), t)
    torch.testing.assert_close(x[:3], wanted)


def test_vsd_vanishes_when_the_fake_network_is_the_teacher(latents):
    z_s, _, y, t, noise, lq = latents
    assert vsd_gradient(analytic, analytic, ResShiftScheduler(), z_s, y, t, noise, lq).abs().max() == 0


def test_the_gradient_loss_has_the_gradient_it_is_given(latents):
    z_s, g, *_ = latents
    z = z_s.clone().requires_grad_()
    gradient_loss(g, z).mean().backward()
    torch.testing.assert_close(z.grad, g / g.numel(), atol=1e-7, rtol=0)


# --------------------------------------------------------------------------------------------------------- discriminator


def taps(*, seed=0):
    return [random(2, 32, 8, 8, seed=seed), random(2, 64, 4, 4, seed=seed + 1)]


def test_the_first_logits_are_blind_and_the_first_adversarial_gradient_is_zero():
    torch.manual_seed(0)
    discriminator = TimeAwareDiscriminator((32, 64), 32, 4).eval()
    t = torch.tensor([1, 5])
    features = [tap.requires_grad_() for tap in taps()]
    loss = hinge_g(discriminator(features, t)).mean()
    loss.backward()
    assert all(tap.grad.abs().max() == 0 for tap in features)
    others = discriminator(taps(seed=7), t)
    for a, b in zip(discriminator(features, t), others, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("aware", [True, False])
def test_time_matters_only_to_the_time_aware(aware):
    torch.manual_seed(0)
    discriminator = TimeAwareDiscriminator((32, 64), 32, 4, time_aware=aware).eval()
    for layers in discriminator.out_layers:
        torch.nn.init.normal_(layers[3].weight, std=0.1)
    early, late = (torch.cat(discriminator(taps(), torch.full((2,), t)), 1) for t in (0, 9))
    assert torch.equal(early, late) != aware


def test_multiple_discriminators_are_chosen_by_time():
    torch.manual_seed(0)
    discriminator = MultipleDiscriminator((32, 64), 4, 3).eval()
    both = discriminator(taps(), torch.tensor([0, 2]))
    alone = discriminator.each[2](taps(), torch.tensor([2, 2]))
    torch.testing.assert_close(both[1][1], alone[1][1])


def test_number_of_logits_for_the_published_sizes():
    discriminator = TimeAwareDiscriminator((32, 32, 32, 32, 32), 32, 64).eval()
    features = [torch.zeros(1, 32, side, side) for side in (32, 16, 8, 8, 8)]
    assert sum(each.shape[1] for each in discriminator(features, torch.zeros(1, dtype=torch.long))) == 94_208


def test_hinge_losses():
    zero, high, low = ([torch.full((2, 6), value), torch.full((2, 2), value)] for value in (0.0, 1.5, -1.5))
    assert hinge_d(zero, zero).tolist() == [2, 2]
    assert hinge_d(high, low).tolist() == [0, 0]
    assert hinge_g(high).tolist() == [-1.5, -1.5]
    mixed = [torch.ones(1, 6), torch.zeros(1, 2)]
    assert mean_logit(mixed).item() == 0.75
    assert mean_logit(mixed, per_tap=True).item() == 0.5


def converge_spectral_norms(discriminator):
    """Replace the power iteration's vectors by the exact leading singular vectors; returns the singular values in order."""
    values = []
    for module in discriminator.modules():
        if hasattr(module, "parametrizations"):
            norm, kernel = module.parametrizations.weight[0], module.parametrizations.weight.original
            u, s, v = torch.linalg.svd(kernel.detach().flatten(1), full_matrices=False)
            norm._u.copy_(u[:, 0])
            norm._v.copy_(v[0])
            values.append(s[0])
    return torch.stack(values)


@torch.no_grad()
def test_the_published_logits(golden, seeded_unet, seeded_discriminator):
    want = {key: torch.from_numpy(np.asarray(value)) for key, value in golden("discriminator").items()}
    sigma = converge_spectral_norms(seeded_discriminator)
    torch.testing.assert_close(sigma, want["sigma"], atol=1e-4, rtol=0)
    for t, keys in ((want["t"], "logits{}"), (torch.tensor([7]), "logits_t7_{}")):
        logits = seeded_discriminator(seeded_unet(want["x"], t, want["lq"], return_features=True), t)
        for index, have in enumerate(logits):
            wanted = want[keys.format(index)]
            torch.testing.assert_close(have if wanted.ndim else have.mean(), wanted, atol=1e-4, rtol=0)
        if keys == "logits{}":
            torch.testing.assert_close(hinge_g(logits), want["g_loss"], atol=1e-4, rtol=0)
            none = [torch.full_like(each, 2.0) for each in logits]
            torch.testing.assert_close(hinge_d(logits, [-each for each in none]), want["hinge_real"], atol=1e-4, rtol=0)
            torch.testing.assert_close(hinge_d(none, logits), want["hinge_fake"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["A", "B"])
def test_hsd_and_sds_with_a_network(golden, seeded_unet, name):
    arrays = {key: torch.from_numpy(value) for key, value in golden("hsd").items() if key.startswith(f"{name}/net_")}
    z_s, z_t, y, noise, lq = (arrays[f"{name}/net_{key}"] for key in ("z_student", "z_teacher", "y", "noise", "lq"))
    four = {"num_train_timesteps": 4, "min_noise_level": 0.2}
    scheduler, t = ResShiftScheduler(**(four if name == "B" else {})), torch.tensor([1])
    g = hsd_gradient(seeded_unet, scheduler, z_s, z_t, y, t, noise, lq)
    torch.testing.assert_close(g, arrays[f"{name}/net_g"], atol=5e-5, rtol=0)
    sds = sds_gradient(seeded_unet, scheduler, z_s, y, t, noise, lq)
    torch.testing.assert_close(sds, arrays[f"{name}/net_g_sds"], atol=5e-5, rtol=0)


def test_a_whole_training_step(golden, seeded_unet, seeded_discriminator):
    want = {key: torch.from_numpy(np.asarray(value)) for key, value in golden("train_step").items()}
    about = json.loads((GOLDEN / "train_step.json").read_text())
    scheduler, teacher = ResShiftScheduler(), seeded_unet
    student = deepcopy(teacher).requires_grad_(True)
    with torch.no_grad():
        for j, (_, parameter) in enumerate(sorted(student.named_parameters())):
            wave = torch.from_numpy(np.cos(0.31 * np.arange(parameter.numel()) + j).astype(np.float32))
            parameter += 0.02 * wave.reshape(parameter.shape) * parameter.abs().mean()
    converge_spectral_norms(seeded_discriminator)
    z_y, lq, t_d, t_h = (want[key] for key in ("z_y", "lq", "t_d", "t_h"))
    z = one_step_sample(student, scheduler, z_y, want["noise_T"], lq)
    torch.testing.assert_close(z, want["z_student"], atol=1e-4, rtol=0)
    z.retain_grad()

    def logits(latent):
        noisy = scheduler.scale_model_input(scheduler.add_noise(latent, z_y, want["noise_d"], t_d), t_d)
        return seeded_discriminator(teacher(noisy, t_d, lq, return_features=True), t_d)

    real, fake = logits(want["z_gt"]), logits(z.detach())
    loss_d = hinge_d(real, fake)
    torch.testing.assert_close(loss_d, want["loss_d"], atol=1e-4, rtol=0)
    loss_d.mean().backward()
    for name, norm in about["disc_grad_norms"].items():
        gradient = seeded_discriminator.get_parameter(
            name.replace("weight_orig", "parametrizations.weight.original")
        ).grad
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7)

    mse = regression_loss(z, want["z_teacher"])
    g = hsd_gradient(teacher, scheduler, z.detach(), want["z_teacher"], z_y, t_h, want["noise_h"], lq)
    hsd, gan = gradient_loss(g, z), hinge_g(logits(z))
    for have, name in ((mse, "mse"), (hsd, "hsd"), (gan, "gan")):
        torch.testing.assert_close(have, want[name], atol=1e-4, rtol=0)
    total = (mse + about["w_hsd"] * hsd + about["w_gan"] * gan).mean()
    total.backward()
    torch.testing.assert_close(total, want["total"], atol=1e-4, rtol=0)
    torch.testing.assert_close(z.grad, want["grad_z"], atol=1e-6, rtol=1e-3)
    for name, norm in about["student_grad_norms"].items():
        assert student.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6)


def test_a_student_that_copies_the_teacher_is_the_teacher_called_once():
    scheduler, (y, noise) = ResShiftScheduler(), random(2, 1, 3, 8, 8)
    once = analytic(scheduler.scale_model_input(scheduler.prior(y, noise), 14), torch.tensor([14]), y)
    assert torch.equal(one_step_sample(analytic, scheduler, y, noise, y), once)
