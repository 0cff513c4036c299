"""Neural ODE blocks, fields and the models of the literature, as ordinary torch modules.

Here is the list of names; no data and no training loop may live here.
"""

from ._cnf import CNF as CNF
from ._ecg import ecg_linear_odenet as ecg_linear_odenet
from ._ecg import ecg_linear_resnet as ecg_linear_resnet
from ._ecg import ecg_odenet as ecg_odenet
from ._ecg import ecg_resnet as ecg_resnet
from ._fields import MLP as MLP
from ._fields import ConcatConv1d as ConcatConv1d
from ._fields import ConcatConv2d as ConcatConv2d
from ._fields import ConvField1d as ConvField1d
from ._fields import ConvField2d as ConvField2d
from ._images import complex_odenet as complex_odenet
from ._images import complex_resnet as complex_resnet
from ._images import mnist_odenet as mnist_odenet
from ._images import simple_odenet as simple_odenet
from ._images import simple_resnet as simple_resnet
from ._latent import LatentODE as LatentODE
from ._neural_ode import NeuralODE as NeuralODE
from ._regularizers import JacobianFrobenius as JacobianFrobenius
from ._regularizers import Kinetic as Kinetic
from ._resnet import ResNet18 as ResNet18
from ._theta import Galerkin as Galerkin
from ._theta import Piecewise as Piecewise
