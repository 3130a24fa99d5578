"""Paper §3.5 and §3.6: prototypes, losses, sessions, every baseline, saving and loading."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cskopt.config import METHODS, CsKOConfig, Method
from cskopt.method.losses import distillation_loss, quadratic_penalty, session_loss
from cskopt.method.prototypes import PrototypeBank
from cskopt.method.wrapping import unwrap, wrap
from cskopt.models.heads import grow_head, head_of
from cskopt.models.networks import CompactResNet
from cskopt.models.tracing import split_frozen_prefix
from cskopt.training import loop as fitting
from cskopt.training.learner import IncrementalLearner
from cskopt.training.loop import SessionRecipe
from tenfold import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RECIPE = SessionRecipe(epochs=2, lr=1e-3, head_lr=1e-2, precision="fp32")


def base_model(classes: int = 3) -> nn.Module:
    torch.manual_seed(5)
    model = CompactResNet(classes, (4, 8, 8)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 16, 16))
    return model.eval()


def loader_of(labels: range, per_class: int = 6, seed: int = 0) -> DataLoader:
    generator = torch.Generator().manual_seed(seed + labels.start)
    y = torch.tensor(list(labels)).repeat_interleave(per_class)
    x = torch.randn(len(y), 3, 16, 16, generator=generator) + y[:, None, None, None] * 0.3
    return DataLoader(TensorDataset(x, y), 6, shuffle=True, generator=torch.Generator().manual_seed(seed))


def learner_after_base(method: Method | None = None, **options: object) -> IncrementalLearner:
    learner = IncrementalLearner(base_model(), method=method, accelerator=Accelerator(cpu=True), **options)
    learner.begin(loader_of(range(3)), range(3))
    return learner


def test_prototypes_are_class_means_whatever_the_batches() -> None:
    features, labels = torch.randn(20, 5), torch.randint(0, 3, (20,))
    whole, parts = PrototypeBank(5), PrototypeBank(5)
    whole.add(features, labels)
    for f, y in zip(features.split(3), labels.split(3), strict=True):
        parts.add(f, y)
    expected = torch.stack([features[labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(whole.means, expected)
    torch.testing.assert_close(parts.means, expected)
    drawn, classes = whole.sample(7, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, whole.means[classes])
    assert whole.distances(whole.means + 1e-3).argmin(1).tolist() == [0, 1, 2]


def test_prototypes_refuse_what_they_cannot_hold() -> None:
    bank = PrototypeBank(4)
    with pytest.raises(UserError, match="no prototypes yet"):
        bank.sample(2)
    with pytest.raises(UserError, match="length 5"):
        bank.add(torch.zeros(1, 5), torch.tensor([0]))
    with pytest.raises(FloatingPointError, match="not finite"):
        bank.add(torch.full((1, 4), float("nan")), torch.tensor([0]))
    with pytest.raises(UserError, match="length 3"):
        bank.load_state_dict(PrototypeBank(3).state_dict())


def test_session_loss_is_the_equation() -> None:
    logits, y = torch.randn(6, 4), torch.tensor([2, 3, 2, 3, 2, 3])
    protos, c = torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    plain = nn.functional.cross_entropy(logits / 0.1, y)
    old = nn.functional.cross_entropy(protos / 0.1, c)
    assert session_loss(logits, y, 0.1, protos, c, 10.0).item() == pytest.approx((plain + 10 * old).item())
    assert session_loss(logits, y, 0.1, protos, c, 0.0).item() == pytest.approx(plain.item())


def test_penalties_of_the_baselines_vanish_at_the_old_model() -> None:
    old = torch.randn(3, 4)
    same = torch.cat([old, torch.randn(3, 2)], 1).requires_grad_()
    distillation_loss(same, old).backward()
    assert same.grad.abs().max() < 1e-6
    grown, anchor = torch.randn(5, 2), torch.zeros(3, 2)
    value = quadratic_penalty([grown], [anchor], [torch.full((3, 2), 2.0)])
    assert value.item() == pytest.approx(grown[:3].square().sum().item())
    assert quadratic_penalty([anchor], [anchor], [anchor + 1]).item() == 0


def test_a_split_model_computes_and_learns_what_the_whole_does() -> None:
    wrapped = wrap(base_model())
    x = torch.randn(4, 3, 16, 16)
    split = split_frozen_prefix(wrapped, x)
    assert split is not None
    with torch.no_grad():
        maps = split.prefix(x)
    assert torch.equal(split.suffix(*[each.clone() for each in maps]), wrapped(x))
    gradients = []
    for logits in (wrapped(x), split.suffix(*maps)):
        wrapped.zero_grad()
        logits.square().sum().backward()
        gradients.append([each.grad.clone() for each in wrapped.parameters() if each.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_cached_maps_give_the_result_of_computing_them_in_every_epoch() -> None:
    results = []
    for cache in (False, True):
        learner = learner_after_base()
        loader = loader_of(range(3, 5))
        whole = DataLoader(loader.dataset, batch_size=len(loader.dataset))  # one batch: its order does not matter
        recipe = SessionRecipe(epochs=3, lr=1e-3, head_lr=1e-2, cache_prefix=cache, precision="fp32")
        learner.fit_session(whole, range(3, 5), recipe)
        results.append(learner.plain_model().state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_a_session_and_changes_only_what_it_trains(name: str) -> None:
    method = METHODS[name]
    learner = learner_after_base(method)
    before = learner.plain_model().state_dict()
    said = learner.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE)
    after = learner.plain_model().state_dict()
    changed = {key for key in before if "fc" not in key and not torch.equal(before[key], after[key])}
    targets = {f"{each}.weight" for each in learner.report.targets}
    biases = {key for key in before if key.endswith(".bias")} if method.config.train_bias else set()
    assert changed <= targets | biases
    assert head_of(learner.model, "fc").out_features == 5
    assert learner.classes_seen == 5
    assert len(learner.prototypes) == 5
    assert learner.predict(torch.randn(3, 3, 16, 16)).shape == (3,)
    if not method.trains:
        assert torch.equal(before["fc.weight"], after["fc.weight"][:3])
    elif targets and method.config.rule not in ("energy", "gpm"):  # a new network may leave these no direction
        assert changed
        assert said["trained"] > 0


def test_only_selected_centres_change_and_the_change_is_the_projected_one() -> None:
    learner = learner_after_base()
    before = learner.plain_model().state_dict()
    learner.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE)
    after = learner.plain_model().state_dict()
    for name in learner.report.targets:
        difference = after[f"{name}.weight"] - before[f"{name}.weight"]
        rows = (difference != 0).nonzero()
        layer = learner.model.get_submodule(name)
        assert set(rows[:, 1].tolist()) <= set(layer.index.tolist())
        if difference.shape[2] == 3:
            assert set(rows[:, 2].tolist()) == set(rows[:, 3].tolist()) == {1}


def test_without_prototypes_projection_and_selection_all_taps_is_plain_fine_tuning() -> None:
    config = CsKOConfig(
        layers="all", tap="all", channel_ratio=1.0, selection="all", train_bias=True, rule="none", proto_weight=0.0
    )
    learner = IncrementalLearner(base_model(), config, accelerator=Accelerator(cpu=True))
    learner.begin(loader_of(range(3)), range(3))
    loader = loader_of(range(3, 5))
    whole = DataLoader(loader.dataset, batch_size=len(loader.dataset))
    recipe = SessionRecipe(epochs=3, lr=1e-3, head_lr=1e-3, lr_drop=1.0, precision="fp32")
    plain = learner.plain_model()
    learner.fit_session(whole, range(3, 5), recipe)
    plain.fc = nn.Linear(8, 5)
    # The new rows that the learner drew.
    reference = learner_after_base(Method("", config)).model
    grown = grow_head(reference, "fc", 5, torch.Generator().manual_seed(1))
    plain.fc.load_state_dict(grown.state_dict())
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3, weight_decay=5e-4)
    for _ in range(3):
        for x, y in whole:
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
    for key, value in learner.plain_model().state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], atol=2e-4, rtol=1e-3)


def test_a_learner_saved_in_the_middle_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    for name in ("csko", "ewc"):
        learner = learner_after_base(METHODS[name])
        learner.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE)
        learner.save(tmp_path / name)
        loaded = IncrementalLearner.load(
            tmp_path / name, CompactResNet(3, (4, 8, 8)), accelerator=Accelerator(cpu=True)
        )
        x = torch.randn(5, 3, 16, 16)
        assert torch.equal(loaded(x), learner(x))
        for each in (learner, loaded):
            torch.manual_seed(7)
            each.fit_session(loader_of(range(5, 7)), range(5, 7), RECIPE)
        one, two = learner.plain_model().state_dict(), loaded.plain_model().state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_hub_format_round_trip_and_stock_weights(tmp_path: Path) -> None:
    learner = IncrementalLearner("compact", num_classes=3, accelerator=Accelerator(cpu=True))
    learner.begin(loader_of(range(3)), range(3))
    learner.save_pretrained(tmp_path)
    again = IncrementalLearner.from_pretrained(str(tmp_path), accelerator=Accelerator(cpu=True))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), learner(x))
    stock = CompactResNet(3).eval()
    stock.load_state_dict(again.stock_weights(), strict=True)
    torch.testing.assert_close(stock(x), learner(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="no name"):
        learner_after_base().stock_weights()


def test_a_run_is_the_same_twice() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(11)
        learner = learner_after_base()
        learner.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE)
        states.append(learner.plain_model().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_any_optimizer_can_be_used() -> None:
    learner = learner_after_base(optimizer_factory=lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9))
    learner.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE)
    assert 0 <= learner.evaluate(loader_of(range(5))) <= 1


def test_learning_rates_fall_to_a_tenth_once() -> None:
    made: list[torch.optim.Optimizer] = []

    def factory(groups: list[dict]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(groups))
        return made[0]

    learner = learner_after_base(optimizer_factory=factory)
    rates = []
    recipe = SessionRecipe(epochs=4, lr=1e-3, head_lr=1e-2, lr_drop=0.5, precision="fp32")
    learner.fit_session(
        loader_of(range(3, 5)), range(3, 5), recipe, lambda *_: rates.append([g["lr"] for g in made[0].param_groups])
    )
    assert [each["name"] for each in made[0].param_groups] == ["kernels", "head"]
    for row, factor in zip(rates, (1.0, 0.1, 0.1, 0.1), strict=True):
        assert row == pytest.approx([1e-3 * factor, 1e-2 * factor])


def test_training_in_bf16_keeps_weights_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "autocast", lambda device: torch.autocast(device.type, torch.bfloat16))
    learner = learner_after_base()
    said = learner.fit_session(loader_of(range(3, 5)), range(3, 5), SessionRecipe(epochs=2))
    assert math.isfinite(said["loss"])
    assert all(each.dtype == torch.float32 for each in unwrap(learner.model).parameters())


class _WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.conv(x).relu().mean((2, 3))))


@pytest.mark.parametrize("training", [False, True])
def test_prototypes_are_features_of_evaluation_and_the_mode_stays(training: bool) -> None:
    learner = IncrementalLearner(_WithDropout(), CsKOConfig(layers="all"), accelerator=Accelerator(cpu=True))
    learner.train(training)
    learner.begin(loader_of(range(3)), range(3))
    learner.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE)
    assert {each.training for each in learner.model.modules()} == {training}
    plain = learner.plain_model()
    x, y = loader_of(range(3, 5)).dataset.tensors
    with torch.no_grad():
        features = plain.conv(x).relu().mean((2, 3))
    expected = torch.stack([features[y == each].mean(0) for each in (3, 4)])
    torch.testing.assert_close(learner.prototypes.means[3:], expected, atol=1e-5, rtol=1e-5)


def _whole_state(learner: IncrementalLearner) -> dict[str, Tensor]:
    """All that a learner is, by name."""
    state = dict(learner.plain_model().state_dict())
    state |= {f"layer {name}": each for name, each in learner.model.state_dict().items() if "frozen" not in name}
    state |= {f"prototypes {name}": each.clone() for name, each in learner.prototypes.state_dict().items()}
    state |= {f"covariance {name}": each for name, each in learner.covariance.matrices.items()}
    state |= {f"gpm {name}": each for name, each in learner._gpm.items()}
    state |= {f"anchor {name}": each for name, each in learner._anchor.anchors.items()}
    state |= {f"importance {name}": each for name, each in learner._anchor.importance.items()}
    return {name: each.clone() for name, each in state.items()} | {"sessions": torch.tensor(learner.classes_seen)}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _with_foreign_label(label: int) -> DataLoader:
    """The last of several batches holds a label that is not of the session."""
    x, y = loader_of(range(3, 5)).dataset.tensors
    return DataLoader(TensorDataset(x, torch.cat([y[:-1], torch.tensor([label])])), 6)


FAILURES: dict[str, tuple[Callable[[IncrementalLearner], object], type[BaseException], str]] = {
    "interrupt": (
        lambda ln: ln.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE, _interrupt),
        KeyboardInterrupt,
        "",
    ),
    "class without pictures": (
        lambda ln: ln.fit_session(loader_of(range(3, 5)), range(3, 6), RECIPE),
        UserError,
        "labels 5 have no picture",
    ),
    "old label in a later batch": (
        lambda ln: ln.fit_session(_with_foreign_label(0), range(3, 5), RECIPE),
        UserError,
        "labels 0, which are not of this session",
    ),
    "unknown label in a later batch": (
        lambda ln: ln.fit_session(_with_foreign_label(9), range(3, 5), RECIPE),
        UserError,
        "labels 9, which are not of this session",
    ),
    "divergence": (
        lambda ln: ln.fit_session(loader_of(range(3, 5)), range(3, 5), SessionRecipe(epochs=3, lr=1e30, head_lr=1e30)),
        FloatingPointError,
        "",
    ),
    "generator": (
        lambda ln: ln.fit_session((each for each in loader_of(range(3, 5))), range(3, 5), RECIPE),
        UserError,
        "generator, which one pass uses up",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("method", ["csko", "head", "gpm", "ewc", "all-taps"])
def test_a_session_that_fails_leaves_the_learner_as_it_was_and_the_retry_works(method: str, failure: str) -> None:
    learner, other = learner_after_base(METHODS[method]), learner_after_base(METHODS[method])
    before = _whole_state(learner)
    call, kind, message = FAILURES[failure]
    with pytest.raises(kind, match=message):
        call(learner)
    after = _whole_state(learner)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert int(learner.predict(torch.randn(50, 3, 16, 16) * 5).max()) < 3
    for each in (learner, other):
        torch.manual_seed(3)
        each.fit_session(loader_of(range(3, 5)), range(3, 5), RECIPE)
    one, two = _whole_state(learner), _whole_state(other)
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_base_session_that_fails_can_be_begun_again() -> None:
    learner = IncrementalLearner(base_model(), accelerator=Accelerator(cpu=True))
    with pytest.raises(UserError, match="labels 2 have no picture"):
        learner.begin(loader_of(range(2)), range(3))
    with pytest.raises(UserError, match="generator"):
        learner.begin((each for each in loader_of(range(3))), range(3))
    learner.begin(loader_of(range(3)), range(3))
    assert learner.prototypes.means.equal(learner_after_base().prototypes.means)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ln: ln.begin(loader_of(range(3)), range(3)), "called already"),
        (lambda ln: ln.fit_session(loader_of(range(2, 4)), range(2, 4)), "labels 2 were learnt"),
        (lambda ln: ln.fit_session(loader_of(range(4, 6)), range(4, 6)), "without a gap"),
        (lambda ln: ln.fit_session(loader_of(range(3, 5)), range(3, 4)), "labels 4, which are not"),
        (
            lambda ln: ln.fit_session(DataLoader(TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0))), range(3, 5)),
            "no batch",
        ),
        (lambda ln: ln.evaluate([]), "no picture"),
    ],
)
def test_labels_that_do_not_fit_are_refused(call: Callable, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(learner_after_base())


def test_sessions_before_the_base_are_refused() -> None:
    learner = IncrementalLearner(base_model(), accelerator=Accelerator(cpu=True))
    with pytest.raises(UserError, match="call begin"):
        learner.fit_session(loader_of(range(3, 5)), range(3, 5))
    with pytest.raises(UserError, match=r"0\.\.2 of the head"):
        learner.begin(loader_of(range(2)), range(2))
    with pytest.raises(UserError, match="num_classes"):
        IncrementalLearner("compact")


def test_values_that_are_not_finite_stop_the_session() -> None:
    learner = learner_after_base()
    bad = DataLoader(TensorDataset(torch.full((4, 3, 16, 16), float("nan")), torch.tensor([3, 3, 4, 4])), 4)
    with pytest.raises(FloatingPointError):
        learner.fit_session(bad, range(3, 5), RECIPE)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        learner_after_base(METHODS["head"]).fit_session(
            loader_of(range(3, 5)), range(3, 5), SessionRecipe(epochs=3, head_lr=1e30, precision="fp32")
        )


def test_folders_that_are_not_learners_are_refused(tmp_path: Path) -> None:
    def load(model: nn.Module | None = None) -> IncrementalLearner:
        return IncrementalLearner.load(tmp_path, model, accelerator=Accelerator(cpu=True))

    with pytest.raises(UserError, match="not a saved learner"):
        load()
    learner = learner_after_base()
    learner.save(tmp_path)
    with pytest.raises(UserError, match="give model="):
        load()
    with pytest.raises(UserError, match="do not fit"):
        load(CompactResNet(3))
    description = tmp_path / "cskopt.json"
    content = json.loads(description.read_text())
    content["method"]["config"]["colour"] = 1
    description.write_text(json.dumps(content))
    with pytest.raises(UserError, match="colour"):
        load(CompactResNet(3, (4, 8, 8)))
    description.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load()
    learner.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(UserError, match=r"model\.safetensors: is not a safetensors file"):
        load(CompactResNet(3, (4, 8, 8)))


def test_nearest_class_mean_predicts_the_class_of_the_closest_prototype() -> None:
    learner = learner_after_base(METHODS["ncm"])
    x: Tensor = next(iter(loader_of(range(3))))[0]
    with torch.no_grad():
        features = nn.Sequential(*list(learner.plain_model().children())[:-1], nn.Flatten())(x)
    assert learner.predict(x).equal(learner.prototypes.distances(features).argmin(1))
