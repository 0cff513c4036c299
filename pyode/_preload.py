"""PYODE_JULIA=1 starts Julia here, before torch is imported: the order some systems need."""

import os

if os.environ.get("PYODE_JULIA") == "1":
    from ._julia import runtime

    runtime.start()
