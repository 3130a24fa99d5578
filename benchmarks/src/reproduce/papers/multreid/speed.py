"""Time and memory of the sparse association against the direct one (sizes of section 12), and that both give the same."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reproduce.claims import Speed
from reproduce.papers.multreid.direct import direct_jaccard, direct_transfer


def speed_features(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Section 12: 25 instances per cluster, 256-d, noise 1."""
    from multreid.data.synthetic import two_modality_features

    return two_modality_features(seed, identities=n // 25, per_identity=25, dimension=256, noise=1.0)


def measure_difference(seed: int, tier: str, _: Path) -> dict[str, dict[str, float]]:
    """Largest differences between the sparse and the direct association of 2,500 and 2,500 instances (in the smoke tier 400), transport in 64 bits."""
    from multreid.method.jaccard import jaccard_similarity
    from multreid.method.label_transfer import transfer_labels

    a, b, labels_a, labels_b = speed_features(400 if tier == "smoke" else 2500, seed)
    near = jaccard_similarity(a), jaccard_similarity(b)
    dense = near[0].toarray(), near[1].toarray()
    ours = transfer_labels(a, b, labels_a, labels_b, similarity_a=near[0], similarity_b=near[1])
    theirs = direct_transfer(a, b, labels_a, labels_b, dense, np.float64)
    softs = (ours.soft_a, ours.soft_cross_b, ours.soft_b, ours.soft_cross_a)
    pairs = list(zip(softs, theirs, strict=True))
    return {
        "sparse": {
            "jaccard": float(np.abs(dense[0] - direct_jaccard(a)).max()),
            "transfer": max(float(np.abs(one - two).max()) for one, two in pairs),
            "labels": float(np.mean([(one.argmax(1) != two.argmax(1)).mean() for one, two in pairs])),
        }
    }


ASSOCIATE_LARGE = """
import json, resource, sys, time
import numpy as np, torch
torch.set_num_threads(1)
from multreid import transfer_labels
from multreid.data.synthetic import two_modality_features
a, b, labels_a, labels_b = two_modality_features(int(sys.argv[1]), identities=800, per_identity=25, dimension=256, noise=1.0)
kept = np.arange(len(b)) % 25 < 15
started = time.process_time()
transfer_labels(a, b[kept], labels_a, labels_b[kept])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"CPU seconds": time.process_time() - started, "peak GiB": peak}))
"""

SEARCH_LARGE = """
import json, sys, time
import faiss, numpy as np
from multreid.pipeline.gallery import build_index, search_exact, search_index
faiss.omp_set_num_threads(1)
draw = np.random.default_rng(int(sys.argv[1]))
centres = draw.standard_normal((20000, 256), dtype=np.float32)
gallery = np.repeat(centres, 50, axis=0)
gallery += 0.7 * draw.standard_normal(gallery.shape, dtype=np.float32)
gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
queries = centres[:100] + 0.7 * draw.standard_normal((100, 256), dtype=np.float32)
queries /= np.linalg.norm(queries, axis=1, keepdims=True)
index = build_index(gallery)
started = time.perf_counter()
rows, _ = search_index(index, queries, 20)
seconds = time.perf_counter() - started
exact, _ = search_exact(queries, gallery, 20)
found = float(np.mean([len(set(one) & set(two)) / 20 for one, two in zip(rows, exact, strict=True)]))
print(json.dumps({"seconds per 100 queries": seconds, "share of the true twenty": found}))
"""


def measure_large(seed: int, _: str, __: Path) -> dict[str, dict[str, float]]:
    """20,000 with 12,000 instances of 800 clusters, and 100 queries over 1,000,000 vectors: each in a process of its own, one thread."""
    arms = {}
    for arm, program in (("association", ASSOCIATE_LARGE), ("search", SEARCH_LARGE)):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        arms[arm] = json.loads(done.stdout.splitlines()[-1])
    return arms


def _jaccard_speed(n: int) -> Callable[[], tuple[Callable[[], object], Callable[[], object]]]:
    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        from multreid.method.jaccard import jaccard_similarity

        features = speed_features(n)[0]
        return lambda: jaccard_similarity(features), lambda: direct_jaccard(features)

    return prepare


def _transfer_speed(n: int) -> Callable[[], tuple[Callable[[], object], Callable[[], object]]]:
    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        from multreid.method.jaccard import jaccard_similarity
        from multreid.method.label_transfer import transfer_labels

        a, b, labels_a, labels_b = speed_features(n)
        near = jaccard_similarity(a), jaccard_similarity(b)
        dense = near[0].toarray(), near[1].toarray()
        return (
            lambda: transfer_labels(a, b, labels_a, labels_b, similarity_a=near[0], similarity_b=near[1]),
            lambda: direct_transfer(a, b, labels_a, labels_b, dense),
        )

    return prepare


def _association_speed(n: int) -> Callable[[], tuple[Callable[[], object], Callable[[], object]]]:
    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        from multreid.method.label_transfer import transfer_labels

        clustered = speed_features(n)
        return (
            lambda: transfer_labels(*clustered),
            lambda: direct_transfer(*clustered, (direct_jaccard(clustered[0]), direct_jaccard(clustered[1]))),
        )

    return prepare


SPEEDS = (
    *(
        Speed(
            f"multreid/jaccard-{n}",
            f"k-reciprocal Jaccard distance of {n} instances, sparse, against a dense one written instance by instance",
            _jaccard_speed(n),
            target=target,
            repeats=repeats,
            peak_memory=True,
        )
        for n, target, repeats in ((2000, 4, 3), (5000, 4, 3), (20000, 10, 1))
    ),
    Speed(
        "multreid/transfer-5000",
        "label transfer between 5000 and 5000 instances (Jaccard at hand), against dense matrices as published",
        _transfer_speed(5000),
        target=5,
        repeats=3,
        peak_memory=True,
    ),
    Speed(
        "multreid/association-5000",
        "from features of 5000 and 5000 instances to labels (Jaccard of both and transfer), against dense matrices as published",
        _association_speed(5000),
        target=5,
        repeats=3,
    ),
)
