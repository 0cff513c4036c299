"""Training: configurations, experiments, the loop, run folders and checkpoints. The list of names.

No solver and no adjoint may live here; models are in `pyode.nn`, readers in `pyode.data`.
"""

from ._checkpoint import load_checkpoint as load_checkpoint
from ._checkpoint import save_checkpoint as save_checkpoint
from ._config import Config as Config
from ._evaluate import DISTURBANCES as DISTURBANCES
from ._evaluate import Trained as Trained
from ._evaluate import keep as keep
from ._evaluate import load as load
from ._evaluate import reevaluate as reevaluate
from ._evaluate import robustness as robustness
from ._experiment import Experiment as Experiment
from ._experiments import EXPERIMENTS as EXPERIMENTS
from ._grid import describe as describe
from ._grid import grid as grid
from ._grid import over_seeds as over_seeds
from ._grid import product as product
from ._loop import evaluate as evaluate
from ._loop import resume as resume
from ._loop import train as train
from ._memory import memory as memory
from ._report import compact as compact
from ._report import report as report
from ._run import Run as Run
from ._run import numbers as numbers
from ._split import Split as Split
from ._studies import STUDIES as STUDIES
from ._tune import tune as tune
