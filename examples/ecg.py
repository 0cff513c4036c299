"""Heartbeats: an ODENet and its ResNet twin, then other solvers and disturbed inputs.

    python examples/ecg.py --data-dir data            # the MIT-BIH records in data/mitdb
    python examples/ecg.py --fast                     # made-up beats, a few seconds

Without --data-dir the beats are made up (`pyode data make mitdb-csv`), and it is said so.
"""

import argparse
import pathlib

import matplotlib.pyplot as plt

import pyode
from pyode import train as pt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data-dir", type=pathlib.Path, help="holds mitdb/, or the CSV pair")
parser.add_argument("--adjoint", default="discrete")
parser.add_argument("--split", default="patient", choices=["patient", "beat"])
parser.add_argument("--fast", action="store_true", help="a few seconds")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
args = parser.parse_args()

changes = {"data_dir": str(args.data_dir), "split": args.split}
if args.data_dir is None:
    print("the beats are made up: pass --data-dir for real ones")
    folder = args.out / "made-up-beats"
    if not folder.is_dir():
        pyode.data.synthesize("mitdb-csv", folder, count=100 if args.fast else 1000)
    changes = {"data_dir": str(folder), "data": "made-up", "epochs": 2 if args.fast else 5}

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for model in ("resnet", "odenet"):
    config = pt.EXPERIMENTS["ecg"].config(model=model, adjoint=args.adjoint, **changes)
    run = pt.train(config, args.out)
    trained = pt.load(run.folder)
    count = sum(p.numel() for p in trained.model.parameters())
    row = run.rows()[-1]
    print(f"{model}: {count} parameters, test accuracy {row['test_accuracy']:.3f}, ", end="")
    print(f"macro F1 {row['test_f1']:.3f}, {row['seconds']:.1f} s an epoch")
    disturbed = pt.robustness(trained, sizes=(0.0, 0.05, 0.1))
    for kind, part in disturbed.groupby("disturbance"):
        axes[2].plot(part["size"], part["accuracy"], "o-", ms=3, label=f"{model}, {kind}")
    if model == "odenet":
        table = pt.reevaluate(trained)
        columns = ["solver", "rtol", "test_nfe", "test_accuracy", "outcome"]
        print(table[columns].to_string(index=False))
        axes[1].plot(table["test_nfe"], table["test_accuracy"], "o")

x, y = trained.split.train
for label, name in enumerate(pyode.data.CLASSES):
    of_class = x[y == label]
    if len(of_class):
        axes[0].plot(of_class[0, 0] + label, label=name)
axes[0].set(xlabel="sample at 125 Hz", title="one beat of each class")
axes[0].legend(frameon=False, fontsize=8)
axes[1].set(xlabel="evaluations of a solve", ylabel="test accuracy", title="other solvers")
axes[2].set(xlabel="size of the disturbance", ylabel="test accuracy")
axes[2].legend(frameon=False, fontsize=8)
figure.savefig(args.out / "ecg.png", dpi=120)
