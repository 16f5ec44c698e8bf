"""GLUE's rows: both layouts of files, the hub without a network, metrics, and the order of batches."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench.errors import BadData, BadValue
from bench.workloads._glue_batches import Batches, Encoded
from bench.workloads._glue_data import TASKS, Glue
from bench.workloads._glue_files import GlueFiles
from bench.workloads._glue_hub import COMMIT, GlueHub
from bench.workloads._glue_metrics import measured

HEADERS = {
    "mrpc": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "rte": ["index", "sentence1", "sentence2", "label"],
    "stsb": [
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    ],
    "sst2": ["sentence", "label"],
    "qnli": ["index", "question", "sentence", "label"],
    "qqp": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "mnli": [
        *["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"],
        *["sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"],
    ],
}
"""The first lines of GLUE's own files, as they are published; CoLA's have none."""
DEV_MNLI = [*HEADERS["mnli"][:-1], "label2", "label3", "label4", "label5", "gold_label"]
TEXTS = [
    'He said " no , and left .',
    "Über 3 % — “so” …",
    "a\\tb 'c'",
    "line\u2028separator",
    'it\'s , "quoted"',
    " padded ",
]
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def samples(task, count=6, first=0):
    """Rows with what makes files hard to read: quotation marks, odd separators, every label."""
    texts = [
        [TEXTS[(row + column) % 6] + f" {first + row}" for row in range(count)] for column in range(len(task.texts))
    ]
    labels = [row % task.outputs for row in range(count)] if task.classes else [0.0, 3.8, 5.0, 2.6, 1.25, 4.333][:count]
    return texts, labels


def write_tsv(root, task, sizes=None):
    folder = root / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(task.sizes):
        texts, labels = samples(task, **(sizes or {}), first=100 * number)
        dev = split.replace("validation", "dev")
        header = DEV_MNLI if task.name == "mnli" and dev != "train" else HEADERS.get(task.name)
        lines = ["\t".join(header)] if header else []
        for row in range(len(labels)):
            label = task.classes[labels[row]] if task.classes else f"{labels[row]:.3f}"
            wanted = dict(zip(task.columns, [*(column[row] for column in texts), label], strict=True))
            if header is None:
                lines.append("\t".join(["gj04", label, "*" if label == "0" else "", wanted["sentence"]]))
            else:
                lines.append("\t".join(wanted.get(name, f"{name} {row}") for name in header))
        (folder / f"{dev}.tsv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return root


def table(task, first=0, **changes):
    texts, labels = samples(task, first=first)
    kind = pa.int64() if task.classes else pa.float32()
    columns = {**dict(zip(task.texts, texts, strict=True)), "label": pa.array(labels, kind), "idx": list(range(6))}
    return pa.table({name: column for name, column in (columns | changes).items() if column is not None})


def write_parquet(root, task):
    folder = root / task.name
    folder.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(task.sizes):
        pq.write_table(table(task, first=100 * number), folder / f"{split}-00000-of-00001.parquet")
    return root


# -- both layouts ------------------------------------------------------------------------------------------------------
@every_task
def test_both_layouts_give_the_rows_that_were_written(tmp_path, task):
    tsv = Glue(task, GlueFiles(write_tsv(tmp_path / "tsv", task)))
    parquet = Glue(task, GlueFiles(write_parquet(tmp_path / "parquet", task)))
    for number, split in enumerate(task.sizes):
        texts, labels = samples(task, first=100 * number)
        for rows in (tsv.splits[split], parquet.splits[split]):
            assert [list(column) for column in rows.texts] == texts
            assert rows.labels.tolist() == pytest.approx(labels, rel=1e-6)
            assert rows.labels.dtype == (np.int64 if task.classes else np.float32)
    assert tsv.content == parquet.content


def test_published_sizes_sum_to_what_is_known_of_glue():
    assert sum(task.sizes["train"] for task in TASKS.values()) == 949_098
    assert sum(size for task in TASKS.values() for split, size in task.sizes.items() if split != "train") == 69_640
    assert list(TASKS) == ["mrpc", "cola", "rte", "stsb", "sst2", "qnli", "qqp", "mnli"]
    assert [task.outputs for task in TASKS.values()] == [2, 2, 2, 1, 2, 2, 2, 3]
    assert TASKS["mnli"].validation == ("validation_matched", "validation_mismatched")


def test_numbers_of_classes_are_those_of_the_hub():
    assert TASKS["mnli"].classes == ("entailment", "neutral", "contradiction")
    assert TASKS["rte"].classes == TASKS["qnli"].classes == ("entailment", "not_entailment")


def test_a_byte_order_mark_belongs_to_no_column(tmp_path):
    write_tsv(tmp_path, TASKS["mrpc"])
    path = tmp_path / "MRPC" / "train.tsv"
    before = GlueFiles(tmp_path).rows(TASKS["mrpc"], "train")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert GlueFiles(tmp_path).rows(TASKS["mrpc"], "train").content == before.content


def test_columns_are_found_by_name_wherever_they_are(tmp_path):
    path = tmp_path / "RTE" / "train.tsv"
    path.parent.mkdir()
    path.write_text("label\tmore\tsentence2\tsentence1\nnot_entailment\tx\tb\ta\n")
    rows = GlueFiles(tmp_path).rows(TASKS["rte"], "train")
    assert (rows.texts, rows.labels.tolist()) == ((["a"], ["b"]), [1])


def test_parquet_shards_are_joined_in_order_and_none_may_be_missing(tmp_path):
    task, folder = TASKS["qnli"], tmp_path / "qnli"
    folder.mkdir()
    for shard in (2, 0, 1):
        pq.write_table(table(task, first=10 * shard), folder / f"train-0000{shard}-of-00003.parquet")
    rows = GlueFiles(tmp_path).rows(task, "train")
    assert [text.rpartition(" ")[2] for text in rows.texts[0]] == [
        str(10 * s + row) for s in range(3) for row in range(6)
    ]
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(BadData, match="2 files, where their names speak of 3"):
        GlueFiles(tmp_path).rows(task, "train")


def test_broken_rows_of_qqp_are_left_out_as_on_the_hub_and_nowhere_else(tmp_path):
    write_tsv(tmp_path, TASKS["qqp"])
    path = tmp_path / "QQP" / "train.tsv"
    whole = GlueFiles(tmp_path).rows(TASKS["qqp"], "train")
    path.write_text(path.read_text() + "7\t1\t2\tWhat is it that\nends here?\tWhat?\t1\n8\t1\t2\tA?\tB?\t\n")
    assert GlueFiles(tmp_path).rows(TASKS["qqp"], "train").content == whole.content
    write_tsv(tmp_path, TASKS["sst2"])
    path = tmp_path / "SST-2" / "train.tsv"
    path.write_text(path.read_text() + "no label here\n")
    with pytest.raises(BadData, match=r"'train\.tsv' of sst2 is corrupt: line 8 lacks a column"):
        GlueFiles(tmp_path).rows(TASKS["sst2"], "train")


def test_identity_follows_every_row_and_not_the_place(tmp_path):
    task = TASKS["mrpc"]
    first = Glue(task, GlueFiles(write_tsv(tmp_path / "one", task)))
    moved = Glue(task, GlueFiles(shutil.copytree(tmp_path / "one", tmp_path / "two")))
    assert moved.content == first.content
    assert str(tmp_path) not in moved.label
    assert "6 train, 6 validation" in moved.label
    seen = {first.content}
    path = tmp_path / "two" / "MRPC" / "dev.tsv"
    text = path.read_text()
    for changed in (
        text.replace(" padded ", "padded"),
        text.replace("\n0\t", "\n1\t", 1),
        text.replace("so”", "so” ", 1),
    ):
        path.write_text(changed)
        seen.add(Glue(task, GlueFiles(tmp_path / "two")).content)
    assert len(seen) == 4


def test_where_one_text_ends_is_part_of_the_identity(tmp_path):
    contents = set()
    for number, (one, two) in enumerate([("ab", "c"), ("a", "bc"), ("abc", "")]):
        path = tmp_path / str(number) / "RTE" / "train.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(f"sentence1\tsentence2\tlabel\n{one}\t{two}\tentailment\n")
        contents.add(GlueFiles(path.parents[1]).rows(TASKS["rte"], "train").content)
    assert len(contents) == 3


# -- what is refused ---------------------------------------------------------------------------------------------------
def refused(directory, task, split="train"):
    with pytest.raises(BadData) as caught:
        GlueFiles(directory).rows(TASKS[task], split)
    return caught.value


@every_task
def test_a_folder_without_the_task_names_the_files_of_both_layouts(tmp_path, task):
    error = refused(tmp_path, task.name)
    assert f"has no files of GLUE's task {task.name!r}" in error.message
    last = task.validation[-1]
    for expected in (
        f"{task.folder}/train.tsv",
        f"{task.name}/{last}-*.parquet",
        "--data-dir",
        "hf download nyu-mll/glue",
    ):
        assert expected in error.hint
    assert "does not exist" in refused(tmp_path / "none", task.name).message


@pytest.mark.parametrize("write", [write_tsv, write_parquet])
def test_a_missing_split_is_named(tmp_path, write):
    write(tmp_path, TASKS["mnli"])
    for path in tmp_path.glob("*/*_mismatched*"):
        path.unlink()
    error = refused(tmp_path, "mnli", "validation_mismatched")
    assert "has no validation_mismatched split of 'mnli'" in error.message
    assert "dev_mismatched.tsv" in error.hint


@pytest.mark.parametrize(
    ("task", "old", "new", "words"),
    [
        ("rte", "entailment\n", "Entailment\n", "line 2 has label 'Entailment', and labels are entailment, not_"),
        ("mnli", "neutral\n", "-\n", "line 3 has label '-'"),
        ("stsb", "3.800", "many", "line 3 has score 'many', which is no number"),
        ("stsb", "3.800", "5.5", "row 1 has label 5.5, and labels are scores from 0 to 5"),
        ("stsb", "3.800", "nan", "row 1 has label nan"),
        ("mrpc", "Quality\t", "quality\t", r"no column 'Quality': its first line is \['quality'"),
    ],
)
def test_what_a_line_says_wrongly_is_told_with_its_place(tmp_path, task, old, new, words):
    write_tsv(tmp_path, TASKS[task])
    path = tmp_path / TASKS[task].folder / "train.tsv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BadData, match=words):
        GlueFiles(tmp_path).rows(TASKS[task], "train")


def test_files_that_are_empty_or_no_text_are_refused(tmp_path):
    path = tmp_path / "CoLA" / "train.tsv"
    path.parent.mkdir()
    path.write_text("")
    assert "holds no row" in refused(tmp_path, "cola").message
    path.write_bytes(b"gj04\t1\t\t\xff\xfe\n")
    assert "cannot be read" in refused(tmp_path, "cola").message
    path.write_text("gj04\t2\t\tA sentence.\n")
    assert "line 1 has label '2', and labels are 0, 1" in refused(tmp_path, "cola").message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": [0, 1, 0, 1, -1, 1]}, r"row 4 has label -1, and labels are 0 to 1.*test split are hidden"),
        ({"label": [0, 1, 2, 1, 0, 1]}, "row 2 has label 2"),
        ({"label": None}, "has no column label; it has sentence1, sentence2, idx"),
        ({"sentence2": None}, "has no column sentence2"),
        ({"sentence1": ["a", "b", None, "c", "d", "e"]}, "row 2 has None as its sentence1"),
    ],
)
def test_a_parquet_file_of_something_else_is_refused(tmp_path, changes, words):
    write_parquet(tmp_path, TASKS["mrpc"])
    pq.write_table(table(TASKS["mrpc"], **changes), tmp_path / "mrpc" / "train-00000-of-00001.parquet")
    with pytest.raises(BadData, match=f"(?s){words}"):
        GlueFiles(tmp_path).rows(TASKS["mrpc"], "train")


def test_a_cut_parquet_file_is_refused(tmp_path):
    write_parquet(tmp_path, TASKS["mrpc"])
    path = tmp_path / "mrpc" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert "'train-00000-of-00001.parquet' cannot be read" in refused(tmp_path, "mrpc").message


# -- hub ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def datasets(monkeypatch):
    """The real package, offering a small data set with the hub's features in the place of the hub's."""
    library = pytest.importorskip("datasets", reason="the package datasets (extra hf) is not installed")
    asked = []

    def install(task, commit=COMMIT, size=6):
        texts, labels = samples(task)
        kind = library.ClassLabel(names=list(task.classes)) if task.classes else library.Value("float32")
        features = {**dict.fromkeys(task.texts, library.Value("string")), "label": kind, "idx": library.Value("int32")}
        columns = {**dict(zip(task.texts, texts, strict=True)), "label": labels, "idx": list(range(6))}
        rows = library.Dataset.from_dict(columns, features=library.Features(features)).select(range(size))

        def builder(*names, revision):
            asked.append((*names, revision))
            return SimpleNamespace(hash=commit, download_and_prepare=lambda: None, as_dataset=lambda **_: rows)

        monkeypatch.setattr(library, "load_dataset_builder", builder)
        return asked

    return install


def small(task):
    """The task with six rows in every split."""
    return type(task)(**{**vars(task), "sizes": dict.fromkeys(task.sizes, 6)})


@pytest.mark.parametrize("name", ["cola", "stsb", "mnli"])
def test_rows_of_the_hub_are_those_of_the_files(datasets, tmp_path, name):
    task = small(TASKS[name])
    asked = datasets(task)
    files = GlueFiles(write_tsv(tmp_path, task)).rows(task, "train")
    assert GlueHub().rows(task, "train").content == files.content
    assert asked == [("nyu-mll/glue", name, COMMIT)]
    assert COMMIT[:12] in GlueHub().label


def test_another_commit_or_size_than_the_published_one_is_refused(datasets):
    task = small(TASKS["mrpc"])
    datasets(task, commit="0" * 40)
    with pytest.raises(BadData, match="at 0000"):
        GlueHub().rows(task, "train")
    datasets(task, size=5)
    with pytest.raises(BadData, match="has 5 rows, not 6"):
        GlueHub().rows(task, "train")


def test_a_missing_package_names_the_extra_and_the_other_way(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadData, match="needs the package 'datasets'") as caught:
        GlueHub().rows(TASKS["mrpc"], "train")
    assert all(part in caught.value.hint for part in ("bench-training[hf]", "--data-dir DIR", "MRPC/train.tsv"))


def test_a_hub_out_of_reach_names_every_other_way(monkeypatch):
    def unreachable(*names, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset_builder=unreachable))
    with pytest.raises(BadData, match=r"cannot get 'nyu-mll/glue' \(config 'mrpc', .*ConnectionError: no") as caught:
        GlueHub().rows(TASKS["mrpc"], "train")
    assert all(part in caught.value.hint for part in ("--data-dir DIR", "--model-dir DIR", "HF_HUB_OFFLINE"))


# -- metrics -----------------------------------------------------------------------------------------------------------
def draws(count, seed=0):
    return np.random.RandomState(seed).standard_normal(count)


def test_metrics_of_classes_are_their_formulas_and_those_of_scikit_learn():
    import sklearn.metrics

    logits = draws(400).reshape(200, 2)
    labels = (logits[:, 1] + draws(200, seed=1) > logits[:, 0]).astype(np.int64)
    found = measured(("accuracy", "f1", "matthews"), logits, labels)
    said = logits.argmax(1)
    tp, tn, fp, fn = (int(np.sum((said == a) & (labels == b))) for a, b in ((1, 1), (0, 0), (1, 0), (0, 1)))
    assert min(tp, tn, fp, fn) > 10
    assert found["accuracy"] == pytest.approx((tp + tn) / 200, rel=1e-12)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-12)
    root = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / root, rel=1e-12)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(labels, said)
    assert found["f1"] == sklearn.metrics.f1_score(labels, said)
    assert found["matthews"] == sklearn.metrics.matthews_corrcoef(labels, said)


def test_correlations_are_their_formulas_and_those_of_scipy():
    import scipy.stats

    labels = np.round(np.clip(2.5 + draws(100), 0, 5), 1).astype(np.float32)
    scores = np.exp(labels + 0.3 * draws(100, seed=2))
    found = measured(("pearson", "spearman"), scores[:, None], labels)
    ranks = [scipy.stats.rankdata(values) for values in (scores, labels)]
    assert found["pearson"] == pytest.approx(np.corrcoef(scores, labels)[0, 1], rel=1e-6)
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-9)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(scores, labels.astype(float))[0], rel=1e-12)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(scores, labels)[0], rel=1e-12)
    assert found["spearman"] > found["pearson"] + 0.05, "the relation is monotone and not linear"


def test_a_model_that_says_always_the_same_has_no_correlation_and_no_f1():
    always = np.tile([1.0, 0.0], (4, 1))
    found = measured(("accuracy", "f1", "matthews"), always, np.array([0, 1, 0, 0]))
    assert found == {"accuracy": 0.75, "f1": 0.0, "matthews": 0.0}
    scores = np.array([0.0, 1.0, 2.0, 5.0])
    assert measured(("pearson", "spearman"), np.ones((4, 1)), scores) == {"pearson": 0.0, "spearman": 0.0}
    nearly = np.ones((4, 1)) + 1e-16 * np.arange(4)[:, None]
    assert np.isfinite(list(measured(("pearson", "spearman"), nearly, scores).values())).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_diverged_has_no_metric(bad):
    outputs = np.zeros((3, 2))
    outputs[1, 0] = bad
    assert np.isnan(list(measured(("accuracy", "matthews"), outputs, np.array([0, 1, 0])).values())).all()
    assert np.isnan(measured(("pearson",), outputs[:, :1], np.array([0.0, 1.0, 2.0]))["pearson"])


# -- batches -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def encoded():
    """Ten examples whose ids are their numbers, of 1 to 10 tokens."""
    return Encoded([np.full(row + 1, row, np.int32) for row in range(10)], np.arange(10), pad=99)


def test_a_batch_is_padded_to_its_own_longest(encoded):
    batch = encoded.batch([2, 0])
    assert batch["inputs"].tolist() == [[2, 2, 2], [0, 99, 99]]
    assert batch["inputs"].dtype == batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [2, 0]


def test_every_epoch_is_a_new_permutation_and_every_batch_is_full(encoded):
    stream = Batches(encoded, batch_size=4, seed=1)
    batches = [next(stream)["labels"].tolist() for _ in range(5)]
    assert all(len(batch) == 4 for batch in batches)
    flat = [label for batch in batches for label in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert next(Batches(encoded, batch_size=4, seed=2))["labels"].tolist() != batches[0]


def test_a_later_start_goes_on_as_if_all_before_had_been_drawn(encoded):
    whole = Batches(encoded, batch_size=3, seed=1)
    expected = [next(whole)["labels"].tolist() for _ in range(9)]
    later = Batches(encoded, batch_size=3, seed=1, start=5)
    assert [next(later)["labels"].tolist() for _ in range(4)] == expected[5:]


def test_an_evaluation_sees_every_example_once_the_short_ones_first(encoded):
    shuffled = Encoded(encoded.ids[::-1], encoded.labels[::-1].copy(), pad=99)
    batches = list(shuffled.in_batches_of(4))
    assert [batch["inputs"].shape for batch in batches] == [(4, 4), (4, 8), (2, 10)]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == list(range(10))


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"seed": -1}, {"start": -1}])
def test_sizes_and_starts_below_their_range_are_refused(encoded, changes):
    with pytest.raises(BadValue, match="out of range"):
        Batches(encoded, **{"batch_size": 2, **changes})
