"""Building a benchmark: balanced, disjoint in persons, forged inside groups (paper, "Dataset Construction").

one group per person; balance the groups; split the persons inside each group
partner = random derangement of the persons of each group and split, the same for all approaches
for each pristine image: one image of the partner drives all its forgeries
reals and fakes pass the same decode, resize and encode steps
"""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from fairfd.data.assembly.matching import driving_images, partner_map
from fairfd.data.assembly.plan import BuildConfig, Plan, make_plan, open_folder, provenance, withdraw
from fairfd.data.assembly.record import (
    ForgedImages,
    benchmark_rows,
    check_shares,
    check_skipped,
    landmark_remarks,
    write_record,
    write_skipped,
)
from fairfd.data.assembly.resume_log import Journal, recipe_of
from fairfd.data.assembly.step import Face, Forged, ForgeJob, Prepared, PrepareJob, forge, from_record, prepare
from fairfd.data.assembly.worker_pool import crew, work_off
from fairfd.data.forgers.registry import Forger
from fairfd.data.manifest.manifest import Manifest, file_sha256
from fairfd.data.manifest.samples import REAL, Sample, few, meta_of
from tenfold.errors import UserError
from tenfold.files import remove_stale
from tenfold.runs import lock_run, track, unlock_run

DEFAULT_APPROACHES = ("landmark_swap", "self_blend", "warp_reenact", "region_edit", "gan_upsample_sim")
"""The approaches that need nothing but the images."""


def build(
    manifest: Manifest,
    out: Path | str,
    approaches: Sequence[str] | Mapping[str, Forger] = DEFAULT_APPROACHES,
    seed: int = 0,
    workers: int = 4,
    resume: bool = True,
    size: int = 256,
    format: Literal["png", "jpg"] = "png",  # noqa: A002  # the word people look for
    quality: int = 95,
    balance: Literal["identities", "images", "none"] = "identities",
    crop: bool = False,
    ratios: Mapping[str, float] | None = None,
    allow_skips: bool = False,
    skip_bad: bool = False,
) -> Manifest:
    """Forge the pristine images of a manifest by every approach and write a balanced benchmark.

    `out` receives `manifest.csv`, the images under `<approach>/<group>/<identity>/`, masks, landmarks, `build.json`
    (configuration, approaches with parameters and weight digests, counts) and `skipped.csv`. The bytes depend on the
    inputs, the seed and the library versions, not on the number of workers.

    Args:
        manifest: pristine images with identity and group; forgeries in it are passed over.
        out: folder of the benchmark; a build that stopped there goes on.
        approaches: names as `parse_approach` reads them, or label -> forger.
        seed: see `BuildConfig`, as for the following.
        workers: processes.
        resume: go on with what the folder holds; off: it must be empty.
        size: side of all images.
        format: "png" or "jpg".
        quality: of JPEG.
        balance: how groups are made equal.
        crop: cut faces out of photographs first.
        ratios: share of persons per split, e.g. `{"train": 0.72, "val": 0.14, "test": 0.14}`.
        allow_skips: accept that an approach skips more than 2 % of a group's faces.
        skip_bad: leave unreadable images out.

    Returns:
        The manifest of the benchmark, as written.

    Raises:
        UserError: see `Manifest.verify`; nobody to pair a person with; unreadable images; an approach that skipped too
            many faces of a group; a folder that holds something else, or that another process works on.
    """
    config = BuildConfig(seed, size, format, quality, balance, crop, ratios, allow_skips, skip_bad)
    plan = make_plan(manifest, Path(out), approaches, config, workers)
    is_new = not plan.out.exists()
    open_folder(plan, resume)
    lock_run(plan.out)
    try:
        return _build(plan)
    except UserError:
        unlock_run(plan.out)
        if is_new:
            withdraw(plan.out)
        raise
    finally:
        unlock_run(plan.out)


def _build(plan: Plan) -> Manifest:
    config = plan.config
    remove_stale(plan.out, recursive=True)
    with Journal(plan.out / "build.jsonl") as journal, crew(plan.workers) as pool:
        prepared = _prepare_all(plan, journal, pool)
        usable = _usable(plan, prepared)
        partners = partner_map(usable, config.seed)
        driving = driving_images(usable, partners, config.seed)
        forged = _forge_all(plan, usable, driving, prepared, journal, pool)
    journal.tidy()
    check_skipped(plan, usable, forged, {image: each.skipped for image, each in prepared.items() if each.skipped})
    rows = benchmark_rows(plan, usable, prepared, forged, partners, driving)
    benchmark = Manifest(plan.out.resolve(), tuple(rows))
    if config.balance != "none":
        benchmark = benchmark.balance("images", config.seed)
    remarks = [*benchmark.verify(), *landmark_remarks(benchmark)]
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    benchmark.write(plan.out / "manifest.csv")
    write_record(plan, benchmark, forged, remarks)
    return benchmark


def _prepare_all(plan: Plan, journal: Journal, pool: Executor | None) -> dict[str, Prepared]:
    """Decode, frame, resize and encode every pristine image: image -> result."""
    prepared: dict[str, Prepared] = {}
    jobs: list[PrepareJob] = []
    recipes: dict[str, str] = {}
    for sample in plan.pristine:
        job = _prepare_job(plan, sample)
        sources = [file_sha256(f) if f and f.is_file() else "" for f in (job.path, job.landmarks)]
        recipe = recipe_of("prepare", sources, job.five_points, job.crop, asdict(job.encoding))
        recipes[sample.image] = recipe
        found = journal.find(f"{REAL}:{sample.image}", recipe, job.out)
        if found is not None and (found["skipped"] or job.out_landmarks.is_file()):
            prepared[sample.image] = from_record(Prepared, found, journal.path)
        else:
            jobs.append(job)
    for result in track(work_off(prepare, jobs, pool), "preparing", len(jobs)):
        prepared[result.image] = result
        journal.add(f"{REAL}:{result.image}", recipes[result.image], asdict(result))
    return prepared


def _prepare_job(plan: Plan, sample: Sample) -> PrepareJob:
    points = meta_of(sample).get("five_points")
    return PrepareJob(
        image=sample.image,
        path=plan.pristine.path(sample),
        landmarks=plan.pristine.root / sample.landmarks if sample.landmarks else None,
        five_points=tuple(points) if points else None,
        crop=plan.config.crop,
        encoding=plan.encoding,
        out=plan.out / plan.image_name(REAL, sample.image),
        out_landmarks=plan.out / plan.landmark_name(sample.image),
    )


def _usable(plan: Plan, prepared: dict[str, Prepared]) -> Manifest:
    """The images that could be prepared.

    Raises:
        UserError: unreadable files, or too many of a group without a face.
    """
    failed = {sample.image: prepared[sample.image] for sample in plan.pristine if prepared[sample.image].skipped}
    write_skipped(plan, [(REAL, image, result.skipped) for image, result in failed.items()])
    unreadable = [result.skipped for result in failed.values() if result.unreadable]
    if unreadable and not plan.config.skip_bad:
        raise UserError(
            f"{len(unreadable)} unreadable images: {few(unreadable)}; mend or drop them, or leave them out by skip_bad"
        )
    check_shares(plan, plan.pristine.samples, REAL, {image: result.skipped for image, result in failed.items()})
    return Manifest(plan.pristine.root, tuple(sample for sample in plan.pristine if sample.image not in failed))


def _forge_all(
    plan: Plan,
    usable: Manifest,
    driving: dict[str, Sample],
    prepared: dict[str, Prepared],
    journal: Journal,
    pool: Executor | None,
) -> ForgedImages:
    """Forge every usable image by every approach, except what the journal has."""
    facts = {label: provenance(forger) for label, forger in plan.forgers.items()}
    faces = {sample.image: _face(plan, sample, prepared[sample.image]) for sample in usable}
    states = {image: prepared[image].sha256 + file_sha256(face.landmarks) for image, face in faces.items()}
    forged: ForgedImages = {}
    recipes: dict[str, str] = {}
    pooled: list[ForgeJob] = []
    alone: list[ForgeJob] = []
    for sample in usable:
        image, driver = sample.image, driving[sample.image].image
        waiting = []
        for label in plan.forgers:
            key = f"{label}:{image}"
            recipes[key] = recipe_of(
                "forge",
                label,
                facts[label],
                plan.config.seed,
                image,
                states[image],
                states[driver],
                asdict(plan.encoding),
            )
            found = journal.find(key, recipes[key], plan.out / plan.image_name(label, image))
            if found is None:
                waiting.append(label)
            else:
                forged[label, image] = from_record(Forged, found, journal.path)
        # Large models stay in this process; everything else goes to the workers.
        large = [label for label in waiting if getattr(plan.forgers[label], "one_process", False)]
        for jobs, labels in ((pooled, [label for label in waiting if label not in large]), (alone, large)):
            if labels:
                jobs.append(_forge_job(plan, image, faces[image], faces[driver], prepared[image], labels))
    for jobs, workers in ((pooled, pool), (alone, None)):
        for results in track(work_off(forge, jobs, workers), "forging", len(jobs)):
            for result in results:
                forged[result.approach, result.image] = result
                key = f"{result.approach}:{result.image}"
                journal.add(key, recipes[key], asdict(result))
    return forged


def _face(plan: Plan, sample: Sample, prepared: Prepared) -> Face:
    return Face(plan.pristine.path(sample), prepared.square, plan.out / plan.landmark_name(sample.image))


def _forge_job(
    plan: Plan, image: str, base: Face, driving: Face, prepared: Prepared, labels: Sequence[str]
) -> ForgeJob:
    return ForgeJob(
        image=image,
        base=base,
        driving=driving,
        picture=prepared.picture,
        landmarks_from=prepared.landmarks_from,
        seed=plan.config.seed,
        encoding=plan.encoding,
        forgers={label: plan.forgers[label] for label in labels},
        out={label: plan.out / plan.image_name(label, image) for label in labels},
        out_masks={label: plan.out / plan.mask_name(label, image) for label in labels},
    )
