"""First solve: integrate, look at it, differentiate it."""

import torch

import pyode

torch.manual_seed(0)


class LotkaVolterra(torch.nn.Module):
    """Prey and predator: x' = p1 x - p2 x y, y' = -p3 y + p4 x y."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        prey, predator = y[0], y[1]
        p = self.p
        return torch.stack(
            [p[0] * prey - p[1] * prey * predator, -p[2] * predator + p[3] * prey * predator]
        )


f = LotkaVolterra()
y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
ts = torch.linspace(0, 10, 101, dtype=torch.float64)

sol = pyode.solve(f, y0, ts, solver=pyode.Tsit5(rtol=1e-8, atol=1e-10))
loss = (sol.ys[-1] - 1).square().sum() / 2
loss.backward()

print(sol)
print(f"y(3.14159) = {sol(3.14159).tolist()}")
print(f"dL/dy0 = {y0.grad.tolist()}")
print(f"dL/dp  = {f.p.grad.tolist()}")
print(sol.to_pandas().tail(3).to_string(index=False))
