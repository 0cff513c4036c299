"""The command line: `pyode compare`, `doctor`, `problems`, `train`, `resume`. Here is `main`.

Commands translate arguments and print results; nothing is computed here.
"""

from ._main import main as main
