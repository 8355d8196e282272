"""The metric against an independent implementation, curvlinops, where that is installed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights
from planaria.geometry.metric import Metric
from planaria.geometry.outputs import Fisher, LossHessian

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is an independent twin, not a dependency")

pytestmark = pytest.mark.filterwarnings("ignore")

N = 12


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 15), nn.Tanh(), nn.Linear(15, 4))
        cnn = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 4),
        )
    return {"mlp": (mlp.eval(), (20,)), "cnn": (cnn.eval(), (2, 8, 8))}


def compared(ours: Weights, theirs: list[Tensor], scale: float = 1.0) -> float:
    a, b = (torch.cat([t.reshape(-1) for t in some]) for some in (list(ours.values()), theirs))
    return float((a - scale * b).norm() / a.norm())


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_products_agree_with_another_implementation(name: str) -> None:
    model, shape = models()[name]
    rng = stream(0, name)
    x, y = torch.randn(N, *shape, generator=rng), torch.randint(4, (N,), generator=rng)
    net, params = Network.of(model), list(model.parameters())
    v = {n: torch.randn(w.shape, generator=rng) for n, w in net.weights.items()}
    along = [one.clone() for one in v.values()]

    def of(operator: type, loss: nn.Module, targets: Tensor) -> list[Tensor]:
        made = operator(model, loss, params, [(x, targets)], check_deterministic=False)
        product: list[Tensor] = made @ along
        return product

    squares = of(curvlinops.GGNLinearOperator, nn.MSELoss(reduction="sum"), torch.zeros(N, 4))
    assert compared(Metric(net, x) @ v, squares, 1 / (2 * N)) < 1e-5
    shares = of(curvlinops.GGNLinearOperator, nn.CrossEntropyLoss(), y)
    assert compared(Metric(net, x, Fisher()) @ v, shares) < 1e-5
    hessian = of(curvlinops.HessianLinearOperator, nn.CrossEntropyLoss(), y)
    assert compared(Metric(net, x, LossHessian(y)) @ v, hessian) < 1e-5
