"""Data sets as arrays: readers of public formats, and seeded toys. Here is the list of names.

No model and no training may live here.
"""

from ._fetch import fetch as fetch
from ._fetch import verify as verify
from ._idx import data_folder as data_folder
from ._idx import find_idx as find_idx
from ._idx import read_idx as read_idx
from ._images import CIFAR_CLASSES as CIFAR_CLASSES
from ._images import Images as Images
from ._images import read_images as read_images
from ._images import read_jpegs as read_jpegs
from ._log_density import log_density as log_density
from ._mitbih import CLASSES as CLASSES
from ._mitbih import Beats as Beats
from ._mitbih import read_csv as read_csv
from ._mitbih import read_records as read_records
from ._mitbih import split as split
from ._synthetic import synthesize as synthesize
from ._toy import bidirectional_spirals as bidirectional_spirals
from ._toy import density as density
from ._toy import pieces as pieces
from ._toy import reflection as reflection
from ._toy import regression as regression
from ._toy import spheres as spheres
from ._toy import spiral as spiral
