"""Steps as machine code: f captured, traced, compiled and called.

What stands here where the eager engine has its method, right-hand side and passes; the loop is
its own.
"""
