"""Peak memory and CPU seconds of the sparse association and of the direct one, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

SIZES = {"jaccard-2000": 2000, "jaccard-5000": 5000, "jaccard-20000": 20000, "transfer-5000": 5000}

# tracemalloc, which `reproduce speed` reports, sees what numpy allocates and not what torch does. Here the kernel's own
# high-water mark is read (Linux), after a small warm-up, with the freed memory returned and the mark reset.
PROGRAM = """
import ctypes, gc, json, sys, time
import torch
torch.set_num_threads(1)
from multreid.method.jaccard import jaccard_similarity
from multreid.method.label_transfer import transfer_labels
from reproduce.papers.multreid.direct import direct_jaccard, direct_transfer
from reproduce.papers.multreid.speed import speed_features

def memory(line):
    with open("/proc/self/status") as status:
        return next(int(each.split()[1]) / 1024 for each in status if each.startswith(line))

def similarities(a, b):
    return jaccard_similarity(a), jaccard_similarity(b)

part, size, way, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
a, b, labels_a, labels_b = speed_features(500)
near = similarities(a, b)
direct_jaccard(a)
transfer_labels(a, b, labels_a, labels_b)
direct_transfer(a, b, labels_a, labels_b, (near[0].toarray(), near[1].toarray()))
a, b, labels_a, labels_b = speed_features(size, seed)
near = similarities(a, b) if part == "transfer" else None
if near is not None and way == "direct":
    near = near[0].toarray(), near[1].toarray()
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as mark:
    mark.write("5")
started = time.process_time()
if part == "jaccard":
    result = (jaccard_similarity if way == "ours" else direct_jaccard)(a)
elif way == "ours":
    result = transfer_labels(a, b, labels_a, labels_b, similarity_a=near[0], similarity_b=near[1])
else:
    result = direct_transfer(a, b, labels_a, labels_b, near)
print(json.dumps([memory("VmHWM") - before, time.process_time() - started]))
"""


def measure_memory(seed: int, _: str, __: Path) -> dict[str, dict[str, float]]:
    """MiB by which each way grows, results included, and CPU seconds, which other work on the machine changes less than seconds."""
    arms = {}
    for name, size in SIZES.items():
        grown, seconds = {}, {}
        for way in ("ours", "direct"):
            command = [sys.executable, "-c", PROGRAM, name.split("-")[0], str(size), way, str(seed)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            grown[way], seconds[way] = json.loads(done.stdout.splitlines()[-1])
        arms[name] = {f"{way}, MiB": grown[way] for way in grown} | {f"{way}, CPU s": seconds[way] for way in seconds}
        arms[name] |= {"share": grown["ours"] / grown["direct"], "times faster": seconds["direct"] / seconds["ours"]}
    return arms
