"""Damage any PyTorch network, measure exactly how it fails, and rescue it.

This module is only a door: it names the public names and opens each on first use, so that `import planaria`
neither imports torch nor takes time. Nothing inside the package imports it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planaria.core import errors as errors
    from planaria.core.anatomy import Anatomy as Anatomy
    from planaria.core.anatomy import Unit as Unit
    from planaria.core.motion import Cost as Cost
    from planaria.core.motion import Moment as Moment
    from planaria.core.motion import after as after
    from planaria.core.motion import chain as chain
    from planaria.core.motion import examples as examples
    from planaria.core.motion import multiply_adds as multiply_adds
    from planaria.core.motion import repeat as repeat
    from planaria.core.motion import seconds as seconds
    from planaria.core.motion import settle as settle
    from planaria.core.motion import steps as steps
    from planaria.core.motion import updates as updates
    from planaria.core.network import Network as Network
    from planaria.core.streams import stream as stream
    from planaria.core.tap import tap as tap
    from planaria.damage.damage import Damage as Damage
    from planaria.damage.damage import parse_damage as parse_damage
    from planaria.damage.faults import Noise as Noise
    from planaria.damage.faults import Silence as Silence
    from planaria.damage.faults import StuckAt as StuckAt
    from planaria.damage.sites import Dose as Dose
    from planaria.damage.sites import RandomEntries as RandomEntries
    from planaria.damage.sites import RandomUnits as RandomUnits
    from planaria.damage.sites import RankedUnits as RankedUnits
    from planaria.damage.sites import rank as rank
    from planaria.geometry.align import ByActivations as ByActivations
    from planaria.geometry.align import ByWeights as ByWeights
    from planaria.geometry.align import align as align
    from planaria.geometry.bend import Bezier as Bezier
    from planaria.geometry.connect import connect as connect
    from planaria.geometry.embed import Embedding as Embedding
    from planaria.geometry.embed import embed as embed
    from planaria.geometry.geodesic import Geodesic as Geodesic
    from planaria.geometry.greedy import Greedy as Greedy
    from planaria.geometry.metric import Metric as Metric
    from planaria.geometry.outputs import Euclidean as Euclidean
    from planaria.geometry.outputs import Fisher as Fisher
    from planaria.geometry.outputs import LossHessian as LossHessian
    from planaria.geometry.path import Path as Path
    from planaria.geometry.spectrum import Spectrum as Spectrum
    from planaria.geometry.straight import Straight as Straight
    from planaria.geometry.symmetry import permute as permute
    from planaria.geometry.symmetry import symmetries as symmetries
    from planaria.measure.datasets import task as task
    from planaria.measure.scaling import finite_size as finite_size
    from planaria.measure.scores import Score as Score
    from planaria.measure.sentences import SentenceEncoder as SentenceEncoder
    from planaria.measure.sentences import Similarity as Similarity
    from planaria.measure.statistics import Estimate as Estimate
    from planaria.measure.task import Data as Data
    from planaria.measure.task import Task as Task
    from planaria.measure.unlabelled import Unlabelled as Unlabelled
    from planaria.measure.weights import load_weights as load_weights
    from planaria.repair.against import B3 as B3
    from planaria.repair.against import SAM as SAM
    from planaria.repair.against import DamageRepair as DamageRepair
    from planaria.repair.against import Dropout as Dropout
    from planaria.repair.against import Plain as Plain
    from planaria.repair.against import TargetedDropout as TargetedDropout
    from planaria.repair.against import UnitFaults as UnitFaults
    from planaria.repair.distil import Distil as Distil
    from planaria.repair.dream import dream as dream
    from planaria.repair.harden import Harden as Harden
    from planaria.repair.incoming import Drawn as Drawn
    from planaria.repair.incoming import GradMax as GradMax
    from planaria.repair.recover import Recorded as Recorded
    from planaria.repair.recover import Recover as Recover
    from planaria.repair.refit import Refit as Refit
    from planaria.repair.refit import Teacher as Teacher
    from planaria.repair.refit import refit as refit
    from planaria.repair.regrow import Recycle as Recycle
    from planaria.repair.regrow import Regrow as Regrow
    from planaria.repair.regrow import Ripen as Ripen
    from planaria.repair.restart import Restart as Restart
    from planaria.repair.retrain import SGD as SGD
    from planaria.repair.retrain import Adam as Adam
    from planaria.repair.retrain import AdamW as AdamW
    from planaria.repair.retrain import Retrain as Retrain
    from planaria.repair.sidecar import Sidecar as Sidecar
    from planaria.repair.sidecar import doubt as doubt
    from planaria.repair.together import train_together as train_together
    from planaria.study.groupings import ByCluster as ByCluster
    from planaria.study.groupings import ByLayer as ByLayer
    from planaria.study.groupings import BySelectivity as BySelectivity
    from planaria.study.harden import Contest as Contest
    from planaria.study.harden import harden as harden
    from planaria.study.invariance import invariance as invariance
    from planaria.study.lesions import lesion_study as lesion_study
    from planaria.study.plane import Plane as Plane
    from planaria.study.portrait import portrait as portrait
    from planaria.study.regime import Attrition as Attrition
    from planaria.study.regime import Turnover as Turnover
    from planaria.study.rescue import Criterion as Criterion
    from planaria.study.rescue import compare as compare
    from planaria.study.rescue import rescue as rescue
    from planaria.study.resilience import resilience as resilience
    from planaria.study.resilient import Resilience as Resilience
    from planaria.study.respond import respond as respond
    from planaria.study.schedule import Beforehand as Beforehand
    from planaria.study.schedule import Schedule as Schedule
    from planaria.study.schedule import leave as leave
    from planaria.study.selectivity import selectivity as selectivity
    from planaria.study.surface import surface as surface
    from planaria.study.surface_map import Surface as Surface
    from planaria.study.survive import survive as survive
    from planaria.study.survive import turnover_study as turnover_study
    from planaria.study.train import Recipe as Recipe
    from planaria.study.train import train as train
    from planaria.study.verdicts import judge as judge
    from planaria.study.vulnerability import vulnerability as vulnerability
    from planaria.study.walk import Trajectory as Trajectory
    from planaria.study.walk import walk as walk
    from planaria.sweep.ablate import Effects as Effects
    from planaria.sweep.ablate import ablate as ablate
    from planaria.sweep.between import scores_between as scores_between
    from planaria.sweep.compact import compact as compact
    from planaria.sweep.edges import Becomes as Becomes
    from planaria.sweep.edges import Flipped as Flipped
    from planaria.sweep.lesions import EachUnit as EachUnit
    from planaria.sweep.lesions import EachWeight as EachWeight
    from planaria.sweep.lesions import Nested as Nested
    from planaria.sweep.precision import precise as precise
    from planaria.sweep.screen import screen as screen

    __version__: str

# Public name -> module that defines it.
_DOOR = {
    "Network": "core.network",
    "Moment": "core.motion",
    "Cost": "core.motion",
    "chain": "core.motion",
    "repeat": "core.motion",
    "settle": "core.motion",
    "after": "core.motion",
    "steps": "core.motion",
    "updates": "core.motion",
    "examples": "core.motion",
    "multiply_adds": "core.motion",
    "seconds": "core.motion",
    "stream": "core.streams",
    "Anatomy": "core.anatomy",
    "Unit": "core.anatomy",
    "tap": "core.tap",
    "Task": "measure.task",
    "Data": "measure.task",
    "task": "measure.datasets",
    "Score": "measure.scores",
    "SentenceEncoder": "measure.sentences",
    "Similarity": "measure.sentences",
    "Unlabelled": "measure.unlabelled",
    "finite_size": "measure.scaling",
    "Estimate": "measure.statistics",
    "Damage": "damage.damage",
    "Dose": "damage.sites",
    "Silence": "damage.faults",
    "StuckAt": "damage.faults",
    "Noise": "damage.faults",
    "RandomUnits": "damage.sites",
    "RankedUnits": "damage.sites",
    "rank": "damage.sites",
    "parse_damage": "damage.damage",
    "RandomEntries": "damage.sites",
    "Retrain": "repair.retrain",
    "SGD": "repair.retrain",
    "Adam": "repair.retrain",
    "AdamW": "repair.retrain",
    "Regrow": "repair.regrow",
    "Restart": "repair.restart",
    "Drawn": "repair.incoming",
    "GradMax": "repair.incoming",
    "Recycle": "repair.regrow",
    "Ripen": "repair.regrow",
    "Distil": "repair.distil",
    "Harden": "repair.harden",
    "Plain": "repair.against",
    "UnitFaults": "repair.against",
    "Dropout": "repair.against",
    "TargetedDropout": "repair.against",
    "SAM": "repair.against",
    "B3": "repair.against",
    "DamageRepair": "repair.against",
    "Recorded": "repair.recover",
    "Recover": "repair.recover",
    "Refit": "repair.refit",
    "refit": "repair.refit",
    "Teacher": "repair.refit",
    "Sidecar": "repair.sidecar",
    "doubt": "repair.sidecar",
    "dream": "repair.dream",
    "train_together": "repair.together",
    "respond": "study.respond",
    "survive": "study.survive",
    "Attrition": "study.regime",
    "Turnover": "study.regime",
    "turnover_study": "study.survive",
    "walk": "study.walk",
    "Trajectory": "study.walk",
    "invariance": "study.invariance",
    "train": "study.train",
    "Recipe": "study.train",
    "load_weights": "measure.weights",
    "portrait": "study.portrait",
    "compact": "sweep.compact",
    "ablate": "sweep.ablate",
    "Effects": "sweep.ablate",
    "EachUnit": "sweep.lesions",
    "EachWeight": "sweep.lesions",
    "Nested": "sweep.lesions",
    "screen": "sweep.screen",
    "precise": "sweep.precision",
    "scores_between": "sweep.between",
    "Becomes": "sweep.edges",
    "Flipped": "sweep.edges",
    "vulnerability": "study.vulnerability",
    "lesion_study": "study.lesions",
    "resilience": "study.resilience",
    "Resilience": "study.resilient",
    "align": "geometry.align",
    "ByWeights": "geometry.align",
    "ByActivations": "geometry.align",
    "symmetries": "geometry.symmetry",
    "permute": "geometry.symmetry",
    "connect": "geometry.connect",
    "Path": "geometry.path",
    "Straight": "geometry.straight",
    "Bezier": "geometry.bend",
    "Geodesic": "geometry.geodesic",
    "Greedy": "geometry.greedy",
    "embed": "geometry.embed",
    "Embedding": "geometry.embed",
    "Metric": "geometry.metric",
    "Euclidean": "geometry.outputs",
    "Fisher": "geometry.outputs",
    "LossHessian": "geometry.outputs",
    "Spectrum": "geometry.spectrum",
    "surface": "study.surface",
    "Surface": "study.surface_map",
    "Plane": "study.plane",
    "ByLayer": "study.groupings",
    "ByCluster": "study.groupings",
    "BySelectivity": "study.groupings",
    "selectivity": "study.selectivity",
    "harden": "study.harden",
    "Contest": "study.harden",
    "rescue": "study.rescue",
    "compare": "study.rescue",
    "leave": "study.schedule",
    "Schedule": "study.schedule",
    "Beforehand": "study.schedule",
    "judge": "study.verdicts",
    "Criterion": "study.rescue",
}

# Public name -> module that it is.
_MODULES = {"errors": "core.errors"}

__all__ = [*_DOOR, *_MODULES]  # noqa: PLE0604 - the keys are the names


def __getattr__(name: str) -> object:
    """Open the door for one public name and keep it open."""
    value: object
    if name in _DOOR:
        value = getattr(import_module(f"planaria.{_DOOR[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"planaria.{_MODULES[name]}")
    elif name == "__version__":
        value = import_module("planaria.version").version()
    else:
        raise AttributeError(f"module 'planaria' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, opened or not."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
