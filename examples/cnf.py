"""A continuous normalising flow of a two-dimensional density; its likelihood against the true one.

python examples/cnf.py --data moons
"""

import argparse
import pathlib

import matplotlib.pyplot as plt
import torch

from pyode import train as pt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="moons")
parser.add_argument("--model", default="exact", choices=["exact", "hutchinson"])
parser.add_argument("--adjoint", default="discrete")
parser.add_argument("--fast", action="store_true", help="a few seconds")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
args = parser.parse_args()

changes = {"epochs": 1, "limit": 1000} if args.fast else {"epochs": 20, "limit": 20_000}
config = pt.EXPERIMENTS["cnf"].config(
    model=args.model, data=args.data, adjoint=args.adjoint, **changes
)
run = pt.train(config, args.out)
trained, row = pt.load(run.folder), run.rows()[-1]
print(f"log-likelihood: {-row['test_loss']:.3f} nats, ", end="")
print(f"{row['test_below_truth']:.3f} below that of the true density")
print(f"there and back: within {row['test_round_trip']:.1e}")

figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
x = trained.split.test[0]
axes[0].plot(*x.T, ".", ms=2)
axes[0].set_title("data")
samples = trained.model.sample(500 if args.fast else 2000, torch.Generator().manual_seed(0))
axes[1].plot(*samples.T, ".", ms=2)
axes[1].set_title("samples of the flow")
low, high = x.min(0).values - 0.5, x.max(0).values + 0.5
side = [torch.linspace(float(a), float(b), 60) for a, b in zip(low, high, strict=True)]
with torch.no_grad():
    density = trained.model(torch.cartesian_prod(*side)).exp().reshape(60, 60)
axes[2].pcolormesh(*(s.numpy() for s in side), density.T.numpy(), shading="nearest")
axes[2].set_title("density of the flow")
for ax in axes[:2]:
    ax.set(xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
figure.savefig(args.out / "cnf.png", dpi=120)
