"""Identify a spiral's vector field from pieces of its trajectory (Chen et al. 2018).

    python examples/spiral.py --data cubic --adjoint backsolve --out figures

Prints one row an epoch and draws: trajectory against truth, phase portrait with the learned field,
loss and evaluations by epoch.
"""

import argparse
import pathlib

import matplotlib.pyplot as plt
import torch

import pyode
from pyode import train as pt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="linear", choices=["linear", "cubic"])
parser.add_argument("--adjoint", default="discrete")
parser.add_argument("--fast", action="store_true", help="a few seconds")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
args = parser.parse_args()

changes = {"epochs": 2, "limit": 100} if args.fast else {}
config = pt.EXPERIMENTS["spiral"].config(data=args.data, adjoint=args.adjoint, **changes)
run = pt.train(config, args.out, lambda row: print("  ".join(pt.numbers(row)[:4])))
trained = pt.load(run.folder)
ts, (y0, truth) = trained.split.extra["ts"], trained.split.test
with torch.no_grad():
    found = trained.model(y0, ts)[0]
truth = truth[0]
print(f"mean squared error over the whole trajectory: {float((found - truth).square().mean()):.2e}")

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for i, name in enumerate("xy"):
    axes[0].plot(ts, truth[:, i], label=f"{name}, truth")
    axes[0].plot(ts, found[:, i], "--", label=f"{name}, learned")
axes[0].set(xlabel="t")
axes[0].legend(frameon=False, fontsize=8)
side = torch.linspace(-2.2, 2.2, 20, dtype=found.dtype)
grid = torch.cartesian_prod(side, side)
(block,) = (m for m in trained.model.modules() if isinstance(m, pyode.nn.NeuralODE))
with torch.no_grad():
    field = block.field(torch.zeros((), dtype=found.dtype), grid)
field = field / field.norm(dim=1, keepdim=True).clamp(min=1e-12)
axes[1].quiver(*grid.T, *field.T, color="0.7", scale=30)
axes[1].plot(*truth.T, label="truth")
axes[1].plot(*found.T, "--", label="learned")
axes[1].set(xlabel="x", ylabel="y", aspect="equal")
frame = run.to_pandas()
axes[2].semilogy(frame["epoch"], frame["train_loss"], "o-", ms=3, label="training loss")
axes[2].semilogy(frame["epoch"], frame["test_loss"], "o-", ms=3, label="whole trajectory")
axes[2].set(xlabel="epoch", title=f"nfe {frame['nfe_forward'].iloc[-1]:.0f} a solve")
axes[2].legend(frameon=False, fontsize=8)
figure.savefig(args.out / "spiral.png", dpi=120)
