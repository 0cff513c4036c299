"""POLLU: the chemistry of an air pollution model, as a reaction table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._build import parameter, tabulated, times, vector, verdicts
from ._losses import end_weighted
from ._problem import Problem
from ._registry import register

SPECIES = 20
# rate, reactants, products; species count from 1, as published
REACTIONS = (
    (0.35, (1,), (2, 3)),
    (26.6, (2, 4), (1,)),
    (12300.0, (5, 2), (1, 6)),
    (0.00086, (7,), (5, 5, 8)),
    (0.00082, (7,), (8,)),
    (15000.0, (7, 6), (5, 8)),
    (0.00013, (9,), (10, 5, 8)),
    (24000.0, (9, 6), (11,)),
    (16500.0, (11, 2), (1, 10, 12)),
    (9000.0, (11, 1), (13,)),
    (0.022, (13,), (11, 1)),
    (12000.0, (10, 2), (14, 1)),
    (1.88, (14,), (7, 5)),
    (16300.0, (1, 6), (15,)),
    (4.8e6, (3,), (4,)),
    (0.00035, (4,), (16,)),
    (0.0175, (4,), (3,)),
    (1e8, (16,), (6, 6)),
    (0.444e12, (16,), (3,)),
    (1240.0, (17, 6), (18, 5)),
    (2.1, (19,), (2,)),
    (5.78, (19,), (1, 3)),
    (0.0474, (1, 4), (19,)),
    (1780.0, (19, 1), (20,)),
    (3.12, (20,), (19, 1)),
)
START = {2: 0.2, 4: 0.04, 7: 0.1, 8: 0.3, 9: 0.01, 17: 0.007}


class Pollution(nn.Module):
    """Mass action: reaction i runs at k_i times the product of its reactants."""

    first: Tensor
    second: Tensor
    change: Tensor

    def __init__(self):
        super().__init__()
        self.k = parameter([rate for rate, _, _ in REACTIONS])
        reactants = [(*left, 0)[:2] for _, left, _ in REACTIONS]
        change = torch.zeros(len(REACTIONS), SPECIES, dtype=torch.float64)
        for row, (_, left, right) in zip(change, REACTIONS, strict=True):
            for species in left:
                row[species - 1] -= 1
            for species in right:
                row[species - 1] += 1
        # index 0 is a species of concentration 1, the partner of a lone reactant
        self.register_buffer("first", torch.tensor([a for a, _ in reactants]))
        self.register_buffer("second", torch.tensor([b for _, b in reactants]))
        self.register_buffer("change", change)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y = torch.cat([torch.ones_like(y[..., :1]), y], -1)
        rates = self.k * y[..., self.first] * y[..., self.second]
        return rates @ self.change


@register("pollution")
def pollution(T: float = 60.0, points: int = 2) -> Problem:
    """POLLU: 20 species, 25 reactions, L = Σ y_i/i at T. The answer is known for T = 60.

    Args:
        T: end time.
        points: number of output times.
    """
    f, ts = Pollution(), times(T, points)
    y0 = vector(*(START.get(i, 0.0) for i in range(1, SPECIES + 1)))
    return Problem(
        name="pollution",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_weighted,
        stiff=True,
        reference=tabulated("pollution", {"T": float(T)}, f, y0, ts, end_weighted),
        verdicts=verdicts("fails"),
        atol=1e-12,
        description="air pollution chemistry with rates fifteen decades apart",
        source="Verwer 1994, doi 10.1137/0915076; Rackauckas et al. 2018, arXiv 1812.01892",
    )
