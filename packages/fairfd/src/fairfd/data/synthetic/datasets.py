"""The drawn-face experiment: a small benchmark with the paper's structure that is drawn in seconds and ships no image.

Four synthetic groups differ in skin reflectance only. Training is imbalanced (60/24/8/8 persons) and sees two of six
approaches; the test is balanced, disjoint in persons, and has all six.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fairfd.data.assembly.matching import derangement
from fairfd.data.faces.crops import write_landmarks
from fairfd.data.manifest.samples import REAL
from fairfd.data.synthetic import forgeries as forge
from fairfd.data.synthetic.faces import GROUPS, REFLECTANCE, draw_people, draw_shots, landmarks, render
from tenfold.images import write_image

TRAIN_PERSONS = (60, 24, 8, 8)
TRAIN_IMAGES = 6
TRAIN_APPROACHES = ("swap", "reenact")
TEST_PERSONS = (40, 40, 40, 40)
TEST_IMAGES = 3
_CHUNK = 96
_MOST_BLUR = 0.6
# Of the [-1, 1] range that networks see; images here are in [0, 1].
_MOST_NOISE = 0.05


@dataclass(frozen=True)
class DrawnSplit:
    """Images of one split with what is known of them.

    Attributes:
        images: RGB in [0, 1].
        labels: 0 = real, 1 = fake.
        groups: "A" to "D".
        approaches: "real" or an approach.
        identities: person on the pristine image.
    """

    images: Float[Tensor, "n 3 s s"]
    labels: Int[Tensor, " n"]
    groups: Shaped[np.ndarray, " n"]
    approaches: Shaped[np.ndarray, " n"]
    identities: Shaped[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.images)

    def balanced_index(self) -> Int[Tensor, " m"]:
        """Positions of all images, the rarer label repeated until both labels are equally frequent."""
        real, fake = ((self.labels == label).nonzero()[:, 0] for label in (0, 1))
        longest = max(len(real), len(fake))
        return torch.cat([index[torch.arange(longest) % len(index)] for index in (real, fake) if len(index)])


@dataclass(frozen=True)
class DrawnSet:
    """The data of the experiment.

    Attributes:
        train: 100 persons x 6 images x (real, swap, reenact).
        test: 160 persons x 3 images x (real and six approaches).
    """

    train: DrawnSplit
    test: DrawnSplit


@dataclass(frozen=True)
class DrawnFaces:
    """Pristine drawn faces.

    Attributes:
        images: RGB in [0, 1].
        points: 17 landmarks, pixels.
        person: number of the person on each image.
        groups: group of each image.
        identities: name of the person on each image.
    """

    images: Float[Tensor, "n 3 s s"]
    points: Float[Tensor, "n 17 2"]
    person: Int[Tensor, " n"]
    groups: Shaped[np.ndarray, " n"]
    identities: Shaped[np.ndarray, " n"]


def draw_faces(
    persons: tuple[int, ...], images: int, size: int, generator: torch.Generator, prefix: str = "", scale: float = 1.2
) -> DrawnFaces:
    """Draw images of new persons of each group.

    Args:
        persons: number of persons in each of the four groups.
        images: per person.
        size: side in pixels.
        generator: source of randomness.
        prefix: of the persons' names.
        scale: mean size of the heads; see `draw_shots`.
    """
    group_of = np.repeat(np.arange(len(persons)), persons)
    people = draw_people(torch.tensor(REFLECTANCE)[torch.from_numpy(group_of)], generator)
    person = torch.arange(len(group_of)).repeat_interleave(images)
    shots = draw_shots(len(person), generator, scale)
    drawn = people.pick(person)
    names = np.array([f"{prefix}{GROUPS[g]}{i:03d}" for i, g in enumerate(group_of)])
    return DrawnFaces(
        images=render(drawn, shots, size, generator),
        points=landmarks(drawn, shots, size),
        person=person,
        groups=np.array(GROUPS)[group_of][person.numpy()],
        identities=names[person.numpy()],
    )


def drawn_experiment(seed: int = 0, size: int = 48) -> DrawnSet:
    """Draw the whole data set: 1,800 training and 3,360 test images, degraded by a mild random blur and noise.

    Args:
        seed: of everything; the same bytes on the same library versions.
        size: side in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        training = draw_faces(TRAIN_PERSONS, TRAIN_IMAGES, size, generator, "train-")
        testing = draw_faces(TEST_PERSONS, TEST_IMAGES, size, generator, "test-")
        components = forge.principal_components(training.images)
        return DrawnSet(
            train=_split(training, TRAIN_APPROACHES, components, generator, rng),
            test=_split(testing, forge.APPROACHES, components, generator, rng),
        )


def _split(
    faces: DrawnFaces,
    approaches: tuple[str, ...],
    components: tuple[Tensor, Tensor],
    generator: torch.Generator,
    rng: np.random.Generator,
) -> DrawnSplit:
    """The pristine images and their forgeries by each approach, all degraded alike."""
    donors = donor_images(faces, rng)
    blocks = [faces.images]
    for approach in approaches:
        chunks = torch.arange(len(faces.images)).split(_CHUNK)
        blocks.append(torch.cat([_forge(approach, faces, donors, c, components, generator) for c in chunks]))
    rows = len(approaches) + 1
    labels = torch.ones(rows, len(faces.images), dtype=torch.int64)
    labels[0] = 0
    return DrawnSplit(
        images=degrade(torch.cat(blocks), generator),
        labels=labels.reshape(-1),
        groups=np.tile(faces.groups, rows),
        approaches=np.repeat(np.array([REAL, *approaches]), len(faces.images)),
        identities=np.tile(faces.identities, rows),
    )


def donor_images(faces: DrawnFaces, rng: np.random.Generator) -> Int[Tensor, " n"]:
    """For every image one image of the person's partner; partners are a derangement inside each group."""
    donors = np.zeros(len(faces.person), np.int64)
    person = faces.person.numpy()
    for group in dict.fromkeys(faces.groups.tolist()):
        members = np.unique(person[faces.groups == group])
        partner = members[derangement(len(members), rng)]
        for own, other in zip(members, partner, strict=True):
            mine, theirs = np.flatnonzero(person == own), np.flatnonzero(person == other)
            donors[mine] = rng.choice(theirs, len(mine))
    return torch.from_numpy(donors)


def _forge(
    approach: str,
    faces: DrawnFaces,
    donors: Int[Tensor, " n"],
    chunk: Int[Tensor, " c"],
    components: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> Float[Tensor, "c 3 s s"]:
    base, points = faces.images[chunk], faces.points[chunk]
    if approach == "swap":
        donor = donors[chunk]
        return forge.swap(base, faces.images[donor], points, faces.points[donor])
    if approach == "pca_resynth":
        return forge.pca_resynth(base, points, *components)
    return {
        "reenact": forge.reenact,
        "self_blend": forge.self_blend,
        "upsample_sim": forge.upsample_sim,
        "region_edit": forge.region_edit,
    }[approach](base, points, generator)


def degrade(images: Float[Tensor, "n 3 s s"], generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """A random share (up to 0.6) of a 3x3 mean, and noise of up to 0.05 of the [-1, 1] range, for every image on its own."""
    count = len(images)
    share = _MOST_BLUR * torch.rand(count, 1, 1, 1, generator=generator)
    spread = _MOST_NOISE / 2 * torch.rand(count, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.randn(images.shape, generator=generator)
    return (images + share * (blurred - images) + spread * noise).clamp(0, 1)


def write_drawn_faces(
    folder: Path | str, persons: int = 6, images: int = 3, size: int = 96, seed: int = 0
) -> tuple[Path, ...]:
    """Write drawn faces as `<group>/<identity>/<image>.png` with their landmarks beside them (layout "folders").

    Args:
        folder: where to.
        persons: per group.
        images: per person.
        size: side in pixels.
        seed: of everything.

    Returns:
        The image files.
    """
    folder = Path(folder)
    with torch.no_grad():
        faces = draw_faces((persons,) * len(GROUPS), images, size, torch.Generator().manual_seed(seed), scale=1.0)
    written = []
    for number, (image, points) in enumerate(zip(faces.images, faces.points, strict=True)):
        place = folder / faces.groups[number] / faces.identities[number]
        path = place / f"{faces.identities[number]}_{number % images:04d}.png"
        write_image(path, np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        write_landmarks(path.with_suffix(".npy"), points.numpy())
        written.append(path)
    return tuple(written)
