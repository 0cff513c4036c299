"""Data sets on disk as arrays. Here is the list of names.

Here live readers of public formats; no model and no training may.
"""

from ._idx import find_idx as find_idx
from ._idx import read_idx as read_idx
