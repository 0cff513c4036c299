"""pyode: neural ODEs and their gradients, by any adjoint method, on one of three engines.

Here is the list of names; what they do lives in private modules, and nothing is defined here.
"""

from . import _preload as _preload  # first: it may start Julia before torch
from . import julia as julia
from ._adams import AdamsBashforth as AdamsBashforth
from ._adams import AdamsBashforthMoulton as AdamsBashforthMoulton
from ._adjoints import Adjoint as Adjoint
from ._adjoints import Auto as Auto
from ._adjoints import Backsolve as Backsolve
from ._adjoints import Discrete as Discrete
from ._adjoints import Forward as Forward
from ._adjoints import Gauss as Gauss
from ._adjoints import Interpolating as Interpolating
from ._adjoints import Quadrature as Quadrature
from ._api import plan as plan
from ._api import solve as solve
from ._engine import Engine as Engine
from ._engine import Plan as Plan
from ._errors import BackwardError as BackwardError
from ._errors import CompileWarning as CompileWarning
from ._errors import DataError as DataError
from ._errors import DriftWarning as DriftWarning
from ._errors import GradientUnavailable as GradientUnavailable
from ._errors import InputError as InputError
from ._errors import InputTypeError as InputTypeError
from ._errors import MaxStepsError as MaxStepsError
from ._errors import MissingGradientError as MissingGradientError
from ._errors import NonFiniteError as NonFiniteError
from ._errors import Outcome as Outcome
from ._errors import PyodeError as PyodeError
from ._errors import RandomWarning as RandomWarning
from ._errors import ReverseUnstableError as ReverseUnstableError
from ._errors import RHSError as RHSError
from ._errors import SolveError as SolveError
from ._errors import SolveTimeout as SolveTimeout
from ._errors import StepUnderflowError as StepUnderflowError
from ._errors import ToleranceWarning as ToleranceWarning
from ._implicit import SDIRK2 as SDIRK2
from ._implicit import TRBDF2 as TRBDF2
from ._implicit import GaussLegendre4 as GaussLegendre4
from ._implicit import GaussLegendre6 as GaussLegendre6
from ._implicit import ImplicitEuler as ImplicitEuler
from ._implicit import ImplicitMidpoint as ImplicitMidpoint
from ._implicit import Kvaerno5 as Kvaerno5
from ._implicit import RadauIIA3 as RadauIIA3
from ._implicit import RadauIIA5 as RadauIIA5
from ._implicit import Trapezoid as Trapezoid
from ._julia.engine import Julia as Julia
from ._julia.errors import ForkedProcessError as ForkedProcessError
from ._julia.errors import JuliaEngineError as JuliaEngineError
from ._julia.errors import JuliaUnavailable as JuliaUnavailable
from ._julia.solvers import FBDF as FBDF
from ._julia.solvers import QNDF as QNDF
from ._julia.solvers import KenCarp4 as KenCarp4
from ._julia.solvers import Rodas5P as Rodas5P
from ._julia.solvers import Rosenbrock23 as Rosenbrock23
from ._julia.solvers import Vern7 as Vern7
from ._julia.solvers import Vern9 as Vern9
from ._odeint import odeint as odeint
from ._odeint import odeint_adjoint as odeint_adjoint
from ._odeint import odeint_event as odeint_event
from ._odeint_dense import odeint_dense as odeint_dense
from ._scipy.engine import SciPy as SciPy
from ._scipy.solvers import BDF as BDF
from ._scipy.solvers import LSODA as LSODA
from ._scipy.solvers import Radau as Radau
from ._solution import Solution as Solution
from ._solvers import PID as PID
from ._solvers import RK4 as RK4
from ._solvers import RK38 as RK38
from ._solvers import Bosh3 as Bosh3
from ._solvers import Dopri5 as Dopri5
from ._solvers import Dopri8 as Dopri8
from ._solvers import Euler as Euler
from ._solvers import Fehlberg2 as Fehlberg2
from ._solvers import Heun as Heun
from ._solvers import Heun3 as Heun3
from ._solvers import HeunEuler as HeunEuler
from ._solvers import Midpoint as Midpoint
from ._solvers import Solver as Solver
from ._solvers import Tsit5 as Tsit5
from ._stats import Stats as Stats
from ._torch.engine import Torch as Torch

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Studies and submodules are imported when they are first asked for: they bring pandas."""
    import importlib

    if name in ("nn", "data", "problems", "study", "train"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("compare", "sweep", "instability", "check_gradient"):
        return getattr(importlib.import_module(".study", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
