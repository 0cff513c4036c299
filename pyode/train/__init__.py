"""Training: configurations, experiments, the loop, run folders and checkpoints. The list of names.

No solver and no adjoint may live here; models are in `pyode.nn`, readers in `pyode.data`.
"""

from ._checkpoint import load_checkpoint as load_checkpoint
from ._checkpoint import save_checkpoint as save_checkpoint
from ._config import Config as Config
from ._experiment import Experiment as Experiment
from ._experiments import EXPERIMENTS as EXPERIMENTS
from ._loop import evaluate as evaluate
from ._loop import resume as resume
from ._loop import train as train
from ._run import Run as Run
from ._run import numbers as numbers
from ._split import Split as Split
