"""Procedural pedestrians, visible and infrared: data for the demo, the tests and the claims, with no network and no people.

A person is a build, a head, clothes with a pattern, perhaps a bag. Persons come in look-alike pairs that wear the same in two
hues of one infrared brightness: a visible camera tells the two apart, an infrared one does not. That is the regime in which
labels for instances beat labels for clusters (section 10).
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from tenfold.images import write_image

HEIGHT, WIDTH = 64, 32
VISIBLE_CAMERAS = (1, 2, 4, 5)
INFRARED_CAMERAS = (3, 6)
_INFRARED_MIX = np.array([0.15, 0.2, 0.65], dtype=np.float32)
"""What an infrared camera makes of red, green and blue dyes; not the eye's weights."""


@dataclasses.dataclass(frozen=True)
class Person:
    """How somebody looks.

    Attributes:
        shirt: colour, RGB in [0, 1].
        trousers: colour.
        hair: grey level.
        stripes: period of the shirt's stripes in pixels; 0 for none.
        upright: whether the stripes run from top to bottom.
        build: width of the body as a share of the picture's.
        hem: where the shirt ends, as a share of the picture's height.
        legs: where the trousers end; bare legs below.
        bag: -1 left, 0 none, 1 right.
    """

    shirt: Float[np.ndarray, "3"]
    trousers: Float[np.ndarray, "3"]
    hair: float
    stripes: int
    upright: bool
    build: float
    hem: float
    legs: float
    bag: int


def make_people(count: int, generator: np.random.Generator, *, look_alikes: bool = True) -> list[Person]:
    """Random people; with look-alikes, numbers 2k and 2k + 1 differ in the hue of their clothes only."""
    people = []
    while len(people) < count:
        shirt, trousers = generator.uniform(0.1, 0.9, (2, 3)).astype(np.float32)
        first = Person(
            shirt,
            trousers,
            float(generator.uniform(0.05, 0.8)),
            int(generator.choice([0, 4, 6, 10])),
            bool(generator.integers(2)),
            float(generator.uniform(0.32, 0.6)),
            float(generator.uniform(0.45, 0.62)),
            float(generator.uniform(0.66, 0.95)),
            int(generator.integers(-1, 2)),
        )
        people.append(first)
        if look_alikes:
            hues = {"shirt": _other_hue(shirt, generator), "trousers": _other_hue(trousers, generator)}
            people.append(dataclasses.replace(first, **hues))
    return people[:count]


def _other_hue(colour: Float[np.ndarray, "3"], generator: np.random.Generator) -> Float[np.ndarray, "3"]:
    """The most different of some random colours that look the same in infrared."""
    level = float(colour @ _INFRARED_MIX)
    candidates = generator.uniform(0, 1, (256, 3)).astype(np.float32)
    candidates *= level / (candidates @ _INFRARED_MIX)[:, None]
    candidates = candidates[(candidates <= 1).all(axis=1)]
    if not candidates.size:
        return colour
    return candidates[np.abs(candidates - colour).sum(axis=1).argmax()]


def draw(person: Person, camera: int, generator: np.random.Generator) -> Float[np.ndarray, "64 32 3"]:
    """One picture of a person by a visible camera (1, 2, 4, 5) or an infrared one (3, 6): RGB in [0, 1]."""
    shift, scale = generator.uniform(-1.5, 1.5, 2), generator.uniform(0.94, 1.06)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    v = ((y - HEIGHT / 2 - shift[0]) / scale + HEIGHT / 2) / HEIGHT
    u = ((x - WIDTH / 2 - shift[1]) / scale) / WIDTH
    picture = _background(camera, v, u)
    half = person.build / 2
    sway = float(generator.uniform(-0.05, 0.05))
    _paint(picture, (np.abs(u) < half) & (v > 0.2) & (v < person.hem), _pattern(person, v, u))
    leg = np.abs(np.abs(u + sway * (v - person.hem)) - half * 0.5) < half * 0.42
    skin = np.array([0.85, 0.65, 0.52], np.float32)
    _paint(picture, leg & (v >= person.hem) & (v < 0.96), skin)
    _paint(picture, leg & (v >= person.hem) & (v < person.legs), person.trousers)
    arm = np.abs(np.abs(u) - half - 0.05) < 0.05
    _paint(picture, arm & (v > 0.22) & (v < person.hem + 0.02), person.shirt * 0.85)
    head = ((v - 0.12) / 0.075) ** 2 + (u / 0.14) ** 2 < 1
    _paint(picture, head, skin)
    _paint(picture, head & (v < 0.11), np.full(3, person.hair, np.float32))
    if person.bag:
        bag = (np.abs(u - person.bag * (half + 0.08)) < 0.09) & (v > 0.5) & (v < 0.64)
        _paint(picture, bag, np.array([0.3, 0.2, 0.12], np.float32))
    return _expose(picture, camera, generator)


def _background(camera: int, v: np.ndarray, u: np.ndarray) -> Float[np.ndarray, "64 32 3"]:
    tint = np.array([[0.55, 0.55, 0.5], [0.4, 0.45, 0.5], [0.5, 0.42, 0.38], [0.35, 0.4, 0.34]], np.float32)
    wall = tint[camera % 4] * (1 + 0.15 * np.sin(6 * u + camera))[..., None]
    return np.where((v > 0.85)[..., None], wall * 0.7, wall).astype(np.float32)


def _pattern(person: Person, v: np.ndarray, u: np.ndarray) -> Float[np.ndarray, "64 32 3"]:
    base = np.broadcast_to(person.shirt, (*v.shape, 3))
    if not person.stripes:
        return base
    along = u * WIDTH if person.upright else v * HEIGHT
    dark = (np.floor(2 * along / person.stripes) % 2 == 0)[..., None]
    return np.where(dark, base * 0.45, base)


def _paint(picture: np.ndarray, where: np.ndarray, colour: np.ndarray) -> None:
    picture[where] = colour[where] if colour.ndim == 3 else colour


def _expose(
    picture: Float[np.ndarray, "64 32 3"], camera: int, generator: np.random.Generator
) -> Float[np.ndarray, "64 32 3"]:
    """What the camera makes of the scene: gain and noise; infrared also mixes the channels in its own way and blurs."""
    gain = (0.85 + 0.1 * (camera % 3)) * generator.uniform(0.92, 1.08)
    if camera in INFRARED_CAMERAS:
        grey = picture @ _INFRARED_MIX
        picture = np.repeat(ndimage.gaussian_filter(grey, 0.6)[..., None], 3, axis=2)
    noise = generator.normal(0, 0.03, (*picture.shape[:2], 1 if camera in INFRARED_CAMERAS else 3))
    return np.clip(picture * gain + noise, 0, 1).astype(np.float32)


def write_people(
    root: Path,
    people: int,
    pictures: int,
    seed: int,
    *,
    look_alikes: bool = True,
) -> tuple[Path, Path]:
    """Write `root/visible/IIII/cC_NNN.png` and `root/infrared/...`: folders that every verb takes.

    Args:
        root: made if missing.
        people: how many.
        pictures: of each person in each modality, by the modality's cameras in turn.
        seed: of people and pictures.
        look_alikes: whether people come in pairs, see `make_people`.

    Returns:
        The two folders.
    """
    generator = np.random.default_rng(seed)
    everyone = make_people(people, generator, look_alikes=look_alikes)
    folders = (root / "visible", root / "infrared")
    for folder, cameras in zip(folders, (VISIBLE_CAMERAS, INFRARED_CAMERAS), strict=True):
        for number, person in enumerate(everyone):
            for index in range(pictures):
                camera = cameras[index % len(cameras)]
                write_image(folder / f"{number:04d}" / f"c{camera}_{index:03d}.png", draw(person, camera, generator))
    return folders


def two_modality_features(
    seed: int,
    *,
    identities: int = 40,
    per_identity: int = 16,
    dimension: int = 64,
    noise: float = 0.7,
    shared: float = 0.8,
    look_alike: float = 0.0,
    camera: float = 0.5,
    unequal: bool = False,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"], Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Features of two modalities without pictures (section 10): identity + camera + modality + noise, unit rows.

    Args:
        seed: of everything.
        identities: how many.
        per_identity: instances of each in each modality.
        dimension: of a feature.
        noise: of instances.
        shared: rho, the share of an identity's variance that both modalities see.
        look_alike: t, how much of an infrared identity it shares with its pair's.
        camera: size of the offset of each identity and camera (4 visible, 2 infrared cameras).
        unequal: draw the number of instances per identity and modality: 16 exp(0.7 N(0, 1)), at least 4.

    Returns:
        Visible and infrared features, visible and infrared identities.
    """
    generator = np.random.default_rng(seed)
    person = generator.standard_normal((identities, dimension))
    features, labels = [], []
    for cameras in (4, 2):
        own = generator.standard_normal((identities, dimension))
        identity = np.sqrt(shared) * person + np.sqrt(1 - shared) * own
        if cameras == 2 and look_alike:
            pairs = identity.reshape(identities // 2, 2, dimension)
            common = pairs.sum(axis=1, keepdims=True) / np.sqrt(2)
            identity = (np.sqrt(look_alike) * common + np.sqrt(1 - look_alike) * pairs).reshape(identity.shape)
        sizes = np.full(identities, per_identity)
        if unequal:
            sizes = np.maximum(4, np.rint(per_identity * np.exp(0.7 * generator.standard_normal(identities)))).astype(
                int
            )
        label = np.repeat(np.arange(identities), sizes)
        offset = camera * generator.standard_normal((identities, cameras, dimension))
        shift = 0.5 * generator.standard_normal(dimension)
        spread = noise * (0.6 + 0.8 * generator.random((label.size, 1)))
        rows = identity[label] + offset[label, generator.integers(0, cameras, label.size)] + shift
        rows = rows + spread * generator.standard_normal(rows.shape)
        features.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
        labels.append(label)
    return features[0], features[1], labels[0], labels[1]
