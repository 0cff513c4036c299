"""Studies: gradients compared, checked, and judged before they are trusted. The list of names.

Here live measurements and their results; no solver, no adjoint and no equation may.
"""

from ._check import Check as Check
from ._check import GradientCheck as GradientCheck
from ._check_gradient import check_gradient as check_gradient
from ._compare import compare as compare
from ._comparison import Comparison as Comparison
from ._instability import Instability as Instability
from ._instability import instability as instability
from ._odenet import data_problems as data_problems
from ._odenet import digits as digits
from ._odenet import heartbeats as heartbeats
from ._sweep import Sweep as Sweep
from ._sweep import sweep as sweep
