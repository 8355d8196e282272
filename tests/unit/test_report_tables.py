from __future__ import annotations

import json
import re
from typing import Any

import pytest

from documents import Page, portrait, rescue_document, verdicts
from planaria.report.drawing import style
from planaria.report.page import render
from planaria.report.tables import cards, cell, comparison, table, trimmed
from planaria.report.tables import portrait as portrait_of

NAMES = (
    *("none", "refit", "sequential", "synthetic", "distil", "refit+distil", "retrain", "refit+retrain", "extra"),
    *("scratch", "dropout", "faults", "regrow", "regrow-new", "gradmax", "recycle", "ripen", "iterative"),
)


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return rescue_document(doses=(0.5,), seeds=2, repairs=("refit", "retrain"))


@pytest.fixture(scope="module")
def page(small: dict[str, Any]) -> Page:
    return Page(render(small | {"verdicts": verdicts(4), "portrait": portrait()}))


def words_of(page: Page) -> str:
    return " ".join(page.words.split())


# ------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_stand_between_the_headline_and_the_figures(page: Page) -> None:
    order = [page.words.index(word) for word in ("Question", "Verdicts", "Is there a transition?", "What damage does")]
    assert order == sorted(order)


def test_a_verdict_shows_question_answer_words_and_numbers_with_intervals(page: Page) -> None:
    words = words_of(page)
    assert "Is iterative repair better than batch repair? no, counted in total" in words
    assert "difference in updates, in total 250 [110, 390]" in words
    assert "exponent, larger widths" in words
    assert "0.0031" in words
    assert "one seed has no interval" in words


@pytest.mark.parametrize("number", [1, 8])
def test_as_many_cards_as_verdicts(small: dict[str, Any], number: int) -> None:
    assert render(small | {"verdicts": verdicts(number)}).count('<section class="card">') == number


def test_a_verdict_with_many_numbers_folds_the_rest_away(small: dict[str, Any]) -> None:
    many = [{"question": "q", "answer": "a", "words": "w", "numbers": {f"number {i}": i for i in range(11)}}]
    text = render(small | {"verdicts": many})
    assert "3 more numbers" in text
    assert "number 10" in text
    assert "<details>" not in render(small | {"verdicts": verdicts(4)})


def test_numbers_of_a_verdict_keep_their_kind() -> None:
    numbers = {"yes": True, "text": "a < b", "gone": None, "count": 1200, "tiny": 3.2e-7, "open": {"low": 3, "best": 7}}
    (card,) = cards({"verdicts": [{"numbers": numbers}]})
    told = {entry["name"]: (entry["value"], entry["interval"]) for entry in card["numbers"]}
    assert told == {
        "yes": ("yes", ""),
        "text": ("a < b", ""),
        "gone": ("–", ""),  # noqa: RUF001
        "count": ("1,200", ""),
        "tiny": ("3.2e-07", ""),
        "open": ("7", "[3, ∞)"),
    }


def test_what_closed_forms_make_good_is_shown_layer_by_layer(small: dict[str, Any]) -> None:
    fit = {"repair": "refit", "dose": 0.5, "seed": 0, "reader": "deep.weight", "dead": 7, "living": 9, "rows": 1024}
    fits = [{**fit, "ridge": 1e-4, "before": 0.41, "after": 0.032, "held_out": True}]
    words = words_of(Page(render(small | {"fits": fits})))
    assert "layer by layer" in words and "deep.weight" in words and "41.0%" in words and "3.2%" in words
    assert "layer by layer" not in words_of(Page(render(small)))


# ------------------------------------------------------------------------------------------------- portrait


def test_the_portrait_has_a_column_per_stage_and_a_row_per_number(page: Page) -> None:
    words = words_of(page)
    assert "What else changed Dose 50%, repair refit+retrain, seed 0." in words
    assert "before damage after damage after rescue" in words
    assert "NLL 0.061 [0.051, 0.071] 1.240 [1.230, 1.250] 0.112 [0.102, 0.122]" in words
    assert "ECE 0.008 0.153 0.021" in words
    assert "parameters after compaction 269,322 121,194 121,194" in words
    assert "bytes after compaction 1.08 MB 485 kB 485 kB" in words
    assert "gaussian noise, strength 0.3 86.3% [85.5, 87.1]" in words
    assert "PGD, ε = 0.0314 (1,000 examples) 30.5% [28.5, 32.5]" in words
    assert "its outputs are the network's outputs" in words


def test_an_attack_that_was_not_made_says_why(small: dict[str, Any]) -> None:
    text = render(small | {"portrait": portrait(attacked=False)})
    line = re.search(r"<tr><td>not tested</td> <td colspan=\"3\">([^<]+)</td> </tr>", text)
    assert line is not None
    assert line[1] == "foolbox is not installed: pip install &#39;planaria[attacks]&#39;"


def test_calibration_that_was_not_measured_says_why_and_has_no_rows() -> None:
    found = portrait()
    for stage in found["stages"]:
        stage |= {"nll": None, "ece": None, "calibration_untested": "the task is no classification"}
    shown = portrait_of({"portrait": found})
    assert shown is not None
    labels = [line[0]["value"] for block in shown["table"]["blocks"] for line in block["lines"]]
    assert "NLL" not in labels
    assert "calibration not tested" in labels


def test_values_of_a_portrait_may_be_plain_numbers() -> None:
    found = portrait_of({"portrait": {"stages": [{"stage": "before damage", "score": 0.5, "nll": 1, "ece": 0.25}]}})
    assert found is not None
    lines = found["table"]["blocks"][0]["lines"]
    assert [[entry["value"] for entry in line] for line in lines] == [
        ["score", "0.500"],
        ["NLL", "1.000"],
        ["ECE", "0.250"],
    ]


def test_without_the_new_keys_a_page_has_none_of_the_new_parts(small: dict[str, Any]) -> None:
    for missing in ({}, {"portrait": None, "verdicts": None, "scaling": None}, {"portrait": {}, "verdicts": []}):
        text = render(small | missing)
        assert 'class="card"' not in text
        assert "What else changed" not in text
        assert "How width changes it" not in text
        assert "<h2>Verdicts</h2>" not in text


# --------------------------------------------------------------------------------------------------- tables


def test_a_column_without_a_word_is_left_out_with_its_share_of_the_heads() -> None:
    lines = [[cell("a"), cell("1"), cell("–"), cell("2")]]  # noqa: RUF001
    found = trimmed(table(["name", "x", "y", "z"], [("", lines)], groups=[("", 1), ("both", 2), ("last", 1)]))
    assert found["heads"] == ["name", "x", "z"]
    assert found["groups"] == [("", 1), ("both", 1), ("last", 1)]
    assert [entry["value"] for entry in found["blocks"][0]["lines"][0]] == ["a", "1", "2"]


def test_the_comparison_marks_the_cheapest_repair(small: dict[str, Any]) -> None:
    (block,) = comparison(small)["blocks"]
    assert [line["repair"] for line in block["lines"] if line["mark"] == "cheapest"] != []


def test_every_repair_has_a_look_of_its_own() -> None:
    looks = [style(name) for name in NAMES]
    assert len({look.colour for look in looks}) == len(NAMES)
    assert len({(look.symbol, look.dash) for look in looks}) == len(NAMES)
    assert style("of a later version") == style("of a later version")
    assert style("dropout:0.3").colour == style("dropout").colour
    assert style("dropout:0.3") != style("dropout")


@pytest.mark.parametrize("paper", [(255, 255, 255), (18, 23, 29)], ids=["light", "dark"])
def test_every_colour_stands_on_light_and_on_dark_paper(paper: tuple[int, int, int]) -> None:
    def luminance(parts: tuple[int, ...]) -> float:
        linear = [p / 255 / 12.92 if p <= 10 else ((p / 255 + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name in NAMES:
        colour = tuple(int(style(name).colour[i : i + 2], 16) for i in (1, 3, 5))
        one, other = sorted((luminance(colour), luminance(paper)))
        assert (other + 0.05) / (one + 0.05) > 2.1, name


def test_text_in_verdicts_and_portrait_is_shown_and_never_run(small: dict[str, Any]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}PLOTLY-BUNDLE"
    found = portrait()
    found |= {"repair": evil, "adversarial_untested": evil}
    for stage in found["stages"]:
        stage |= {"stage": evil, "calibration_untested": evil}
        stage["compact"]["kept"] = [{"layer": evil, "reason": evil}]
        stage["corruption"][0]["name"] = stage["adversarial"][0]["attack"] = evil
    verdict = {"question": evil, "answer": evil, "words": evil, "numbers": {evil: evil}}
    page = Page(render(small | {"verdicts": [verdict], "portrait": found}))
    assert page.words.count(evil) > 12
    assert len(page.scripts) == 2
    assert page.loads == ["data:,"]


def test_documents_are_not_changed_by_their_page(small: dict[str, Any]) -> None:
    document = small | {"verdicts": verdicts(3), "portrait": portrait()}
    before = json.dumps(document)
    render(document)
    assert json.dumps(document) == before
