"""The experiments by name."""

from __future__ import annotations

from ._experiment import Experiment
from ._pictures import PICTURES
from ._series import SERIES
from ._toys import TOYS

EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (*TOYS, *SERIES, *PICTURES)}
