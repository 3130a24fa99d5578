"""Drawn faces: exact landmarks, groups that differ in reflectance only, six approaches, the experiment's protocol."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from fairfd.data.faces.landmarks import read_landmarks
from fairfd.data.layouts import scan
from fairfd.data.synthetic import datasets as faces
from fairfd.data.synthetic import forgeries as forge
from fairfd.data.synthetic.datasets import (
    DrawnSet,
    degrade,
    donor_images,
    draw_faces,
    drawn_experiment,
    write_drawn_faces,
)
from fairfd.data.synthetic.faces import GROUPS, REFLECTANCE, draw_people, draw_shots, landmarks, render
from tenfold.images import read_image


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def small() -> faces.DrawnFaces:
    return draw_faces((3, 3, 3, 3), 2, 48, generator())


@pytest.fixture(scope="module")
def experiment() -> DrawnSet:
    return drawn_experiment(0)


def test_landmarks_lie_on_the_features_they_name():
    size, count = 96, 12
    people = draw_people(torch.full((count,), REFLECTANCE[0]), generator())
    shots = draw_shots(count, generator(1))
    image = render(people, shots, size, generator(2), noise=0.0)
    points = landmarks(people, shots, size)
    grey = image.mean(1)

    def at(where: torch.Tensor) -> torch.Tensor:
        x, y = where.round().long().clamp(0, size - 1).unbind(1)
        return grey[torch.arange(count), y, x]

    # The pupil, between the corners of an eye, is darker than the cheek below it; brows are darker than skin.
    for outer, inner in ((9, 10), (12, 11)):
        pupil = (points[:, outer] + points[:, inner]) / 2
        below = pupil + torch.tensor([0.0, 0.10 * size])
        assert (at(pupil) < at(below) - 0.1).float().mean() > 0.9
    chin, further = points[:, 2], points[:, 2] + (points[:, 2] - points[:, 13]) * 0.25
    nearer = points[:, 2] - (points[:, 2] - points[:, 13]) * 0.25
    colour = torch.stack(
        [
            image[torch.arange(count), c][torch.arange(count), nearer[:, 1].long(), nearer[:, 0].long()]
            for c in range(3)
        ],
        1,
    )
    backdrop = torch.stack([image[torch.arange(count), c, -1, -1] for c in range(3)], 1)
    assert ((colour - backdrop).abs().sum(1) > 0.05).float().mean() > 0.8
    assert (further[:, 1] > chin[:, 1]).all()


def test_landmarks_move_with_the_pose():
    people = draw_people(torch.tensor([0.8]), generator())
    shots = draw_shots(1, generator())
    shifted = faces.draw_shots(1, generator())
    object.__setattr__(shifted, "shift", shots.shift + torch.tensor([[0.1, -0.2]]))
    difference = landmarks(people, shifted, 50) - landmarks(people, shots, 50)
    assert difference == pytest.approx(np.tile([2.5, -5.0], (1, 17, 1)), abs=1e-4)


def test_groups_differ_in_skin_reflectance_and_in_nothing_else():
    people = {
        name: draw_people(torch.full((400,), value), generator(5))
        for name, value in zip(GROUPS, REFLECTANCE, strict=True)
    }
    for name in ("shape", "hair", "iris", "lips", "backdrop", "texture"):
        values = [getattr(p, name) for p in people.values()]
        assert all(torch.equal(values[0], other) for other in values[1:])
    assert people["B"].skin / people["A"].skin == pytest.approx(REFLECTANCE[1] / REFLECTANCE[0], abs=1e-5)
    assert GROUPS == ("A", "B", "C", "D")


@pytest.mark.parametrize("name", forge.APPROACHES)
def test_each_approach_changes_faces_and_keeps_what_is_outside(name, small):
    donors = donor_images(small, np.random.default_rng(0))
    index = torch.arange(len(small.images))
    others = draw_faces((3, 3, 3, 3), 1, 48, generator(9))
    components = forge.principal_components(others.images)
    forged = faces._forge(name, small, donors, index, components, generator())
    assert forged.shape == small.images.shape
    assert forged.min() >= 0
    assert forged.max() <= 1
    face = forge.face_mask(small.points, 48)
    grown = torch.nn.functional.max_pool2d(face[:, None].float(), 7, 1, 3).bool().expand_as(forged)
    assert torch.equal(forged[~grown], small.images[~grown])
    changed = (forged - small.images).abs().amax((1, 2, 3))
    assert (changed > 0.02).float().mean() > 0.9


def test_a_drawn_swap_with_oneself_is_no_change(small):
    swapped = forge.swap(small.images, small.images, small.points, small.points)
    assert (swapped - small.images).abs().max() < 5e-3


def test_components_are_orthonormal_and_rebuild_training_images_best(small):
    mean, components = forge.principal_components(small.images)
    kept = len(small.images) - 1
    assert components.shape == (3 * 48 * 48, kept)
    assert (components.T @ components - torch.eye(kept)).abs().max() < 1e-3
    flat = small.images.flatten(1) - mean
    assert (flat - flat @ components @ components.T).abs().max() < 1e-3


def test_donors_are_of_the_same_group_and_another_person(small):
    donors = donor_images(small, np.random.default_rng(0)).numpy()
    assert (small.groups[donors] == small.groups).all()
    assert (small.identities[donors] != small.identities).all()
    partners = defaultdict(set)
    for own, other in zip(small.identities, small.identities[donors], strict=True):
        partners[own].add(other)
    assert all(len(found) == 1 for found in partners.values())


def test_degradation_is_mild_and_differs_between_images():
    flat = torch.full((200, 3, 12, 12), 0.5)
    noisy = degrade(flat, generator())
    spread = noisy.std((1, 2, 3))
    assert spread.max() < 0.028
    assert spread.min() < 0.003
    edge = torch.zeros(50, 3, 12, 12)
    edge[..., 6:] = 1
    blurred = degrade(edge, generator())[:, 0, :, 5].mean(1)
    assert 0.15 < blurred.max() < 0.23


def test_the_experiment_follows_the_protocol(experiment):
    train, test = experiment.train, experiment.test
    assert (len(train), len(test)) == (1800, 3360)
    assert train.images.shape == (1800, 3, 48, 48)
    assert train.images.dtype == torch.float32
    persons = {g: len(np.unique(train.identities[train.groups == g])) for g in GROUPS}
    assert persons == {"A": 60, "B": 24, "C": 8, "D": 8}
    assert {g: len(np.unique(test.identities[test.groups == g])) for g in GROUPS} == dict.fromkeys(GROUPS, 40)
    assert set(train.approaches) == {"real", "swap", "reenact"}
    assert set(test.approaches) == {"real", *forge.APPROACHES}
    assert not set(train.identities) & set(test.identities)
    for split in (train, test):
        assert ((split.approaches == "real") == (split.labels.numpy() == 0)).all()
    cells = {(a, g): ((test.approaches == a) & (test.groups == g)).sum() for a in set(test.approaches) for g in GROUPS}
    assert set(cells.values()) == {120}


def test_reals_are_repeated_until_labels_are_balanced(experiment):
    index = experiment.train.balanced_index()
    labels = experiment.train.labels[index]
    assert (labels == 0).sum() == (labels == 1).sum() == 1200
    assert torch.bincount(index, minlength=1800).min() == 1


def test_the_same_seed_draws_the_same_set_and_another_seed_another(monkeypatch):
    monkeypatch.setattr(faces, "TRAIN_PERSONS", (2, 2, 2, 2))
    monkeypatch.setattr(faces, "TEST_PERSONS", (2, 2, 2, 2))
    first, again, other = (drawn_experiment(seed, 32) for seed in (1, 1, 2))
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)


def test_drawn_faces_are_written_as_a_folder_set_with_landmarks(tmp_path):
    written = write_drawn_faces(tmp_path, persons=2, images=2, size=40, seed=1)
    assert len(written) == 16
    manifest = scan(tmp_path)
    assert manifest.groups() == GROUPS
    assert len({s.identity for s in manifest}) == 8
    assert all(s.landmarks for s in manifest)
    points = read_landmarks(tmp_path / manifest.samples[0].landmarks)
    assert points.shape == (17, 2)
    assert read_image(written[0]).shape == (40, 40, 3)
