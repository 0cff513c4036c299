"""Digits by an ODENet, and the same weights under other solvers.

python examples/image_classifier.py --data-dir data      # MNIST's IDX files in data/mnist
python examples/image_classifier.py --fast               # scikit-learn's digits
"""

import argparse
import pathlib

import matplotlib.pyplot as plt
import torch

from pyode import train as pt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data-dir", type=pathlib.Path)
parser.add_argument("--adjoint", default="discrete")
parser.add_argument("--fast", action="store_true", help="a few seconds")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
args = parser.parse_args()

changes = {"epochs": 1, "limit": 64} if args.fast else {"epochs": 4, "lr": 3e-3, "step_size": 1.0}
if args.data_dir is not None:
    changes |= {"data": "mnist", "data_dir": str(args.data_dir), "limit": 5000}
config = pt.EXPERIMENTS["mnist"].config(adjoint=args.adjoint, **changes)
run = pt.train(config, args.out, lambda row: print("  ".join(pt.numbers(row)[:4])))
trained = pt.load(run.folder, limit=64 if args.fast else 1000)
print(f"data: {trained.split.source}")
table = pt.reevaluate(trained, rtols=(1e-1, 1e-3))
print(table[["solver", "rtol", "step_size", "test_nfe", "test_accuracy"]].to_string(index=False))

x, y = (part[:12] for part in trained.split.test)
with torch.no_grad():
    guessed = trained.model(x).argmax(1)
figure, axes = plt.subplots(2, 6, figsize=(7, 2.8), layout="constrained")
for ax, image, truth, guess in zip(axes.flat, x, y, guessed, strict=True):
    ax.imshow(image[0].numpy(), cmap="gray")
    ax.set_title(f"{int(guess)} (is {int(truth)})", fontsize=8)
    ax.axis("off")
figure.savefig(args.out / "image_classifier.png", dpi=120)
