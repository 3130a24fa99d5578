"""Score tables and score files."""

import csv
import gzip
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from fairfd.cli import app
from fairfd.evaluation.scores.files import ScoreFormat, read_score_tables, read_scores
from fairfd.evaluation.scores.score_table import ScoreTable, to_metric_frame, write_score_tables
from fairfd.method.fairness import fairness
from tenfold.errors import UserError

HEADER = ("image", "identity", "group", "approach", "label", "score")


def good_rows(people: int = 24) -> list[dict[str, str]]:
    """Two groups of people with one real and one forged image each, scored well."""
    return [
        {
            "image": f"{approach}/p{i}.png",
            "identity": f"p{i}",
            "group": ("Asian", "Indian")[i % 2],
            "approach": approach,
            "label": str(int(approach != "real")),
            "score": str(0.25 + 0.5 * (approach != "real") + 0.001 * i),
        }
        for i in range(people)
        for approach in ("real", "swap")
    ]


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def changed(rows, numbers, **values):
    """The rows with some columns changed in the rows of these numbers, counted from 1."""
    return [row | values if number in numbers else row for number, row in enumerate(rows, 1)]


def equal(one: ScoreTable, other: ScoreTable) -> bool:
    names = ("image", "identity", "group", "approach", "label", "score")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_csv_tsv_and_jsonl_hold_the_same_table(tmp_path):
    rows = good_rows()
    from_csv = read_scores(write_csv(tmp_path / "mine.csv", rows))
    from_tsv = read_scores(write_csv(tmp_path / "mine.tsv", rows))
    jsonl = tmp_path / "mine.jsonl"
    jsonl.write_text(
        "\n".join(json.dumps(row | {"score": float(row["score"]), "label": int(row["label"])}) for row in rows)
    )
    assert equal(from_csv, from_tsv)
    assert equal(from_csv, read_scores(jsonl))
    assert from_csv.detector == "mine"
    assert len(from_csv) == len(rows)
    assert from_csv.score.tolist() == [float(row["score"]) for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_written_table_reads_back_equal(tmp_path, golden, suffix, dtype):
    data = golden("scores_uneven")
    table = ScoreTable.create(
        data["scores"].astype(dtype),
        data["labels"],
        data["group"],
        data["approach"],
        data["identity"],
        [f'a "quoted", größe {i}.png' for i in range(len(data["scores"]))],
        detector="spsl",
    )
    path = tmp_path / "deep" / f"scores{suffix}"
    table.write(path)
    back = read_scores(path, min_identities=0)
    assert back.detector == "spsl"
    np.testing.assert_array_equal(back.score.astype(dtype), table.score)
    assert equal(replace(back, score=table.score), table)
    np.testing.assert_array_equal(back.rate_table().k, table.rate_table().k)
    np.testing.assert_array_equal(back.rate_table().k, data["n_correct"])


def test_a_float32_score_of_seven_tenths_meets_that_threshold_after_a_round_trip(tmp_path):
    table = ScoreTable.create(np.array([0.7, 0.1], np.float32), [1, 0], ["a", "a"], ["x", "real"])
    table.write(tmp_path / "s.csv")
    for each in (table, read_scores(tmp_path / "s.csv")):
        assert each.rate_table(0.7).k[1, 0] == 1


def test_several_detectors_share_a_file(tmp_path):
    rows = [row | {"detector": name} for row in good_rows() for name in ("srm", "spsl")]
    path = write_csv(tmp_path / "all.csv", rows)
    tables = read_score_tables(path)
    assert set(tables) == {"srm", "spsl"}
    assert equal(tables["srm"], tables["spsl"])
    assert read_scores(path, "srm").detector == "srm"
    with pytest.raises(UserError, match="several detectors; choose one of spsl, srm"):
        read_scores(path)
    with pytest.raises(UserError, match="no detector ufc; choose one of"):
        read_scores(path, "ufc")
    again = tmp_path / "again.csv"
    write_score_tables(again, tables.values())
    assert set(read_score_tables(again)) == set(tables)


def test_rows_of_one_detector_keep_their_numbers_in_the_file(tmp_path):
    rows = [row | {"detector": name} for row in good_rows(2) for name in ("srm", "spsl")]
    with pytest.raises(UserError, match=r"label and approach disagree at row 6\b"):
        read_score_tables(write_csv(tmp_path / "all.csv", changed(rows, {6}, label="1")))
    path = write_csv(tmp_path / "parts.csv", changed([row | {"sex": "f"} for row in rows], {6}, sex=""))
    with pytest.raises(UserError, match=r"a part is blank at row 6\b"):
        read_score_tables(path, ScoreFormat(group_by=("group", "sex")))


BAD_FILES = {
    "logits": ({2: {"score": "4.2"}, 3: {"score": "-7"}}, r"run from -7 to 4.2, outside \[0, 1\].*--logits"),
    "not finite": ({2: {"score": "nan"}, 5: {"score": "inf"}}, "not a finite number at rows 2, 5"),
    "not a number": ({4: {"score": "high"}}, "score: not a number at row 4"),
    "label": ({1: {"label": "2"}, 3: {"label": "-1"}}, "neither 0 .* at rows 1, 3"),
    "label word": (
        {1: {"label": "bona fide"}, 3: {"label": ""}},
        r"neither 0 .* at rows 1, 3 \('', 'bona fide'\).*--real",
    ),
    "blank score": ({4: {"score": ""}}, "not a finite number at row 4.*--drop-missing"),
    "disagreement": ({n: {"label": "1"} for n in (1, 3, 5, 7, 9, 11)}, "disagree at rows 1, 3, 5, 7, 9 and 1 more"),
    "two groups": ({1: {"group": "Indian"}}, "identity in two groups: p0 .*fix the labels or drop them"),
    "blank group": ({2: {"group": " "}}, "group: blank at row 2"),
    "blank identity": ({2: {"identity": ""}}, "identity: blank at row 2"),
    "blank approach": ({2: {"approach": ""}}, "approach: blank at row 2"),
    "duplicate": ({4: {"image": "swap/p0.png"}}, "same image again at row 4.*--allow-duplicates"),
}


@pytest.mark.parametrize("case", list(BAD_FILES))
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_bad_rows_are_named_in_one_line(tmp_path, case, suffix):
    changes, message = BAD_FILES[case]
    rows = [row | changes.get(number, {}) for number, row in enumerate(good_rows(), 1)]
    path = tmp_path / f"scores{suffix}"
    if suffix == ".csv":
        write_csv(path, rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=message) as caught:
        read_scores(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_bad_files_are_named_in_one_line(tmp_path):
    def refused(name: str, content: str | bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(UserError, match=message) as caught:
            read_scores(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    head = ",".join(HEADER)
    refused("a.csv", "", "no column label|no rows|there are no rows")
    refused("b.csv", f"{head}\n", "there are no rows")
    refused(
        "c.csv",
        "image,approach,prob\na,b,1\n",
        r"no column score, group; it has image, approach, prob.*--columns score=NAME",
    )
    refused("d.csv", f"{head}\na,p,g,real,0,0.1\na,p,g\n", "row 2 has 3 fields where the header has 6")
    refused("e.csv", "score,score\n1,2\n", "names a column twice")
    refused("f.csv", f"{head}\nü,p,g,real,0,0.1\n".encode("latin-1"), "not UTF-8")
    refused("g.csv", f'{head}\n"x,p,g,real,0,0.1\n', "row 1 has 1 fields")
    refused("h.jsonl", '{"score": 1}\nnonsense\n', "row 2: is not valid JSON")
    refused("i.jsonl", '{"score": 1}\n[1]\n', "row 2 is not a JSON object")
    refused("j.jsonl", '{"score": 1}, {"score": 2}\n', "row 1: is not valid JSON")
    refused("k.parquet", "x", "not a table")
    refused("k.feather", "x", "not a table")
    refused("k.csv.gz", "x", "cannot read the scores")
    refused("k.xlsx", "x", r"ends in \.csv, \.tsv, \.jsonl, .*\.parquet, \.feather")
    refused("l.csv", "score,label,approach\n.1,0,real\n", "no column group")
    refused("m.csv", "score,group\n.1,a\n", "no column label")
    with pytest.raises(UserError, match="cannot read the scores"):
        read_scores(tmp_path / "absent.csv")


# ---------------------------------------------------------------------------------------------------- files of other people

REAL_OR_FAKE = {"0": "real", "1": "fake"}
TRUE_OR_FALSE = {"0": "False", "1": "True"}


def without(rows, *names):
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def renamed(rows, names):
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def arrow(rows):
    """The rows as a table with the types that pandas would give them."""
    table = pa.Table.from_pylist([row | {"score": float(row["score"]), "label": row["label"] == "1"} for row in rows])
    coded = table["group"].combine_chunks().dictionary_encode()
    return table.set_column(table.schema.get_field_index("group"), "group", coded)


def with_index(path, rows):
    return write_csv(path, [{"": str(number)} | row for number, row in enumerate(rows)])


def with_semicolons(path, rows):
    text = write_csv(path, rows).read_text().replace(",", ";")
    path.write_text("\n".join(re.sub(r"(\d)\.(\d)", r"\1,\2", line) for line in text.splitlines()))
    return path


def packed(path, rows):
    plain = path.with_suffix("")
    if plain.suffix == ".jsonl":
        plain.write_text("\n".join(map(json.dumps, rows)))
    else:
        write_csv(plain, rows)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def with_people(path, rows):
    people = {row["image"]: {name: row[name] for name in ("image", "identity", "group")} for row in reversed(rows)}
    write_csv(path.with_name("people.csv"), list(people.values()))
    return write_csv(path, without(rows, "identity", "group"))


KINDS = {
    "an index column, as pandas writes it": ("s.csv", with_index, {}),
    "capitalised headers": (
        "s.csv",
        lambda path, rows: write_csv(path, renamed(rows, {"score": "Score", "label": " LABEL", "group": "Group"})),
        {},
    ),
    "other names": (
        "s.csv",
        lambda path, rows: write_csv(path, renamed(rows, {"score": "pred_prob", "label": "y_true", "group": "race"})),
        {"columns": {"score": "pred_prob", "label": "y_true"}, "group_by": ("race",)},
    ),
    "labels in words": (
        "s.csv",
        lambda path, rows: write_csv(path, [row | {"label": REAL_OR_FAKE[row["label"]]} for row in rows]),
        {},
    ),
    "boolean labels": (
        "s.csv",
        lambda path, rows: write_csv(path, [row | {"label": TRUE_OR_FALSE[row["label"]]} for row in rows]),
        {},
    ),
    "labels with a point": (
        "s.csv",
        lambda path, rows: write_csv(path, [row | {"label": row["label"] + ".0"} for row in rows]),
        {},
    ),
    "genuine rows of another name": (
        "s.csv",
        lambda path, rows: write_csv(
            path, [row | {"approach": row["approach"].replace("real", "Original")} for row in rows]
        ),
        {"real": "Original"},
    ),
    "genuine rows of another case": (
        "s.csv",
        lambda path, rows: write_csv(path, [row | {"approach": row["approach"].capitalize()} for row in rows]),
        {},
    ),
    "no label": ("s.csv", lambda path, rows: write_csv(path, without(rows, "label")), {}),
    "no approach": ("s.csv", lambda path, rows: write_csv(path, without(rows, "approach")), {}),
    "semicolons and decimal commas": ("s.csv", with_semicolons, {}),
    "gzipped CSV": ("s.csv.gz", packed, {}),
    "gzipped JSON lines": ("s.jsonl.gz", packed, {}),
    "Parquet": ("s.parquet", lambda path, rows: (pq.write_table(arrow(rows), path), path)[1], {}),
    "Feather": ("s.feather", lambda path, rows: (feather.write_feather(arrow(rows), path), path)[1], {}),
    "people in a second file": ("s.csv", with_people, {"people": "people.csv"}),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_file_holds_the_same_table(tmp_path, kind):
    name, write, options = KINDS[kind]
    rows = good_rows()
    plain = read_scores(write_csv(tmp_path / "plain.csv", rows))
    if "people" in options:
        options = options | {"people": tmp_path / options["people"]}
    found = read_scores(write(tmp_path / name, rows), **options)
    assert found.detector == "s"
    for column in ("image", "identity", "group", "label", "score"):
        np.testing.assert_array_equal(getattr(found, column), getattr(plain, column), err_msg=column)
    forgery = {"no approach": "fake", "genuine rows of another case": "Swap"}.get(kind, "swap")
    assert found.approach.tolist() == [forgery if name == "swap" else name for name in plain.approach.tolist()]


def test_float32_scores_of_a_parquet_file_keep_their_precision(tmp_path):
    table = arrow(good_rows())
    table = table.set_column(5, "score", table["score"].cast(pa.float32()))
    pq.write_table(table, tmp_path / "s.parquet")
    assert read_scores(tmp_path / "s.parquet").score.dtype == np.float32


def test_rows_that_lack_something_are_left_out_when_asked(tmp_path):
    rows = changed(good_rows(), {1}, score="")
    rows = changed(changed(rows, {2}, group=" ", score="nan"), {4}, identity="")
    path = write_csv(tmp_path / "s.csv", rows)
    with pytest.raises(UserError, match=r"rows 1, 2.*--drop-missing"):
        read_scores(path)
    table = read_scores(path, drop_missing=True)
    assert table.image.tolist() == [row["image"] for number, row in enumerate(rows, 1) if number not in (1, 2, 4)]
    assert "left out 3 rows that lack something: score 2, identity 1, group 1" in table.warnings
    assert not any("left out" in line for line in read_scores(write_csv(path, good_rows()), drop_missing=True).warnings)
    with pytest.raises(UserError, match="every row lacks something; score 2, label 48"):
        read_scores(write_csv(path, changed(rows, range(1, 99), label="")), drop_missing=True)
    # Rows keep the numbers that they have in the file.
    with pytest.raises(UserError, match=r"neither 0 .* at row 7\b"):
        read_scores(write_csv(path, changed(rows, {7}, label="7")), drop_missing=True)


def test_people_that_do_not_fit_are_named(tmp_path):
    rows = good_rows()
    path = with_people(tmp_path / "s.csv", rows)
    people = tmp_path / "people.csv"
    listed = without(rows, "approach", "label", "score")
    with pytest.raises(UserError, match="image with two values of group, the second at row 49"):
        read_scores(path, people=write_csv(people, [*listed, listed[0] | {"group": "Other"}]))
    write_csv(people, listed[2:])
    with pytest.raises(UserError, match="group: blank at rows 1, 2"):
        read_scores(path, people=people)
    assert len(read_scores(path, people=people, drop_missing=True)) == len(rows) - 2
    with pytest.raises(UserError, match="adds nothing; it has image"):
        read_scores(path, people=write_csv(people, without(listed, "identity", "group")))
    with pytest.raises(UserError, match="no column person"):
        read_scores(path, people=people, on="person")


def test_people_can_be_joined_by_identity(tmp_path):
    rows = good_rows()
    people = {row["identity"]: {"Identity": row["identity"], "group": row["group"]} for row in rows}
    write_csv(tmp_path / "people.csv", list(people.values()))
    path = write_csv(tmp_path / "s.csv", without(rows, "group"))
    assert equal(
        read_scores(path, people=tmp_path / "people.csv", on="identity"),
        read_scores(write_csv(tmp_path / "t.csv", rows)),
    )


def test_the_command_line_reads_a_companys_file(tmp_path, capsys):
    rows = renamed(good_rows(), {"score": "pred_prob", "approach": "method"})
    rows = [row | {"method": row["method"].replace("real", "Original")} for row in without(rows, "label", "group")]
    write_csv(tmp_path / "people.csv", [{"identity": f"p{i}", "race": ("Asian", "Indian")[i % 2]} for i in range(24)])
    write_csv(tmp_path / "s.csv", changed(rows, {3}, pred_prob=""))
    told = [
        "--columns",
        "score=pred_prob,approach=method",
        "--real",
        "Original",
        "--people",
        str(tmp_path / "people.csv"),
    ]
    told += ["--on", "identity", "--group-by", "race", "--drop-missing", "--n-boot", "0", "--n-perm", "0"]
    code = app(
        ["metrics", str(tmp_path / "s.csv"), "-o", str(tmp_path / "m.json"), *told], result_action="return_value"
    )
    assert code == 0
    assert "left out 1 rows that lack something: score 1" in capsys.readouterr().out
    data = json.loads((tmp_path / "m.json").read_text())
    assert "Indian" in json.dumps(data)
    with pytest.raises(UserError, match=r"--columns pred_prob: is not OURS=THEIRS"):
        app(["thresholds", str(tmp_path / "s.csv"), "--columns", "pred_prob"], result_action="return_value")


def test_rows_far_into_a_file_keep_their_numbers(tmp_path):
    rows = good_rows(500)
    for change, message in (({"score": "high"}, "not a number at rows 300, 700"), ({"score": "7"}, "from 0.25 to 7")):
        with pytest.raises(UserError, match=message):
            read_scores(write_csv(tmp_path / "s.csv", changed(rows, {300, 700}, **change)))
    lines = (tmp_path / "s.csv").read_text().splitlines()
    (tmp_path / "s.csv").write_text("\n".join([*lines[:300], "one,two", *lines[300:]]))
    with pytest.raises(UserError, match="row 300 has 2 fields where the header has 6"):
        read_scores(tmp_path / "s.csv")
    objects = [json.dumps(row) for row in rows]
    (tmp_path / "s.jsonl").write_text("\n".join([*objects[:299], "{", *objects[299:]]))
    with pytest.raises(UserError, match="row 300: is not valid JSON"):
        read_scores(tmp_path / "s.jsonl")


def test_a_byte_order_mark_blank_lines_and_crlf_do_no_harm(tmp_path):
    rows = good_rows(2)
    plain = write_csv(tmp_path / "plain.csv", rows)
    odd = tmp_path / "odd.csv"
    odd.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes() + b"\r\n\r\n")
    assert equal(read_scores(odd), read_scores(plain))


def test_logits_are_mapped_only_when_asked(tmp_path):
    rows = changed(good_rows(), range(1, 100, 2), score="-3")
    path = write_csv(tmp_path / "l.csv", rows)
    table = read_scores(path, logits=True)
    assert table.score[0] == pytest.approx(1 / (1 + np.exp(3)))


def test_columns_can_have_other_names(tmp_path):
    rows = [{"p_fake" if name == "score" else name: value for name, value in row.items()} for row in good_rows()]
    path = write_csv(tmp_path / "s.csv", changed(rows, range(1, 100, 2), approach="data"))
    table = read_scores(path, columns={"score": "p_fake"}, real="data")
    assert set(table.approach.tolist()) == {"real", "swap"}


def test_groups_combine_several_columns_and_small_ones_can_be_left_out(tmp_path):
    rows = [row | {"sex": "f" if int(row["identity"][1:]) < 21 else "m"} for row in good_rows()]
    path = write_csv(tmp_path / "s.csv", rows)
    table = read_scores(path, group_by=("group", "sex"))
    assert set(table.group.tolist()) == {"Asian & f", "Asian & m", "Indian & f", "Indian & m"}
    kept = read_scores(path, group_by=("group", "sex"), min_group=2)
    assert set(kept.group.tolist()) == {"Asian & f", "Indian & f", "Indian & m"}
    assert any("Asian & m (1)" in line for line in kept.warnings)
    with pytest.raises(UserError, match="every group has fewer than 50"):
        read_scores(path, min_group=50)
    with pytest.raises(UserError, match="group: a part is blank at row 3"):
        read_scores(write_csv(path, changed(rows, {3}, sex="")), group_by=("group", "sex"))
    with pytest.raises(UserError, match="no column age"):
        read_scores(path, group_by=("group", "age"))


def test_frames_of_a_video_are_averaged_and_single_images_stay(tmp_path):
    rows = []
    for row in good_rows(4):
        rows += [
            row | {"image": f"{row['image']}:{j}", "video": row["identity"], "score": str(0.1 * j)} for j in range(3)
        ]
    rows += [row | {"image": f"{n} {row['image']}", "video": "", "score": "0.9"} for row in good_rows(1) for n in "ab"]
    path = write_csv(tmp_path / "v.csv", rows)
    table = read_scores(path)
    assert len(table) == 4 * 2 + 4
    np.testing.assert_allclose(table.score, [0.1] * 8 + [0.9] * 4)
    assert table.image.tolist()[8:] == ["a real/p0.png", "b real/p0.png", "a swap/p0.png", "b swap/p0.png"]
    assert table.image.tolist()[:2] == ["p0", "p0"]
    assert table.approach.tolist()[:2] == ["real", "swap"]
    assert any("averaged 28 frames into 12 videos" in line for line in table.warnings)
    assert len(read_scores(path, video=None)) == 28
    none = read_scores(write_csv(path, [row | {"video": ""} for row in rows]), min_identities=0)
    assert len(none) == 28
    assert none.warnings == ()


def test_duplicates_are_kept_when_allowed(tmp_path):
    rows = good_rows()
    path = write_csv(tmp_path / "d.csv", [*rows, rows[0]])
    assert len(read_scores(path, allow_duplicates=True)) == len(rows) + 1
    # The same name under another approach is another image.
    named_alike = [row | {"image": row["identity"]} for row in rows]
    assert len(read_scores(write_csv(path, named_alike))) == len(rows)


def test_what_a_reader_must_know_is_collected(tmp_path):
    rows = good_rows()
    (line,) = read_scores(write_csv(tmp_path / "small.csv", rows)).warnings
    assert "fewer than 20 identities in Asian (12), Indian (12)" in line
    assert "AADPD" in line
    inverted = [row | {"score": str(1 - float(row["score"]))} for row in rows]
    assert any("look inverted" in line for line in read_scores(write_csv(tmp_path / "i.csv", inverted)).warnings)
    without = [{name: value for name, value in row.items() if name != "identity"} for row in rows]
    for unknown in (without, changed(rows, range(1, 99), identity="")):
        table = read_scores(write_csv(tmp_path / "n.csv", unknown))
        assert table.identity is None
        assert any("assumes independent images" in line for line in table.warnings)
    crossed = [row | {"source_identity": "p1" if row["identity"] == "p0" else ""} for row in rows]
    table = read_scores(write_csv(tmp_path / "c.csv", crossed), min_identities=0)
    assert table.warnings == (
        "2 forgeries have a donor (source_identity) of another group: their ethnicity is undefined",
    )


def test_columns_without_images_are_numbered():
    table = ScoreTable.create([0.1, 0.9], [0, 1], [3, 3], [0, 1])
    assert table.image.tolist() == ["0", "1"]
    assert table.approach.tolist() == ["real", "1"]
    assert table.group.tolist() == ["3", "3"]


def test_tables_can_be_thinned_and_evaluated(golden):
    data = golden("scores_full")
    table = ScoreTable.create(*(data[name] for name in ("scores", "labels", "group", "approach", "identity")))
    assert fairness(table.rate_table())["AADPD"] == pytest.approx(data["official_macro"][4], abs=1e-9)
    assert table.utility().auc == pytest.approx(float(data["auc"]))
    half = table.take(table.label == 1)
    assert len(half) == (data["labels"] == 1).sum()
    assert half.identity is not None


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(UserError, match="columns differ in length"):
        ScoreTable.create([0.1, 0.9], [0, 1], ["a"], ["real", "x"])
    with pytest.raises(UserError, match="columns differ in length"):
        ScoreTable.create([0.1, 0.9], [0, 1], ["a", "a"], ["real", "x"], image=["one"])


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    table = ScoreTable.create([0.1, 0.9], [0, 1], ["a", "a"], ["real", "x"])
    with pytest.raises(UserError, match=r"written as .csv or .jsonl"):
        table.write(tmp_path / "s.txt")
    target = tmp_path / "s.csv"
    target.write_text("old")

    def fails(*_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr("fairfd.evaluation.scores.score_table._rows", fails)
    with pytest.raises(RuntimeError):
        table.write(target)
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    assert target.read_text() == "old"


def test_a_missing_fairlearn_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairlearn.metrics", None)
    table = ScoreTable.create([0.1, 0.9], [0, 1], ["a", "a"], ["real", "x"])
    with pytest.raises(UserError, match="pip install fairlearn"):
        to_metric_frame(table)


def test_every_option_is_a_field_of_the_format():
    with pytest.raises(TypeError, match="colour"):
        read_scores("x.csv", colour="red")
    assert ScoreFormat().group_by == ("group",)
