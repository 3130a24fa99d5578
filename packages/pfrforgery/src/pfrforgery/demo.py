"""What `pfrforgery demo` does: five organisations, each meeting forgeries of its own, learn alone, together, and together with a part of their own."""

from dataclasses import replace
from pathlib import Path

from pfrforgery.config import FederationConfig
from pfrforgery.data.datasets import DataRequest, client_data
from pfrforgery.evaluation.figures import contact_sheet, plot_curves
from pfrforgery.evaluation.metrics import over_clients
from pfrforgery.pipeline.simulation import Federation, simulate
from pfrforgery.training.server_app import log_line
from tenfold.images import write_image

ALGORITHMS = ("local", "fedavg", "fedpr")
RECIPE = FederationConfig(clients=4, train_images=100, test_images=200, evaluate_every=2)


def demonstrate(out: Path, seed: int = 0, rounds: int = 12) -> dict[str, Federation]:
    """Draw faces for four clients and compare local training, FedAvg and FedPR.

    Args:
        out: folder that receives faces.png and, for FedPR, curves.png.
        seed: of faces and training.
        rounds: of each.

    Returns:
        The runs, by algorithm.
    """
    recipe = replace(RECIPE, seed=seed, rounds=rounds)
    request = DataRequest.of(recipe, recipe.clients)
    faces = [client_data(request, client).test for client in range(recipe.clients)]
    write_image(out / "faces.png", contact_sheet(faces))
    runs = {name: simulate(replace(recipe, algorithm=name)) for name in ALGORITHMS}
    log = [log_line(report) for report in runs["fedpr"].rounds]
    plot_curves(log, out / "curves.png", f"fedpr, {recipe.clients} clients of drawn faces")
    return runs


def mean_of_last(run: Federation, metric: str) -> float:
    """A metric of the last round, over clients."""
    clients = run.rounds[-1].clients.values()
    return over_clients([each[metric] for each in clients], [int(each["num-examples"]) for each in clients]).mean
