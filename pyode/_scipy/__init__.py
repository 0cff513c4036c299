"""SciPy's solvers behind the same call: its stepping objects, driven a step at a time."""
