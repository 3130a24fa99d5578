"""One step, one local round, the average: what moves and what must not."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinsight.config import FederationConfig
from twinsight.data.datasets import Pictures
from twinsight.data.partition import ClientData, split_labels
from twinsight.data.transforms import ViewMaker, geometric, rand_augment, random_flip, random_shift
from twinsight.method.losses import (
    Weights,
    gradient_cosine,
    labelled_loss,
    neighbourhood_preserving_loss,
    partial_data_loss,
    proximal_term,
    unlabelled_loss,
)
from twinsight.method.pseudo_labels import FreeMatchThreshold
from twinsight.models import InstanceDiscriminator, TwinModel, build_encoder, build_model, frozen_target
from twinsight.training.local_training import batches, local_round, round_weights
from twinsight.training.strategy import truncated_sums, weighted_average

CONFIG = FederationConfig(encoder="small", batch_size=8, learning_rate=0.05, precision="float32", rounds=10)
VIEWS = ViewMaker(pad=1, flip=False, strong="geometric")


def pictures(count: int = 20, seed: int = 0) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Pictures(images, torch.arange(count) % 4, ("a", "b", "c", "d"))


def client(labelled: int, count: int = 20) -> ClientData:
    return split_labels(pictures(count), torch.arange(labelled), VIEWS)


def moved(before: dict[str, torch.Tensor], model: TwinModel, prefix: tuple[str, ...], buffers: bool = False) -> bool:
    trained = {name for name, _ in model.named_parameters()}
    names = [n for n in before if n.startswith(prefix) and ((n in trained) or buffers)]
    assert names
    return any(not torch.equal(before[name], model.state_dict()[name]) for name in names)


def run(config: FederationConfig, data: ClientData, number: int = 1) -> tuple[dict[str, torch.Tensor], TwinModel]:
    model = build_model(config, 4)
    before = copy.deepcopy(model.state_dict())
    local_round(model, data, config, number, 0)
    return before, model


CLASSIFIER = ("encoder.", "classifier.")


def test_an_unlabelled_client_moves_the_classifier_through_the_constraint_only() -> None:
    before, model = run(replace(CONFIG, neighbourhood_weight=0.0), client(0))
    assert not moved(before, model, CLASSIFIER) or CONFIG.weight_decay
    before, model = run(replace(CONFIG, neighbourhood_weight=0.0, weight_decay=0.0), client(0))
    assert not moved(before, model, CLASSIFIER)
    assert moved(before, model, ("encoder.",), buffers=True), "BatchNorm's statistics follow the pictures"
    assert moved(before, model, ("twin.",))
    before, model = run(replace(CONFIG, weight_decay=0.0), client(0))
    assert moved(before, model, ("encoder.",))
    assert not moved(before, model, ("classifier.",)), "no term of an unlabelled client reaches the head"


@pytest.mark.parametrize("pseudo", ["off", "fixmatch", "freematch"])
def test_an_unlabelled_client_never_reads_labels(pseudo: str) -> None:
    config = replace(CONFIG, pseudo_labels=pseudo, threshold=0.0)
    honest = client(0)
    assert (honest.unlabelled.labels == -1).all()
    garbage = replace_labels(honest, torch.randint(4, (20,)))
    first, second = run(config, honest)[1].state_dict(), run(config, garbage)[1].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def replace_labels(data: ClientData, labels: torch.Tensor) -> ClientData:
    unlabelled = Pictures(data.unlabelled.images, labels, data.unlabelled.classes)
    return ClientData(data.labelled, unlabelled, data.views)


def test_without_weights_a_labelled_twin_trains_like_fedavg() -> None:
    plain = replace(CONFIG, method="upper-bound")
    twins = replace(CONFIG, neighbourhood_weight=0.0, instance_weight=0.0, supervised_views="weak")
    _, alone = run(plain, client(20))
    _, model = run(twins, client(20))
    for name, each in alone.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], each, rtol=0, atol=1e-6)


def test_both_views_change_batchnorm_and_only_then() -> None:
    states = {
        views: run(replace(CONFIG, supervised_views=views, learning_rate=1e-12), client(20))[1].state_dict()
        for views in ("both", "weak")
    }
    name = "encoder.stem.1.running_mean"
    assert not torch.equal(states["both"][name], states["weak"][name])
    assert states["both"]["encoder.stem.1.num_batches_tracked"] == states["weak"]["encoder.stem.1.num_batches_tracked"]


def test_strong_views_reach_the_classifier_through_batchnorm_alone() -> None:
    """With BatchNorm's statistics held, leaving the strong views out gives the same gradient of every weight."""
    weak, strong, labels = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    gradients = {}
    for views in ("both", "weak"):
        model = build_model(CONFIG, 4).train()
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                layer.eval()
        labelled_loss(model, weak, strong, labels, Weights(supervised_views=views)).total.backward()
        gradients[views] = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert gradients["both"].keys() == gradients["weak"].keys()
    for name, gradient in gradients["both"].items():
        torch.testing.assert_close(gradients["weak"][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_same_round_of_the_same_client_is_the_same_and_another_is_not() -> None:
    first, second = run(CONFIG, client(20))[1].state_dict(), run(CONFIG, client(20))[1].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = run(CONFIG, client(20), number=2)[1].state_dict()
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("change", [{}, {"neighbourhood_weight": 0.0}, {"method": "twins-apart"}])
@pytest.mark.parametrize(
    ("labelled", "count", "size", "setting"),
    # Partial data: the last of four unlabelled pictures beside the only labelled one.
    [(0, 10, 8, "partial-client"), (10, 10, 8, "partial-client"), (1, 5, 3, "partial-data")],
)
def test_a_batch_of_two_is_passed_over_and_reported_where_it_would_divide_by_zero(
    labelled: int, count: int, size: int, setting: str, change: dict
) -> None:
    """The published code makes every weight NaN there, at whatever weight of the constraint: 0 / 0."""
    config = replace(CONFIG, batch_size=size, setting=setting, **change)
    for normalisation, expected in (("mean", (2, 0)), ("official", (1, 1))):
        model = build_model(config, 4)
        chosen = replace(config, normalisation=normalisation)
        found = local_round(model, client(labelled, count), chosen, 1, 0)
        assert (found.steps, found.skipped) == expected
        assert all(each.isfinite().all() for each in model.state_dict().values())


@pytest.mark.parametrize(("objective", "steps"), [("simclr", 2), ("simsiam", 1), ("byol", 1)])
@pytest.mark.parametrize("labelled", [0, 9])
def test_a_last_picture_alone_is_a_step_where_batchnorm_sees_both_its_views(
    objective: str, steps: int, labelled: int
) -> None:
    config = replace(CONFIG, objective=objective)
    model = build_model(config, 4)
    result = local_round(model, client(labelled, 9), config, 1, 0)
    assert (result.steps, result.skipped) == (steps, 2 - steps)
    assert all(each.isfinite().all() for each in model.state_dict().values())
    for alone in (replace(config, supervised_views="weak"), replace(config, method="upper-bound")):
        skipped = local_round(build_model(alone, 4), client(9, 9), alone, 1, 0)
        assert (skipped.steps, skipped.skipped) == (1, 1)


def test_weight_decay_shrinks_an_untaught_trunk_and_leaves_its_head_alone() -> None:
    """At weight 0 the constraint still puts the classifier's trunk into the graph, as in the published code."""
    config = replace(CONFIG, neighbourhood_weight=0.0, batch_size=20, learning_rate=0.01)
    for change in ({}, {"method": "twins-apart"}):
        before, model = run(replace(config, **change), client(0))
        for name, each in model.named_parameters():
            if name.startswith("encoder."):
                torch.testing.assert_close(each, before[name] * (1 - 1e-6), rtol=0, atol=1e-7)
                assert before[name].abs().max() < 0.5 or not torch.equal(each, before[name]), name
        assert not moved(before, model, ("classifier.",))


def test_the_losses_are_the_sums_that_they_say() -> None:
    torch.manual_seed(0)
    model = build_model(CONFIG, 4).train()
    weak, strong = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16)
    weights = Weights(instance=0.3, neighbourhood=2.0, pseudo=0.7, on_unlabelled="fixmatch", threshold=0.0)
    loss = labelled_loss(model, weak, strong, torch.arange(6) % 4, weights)
    parts = loss.parts
    torch.testing.assert_close(
        loss.total, parts["cross_entropy"] + 0.3 * parts["instance"] + 2 * parts["neighbourhood"]
    )
    loss = unlabelled_loss(model, weak, strong, weights, FreeMatchThreshold(4))
    parts = loss.parts
    torch.testing.assert_close(loss.total, 0.7 * parts["pseudo"] + 0.3 * parts["instance"] + 2 * parts["neighbourhood"])
    loss = partial_data_loss(model, weak, strong, torch.tensor([0, 1]), weights, FreeMatchThreshold(4))
    parts = loss.parts
    expected = parts["cross_entropy"] + 0.7 * parts["pseudo"] + 0.3 * parts["instance"] + 2 * parts["neighbourhood"]
    torch.testing.assert_close(loss.total, expected)


def test_the_constraint_compares_weak_views_before_projector_and_head() -> None:
    model = build_model(CONFIG, 4).train()
    weak, strong = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16)
    loss = unlabelled_loss(model, weak, strong, Weights(), FreeMatchThreshold(4))
    views = torch.cat([weak, strong])
    assert model.twin is not None
    expected = neighbourhood_preserving_loss(model.twin.encoder(views)[:6], model.encoder(views)[:6])
    torch.testing.assert_close(loss.parts["neighbourhood"], expected)


OBJECTIVES = ("simclr", "simsiam", "byol")


def twin_of(objective: str, **change: str) -> TwinModel:
    model = build_model(replace(CONFIG, objective=objective, **change), 4).train()
    assert model.twin is not None
    model.twin.borrow(frozen_target(CONFIG, 3))
    return model


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batchnorm_sees_views_together_for_simclr_and_apart_for_the_others(objective: str) -> None:
    """The classifier always sees both views together; SimSiam's and BYOL's buffers are updated by each view."""
    torch.manual_seed(0)
    model = twin_of(objective)
    weak, strong = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16) + 2
    labelled_loss(model, weak, strong, torch.arange(6) % 4, Weights())
    state, together = model.state_dict(), objective == "simclr"
    assert state["encoder.stem.1.num_batches_tracked"] == 1
    assert state["twin.encoder.stem.1.num_batches_tracked"] == (1 if together else 2)
    assert state["twin.projector.1.num_batches_tracked"] == (1 if together else 2)
    for name, passes in (("encoder", 1), ("twin.encoder", 1 if together else 2)):
        stem = model.get_submodule(name).get_submodule("stem")[0]
        running = torch.zeros(8)
        for each in torch.cat([weak, strong]).chunk(passes):
            running = 0.9 * running + 0.1 * stem(each).mean((0, 2, 3))
        torch.testing.assert_close(state[f"{name}.stem.1.running_mean"], running, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("feature", ["official", "pooled"])
def test_the_constraint_sees_simsiams_projection_and_else_pooled_features(objective: str, feature: str) -> None:
    torch.manual_seed(0)
    model = twin_of(objective)
    weak, strong = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16)
    loss = unlabelled_loss(model, weak, strong, Weights(feature=feature), FreeMatchThreshold(4))
    twin, views = model.twin, torch.cat([weak, strong])
    assert twin is not None
    # In training mode BatchNorm gives the same outputs again for the same pictures.
    seen = twin.encoder(views)[:6] if objective == "simclr" else twin.encoder(weak)
    if objective == "simsiam" and feature == "official":
        seen = twin.projector(seen)
    expected = neighbourhood_preserving_loss(seen, model.encoder(views)[:6])
    torch.testing.assert_close(loss.parts["neighbourhood"], expected)


def test_simsiam_and_byol_compare_each_view_with_the_other_one() -> None:
    torch.manual_seed(0)
    weak, strong = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16)
    for objective in ("simsiam", "byol"):
        model = twin_of(objective)
        found = unlabelled_loss(model, weak, strong, Weights(), FreeMatchThreshold(4)).parts["instance"]
        twin = model.twin
        assert twin is not None
        z = [twin.projector(twin.encoder(each)) for each in (weak, strong)]
        p = [twin.predictor(each) for each in z]
        cosine = torch.nn.functional.cosine_similarity
        if objective == "simsiam":
            expected = -(cosine(p[0], z[1]).mean() + cosine(p[1], z[0]).mean()) / 2
        else:
            t = [twin.target(each) for each in (weak, strong)]
            expected = 4 - 2 * cosine(p[0], t[1]).mean() - 2 * cosine(p[1], t[0]).mean()
        torch.testing.assert_close(found, expected)


def test_the_official_byol_target_is_a_clients_own_frozen_random_network() -> None:
    config = replace(CONFIG, objective="byol")
    before, model = run(config, client(0))
    assert not [name for name in before if "target" in name], "it is neither sent nor averaged"
    twin = model.twin
    assert twin is not None
    first = copy.deepcopy(twin._borrowed[0].state_dict())
    local_round(model, client(0), config, 2, 0)
    again = twin._borrowed[0].state_dict()
    trained = [name for name in first if "running" not in name and "tracked" not in name]
    assert all(torch.equal(first[name], again[name]) for name in trained), "the same in every round, never updated"
    assert twin._borrowed[0].training
    local_round(model, client(0), config, 2, 1)
    assert not torch.equal(twin._borrowed[0].state_dict()["0.stem.0.weight"], first["0.stem.0.weight"])
    twin.borrow(frozen_target(CONFIG, 3))
    with pytest.raises(ValueError, match="without a target"):
        build_model(config, 4).twin.target(torch.zeros(2, 3, 16, 16))  # ty: ignore[unresolved-attribute]


@pytest.mark.parametrize("pseudo", ["fixmatch", "freematch"])
def test_the_strong_view_teaches_a_twin_without_labels_in_the_official_code(pseudo: str) -> None:
    torch.manual_seed(0)
    model = twin_of("simclr")
    weak, strong = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16)
    first, second = model(torch.cat([weak, strong])).chunk(2)
    loss = torch.nn.functional.cross_entropy
    for direction, expected in (
        ("official", loss(first, second.argmax(1))),
        ("weak_to_strong", loss(second, first.argmax(1))),
    ):
        weights = Weights(on_unlabelled=pseudo, threshold=0.0, direction=direction)
        statistics = FreeMatchThreshold(4, clamp=(0.0, 0.0))
        found = unlabelled_loss(model, weak, strong, weights, statistics).parts["pseudo"]
        torch.testing.assert_close(found, expected)
        # Partial data has it right: the weak view teaches.
        both = partial_data_loss(model, weak, strong, torch.zeros(0, dtype=torch.long), weights, statistics)
        torch.testing.assert_close(both.parts["pseudo"], loss(second, first.argmax(1)))
    assert round_weights(CONFIG, 1).direction == "official"
    assert round_weights(replace(CONFIG, method="fixmatch"), 1).direction == "weak_to_strong"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_byols_own_target_follows_slowly(objective: str) -> None:
    config = replace(CONFIG, objective=objective, byol_target="ema")
    before, model = run(config, client(0))
    assert moved(before, model, ("twin.encoder.",))
    if objective == "byol":
        target, online = "twin.own_target.0.stem.0.weight", "twin.encoder.stem.0.weight"
        state = model.state_dict()
        assert 0 < (state[target] - before[target]).norm() < 0.2 * (state[online] - before[online]).norm()


@pytest.mark.parametrize("method", ["fixmatch", "freematch", "consistency", "twin-sight", "twins-apart"])
def test_partial_data_runs_for_every_method_that_has_a_use_for_it(method: str) -> None:
    config = replace(CONFIG, method=method, setting="partial-data")
    model = build_model(config, 4)
    result = local_round(model, client(4), config, 1, 0)
    assert result.is_finite
    assert {"cross_entropy", "pseudo"} <= set(result.parts)


def test_pseudo_labels_are_weighed_by_setting_and_warmup_raises_the_constraint() -> None:
    assert replace(CONFIG, setting="partial-data").pseudo_weight == 5
    assert CONFIG.pseudo_weight == 0.5
    warm = replace(CONFIG, neighbourhood_warmup=0.5)
    assert [round_weights(warm, number).neighbourhood for number in (1, 5, 9)] == pytest.approx([0.2, 1.0, 1.0])
    assert round_weights(CONFIG, 1).neighbourhood == 1
    assert round_weights(replace(CONFIG, method="twins-apart"), 1).neighbourhood == 0


def test_the_proximal_term_is_the_squared_distance_without_a_half() -> None:
    model = torch.nn.Linear(2, 1)
    reference = {name: each.detach() - 0.5 for name, each in model.named_parameters()}
    assert proximal_term(model, reference).item() == pytest.approx(3 * 0.25)


def test_fedprox_keeps_a_client_nearer() -> None:
    distances = []
    for weight in (0.0, 5.0):
        before, model = run(replace(CONFIG, method="fedprox", proximal_weight=weight, weight_decay=0.0), client(20))
        distances.append(sum((each - before[name]).square().sum() for name, each in model.named_parameters()))
    assert distances[1] < distances[0]


def test_gradient_cosine_sees_agreement_and_conflict() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    first = parameter @ torch.tensor([1.0, 0.0])
    for other, expected in (([2.0, 0.0], 1), ([-1.0, 0.0], -1), ([0.0, 3.0], 0)):
        assert gradient_cosine(first, parameter @ torch.tensor(other), [parameter]) == pytest.approx(expected)


def test_one_network_reports_the_conflict() -> None:
    config = replace(CONFIG, method="one-network")
    result = local_round(build_model(config, 4), client(20), config, 1, 0)
    assert result.gradient_cosine is not None
    assert -1 <= result.gradient_cosine <= 1


def test_the_average_of_equal_states_is_that_state_and_weights_count() -> None:
    torch.manual_seed(0)
    state = {"w": torch.randn(50), "n": torch.tensor(7)}
    same = weighted_average([state] * 3, [1.0, 5.0, 11.0])
    assert torch.equal(same["w"], state["w"])
    assert same["n"] == 7
    assert same["n"].dtype == torch.int64
    other = {"w": torch.zeros(50), "n": torch.tensor(1)}
    mixed = weighted_average([state, other], [3.0, 1.0])
    torch.testing.assert_close(mixed["w"], 0.75 * state["w"])
    assert mixed["n"] == 6, "5.5 rounds to even"
    with pytest.raises(ValueError, match="positive weights"):
        weighted_average([state], [0.0])


@pytest.mark.parametrize(
    ("objective", "projector", "predictor"),
    [
        ("simclr", [(512, 4096), (4096, 2048)], []),
        ("byol", [(512, 4096), (4096, 2048)], [(2048, 4096), (4096, 2048)]),
        ("simsiam", [(512, 512)] * 3, [(512, 256), (256, 512)]),
    ],
)
def test_the_heads_are_as_wide_as_in_the_official_code(
    objective: str, projector: list[tuple[int, int]], predictor: list[tuple[int, int]]
) -> None:
    class Wide(torch.nn.Identity):
        num_features = 512

    twin = InstanceDiscriminator(Wide(), objective, 0.07)
    for name, widths in (("projector", projector), ("predictor", predictor)):
        head = getattr(twin, name, torch.nn.Sequential())
        layers = [each for each in head if isinstance(each, torch.nn.Linear)]
        assert [(each.in_features, each.out_features) for each in layers] == widths
        kinds = [type(each).__name__ for each in head]
        if objective == "simsiam" and name == "projector":
            assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
        elif widths:
            assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


def test_integer_buffers_are_cut_before_they_are_summed_in_the_official_code() -> None:
    states = [{"n": np.array(value), "w": np.array(0.5, np.float32)} for value in (10, 11, 11)]
    found = truncated_sums(states, [1.0, 1.0, 1.0])
    assert (found.keys(), int(found["n"]), found["n"].dtype) == ({"n"}, 9, np.int64)
    assert found["n"].shape == ()


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 99))
def test_batches_cover_all_and_the_last_may_be_short(count: int, size: int, seed: int) -> None:
    chunks = batches(count, size, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat(chunks).tolist()) == list(range(count))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert batches(0, size, torch.Generator()) == []


def test_views_keep_shape_and_follow_their_generator() -> None:
    images = pictures(5).images
    for views in (VIEWS, ViewMaker(4, True, "randaugment"), ViewMaker(2, True, "weak")):
        first = views(images, torch.Generator().manual_seed(1))
        again = views(images, torch.Generator().manual_seed(1))
        assert all(each.shape == images.shape for each in first)
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
        assert not torch.equal(first[0], first[1])
    generator = torch.Generator().manual_seed(0)
    plain = images / 255
    assert torch.equal(random_shift(plain, 0, generator), plain)
    flipped = random_flip(plain.repeat(20, 1, 1, 1), generator)
    share = (flipped == plain.repeat(20, 1, 1, 1)).flatten(1).all(1).float().mean()
    assert 0.3 < share < 0.7
    assert geometric(plain, generator).isfinite().all()


def test_a_shift_is_a_crop_of_the_reflected_picture() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
    crops = [padded[..., top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
    seen = set()
    for seed in range(60):
        found = random_shift(image, 1, torch.Generator().manual_seed(seed))
        seen.add(next(index for index, crop in enumerate(crops) if torch.equal(crop, found)))
    assert seen == set(range(9))


def test_randaugment_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    rand_augment(pictures(3).images, 2, 9, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_papers_encoder_is_a_resnet18_for_small_pictures() -> None:
    encoder = build_encoder("resnet18")
    assert sum(each.numel() for each in encoder.parameters()) == 11_168_832
    with torch.no_grad():
        assert encoder.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    model = TwinModel(10)
    assert model.twin is not None
    assert [tuple(layer.weight.shape) for layer in model.twin.projector if isinstance(layer, torch.nn.Linear)] == [
        (4096, 512),
        (2048, 4096),
    ]
