"""Tasks of texts: every form of table, every goal, our own tokenizers and those of Hugging Face folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planaria.core.errors import EnvironmentProblem, InputError, PlanariaError, UnsafeError
from planaria.core.network import Network
from planaria.measure.datasets import load, task
from planaria.measure.task import Task
from planaria.measure.text import Wording, tokenised
from planaria.measure.tokens import hub_tokenizer, own_tokenizer

WORDS = [("a good film", "good"), ("a bad film!", "bad"), ("bad", "bad"), ("Good acting", "good")]


def save_csv(path: Path, rows: int = 40, header: str = "text,label") -> Path:
    lines = [f'"{text}, take {i}",{label}' for i in range(rows) for text, label in [WORDS[i * 7 % 4]]]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def save_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parts(loaded: Task, split: str = "train") -> dict[str, Tensor]:
    data = loaded.splits[split]
    assert data.layout is not None
    found = data.layout.unpack(data.inputs)
    assert isinstance(found, dict)
    return found


# ------------------------------------------------------------------------------------- our own tokenizers


def test_words_are_numbered_in_sorted_order_after_four_special_tokens() -> None:
    words = own_tokenizer("words", ["The cat.", "a dog"])
    assert words.record["vocabulary"] == [".", "a", "cat", "dog", "the"]
    assert [row.ids for row in words.encode(["A CAT", "the emu"], None, 9)] == [[5, 6], [8, 1]]
    assert (words.size, words.pad, words.masked) == (9, 0, 3)


def test_pairs_are_cut_at_the_longer_text_and_say_which_text_a_token_is_from() -> None:
    chars = own_tokenizer("chars", ["abcdef"])
    row = chars.encode(["abcdef"], ["ab"], 6)[0]
    assert (row.ids, row.types, row.cut) == ([4, 5, 6, 2, 4, 5], [0, 0, 0, 0, 1, 1], True)
    assert not chars.encode(["abc"], ["ab"], 6)[0].cut


def test_characters_of_words_keep_their_words_and_the_blanks_between() -> None:
    chars = own_tokenizer("chars", [["ab", "c"]])
    assert chars.encode([["ab", "c"]], None, 9)[0].words == [0, 0, None, 1]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5), st.integers(1, 9), st.sampled_from(["chars", "words"]))
@settings(deadline=None, max_examples=60)
def test_no_text_gives_more_tokens_than_asked_and_none_outside_the_vocabulary(
    texts: list[str], longest: int, name: str
) -> None:
    made = own_tokenizer(name, texts)
    for row in [*made.encode(texts, None, longest), *made.encode(texts, texts[::-1], longest)]:
        assert len(row.ids) <= longest
        assert all(0 <= token < made.size for token in row.ids)


# ------------------------------------------------------------------------------------------ classification


def test_a_table_becomes_tokens_with_what_hides_the_filling(tmp_path: Path) -> None:
    loaded = task(f"text:{save_csv(tmp_path / 'a.csv')}?tokenizer=words")
    inputs = parts(loaded)
    assert list(inputs) == ["attention_mask", "input_ids"]
    assert torch.equal(inputs["attention_mask"] == 0, inputs["input_ids"] == 0)
    assert [len(data) for data in loaded.splits.values()] == [29, 3, 8]
    assert (loaded.classes, loaded.scorer.name, loaded.record()["loss"]) == (2, "accuracy", "cross_entropy")
    record = loaded.preprocessing
    assert record["classes"] == ["bad", "good"]
    assert record["test"] == "the last 8 of 40 rows in a fixed mixed order"
    assert record["cut_to_max_length"] == {"train": 0, "test": 0}
    assert isinstance(record["vocabulary"], list) and "film" in record["vocabulary"]
    json.dumps(loaded.record(), allow_nan=False)


def test_the_same_text_gives_the_same_task_and_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    text = f"text:{save_csv(tmp_path / 'a.csv')}?tokenizer=chars&goal=masked"
    before = torch.get_rng_state()
    first, second = task(text), task(text)
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert eval(repr(first), {"task": task}) == first


def test_labels_may_be_whole_numbers_words_or_numbers(tmp_path: Path) -> None:
    def of(labels: list[Any]) -> Task:
        rows = [{"text": f"row {i}", "label": labels[i % len(labels)]} for i in range(30)]
        return task(f"text:{save_lines(tmp_path / 'a.jsonl', rows)}?tokenizer=words")

    assert of([0, 2, 1]).classes == 3
    assert of(["2", "0", "1"]).train.targets.unique().tolist() == [0, 1, 2]
    assert of([True, False]).classes == 2
    assert of(["x", "10", "9"]).preprocessing["classes"] == ["10", "9", "x"]
    numbers = of([0.5, 1, -2])
    assert (numbers.classes, numbers.scorer.name, numbers.train.targets.dtype) == (None, "r2", torch.float32)


def test_folders_give_the_splits_they_are_named_after(tmp_path: Path) -> None:
    save_csv(tmp_path / "train.csv", 30)
    save_lines(tmp_path / "test.jsonl", [{"text": "good unseen words", "label": "good"}] * 5)
    (tmp_path / "dev.tsv").write_text('text\tlabel\na "quoted, film\tbad\n')
    loaded = task(f"text:{tmp_path}?tokenizer=words")
    assert [len(data) for data in loaded.splits.values()] == [30, 1, 5]
    assert "unseen" not in str(loaded.preprocessing["vocabulary"])  # only what training texts hold
    assert parts(loaded, "test")["input_ids"][0, 1:3].tolist() == [1, 1]


def test_keys_cut_select_and_leave_the_token_numbers_alone(tmp_path: Path) -> None:
    path = save_csv(tmp_path / "a.csv")
    loaded = task(f"text:{path}?tokenizer=words&max_length=4&held_out=0.5&train=10&test=5&plain=1")
    assert (loaded.train.layout, loaded.train.inputs.dtype, loaded.train.inputs.shape) == (None, torch.int64, (10, 4))
    assert loaded.preprocessing["cut_to_max_length"] == {"train": 14, "test": 16}
    assert len(loaded.test) == 5


def test_rows_sorted_by_class_are_mixed_where_the_file_is_the_whole_split(tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = [{"text": f"row {i}", "label": i // 20} for i in range(40)]
        save_lines(tmp_path / f"{name}.jsonl", rows)
    assert task(f"text:{tmp_path}?tokenizer=words").validation.targets.unique().tolist() == [0, 1]


# --------------------------------------------------------------------------------- pairs and other goals


def pairs(path: Path, label: bool = True) -> Path:
    rows = [{"one": f"cat {i}", "two": f"a dog {i} {i}", **({"label": i / 4} if label else {})} for i in range(30)]
    return save_lines(path, rows)


def test_pairs_go_into_one_row_or_for_similarity_side_by_side(tmp_path: Path) -> None:
    text = f"text:{pairs(tmp_path / 'a.jsonl')}?tokenizer=words&text=one&pair=two"
    joined = task(text)
    assert joined.scorer.name == "spearman"
    assert parts(joined)["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1, 1, 1]
    apart = parts(task(f"{text}&goal=similarity"))
    assert {name: tuple(part.shape) for name, part in apart.items()} == {
        "input_ids": (22, 2, 4),
        "attention_mask": (22, 2, 4),
    }
    assert apart["attention_mask"].sum(2).unique(dim=0).tolist() == [[2, 4]]


def test_language_models_are_asked_for_the_next_token_and_nothing_after_the_last(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc\n\na\nabcd\nbca\ncab\nab\n" * 3)
    loaded = task(f"text:{tmp_path / 'a.txt'}?tokenizer=chars&goal=lm")
    assert (loaded.scorer.name, loaded.record()["loss"], loaded.classes) == ("perplexity", "cross_entropy", 8)
    left_out: Any = loaded.preprocessing["left_out"]
    assert sum(left_out.values()) == 3
    for part in loaded.splits:
        ids, shown = parts(loaded, part)["input_ids"], parts(loaded, part)["attention_mask"]
        said = loaded.splits[part].targets
        assert torch.equal(said[:, :-1][shown[:, 1:] == 1], ids[:, 1:][shown[:, 1:] == 1])
        assert torch.equal((said != -100).sum(1), shown.sum(1) - 1)


def test_masked_language_models_are_asked_for_hidden_tokens_one_per_row_at_least(tmp_path: Path) -> None:
    loaded = task(f"text:{save_csv(tmp_path / 'a.csv', 200)}?tokenizer=chars&goal=masked")
    ids, shown, said = parts(loaded)["input_ids"], parts(loaded)["attention_mask"], loaded.train.targets
    assert torch.equal(said != -100, ids == 3)
    assert bool((said != -100).any(1).all())
    assert 0.1 < float((said != -100).sum() / shown.sum()) < 0.2
    assert not bool(((said != -100) & (shown == 0)).any())


def tagged(path: Path, tags: list[Any] | None = None) -> Path:
    words = ["Ada", "wrote", "it", "in", "London"]
    return save_lines(path, [{"tokens": words, "tags": tags or ["PER", "O", "O", "O", "LOC"]}] * 20)


def test_tags_go_to_the_first_token_of_each_word(tmp_path: Path) -> None:
    loaded = task(f"text:{tagged(tmp_path / 'a.jsonl')}?tokenizer=chars&goal=tags")
    assert (loaded.scorer.name, loaded.classes, loaded.preprocessing["classes"]) == ("f1", 3, ["LOC", "O", "PER"])
    row = loaded.train.targets[0].tolist()
    assert row[:6] == [2, -100, -100, -100, 1, -100]
    assert len(row) == len("Ada wrote it in London")
    cut = task(f"text:{tmp_path / 'a.jsonl'}?tokenizer=chars&goal=tags&max_length=5")
    assert cut.train.targets[0].tolist() == row[:5]
    numbers = task(f"text:{tagged(tmp_path / 'b.jsonl', [2, -100, 0, 0, 1])}?tokenizer=words&goal=tags")
    assert numbers.train.targets[0].tolist() == [2, -100, 0, 0, 1]


def test_a_network_of_tokens_is_scored_on_every_goal(tmp_path: Path) -> None:
    class Tagger(nn.Module):
        def __init__(self, size: int, classes: int, pooled: bool) -> None:
            nn.Module.__init__(self)
            self.embed, self.out, self.pooled = nn.Embedding(size, 4), nn.Linear(4, classes), pooled

        def forward(self, input_ids: Tensor) -> Tensor:
            hidden = self.embed(input_ids)
            out: Tensor = self.out(hidden.mean(1) if self.pooled else hidden)
            return out

    tables = f"text:{save_csv(tmp_path / 'a.csv')}?tokenizer=words", f"text:{tagged(tmp_path / 'b.jsonl')}?"
    for text in (
        tables[0],
        f"{tables[0]}&goal=lm",
        f"{tables[0]}&goal=masked",
        f"{tables[1]}tokenizer=words&goal=tags",
    ):
        loaded = task(text)
        size = 1 + int(parts(loaded)["input_ids"].max()) + 20
        model = Tagger(size, loaded.output_size, loaded.train.targets.ndim == 1)
        net = Network.of(model, loaded.train.examples)
        assert net.port.left_out == ("attention_mask",)
        assert loaded.scorer.bounds is not None
        assert loaded.scorer.bounds[0] <= loaded.score(net) <= loaded.scorer.bounds[1]
        assert bool(loaded.loss(loaded.outputs(net, loaded.test), loaded.test.targets).isfinite())


# ------------------------------------------------------------------------------------------- wrong tables


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("a.csv", "", "", "at least one row, got none"),
        ("a.csv", "text,label\n", "", "at least one row, got none"),
        ("a.csv", "text,label\nfine,a\nbroken\n", "", "a.csv, line 3: expected 2 cells, as in the header, got 1"),
        ("a.csv", 'text,label\n"fine,a\n', "", "line 2: expected a line of a table"),
        ("a.csv", "text,text\na,b\n", "", "'text' twice"),
        ("a.csv", "texts,label\na,b\nc,d\n", "", "a column 'text', got none of that name. Did you mean texts"),
        ("a.csv", "text,label\na,b\nc,d\n", "&label=labels", "a column 'labels', got none of that name. Did you mean"),
        ("a.csv", "text,label\na,b\nc,d\n", "&pair=txt", "a column 'txt', got none of that name. Did you mean text"),
        ("a.csv", "text,label\na,\nc,d\n", "", "line 2, label: expected a label"),
        ("a.csv", "text,label\na,1\nc,nan\nd,2.5\ne,1.5", "", "a finite number, got 'nan'"),
        ("a.csv", "text,label\na,1\nc,-1\nd,-1\ne,-1", "", "targets: expected labels from 0"),
        ("a.csv", "text,label\na,1\nc,2\nd,1", "&classes=2", "labels from 0 to 1, got 2"),
        ("a.csv", "text,label\na,x\nc,y\nd,z", "&goal=number", "a finite number, got"),
        ("a.csv", "text,label\na,x\n", "", "at least two rows, to hold one out"),
        ("a.csv", "text,label\n ,x\n ,y\n ,x", "", "a text with at least one token"),
        ("a.csv", "text\na\nb\nc", "&goal=class", "a column 'label', got none of that name"),
        ("a.csv", "text\na\nb\nc", "&goal=lm", "at least one text of two tokens or more"),
        ("a.csv", "text,label\na,x\nb,y\n", "&goal=lm&label=label", "no labels for goal=lm"),
        ("a.csv", "text,label\na,x\nb,y\n", "&goal=similarity", "pair=COLUMN beside goal=similarity"),
        ("a.csv", "text,label\na,x\nb,y\n", "&goal=tags&pair=label", "one text per row for goal=tags"),
        ("a.csv", "text,label\na,x\nb,y\n", "&pair=label&plain=1", "one text per row with plain=1"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": 5', "", "a.jsonl, line 2: expected one JSON object per line"),
        ("a.jsonl", '["a"]\n', "", "one JSON object per line, got list"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 2}\n', "", "line 2: expected a column 'text'"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "", "line 2: expected a column 'label'"),
        ("a.jsonl", '{"text": 5, "label": 1}\n{"text": "b", "label": 0}\n', "", "text: expected a text, got int '5'"),
        ("a.jsonl", '{"text": "a", "label": null}\n' * 3, "", "got nothing. Give every row one"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n' * 3, "", "label: expected a label"),
        ("a.jsonl", "[" * 100_000, "", "line 1: expected one JSON object per line"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["X"]}\n' * 3, "&goal=tags", "2 tags, one per word, got 1"),
        ("a.jsonl", '{"tokens": [], "tags": []}\n' * 3, "&goal=tags", "a list of words"),
        ("a.jsonl", '{"tokens": [1], "tags": [1]}\n' * 3, "&goal=tags", "a list of words"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [[]]}\n' * 3, "&goal=tags", "a label that the training rows have"),
        ("a.parquet", "x", "", "a file .csv, .tsv, .jsonl, .txt"),
    ],
)
def test_tables_that_do_not_fit_are_explained_with_the_line(
    tmp_path: Path, name: str, content: str, keys: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        task(f"text:{tmp_path / name}?tokenizer=words{keys}")
    assert message in str(caught.value)


def test_files_that_are_no_text_and_folders_without_train_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"text in UTF-8, got byte 0xe9 at position 14"):
        task(f"text:{tmp_path / 'a.csv'}?tokenizer=words")
    for text, message in (
        (f"text:{tmp_path}?tokenizer=words", "a file train.csv, train.tsv, train.jsonl, train.txt, got none"),
        (f"text:{tmp_path / 'no.csv'}?tokenizer=words", "a file, got nothing"),
        (f"text:{tmp_path / 'a.csv'}", "tokenizer=chars, tokenizer=words or tokenizer=FOLDER, got none"),
        (f"text:{tmp_path / 'a.csv'}?tokenizer=words&goal=translate", "class, number, similarity, tags, lm, masked"),
        (f"text:{tmp_path / 'a.csv'}?tokenizer=words&held_out=1", "a number above 0 and below 1"),
        (f"text:{tmp_path / 'a.csv'}?tokenizer=words&size=4", "size with folder:DIR or torchvision:NAME or hf:NAME"),
        ("digits?tokenizer=words", "tokenizer with text:FILE or hf:NAME@REVISION, got with 'digits'"),
    ):
        with pytest.raises(InputError) as caught:
            task(text)
        assert message in str(caught.value)
    save_csv(tmp_path / "train.csv")
    save_csv(tmp_path / "train.tsv")
    with pytest.raises(InputError, match=r"one file with the train rows, got train\.csv, train\.tsv"):
        task(f"text:{tmp_path}?tokenizer=words")
    (tmp_path / "train.tsv").unlink()
    (tmp_path / "test.csv").write_text("text,label\na,god\n")
    with pytest.raises(InputError, match=r"a label that the training rows have, got 'god'\. Did you mean good"):
        task(f"text:{tmp_path}?tokenizer=words")
    with pytest.raises(InputError, match="scale: expected inputs that are one tensor"):
        task(f"text:{save_csv(tmp_path / 'b.csv')}?tokenizer=words&scale=raw")


@given(st.binary(max_size=60), st.sampled_from([".csv", ".tsv", ".jsonl", ".txt"]), st.sampled_from(["", "&goal=lm"]))
@settings(deadline=None, max_examples=80)
def test_any_bytes_give_a_task_or_an_explained_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str, keys: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(b"text,label\n" + content if ending == ".csv" else content)
    try:
        load(f"text:{path}?tokenizer=chars{keys}")
    except PlanariaError as problem:
        assert "expected" in str(problem)


# ---------------------------------------------------------------------------------- Hugging Face tokenizers


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder with a small word-piece tokenizer, as `save_pretrained` writes it."""
    pytest.importorskip("transformers", reason="needs the extra hf")
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra hf")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*marks, "film", "good", "bad", "a", "acting", "take", "lon", "##don", ",", "in"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path / "hub"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **names, "mask_token": "[MASK]"}))
    return folder


def test_hub_tokenizers_give_what_they_give_in_their_library(hub: Path, tmp_path: Path) -> None:
    loaded = task(f"text:{save_csv(tmp_path / 'a.csv')}?tokenizer={hub}&max_length=6")
    inputs = parts(loaded)
    assert {"input_ids", "attention_mask"} <= set(inputs)
    assert bool((inputs["input_ids"][:, 0] == 2).all())
    assert {len(row) for row in inputs["input_ids"].tolist()} == {6}
    last = inputs["input_ids"].gather(1, inputs["attention_mask"].sum(1, keepdim=True) - 1)
    assert bool((last == 3).all())  # cut rows end as all others do
    cut: Any = loaded.preprocessing["cut_to_max_length"]
    assert cut["train"] > 0
    assert (loaded.preprocessing["vocabulary_size"], loaded.preprocessing["tokenizer"]) == (15, "TokenizersBackend")
    assert len(str(loaded.preprocessing["tokenizer_sha256"])) == 64


def test_hub_tokenizers_serve_tags_pairs_and_hidden_tokens(hub: Path, tmp_path: Path) -> None:
    tags = task(f"text:{tagged(tmp_path / 'a.jsonl')}?tokenizer={hub}&goal=tags")
    assert tags.train.targets[0].tolist() == [-100, 2, 1, 1, 1, 0, -100, -100]
    loaded = task(f"text:{pairs(tmp_path / 'b.jsonl')}?tokenizer={hub}&text=one&pair=two")
    assert parts(loaded)["input_ids"][0].tolist().count(3) == 2
    apart = parts(task(f"text:{tmp_path / 'b.jsonl'}?tokenizer={hub}&text=one&pair=two&goal=similarity"))
    assert apart["input_ids"].shape[1:] == (2, 6)
    hidden = task(f"text:{save_csv(tmp_path / 'c.csv')}?tokenizer={hub}&goal=masked")
    ids, said = parts(hidden)["input_ids"], hidden.train.targets
    assert torch.equal(ids == 4, said != -100)
    assert not bool(torch.isin(said, torch.tensor([0, 2, 3, 4])).any())


def test_folders_without_a_tokenizer_are_refused_with_the_files_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"the files of a tokenizer, got none of tokenizer\.json, vocab\.txt"):
        hub_tokenizer(tmp_path)
    with pytest.raises(InputError, match="chars or words, or a folder with a tokenizer, got nothing"):
        task(f"text:{save_csv(tmp_path / 'a.csv')}?tokenizer={tmp_path / 'no'}")


def test_damaged_tokenizers_and_tokenizers_of_code_are_refused(hub: Path, tmp_path: Path) -> None:
    settings = json.loads((hub / "tokenizer_config.json").read_text())
    code = {**settings, "tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (hub / "mine.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    (hub / "tokenizer_config.json").write_text(json.dumps(code))
    with pytest.raises(UnsafeError, match="one that is code in the folder") as caught:
        hub_tokenizer(hub)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "sprung").exists()
    (hub / "tokenizer_config.json").write_text(json.dumps(settings))
    (hub / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="a tokenizer that transformers can load"):
        hub_tokenizer(hub)


def test_without_the_library_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'planaria\[hf\]'"):
        hub_tokenizer(tmp_path)


def test_rows_without_labels_wait_for_a_network(tmp_path: Path) -> None:
    raw = tokenised({"train": [(f"row {i}", {"text": f"word {i}"}) for i in range(20)]}, Wording("words"), "mine")
    assert raw.unlabelled
    assert load(f"text:{pairs(tmp_path / 'a.jsonl', label=False)}?tokenizer=words&text=one&pair=two&goal=similarity")
    (tmp_path / "a.txt").write_text("one line\n" * 20)
    with pytest.raises(InputError, match="the network whose answers are the targets, got data without labels"):
        task(f"text:{tmp_path / 'a.txt'}?tokenizer=words")
