"""A torch field as loops for Julia: traced, lowered to arrays, fused, encoded as numbers.

Nothing here starts Julia or knows a solver: `Program` is numbers, `bind` gives it addresses.
"""
