"""How a network fails: response curves over many random orders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from planaria.campaign.files import check_folder
from planaria.cli import inputs, widths
from planaria.cli.results import verdicts
from planaria.cli.running import announce, begin, files, folder_for, pace
from planaria.cli.screen import Screen, Stopped
from planaria.core.network import Network
from planaria.repair.retrain import Retrain
from planaria.study.respond import Response
from planaria.study.verdicts import judge
from planaria.version import version


@dataclass(frozen=True)
class Options:
    """Options of `planaria respond` beyond the subject; None means the default."""

    doses: str | None
    damage: inputs.DamageChoice
    draws: int | None
    seeds: int
    expect: float | None
    widths: str | None = None
    networks: int | None = None
    planned: bool = False


def run(subject: inputs.Subject, options: Options, screen: Screen) -> int:
    """Do it; returns the exit code."""
    inputs.finite("--expect-score", options.expect)
    prepared = inputs.prepare(subject)
    sketch = inputs.tapped(Network.of(prepared.model, prepared.task.train.examples), subject.taps)
    damage = options.damage.on(sketch)
    usual = "0:1:11" if subject.quick else "0:1:21"
    text = (usual if options.widths is None else widths.DOSES) if options.doses is None else options.doses
    doses = inputs.curve_doses(damage, inputs.numbers("--doses", text, float))
    draws = options.damage.draws(options.draws, subject.quick)
    sizes = widths.chosen(options.widths, options.networks, prepared, damage, len(doses), draws)
    seeds = tuple(range(subject.seed, subject.seed + options.seeds))
    identity = {
        **prepared.identity(),
        "command": "respond",
        "version": version(),
        "doses": list(doses),
        "seeds": list(seeds),
        "draws": draws,
        **options.damage.identity(),
        **({} if sizes is None else sizes.identity()),
        **({"planned": True} if options.planned else {}),
    }
    folder = screen.out or folder_for(subject, identity)
    check_folder(folder, identity, fresh=screen.fresh)
    if screen.dry_run:
        return _announce(prepared, sketch, len(doses) * draws * len(seeds), sizes, len(doses) * draws, folder, screen)
    try:
        with begin(prepared, identity, folder, screen, options.expect) as current:
            damage = options.damage.on(current.net)
            plan = current.plan(damage, doses, seeds[0]) if options.planned else None
            response = current.response(damage, doses, draws, seeds, screen, plan)
            scaling = None
            if sizes is not None:
                scaling = widths.finite_size_test(current, sizes, options.damage, doses, draws, screen)
            document = {
                **current.document,
                "settings": {
                    "doses": list(doses),
                    "draws": draws,
                    "seeds": list(seeds),
                    "damage": repr(damage),
                    "unit": damage.site.dose.unit,
                    **({} if plan is None else {"inputs_per_order": plan.inputs}),
                    **({} if sizes is None else sizes.identity()),
                },
                "rows": _rows(response, draws, seeds),
                "response": response.to_dict(),
                "scaling": None if scaling is None else scaling.to_dict(),
                "verdicts": [verdict.to_dict() for verdict in judge(response=response, scaling=scaling)],
                "files": files(folder),
            }
            current.finish(document)
    except Stopped as stop:
        return screen.stopped(stop, folder)
    if screen.as_json:
        screen.document(document)
    else:
        _show(document, response, screen)
        if scaling is not None:
            widths.show(scaling, screen)
        verdicts(document, screen)
        screen.places(document["files"])
    return 0


def _rows(response: Response, draws: int, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"seed": seeds[place // draws], "draw": place % draws, "dose": dose, "score": score}
        for place, line in enumerate(response.scores)
        for dose, score in zip(response.doses, line, strict=True)
    ]


def _announce(
    prepared: inputs.Prepared,
    net: Network,
    evaluations: int,
    sizes: widths.Widths | None,
    of_one: int,
    folder: Path,
    screen: Screen,
) -> int:
    """What a dry run says."""
    task, recipe = prepared.task, prepared.recipe
    batch = 32 if recipe is None else recipe.batch
    update, _, test = pace(net, task, Retrain(task, batch=batch))
    training = prepared.updates
    seconds = training * update + evaluations * test
    if sizes is not None:
        more, longer = widths.seconds(sizes, prepared, of_one)
        training, seconds = training + more, seconds + longer
        evaluations += of_one * len(sizes.widths) * sizes.networks
    document = {
        "command": "respond",
        "evaluations": evaluations,
        "updates": training,
        "forward_passes": training + evaluations,
        "backward_passes": training,
        "seconds": round(seconds, 1),
        "folder": str(folder),
    }
    return announce(document, net, screen)


def _show(document: dict[str, Any], response: Response, screen: Screen) -> None:
    """Curve and summary in the terminal."""
    grid = Table(title=f"{document['network']['name']} on {document['task']['name']}: {document['task']['score']}")
    for name in (f"dose ({response.unit})", "mean", "95 % interval", "least", "most"):
        grid.add_column(name, justify="right")
    for at, dose in enumerate(response.doses):
        line, mean = [row[at] for row in response.scores], response.mean[at]
        span = f"{mean.low:.4f} .. {mean.high:.4f}" if mean.has_interval else "-"
        grid.add_row(f"{dose:g}", f"{mean.best:.4f}", span, f"{min(line):.4f}", f"{max(line):.4f}")
    screen.table(grid)
    screen.results.print(
        f"half-dose {response.half_dose:.3f}; 10-point loss at {response.dose_of_loss():.3f}; "
        f"critical dose: {response.critical.verdict}; area {response.area:.4f}; chance {response.chance:.3f}; "
        f"{len(response.scores)} orders",
        markup=False,
    )
