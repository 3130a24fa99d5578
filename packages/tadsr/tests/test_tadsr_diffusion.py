"""The residual-shifting process against ResShift's and SinSR's numbers, and its own identities."""

import numpy as np
import pytest
import torch

from tadsr.data.transforms import enlarge
from tadsr.method.losses import sinsr_losses
from tadsr.models.diffusion import (
    ResShiftScheduler,
    ancestral_sample,
    kept_steps,
    one_step_sample,
    predict,
    sqrt_eta_schedule,
    teacher_solve,
)

CLAMP = 0.001**0.5
CONFIGS = {
    "A_T15": {},
    "B_T4": {"num_train_timesteps": 4, "min_noise_level": 0.2},
    "Bclamp_T4": {"num_train_timesteps": 4, "min_noise_level": 0.2, "start_clamp": CLAMP},
    "C_T8": {"num_train_timesteps": 8, "min_noise_level": 0.05, "kappa": 1.5, "power": 0.5, "sqrt_eta_end": 0.97},
}


def analytic(x, t, lq):
    """The network of the golden vectors."""
    return (
        0.6 * x
        - 0.2 * torch.tanh(torch.roll(x, 1, dims=-1))
        + 0.02 * t.reshape(-1, 1, 1, 1)
        + 0.3 * lq.mean(1, keepdim=True)
    )


def tensors(arrays, prefix):
    return {
        key.removeprefix(prefix): torch.from_numpy(np.asarray(value))
        for key, value in arrays.items()
        if key.startswith(prefix)
    }


def close(a, b, atol=1e-5, rtol=0.0):
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol, check_dtype=False)


@pytest.mark.parametrize("name", [*CONFIGS, "A_respaced5"])
def test_schedule(golden, name):
    want = tensors(golden("schedule"), f"{name}/")
    scheduler = ResShiftScheduler(**CONFIGS.get(name, {}))
    kept = torch.arange(len(scheduler.etas))
    if name == "A_respaced5":
        scheduler.set_timesteps(5)
        kept = torch.tensor(kept_steps(15, 5))
    assert want["timestep_map"].tolist() == kept.tolist() == scheduler.timesteps.tolist()[::-1]
    k, m, j = scheduler.deterministic_coefficients()
    sample = torch.ones(len(kept), 1, 1, 1, dtype=torch.float64)
    mean_x0, variance, logvar = scheduler.posterior(sample, sample * 0, kept)
    mean_xt, _, _ = scheduler.posterior(sample * 0, sample, kept)
    have = {
        "sqrt_etas": scheduler.sqrt_etas[kept],
        "etas": scheduler.etas[kept],
        "etas_prev": scheduler.etas_prev[kept],
        "alpha": (scheduler.etas - scheduler.etas_prev)[kept],
        "posterior_variance": variance.flatten(),
        "posterior_log_variance_clipped": logvar.flatten(),
        "posterior_mean_coef1": mean_xt.flatten(),
        "posterior_mean_coef2": mean_x0.flatten(),
        "ddim_k": k[kept],
        "ddim_m": m[kept],
        "ddim_j": j[kept],
    }
    for key, value in have.items():
        close(value, want[f"{key}_f64"], atol=1e-14, rtol=1e-12)
    close(k[kept] + m[kept] + j[kept], torch.ones(len(kept)), atol=1e-12)
    assert (k[0], m[0], j[0]) == (1, 0, 0)


def test_the_schedule_starts_and_ends_where_it_should():
    for steps, noise in ((15, 0.04), (4, 0.2)):
        table = sqrt_eta_schedule(steps, noise)
        assert table[0].item() == pytest.approx(noise / 2, abs=1e-12)
        assert table[-1].item() == pytest.approx(0.99, abs=1e-12)
        assert (table.diff() > 0).all()


@pytest.mark.parametrize("steps", [1, 0, -3])
def test_a_schedule_of_one_step_is_refused(steps):
    with pytest.raises(ValueError, match="at least 2"):
        sqrt_eta_schedule(steps)


@pytest.mark.parametrize("count", [0, 16])
def test_steps_out_of_range_are_refused(count):
    with pytest.raises(ValueError, match="between 1 and 15"):
        ResShiftScheduler().set_timesteps(count)


@pytest.mark.parametrize("name", ["A", "B"])
def test_operations(golden, name):
    want = tensors(golden("diffusion_ops"), f"{name}/")
    options = CONFIGS["A_T15" if name == "A" else "B_T4"]
    scheduler = ResShiftScheduler(**options)
    x0, y, eps, t, lq = (want[key] for key in ("x0", "y", "eps", "t", "lq"))
    x_t = scheduler.add_noise(x0, y, eps, t)
    close(x_t, want["x_t"])
    close(scheduler.noise_scale(t, x0).flatten().square(), want["q_var"])
    mean, variance, logvar = scheduler.posterior(x0, x_t, t)
    close(mean, want["post_mean"])
    close(variance.flatten(), want["post_var"])
    close(logvar.flatten(), want["post_logvar"])
    close(scheduler.prior(y, eps), want["prior"])
    close(scheduler.scale_model_input(x_t, t), want["scaled"])
    close(ResShiftScheduler(**options, latent_scaling=False).scale_model_input(x_t, t), want["scaled_pixel"])
    close(scheduler.predict_noise(x_t, x0, t, y), want["eps_from_x0"])
    for clip in (0, 1):
        chain = ResShiftScheduler(**options, clip_sample=bool(clip))
        x0_hat = chain.predict_x0(predict(analytic, chain, x_t, t, lq), x_t, t, y)
        close(x0_hat, want[f"pmv_clip{clip}_x0"])
        close(chain.posterior(x0_hat, x_t, t)[0], want[f"pmv_clip{clip}_mean"])
    early = t.clamp_max(scheduler.last - 1)
    for kind in ("epsilon", "epsilon_scale", "residual"):
        chain = ResShiftScheduler(**options, prediction_type=kind)
        output = predict(analytic, chain, x_t, early, lq)
        close(chain.predict_x0(output, x_t, early, y), want[f"pmv_{kind}_x0"], atol=1e-4 if "epsilon" in kind else 1e-5)
    if name == "A":
        output = predict(analytic, scheduler, x_t, t, lq)
        close(scheduler.step(output, t, x_t, y).prev_sample, want["ddim_step"])
        later = want["ddim_inverse_t"]
        x0_hat = predict(analytic, scheduler, x_t, later, lq)
        close(scheduler.invert_step(x0_hat, later, x_t, y), want["ddim_inverse"])


@pytest.mark.parametrize("name", ["A", "B"])
def test_samplers(golden, name):
    want = tensors(golden("loops"), f"{name}/")
    options = CONFIGS["A_T15" if name == "A" else "Bclamp_T4"]
    scheduler = ResShiftScheduler(**options)
    close(scheduler.sqrt_etas, want["sqrt_etas_f64"], atol=1e-12)
    y = enlarge(want["lr"], 4)
    close(y, want["y_up"])
    close(teacher_solve(analytic, scheduler, y, want["noise"], y), want["ddim"], atol=2e-5)
    clipped = ResShiftScheduler(**options, clip_sample=True)
    close(teacher_solve(analytic, clipped, y, want["noise"], y), want["ddim_clip"], atol=2e-5)
    close(one_step_sample(analytic, scheduler, y, want["noise"], y), want["one_step"], atol=2e-5)
    noises = iter(want["ancestral_noise"])
    sample = ancestral_sample(analytic, scheduler, y, want["noise"], y, step_noise=lambda: next(noises))
    close(sample, want["ancestral"], atol=2e-5)


@pytest.mark.parametrize("name", ["A", "B"])
def test_sinsr_losses(golden, name):
    want = tensors(golden("loops"), f"{name}/")
    scheduler = ResShiftScheduler(**CONFIGS["A_T15" if name == "A" else "Bclamp_T4"])
    y = enlarge(want["lr"], 4)

    def student(x, t, lq):
        return 0.9 * analytic(x, t, lq)

    # The reference clips the teacher's predictions here, as in pixel space.
    clipped = ResShiftScheduler(**CONFIGS["A_T15" if name == "A" else "Bclamp_T4"], clip_sample=True)
    z_teacher = teacher_solve(analytic, clipped, y, want["noise"], y)
    z_student = one_step_sample(student, scheduler, y, want["noise"], y)
    z_T = scheduler.prior(y, want["noise"])
    terms = sinsr_losses(student, scheduler, z_student, z_teacher, want["hr"], z_T, y)
    for term, key in zip(terms, ("sinsr_mse", "sinsr_mse_xT", "sinsr_mse_gt"), strict=True):
        close(term, want[key], atol=2e-5)
    close(sum(terms), want["sinsr_loss"], atol=2e-5)


def test_the_true_latent_carries_the_chain_down_exactly():
    scheduler = ResShiftScheduler()
    x0, y, eps = torch.randn(3, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in range(15):
        x_t = scheduler.add_noise(x0, y, eps, t)
        previous = scheduler.step(x0, t, x_t, y).prev_sample
        close(previous, scheduler.add_noise(x0, y, eps, t - 1) if t else x0, atol=1e-12)
        if t < 14:
            noise = scheduler.predict_noise(x_t, x0, t, y)
            close(noise, eps, atol=1e-9)


def test_the_posterior_agrees_with_the_marginals():
    scheduler = ResShiftScheduler()
    etas, previous = scheduler.etas[1:], scheduler.etas_prev[1:]
    _, variance, _ = scheduler.posterior(torch.zeros(14, 1, 1, 1), torch.zeros(14, 1, 1, 1), torch.arange(1, 15))
    total = (previous / etas) ** 2 * 4 * etas + variance.flatten()
    close(total, 4 * previous)
    # Mean of z_t is (1 - eta) z_0 + eta z_y: the posterior's must be that of t-1.
    z_0, z_y = torch.ones(14, 1, 1, 1, dtype=torch.float64), torch.full((14, 1, 1, 1), 3.0, dtype=torch.float64)
    mean_t = scheduler.add_noise(z_0, z_y, z_0 * 0, torch.arange(1, 15))
    mean, _, _ = scheduler.posterior(z_0, mean_t, torch.arange(1, 15))
    close(mean, scheduler.add_noise(z_0, z_y, z_0 * 0, torch.arange(14)), atol=1e-12)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "epsilon_scale", "residual"])
def test_every_prediction_gives_back_the_noise(kind):
    scheduler, t = ResShiftScheduler(prediction_type=kind), torch.arange(14)
    x0, y, eps = torch.randn(3, 14, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = scheduler.add_noise(x0, y, eps, t)
    output = {"sample": x0, "epsilon": eps, "epsilon_scale": eps * scheduler.noise_scale(t, eps), "residual": y - x0}
    again = scheduler.predict_x0(output[kind], x_t, t, y)
    close(again, x0)
    close(scheduler.predict_noise(x_t, again, t, y), eps)


def test_the_prior_has_the_stated_spread():
    draw = ResShiftScheduler().prior(
        torch.full((1, 1, 300, 300), 0.5), torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(1))
    )
    assert draw.mean().item() == pytest.approx(0.5, abs=0.03)
    assert draw.std().item() == pytest.approx(1.98, rel=0.02)


def test_a_constant_network_is_returned_and_respaced_chains_pass_original_times():
    scheduler, seen = ResShiftScheduler(), []
    y = torch.randn(1, 1, 4, 4)

    def constant(x, t, _):
        seen.append(int(t[0]))
        return torch.full_like(x, 0.3)

    close(teacher_solve(constant, scheduler, y, torch.randn_like(y), y, steps=5), torch.full_like(y, 0.3))
    assert seen == [12, 9, 6, 3, 0]
    assert scheduler.timesteps[0] == 14, "the chain is whole again"


def test_an_eta_between_is_refused():
    z = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="deterministic"):
        ResShiftScheduler().step(z, 3, z, z, eta=0.5)
