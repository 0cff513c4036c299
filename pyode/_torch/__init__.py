"""The torch engine: one loop, tableaus, dense output, checkpoints, one file an adjoint.

Nothing here checks a user's arguments (`_api` did) or knows of another engine.
"""
