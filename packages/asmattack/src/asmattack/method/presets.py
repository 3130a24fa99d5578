"""Named attacks: the settings of the iteration that the field knows by these names."""

from dataclasses import replace

from asmattack.method.region_attack import AttackConfig
from tenfold import UserError

PRESETS = {
    "fgsm": AttackConfig(steps=1),
    "bim": AttackConfig(),
    "pgd": AttackConfig(),
    "pgd_uniform": AttackConfig(start="uniform"),
    "pgd_l2": AttackConfig(eps=2.0, norm="l2"),
    "mifgsm": AttackConfig(momentum=1.0),
    "nifgsm": AttackConfig(momentum=1.0, nesterov=True),
    "tifgsm": AttackConfig(momentum=1.0, ti_length=15),
    "difgsm": AttackConfig(momentum=1.0, di_probability=0.5),
    "margin": AttackConfig(objective="margin"),
    "cafa": AttackConfig(objective="cafa", start="uniform"),
    "noise": AttackConfig(steps=0, start="signs"),
    "asma_official": AttackConfig(
        eps=0.2, alpha=0.015, steps=20, objective="cafa_batch", start="uniform", compose="paste"
    ),
}
"""`asma_official` has the budget of the authors' code, 51/255, and their objective; `pgd_l2` a length; every other starts from
8/255. `noise` is a control: random signs, no gradient."""

PUBLISHED_POLICY = {"asma_official": "fixed"}
"""Attacks that come with regions of their own."""


def preset(name: str, eps: float | None = None, seed: int = 0) -> AttackConfig:
    """The settings of a named attack, at another budget if wanted.

    Raises:
        UserError: an unknown name, a negative budget.
    """
    if name not in PRESETS:
        raise UserError(f"no attack {name!r}; there are {', '.join(PRESETS)}")
    config = replace(PRESETS[name], seed=seed)
    config = config if eps is None else replace(config, eps=eps)
    return replace(config, alpha=config.eps) if name == "fgsm" and config.eps > 0 else config
