"""Training from scratch, when the user brings no weights."""

from __future__ import annotations

import pytest

from cases import TASKS, model_for
from planaria.core.errors import InputError
from planaria.study.train import Recipe, train


def test_a_recipe_trains_a_network_to_the_task() -> None:
    task = TASKS["digits"]()
    net, record = train(model_for("digits"), task, Recipe(6, 0.1, 32))
    assert task.score(net) > 0.8
    assert record["updates"] == 6 * len(task.train) // 32
    assert record["epochs"] == 6
    assert "SGD" in record["optimiser"]


def test_the_seed_decides_the_order_of_the_examples() -> None:
    task = TASKS["clouds"]()
    hashes = [train(model_for("clouds"), task, Recipe(1, batch=16), seed=seed)[0].sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_rate_falls_to_zero_at_the_end() -> None:
    task = TASKS["clouds"]()
    one = train(model_for("clouds"), task, Recipe(2, batch=16))[0]
    assert one.sha256 != train(model_for("clouds"), task, Recipe(4, batch=16))[0].sha256


@pytest.mark.parametrize("name", TASKS)
def test_there_is_a_suited_recipe_for_every_task(name: str) -> None:
    task = TASKS[name]()
    whole, quick = (Recipe.suited(task, model_for(name), quick=q) for q in (False, True))
    assert 1 <= quick.epochs < whole.epochs
    assert whole.rate == (0.1 if task.classes else 0.01)


def test_a_batch_larger_than_the_data_makes_at_least_one_update() -> None:
    task = TASKS["clouds"]()
    net, record = train(model_for("clouds"), task, Recipe(1, batch=4096))
    assert record["updates"] == 1
    assert net.sha256


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"epochs": 1, "rate": -1.0}, {"epochs": 1, "batch": 0}])
def test_a_recipe_off_its_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        train(model_for("clouds"), TASKS["clouds"](), Recipe(**settings))  # type: ignore[arg-type]
