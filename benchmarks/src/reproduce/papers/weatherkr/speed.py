"""Speed of weatherkr against the official arrangement of the same arithmetic."""

from collections.abc import Callable

from reproduce.claims import Speed

PATCH, STORED = 96, 16


def training_step() -> tuple[Callable[[], object], Callable[[], object]]:
    """One update on a new and a stored patch: teacher outputs looked up and one pass, against a live teacher and two passes."""
    import random

    import torch

    from weatherkr import ReplayMemory, WeatherNet
    from weatherkr.config import METHODS
    from weatherkr.method.losses import Objective, Weights, l1, projection_loss
    from weatherkr.models.networks import normalize
    from weatherkr.models.projector import AttentionProjector
    from weatherkr.training.teacher import CachedTeacher, Teacher

    torch.manual_seed(0)
    memory = ReplayMemory(STORED)
    memory.add("haze", STORED, lambda _: (torch.rand(3, PATCH, PATCH), torch.rand(3, PATCH, PATCH)), random.Random(0))
    net, old = WeatherNet(64, 5), WeatherNet(64, 5)
    projector = AttentionProjector().requires_grad_(False)
    teacher = Teacher(old, projector, METHODS["kr"], "auto")
    cached = CachedTeacher(teacher, memory, torch.device("cpu"))
    objective = Objective(net, Weights(), projector=projector)
    optimiser = torch.optim.Adam(net.parameters(), 1e-4)
    x, y = torch.rand(2, 1, 3, PATCH, PATCH)
    index = torch.tensor([3])

    def update(loss: torch.Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def ours() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            terms = objective(x, y, cached.replay(index))
        return update(terms.total(objective.weights))

    def theirs() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            answer = teacher.replay(memory.read(index))
            loss = l1(net(normalize(x)).float(), y)
            estimate, f = net(memory.read(index), return_features=True)
            assert answer.projection is not None
            loss = loss + l1(estimate.float(), answer.target) + 0.3 * projection_loss(projector, f, answer.projection)
        return update(loss)

    return ours, theirs


def projector_fit() -> tuple[Callable[[], object], Callable[[], object]]:
    """The projector of 8 stored patches' features: principal components in one pass, against 50 epochs of the autoencoder."""
    import torch

    from weatherkr.models.projector import AttentionProjector, PCAProjector, ProjectionDecoder
    from weatherkr.training.projector import fit_attention_projector

    torch.manual_seed(0)
    features = list(torch.randn(8, 192, 24, 24).split(1))

    def ours() -> object:
        return PCAProjector().fit(features)

    def theirs() -> object:
        return fit_attention_projector(AttentionProjector(), ProjectionDecoder(), features, epochs=50)

    return ours, theirs


SPEEDS = (
    Speed(
        "weatherkr/training-step",
        f"An update on one new and one stored patch of {PATCH} pixels, 64 channels and 15 blocks: cached teacher and one pass, against a live teacher and separate passes as in the official code",
        training_step,
        target=1.1,
        repeats=7,
        unit="update",
    ),
    Speed(
        "weatherkr/projector-fit",
        "Fitting the projector to the features of 8 patches: principal components, against the official autoencoder's 50 epochs",
        projector_fit,
        target=20,
        repeats=1,
        unit="fit",
    ),
)
