"""A latent ODE on spirals both ways, seen at irregular times with noise (Chen et al. 2018, §5.1).

    python examples/latent_ode.py

Prints the error beyond the observations beside that of a recurrent network, and draws both.
"""

import argparse
import pathlib

import matplotlib.pyplot as plt
import torch

from pyode import train as pt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--adjoint", default="discrete")
parser.add_argument("--fast", action="store_true", help="a few seconds")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
args = parser.parse_args()

changes = {"epochs": 2, "limit": 50} if args.fast else {"epochs": 60, "limit": 500}
figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
for k, model in enumerate(("odenet", "rnn")):
    config = pt.EXPERIMENTS["latent"].config(model=model, adjoint=args.adjoint, **changes)
    run = pt.train(config, args.out)
    trained = pt.load(run.folder)
    row = run.rows()[-1]
    print(
        f"{model}: error beyond the observations {row['test_extrapolation_mse']:.4f} "
        f"(clockwise {row['test_clockwise_mse']:.4f}, other {row['test_anticlockwise_mse']:.4f})"
    )
    (x, later), extra = trained.split.test, trained.split.extra
    with torch.no_grad():
        ahead = trained.model.ahead(extra["ts"], x.transpose(0, 1), extra["later"])
    for i, direction in enumerate(("anticlockwise", "clockwise")):
        ax = axes[2 * k + i]
        ax.plot(*x[i].T, "o", ms=3, color="0.6", label="seen")
        ax.plot(*later[i].T, label="truth beyond")
        ax.plot(*ahead[:, i].T, "--", label=f"{model} beyond")
        ax.set(title=f"{model}, {direction}", aspect="equal")
        ax.legend(frameon=False, fontsize=7)
figure.savefig(args.out / "latent_ode.png", dpi=120)
