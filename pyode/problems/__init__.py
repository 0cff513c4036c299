"""Initial value problems with known answers, by name. Here is the list of names.

Here live equations, starts and reference values; no solver and no adjoint may.
"""

from ._brusselator import brusselator as brusselator
from ._celestial import arenstorf as arenstorf
from ._celestial import pleiades as pleiades
from ._chemistry import hires as hires
from ._chemistry import oregonator as oregonator
from ._chemistry import robertson as robertson
from ._detest import detest as detest
from ._linear import decay as decay
from ._linear import linear_spiral as linear_spiral
from ._linear import rotation as rotation
from ._linear import running_cost as running_cost
from ._linear import stiff_linear as stiff_linear
from ._neural import neural as neural
from ._oscillators import cubic_spiral as cubic_spiral
from ._oscillators import lorenz as lorenz
from ._oscillators import lotka_volterra as lotka_volterra
from ._oscillators import van_der_pol as van_der_pol
from ._pollution import pollution as pollution
from ._problem import Problem as Problem
from ._problem import Reference as Reference
from ._registry import get as get
from ._registry import names as names
from ._scalar import logistic as logistic
from ._scalar import nonautonomous as nonautonomous
from ._scalar import sine as sine
