"""What pfrforgery is measured by (Liu et al., arXiv 2406.11145). No table of the paper can be had: the claims are its abstract's and our README's."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reproduce.claims import Experiment, Measurement, Speed, Suite, at_most, claim, higher

if TYPE_CHECKING:
    from pfrforgery import FederationConfig

RIVALS = ("fedavg-ft", "fedper", "fedrep", "fedbn", "fedrod", "lg-fedavg", "ditto")
"""Personalised methods other than the paper's."""

WORDS = {
    "fedpr": "FedPR (the method)",
    "fedpr, shared alone": "FedPR's shared branch alone",
    "fedpr, personal alone": "FedPR's personal branch alone",
    "fedpr, alpha 0": "FedPR without the adversarial loss",
    "fedpr, routing plain": "two branches without the statistic operations",
    "local": "every client alone",
    "central": "all data in one place",
    "fedavg": "FedAvg, one common model",
    "fedprox": "FedProx, one common model",
    "fedavg-ft": "FedAvg, fine-tuned by each client",
    "fedper": "FedPer",
    "fedrep": "FedRep",
    "fedbn": "FedBN",
    "fedrod": "FedRoD",
    "lg-fedavg": "LG-FedAvg",
    "ditto": "Ditto",
    "ten clients of ResNet-18": "ten clients of ResNet-18",
}
METRICS = {
    "ACC": "accuracy, mean over clients (share)",
    "AUC": "area under the ROC curve, mean over clients",
    "bytes up": "bytes sent to the server",
    "upload as a share of FedAvg's": "bytes sent, as a share of FedAvg's",
    "peak GiB": "peak memory of the process (GiB)",
}


def recipe(seed: int, tier: str, **changes: object) -> "FederationConfig":
    """Five clients of 100 drawn faces; the smoke tier is a third of it."""
    from pfrforgery import FederationConfig

    if tier == "smoke":
        changes = {"rounds": 6, "local_steps": 6, "clients": 3, "test_images": 100, **changes}
    values = {"clients": 5, "rounds": 20, "precision": "float32", **changes}
    # Only the last round is judged.
    return FederationConfig(seed=seed, evaluate_every=values["rounds"], **values)  # ty: ignore[invalid-argument-type]


@functools.cache
def measured(config: "FederationConfig") -> dict[str, dict[str, float]]:
    """One run: means over the clients after the last round, of the detector and, where it has two branches, of each alone.

    Kept for the process: experiments share runs.
    """
    from pfrforgery import simulate

    last = simulate(config).rounds[-1]

    def mean(suffix: str) -> dict[str, float]:
        return {
            name.upper(): float(np.mean([each[f"{name}{suffix}"] for each in last.clients.values()]))
            for name in ("acc", "auc")
        }

    rows = {"": mean("") | {"bytes up": float(last.bytes_up)}}
    if config.algorithm == "fedpr":
        rows |= {f", {branch} alone": mean(f"-{branch}") for branch in ("shared", "personal")}
    return rows


def arms_of(seed: int, tier: str, names: tuple[str, ...], **changes: object) -> dict[str, dict[str, float]]:
    """One run per algorithm on the same data, batches and budget; FedPR's branches alone are arms of their own."""
    return {
        f"{name}{suffix}": dict(row)
        for name in names
        for suffix, row in measured(recipe(seed, tier, algorithm=name, **changes)).items()
    }


def measure_specific(seed: int, tier: str, place: Path) -> Measurement:
    """Drawn faces whose tint points another way at every client."""
    _write_sheet(recipe(seed, tier), place / "drawn-faces-of-each-client.png")
    arms = arms_of(seed, tier, ("local", "fedavg", "fedpr"))
    arms["fedpr"]["upload as a share of FedAvg's"] = arms["fedpr"]["bytes up"] / arms["fedavg"]["bytes up"]
    return arms


def measure_rivals(seed: int, tier: str, _place: Path) -> Measurement:
    """The same faces: other personalised methods, and FedPR without one of its parts."""
    arms = arms_of(seed, tier, (*RIVALS, "fedprox", "central", "fedpr"))
    for name, changes in (("alpha 0", {"alpha": 0.0}), ("routing plain", {"routing": "plain", "alpha": 0.0})):
        arms[f"fedpr, {name}"] = measured(recipe(seed, tier, **changes))[""]
    return arms


def _write_sheet(config: "FederationConfig", path: Path) -> None:
    from pfrforgery.data.datasets import DataRequest, client_data
    from pfrforgery.evaluation.figures import contact_sheet
    from tenfold.images import write_image

    clients = range(config.clients)
    sets = [client_data(DataRequest.of(config, config.clients), client).test for client in clients]
    write_image(path, contact_sheet(sets))


def measure_control(seed: int, tier: str, _place: Path) -> Measurement:
    """The same faces, whose tint says nothing: personalisation cannot help."""
    return arms_of(seed, tier, ("fedavg", "fedpr"), specific=0.0)


def measure_photographs(seed: int, tier: str, place: Path) -> Measurement:
    """Pieces of real photographs, forged in another way at every client; tested on photographs that nobody trained on."""
    _write_sheet(recipe(seed, tier, data="photos:families"), place / "pieces-of-photographs.png")
    return arms_of(seed, tier, ("local", "fedavg", "fedper", "fedpr"), data="photos:families")


TEN_CLIENTS = """
import json, resource, sys
from pfrforgery import FederationConfig, simulate
config = FederationConfig(clients=10, rounds=2, local_steps=1, batch_size=16, backbone="resnet18", image_size=64,
                          train_images=32, test_images=16, evaluate_every=2, seed=int(sys.argv[1]))
run = simulate(config)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"GiB": peak, "clients": len(run.rounds[-1].clients)}))
"""


def measure_memory(seed: int, _tier: str, _place: Path) -> Measurement:
    """Peak memory of a process with ten clients of ResNet-18, each with a personal branch of its own."""
    command = [sys.executable, "-c", TEN_CLIENTS, str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if found["clients"] != 10:
        raise RuntimeError("not all ten clients took part")
    return {"ten clients of ResNet-18": {"peak GiB": found["GiB"]}}


def measure_routing(_seed: int, _tier: str, _place: Path) -> Measurement:
    """Gradients of one step with and without the personal branch's loss, on noise: how far they differ, part by part."""
    import copy

    import torch

    from pfrforgery.config import LossWeights
    from pfrforgery.method.gradient_routing import draw, routed_gradients
    from pfrforgery.models.networks import TwoBranchDetector

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = TwoBranchDetector("tiny")
    x, y = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    found = []
    for beta in (0.0, 5.0):
        model = copy.deepcopy(start)
        routed_gradients(model, x, y, draw(8, torch.Generator().manual_seed(1)), "shared_main", LossWeights(beta=beta))
        found.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    arms = {}
    for arm, prefix in (("extractor", "extractor."), ("personal branch", "personal.")):
        names = {name for gradients in found for name in gradients if name.startswith(prefix)}
        differences = [
            torch.as_tensor(found[1].get(name, 0.0) - found[0].get(name, torch.zeros(()))).abs().max() for name in names
        ]
        arms[arm] = {"difference of gradients": float(torch.stack(differences).max())}
    return arms


EXPERIMENTS = (
    Experiment(
        "routing",
        "Where the gradient of the personal branch's loss goes, in one step on noise.",
        {"smoke": 1},
        measure_routing,
        {"extractor": "the shared extractor", "personal branch": "the personal branch"},
        {"difference of gradients": "largest change of a gradient by the personal loss"},
    ),
    Experiment(
        "specific-clue",
        "Five clients of 100 drawn faces; a clue common to all, and a tint whose meaning differs by client. Same data, batches and steps for all.",
        {"smoke": 1, "small": 5},
        measure_specific,
        WORDS,
        METRICS,
    ),
    Experiment(
        "rivals",
        "The same drawn faces: other personalised methods, and FedPR without one of its parts.",
        {"small": 5},
        measure_rivals,
        WORDS,
        METRICS,
    ),
    Experiment(
        "no-specific-clue",
        "The control: the same faces, but the tint says nothing.",
        {"small": 5},
        measure_control,
        WORDS,
        METRICS,
    ),
    Experiment(
        "photographs",
        "Five clients of 100 pieces of real photographs, each with a kind of forgery of its own; tested on other photographs.",
        {"small": 5},
        measure_photographs,
        WORDS,
        METRICS,
    ),
    Experiment("ten-clients", "Ten clients of ResNet-18 in one process.", {"small": 2}, measure_memory, WORDS, METRICS),
)


ABSTRACT, OURS = "paper, abstract", "our control"

CLAIMS = (
    claim(
        "pfrforgery/personal-loss-stays-personal",
        "The personal branch's loss leaves the shared extractor's gradients as they are.",
        at_most("difference of gradients", "extractor", 0.0),
        experiment="routing",
        source="paper, abstract (decoupled branches)",
        deterministic=True,
    ),
    claim(
        "pfrforgery/personal-loss-reaches-its-branch",
        "The personal branch's loss trains the personal branch.",
        higher("difference of gradients", "personal branch", than="extractor", by=1e-3),
        experiment="routing",
        source="paper, abstract (decoupled branches)",
        deterministic=True,
    ),
    claim(
        "pfrforgery/beats-fedavg",
        "Where clients meet forgeries of their own, FedPR is more accurate for each than one common model.",
        higher("ACC", "fedpr", than="fedavg"),
        experiment="specific-clue",
        source=ABSTRACT,
        remark="The paper reports 3 to 6 points over federated learning without personalisation, on other data",
    ),
    claim(
        "pfrforgery/beats-local",
        "Learning together is more accurate than every client alone.",
        higher("ACC", "fedpr", than="local"),
        experiment="specific-clue",
        source=ABSTRACT,
    ),
    claim(
        "pfrforgery/personal-part-matters",
        "The personalised representation contributes: both branches together beat the shared one alone.",
        higher("ACC", "fedpr", than="fedpr, shared alone"),
        experiment="specific-clue",
        source="paper, ablation",
    ),
    claim(
        "pfrforgery/shared-part-matters",
        "Both branches together beat the personal one alone.",
        higher("ACC", "fedpr", than="fedpr, personal alone"),
        experiment="specific-clue",
        source="our README",
    ),
    *(
        claim(
            f"pfrforgery/beats-{rival}",
            f"FedPR is more accurate than {WORDS[rival]}, another personalised method.",
            higher("ACC", "fedpr", than=rival),
            experiment="rivals",
            source=OURS,
        )
        for rival in RIVALS
    ),
    claim(
        "pfrforgery/adversarial-loss-matters",
        "The adversarial loss contributes.",
        higher("ACC", "fedpr", than="fedpr, alpha 0"),
        experiment="rivals",
        source=OURS,
    ),
    claim(
        "pfrforgery/operations-matter",
        "The statistic operations contribute: two branches without them are less accurate.",
        higher("ACC", "fedpr", than="fedpr, routing plain"),
        experiment="rivals",
        source=OURS,
    ),
    claim(
        "pfrforgery/no-clue-no-harm",
        "Where no clue is a client's own, FedPR is still more accurate than FedAvg.",
        higher("ACC", "fedpr", than="fedavg"),
        experiment="no-specific-clue",
        source=OURS,
        remark="It need not be: there is nothing to personalise",
    ),
    *(
        claim(
            f"pfrforgery/photographs-beats-{rival}",
            f"On pieces of real photographs, each client with a forgery of its own, FedPR is more accurate than {WORDS[rival]}.",
            higher("ACC", "fedpr", than=rival),
            experiment="photographs",
            source=ABSTRACT if rival in ("fedavg", "local") else OURS,
            remark="At this budget every arm stays within a point of chance",
        )
        for rival in ("fedavg", "local", "fedper")
    ),
    claim(
        "pfrforgery/uploads-no-more-than-fedavg",
        "FedPR sends no more than FedAvg of the plain network.",
        at_most("upload as a share of FedAvg's", "fedpr", 1.001),
        experiment="specific-clue",
        source="paper, abstract: only shared representations are uploaded",
        deterministic=True,
    ),
    claim(
        "pfrforgery/ten-clients-fit",
        "Ten clients of ResNet-18 run in one process within 6 GiB.",
        at_most("peak GiB", "ten clients of ResNet-18", 6.0),
        experiment="ten-clients",
        source="our README",
        deterministic=True,
    ),
)


def _speed_recipe() -> "FederationConfig":
    from pfrforgery import FederationConfig

    return FederationConfig(clients=5, rounds=4, test_images=100, schedule="constant", precision="float32")


def federation_against_loop() -> tuple[Callable[[], object], Callable[[], object]]:
    """Four rounds of five clients through Flower's messages, and the same steps, averages and tests in a bare loop."""
    import torch

    from pfrforgery import simulate
    from pfrforgery.data.datasets import DataRequest, client_data
    from pfrforgery.method.baselines import ALGORITHMS, create_detector, kept_names
    from pfrforgery.models.networks import load_exactly
    from pfrforgery.training.local_training import Turn, score_client, train_client

    config, algorithm = _speed_recipe(), ALGORITHMS["fedpr"]
    data = [client_data(DataRequest.of(config, 5), client) for client in range(5)]

    def bare_loop() -> object:
        model = create_detector(config)
        travels, stays = algorithm.uploads(model), kept_names(model, algorithm)
        shared = {name: model.state_dict()[name].clone() for name in travels}
        start = {name: model.state_dict()[name].clone() for name in stays}
        personal = [start] * 5
        for number in range(1, config.rounds + 1):
            uploads = []
            for client in range(5):
                load_exactly(model, shared, travels)
                load_exactly(model, personal[client], stays)
                turn = Turn(config.seed, number, client)
                train_client(
                    model, data[client].train, algorithm, config, turn, config.learning_rate, config.local_steps
                )
                state = model.state_dict()
                uploads.append({name: state[name].clone() for name in travels})
                personal[client] = {name: state[name].clone() for name in stays}
            shared = {name: torch.stack([each[name] for each in uploads]).mean(0) for name in travels}
            for client in range(5):
                load_exactly(model, shared, travels)
                load_exactly(model, personal[client], stays)
                score_client(model, data[client].test, algorithm, "fused")
        return shared

    return (lambda: simulate(config)), bare_loop


def step_against_floor() -> tuple[Callable[[], object], Callable[[], object]]:
    """Twenty routed steps, and twenty times two steps of the plain one-branch network: the floor of two branches."""
    import torch

    from pfrforgery import FederationConfig
    from pfrforgery.method.baselines import ALGORITHMS, create_detector

    x, y = torch.rand(32, 3, 32, 32), torch.arange(32) % 2
    generator = torch.Generator().manual_seed(0)

    def steps(name: str, count: int) -> Callable[[], object]:
        config = FederationConfig(algorithm=name)  # ty: ignore[invalid-argument-type]
        model = create_detector(config).train()
        (phase,) = ALGORITHMS[name].phases(model, config)
        return lambda: [phase.gradients(x, y, generator) for _ in range(count)]

    return steps("fedpr", 20), steps("fedavg", 40)


def in_process_against_ray() -> tuple[Callable[[], object], Callable[[], object]]:
    """The same four rounds in one process, and on Flower's Ray simulation, start-up included."""
    from pfrforgery import simulate

    config = _speed_recipe()
    return (lambda: simulate(config)), (lambda: simulate(config, runtime="ray"))


SPEEDS = (
    Speed(
        "pfrforgery/federation-overhead",
        "Four rounds of five clients as a Flower app in one process, against a bare loop that takes the same steps and tests; at most 1.3 times as long",
        federation_against_loop,
        target=1 / 1.3,
        repeats=5,
        unit="run of 4 rounds",
    ),
    Speed(
        "pfrforgery/step-floor",
        "A routed step with both branches and the adversarial loss, against two forward and backward passes of the plain network",
        step_against_floor,
        target=1 / 1.5,
        repeats=5,
        unit="20 steps",
    ),
    Speed(
        "pfrforgery/in-process-vs-ray",
        "Four rounds of five clients in one process, against Flower's simulation on Ray with its start-up",
        in_process_against_ray,
        target=2.0,
        repeats=1,
        unit="run of 4 rounds",
    ),
)

SUITE = Suite(
    "pfrforgery",
    "Sites that keep their images learn a face-forgery detector together, with a shared branch that travels and a personal one that does not.",
    experiments=EXPERIMENTS,
    claims=CLAIMS,
    speeds=SPEEDS,
)
