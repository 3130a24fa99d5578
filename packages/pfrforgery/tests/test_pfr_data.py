"""The embedded faces, public layouts on tiny folders, manifests, partitions, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfrforgery.config import FederationConfig, from_run_config, round_rate, to_run_config
from pfrforgery.data.datasets import EMBEDDED, DataRequest, client_data, count_clients, pooled_train
from pfrforgery.data.layouts import count_table, gather, scan
from pfrforgery.data.manifest import Row, read_manifest, write_manifest
from pfrforgery.data.partition import Shares, partition, read_partition
from pfrforgery.data.synthetic.forgeries import FAMILIES, forge
from tenfold import UserError
from tenfold.images import write_image


def picture(path: Path, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    write_image(path, rng.random((side, side, 3)).astype(np.float32))


def request(**changes: object) -> DataRequest:
    return replace(DataRequest.of(FederationConfig(train_images=20, test_images=10), 3), **changes)


@pytest.mark.parametrize("data", EMBEDDED)
def test_embedded_clients_are_balanced_and_their_own(data: str) -> None:
    first, second = (client_data(request(data=data), client) for client in (0, 1))
    assert first.train.images.shape == (20, 3, 32, 32)
    assert first.train.labels.float().mean() == 0.5
    assert not torch.equal(first.train.images, second.train.images)
    assert not torch.equal(first.train.images[:10], first.test.images)
    assert torch.equal(first.train.images, client_data.__wrapped__(request(data=data), 0).train.images)
    assert pooled_train(request(data=data)).images.shape[0] == 60


def test_the_tint_tells_real_from_fake_only_where_it_is_switched_on() -> None:
    def gap(specific: float) -> float:
        data = client_data(request(train_images=300, specific=specific), 0).train
        redness = (data.images[:, 0].float() - data.images[:, 2].float()).mean((1, 2))
        return float(redness[data.labels == 1].mean() - redness[data.labels == 0].mean())

    assert gap(0.8) > 10
    assert abs(gap(0.0)) < 8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forgery_changes_the_middle_and_leaves_the_edge(family: str) -> None:
    rng = np.random.default_rng(0)
    genuine = rng.uniform(0.3, 0.7, (32, 32, 3))
    forged = forge(genuine, family, rng)
    changed = np.abs(forged - genuine)
    assert changed[10:22, 10:22].mean() > 5 * changed[0].mean()
    assert changed[10:22, 10:22].mean() > 0.004


def test_faceforensics_is_read_by_its_own_lists(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    for split, pair in (("train", ["000", "003"]), ("test", ["001", "002"])):
        (tmp_path / "splits" / f"{split}.json").write_text(json.dumps([pair]))
        for frame in "01":
            for number in pair:
                picture(tmp_path / f"original_sequences/youtube/c23/frames/{number}/{frame}.png")
            for name in ("Deepfakes", "FaceSwap"):
                picture(tmp_path / f"manipulated_sequences/{name}/c23/frames/{'_'.join(pair)}/{frame}.png")
    rows = scan(tmp_path, "ffpp")
    assert count_table(rows) == [
        (source, split, real, fake)
        for source, real, fake in (("ffpp/Deepfakes", 0, 2), ("ffpp/FaceSwap", 0, 2), ("ffpp/original", 4, 0))
        for split in ("test", "train")
    ]
    write_manifest(tmp_path / "m.csv", rows)
    made = partition(tmp_path / "m.csv", Shares(allow_single_class=True))
    shared = [set(each.train) | set(each.test) for each in made.clients]
    assert [each.name for each in made.clients] == ["ffpp/Deepfakes", "ffpp/FaceSwap"]
    assert not shared[0] & shared[1]
    assert shared[0] | shared[1] == set(range(len(rows)))
    picture(tmp_path / "original_sequences/youtube/c23/frames/999/0.png")
    with pytest.raises(UserError, match="999"):
        scan(tmp_path, "ffpp")
    for spoilt in ({"000": 1}, ["000"], [["000", {}]]):
        (tmp_path / "splits" / "val.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match="not a list of pairs"):
            scan(tmp_path, "ffpp")


def test_celeb_df_counts_one_as_real_and_is_converted(tmp_path: Path) -> None:
    for folder in ("Celeb-real/id0_0000", "YouTube-real/00001", "Celeb-synthesis/id0_id1_0000", "Celeb-real/id1_0000"):
        picture(tmp_path / folder / "f0.png")
    listing = tmp_path / "List_of_testing_videos.txt"
    listing.write_text("1 Celeb-real/id0_0000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n")
    rows = {row.video: (row.label, row.split) for row in scan(tmp_path, "celebdf")}
    assert rows["celebdf/Celeb-real/id0_0000"] == ("real", "test")
    assert rows["celebdf/Celeb-synthesis/id0_id1_0000"] == ("fake", "test")
    assert rows["celebdf/YouTube-real/00001"] == ("real", "train")
    listing.write_text("0 Celeb-real/id0_0000.mp4\n")
    with pytest.raises(UserError, match="1 is real"):
        scan(tmp_path, "celebdf")


def test_dfdc_follows_its_metadata(tmp_path: Path) -> None:
    part = tmp_path / "dfdc_train_part_0"
    for name in ("aaa", "bbb"):
        picture(part / name / "0.png")
    entries = {"aaa.mp4": {"label": "REAL", "split": "train"}, "bbb.mp4": {"label": "FAKE", "original": "aaa.mp4"}}
    (part / "metadata.json").write_text(json.dumps(entries))
    rows = scan(tmp_path, "dfdc")
    assert [(row.label, row.video.split("/")[-1]) for row in rows] == [("real", "aaa"), ("fake", "bbb")]
    assert rows[0].split == rows[1].split
    for spoilt in ({"aaa.mp4": 3}, {"aaa.mp4": {"label": "FAKE", "original": 5}}, {"aaa.mp4": {"label": None}}):
        (part / "metadata.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match="DFDC metadata"):
            scan(tmp_path, "dfdc")


def test_wilddeepfake_and_deeperforensics_are_read(tmp_path: Path) -> None:
    for label in ("real", "fake"):
        for split in ("train", "test"):
            picture(tmp_path / f"w/{label}_{split}/1/{label}/17/3.png")
    rows = scan(tmp_path / "w", "wilddeepfake")
    assert {(row.label, row.split) for row in rows} == {(a, b) for a in ("real", "fake") for b in ("train", "test")}
    picture(tmp_path / "d/manipulated_videos/end_to_end/000_M101/1.png")
    picture(tmp_path / "d/source_videos/M101/1.png")
    (tmp_path / "d/lists/splits").mkdir(parents=True)
    (tmp_path / "d/lists/splits/test.txt").write_text("000_M101.mp4\n")
    found = {row.source: row.split for row in scan(tmp_path / "d", "deeperforensics")}
    assert found["deeperforensics/end_to_end"] == "test"
    hybrid = gather([f"wilddeepfake:{tmp_path / 'w'}", f"deeperforensics:{tmp_path / 'd'}"], tmp_path)
    assert len(hybrid) == 6
    assert all((tmp_path / row.path).exists() for row in hybrid)


def folders(root: Path, clients: int = 2, videos: int = 6, frames: int = 2) -> Path:
    for client in range(clients):
        for label in ("real", "fake"):
            for video in range(videos):
                for frame in range(frames):
                    picture(root / f"site{client}" / label / f"v{video}" / f"{frame}.png")
    return root


@pytest.mark.parametrize("by", ["source", "iid", "dirichlet", "sites"])
def test_a_partition_divides_whole_videos_without_overlap(tmp_path: Path, by: str) -> None:
    rows = scan(folders(tmp_path / "faces", videos=20))
    manifest = tmp_path / "faces" / "m.csv"
    write_manifest(manifest, rows)
    made = partition(manifest, Shares(by, clients=2, concentration=50.0, seed=3))
    used = [index for each in made.clients for index in (*each.train, *each.test)]
    assert sorted(used) == list(range(len(rows)))
    owner = {index: number for number, each in enumerate(made.clients) for index in (*each.train, *each.test)}
    for video in {row.video for row in rows}:
        assert len({owner[index] for index, row in enumerate(rows) if row.video == video}) == 1
    path = tmp_path / "faces" / "clients.json"
    made.write(path)
    assert read_partition(path).clients == made.clients
    assert count_clients(str(path), 0) == len(made.clients)
    data = client_data(request(data=str(path), clients=len(made.clients), image_size=16, held_out=0.25), 1)
    assert data.train.images.shape[1:] == (3, 16, 16)
    assert not set(data.train.videos) & set(data.held_out.videos)
    assert len(data.train) + len(data.held_out) == len(made.clients[1].train)
    few = partition(manifest, Shares(by, clients=2, concentration=50.0, train_images=8, test_images=4))
    assert all(len(each.train) <= 8 for each in few.clients)
    content = json.loads(path.read_text())
    # Row numbers that `int` would take, cut or fall over.
    for wrong in ("12", [1.5], [float("inf")], [True], [len(rows)], {"0": 0}):
        spoilt = content | {"clients": {"0": {"name": "a", "train": wrong, "test": []}}}
        (path.parent / "spoilt.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match=r"spoilt\.json: (not a partition|names rows)"):
            read_partition(path.parent / "spoilt.json")
    write_manifest(manifest, rows[1:])
    with pytest.raises(UserError, match="has changed"):
        read_partition(path)


def test_a_fake_named_like_its_original_is_on_the_originals_side(tmp_path: Path) -> None:
    """Otherwise a detector that has learnt by heart who is real is tested on the same faces with the other label."""
    rows = scan(folders(tmp_path, clients=2, videos=20, frames=1))
    side = {row.video: row.split for row in rows}
    assert {"train", "test"} == set(side.values())
    for video, split in side.items():
        assert side[video.replace("/fake/", "/real/")] == split


def test_one_clients_own_folder_serves_a_node(tmp_path: Path) -> None:
    root = folders(tmp_path, 1, videos=12) / "site0"
    data = client_data(request(data=str(root), image_size=8), 0)
    assert data.name == "site0"
    assert len(data.train) + len(data.test) == 48
    with pytest.raises(UserError, match="algorithm central"):
        pooled_train(request(data=str(root)))


BAD_ROWS = {
    "numbers for labels": (Row("a.png", "1", "s", "train", "v"), "never numbers"),
    "an unknown split": (Row("a.png", "real", "s", "dev", "v"), "split 'dev'"),
    "an image twice": (Row("ok.png", "real", "s", "train", "v0"), "listed twice"),
    "a video in two splits": (Row("b.png", "real", "s", "test", "v0"), "two splits"),
    "a video with two labels": (Row("b.png", "fake", "s", "train", "v0"), "two labels"),
}


@pytest.mark.parametrize("mistake", BAD_ROWS)
def test_a_manifest_that_would_mislead_is_refused(tmp_path: Path, mistake: str) -> None:
    row, words = BAD_ROWS[mistake]
    write_manifest(tmp_path / "m.csv", [Row("ok.png", "real", "s", "train", "v0"), row])
    with pytest.raises(UserError, match=words):
        read_manifest(tmp_path / "m.csv")


def test_files_that_are_no_manifest_or_partition_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("path,label\nx,real\n")
    (tmp_path / "bad.json").write_text('{"clients": 3}')
    for call, words in (
        (lambda: read_manifest(tmp_path / "bad.csv"), "needs the columns"),
        (lambda: read_manifest(tmp_path / "none.csv"), "cannot read"),
        (lambda: read_partition(tmp_path / "bad.json"), "not a partition"),
        (lambda: read_partition(tmp_path / "none.json"), "cannot read"),
        (lambda: scan(tmp_path / "nowhere"), "no such folder"),
        (lambda: scan(tmp_path), "holds no crops"),
        (lambda: count_clients(str(tmp_path), 0), "is a folder"),
        (lambda: gather(["ffxx:here"], tmp_path), "no layout ffxx"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_a_client_without_fakes_or_with_one_image_is_refused(tmp_path: Path) -> None:
    rows = [Row(f"{i}.png", "real", "s", "train", f"v{i}") for i in range(3)]
    write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(UserError, match="all training images are real; --allow-single-class"):
        partition(tmp_path / "m.csv")
    with pytest.raises(UserError, match="there are only 3 images"):
        partition(tmp_path / "m.csv", Shares("iid", clients=4))
    write_manifest(tmp_path / "m.csv", rows[:1])
    with pytest.raises(UserError, match="has 1 training images"):
        partition(tmp_path / "m.csv")


def test_the_configuration_survives_flowers_form_and_refuses_nonsense() -> None:
    config = FederationConfig(algorithm="ditto", local_steps=3, schedule="cosine", rounds=4)
    assert from_run_config(to_run_config(config) | {"out": "x", "state-dir": ""}) == config
    assert round_rate(config, 1) == config.learning_rate
    assert round_rate(config, 3) == pytest.approx(config.learning_rate / 2)
    for changes, words in (
        ({"rounds": 0}, "0 is not a whole number from 1"),
        ({"batch_size": 1}, "at least 2"),
        ({"fraction": 1.5}, "fraction: 1.5"),
        ({"fraction": 0.0}, "some client must train"),
        ({"momentum": 1.0}, "momentum 1.0: must be below 1"),
        ({"split": 7}, "stage 1, 2, 3 or 4"),
        ({"alpha": -1.0}, "alpha: -1"),
        ({"specific": -0.1}, "specific: -0.1"),
        ({"max_samples": 0}, "max_samples: 0"),
        ({"routing": "plain"}, "set alpha to 0"),
        ({"learning_rate": 0.0}, "learning_rate: 0 is not above 0"),
        ({"seed": 2**40}, "seed"),
        ({"alpha": float("nan")}, "alpha: nan"),
    ):
        with pytest.raises(UserError, match=words):
            replace(FederationConfig(), **changes)
    for make, words in (
        (lambda: Shares(clients=0), "clients: 0"),
        (lambda: Shares(seed=-1), "seed: -1"),
        (lambda: request(image_size=0), "image_size: 0"),
    ):
        with pytest.raises(UserError, match=words):
            make()
    with pytest.raises(UserError, match="algorithm"):
        from_run_config({"algorithm": "fedsgd"})
