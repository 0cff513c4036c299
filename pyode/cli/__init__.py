"""The command line, one file a command. Here is `main`.

Commands translate arguments and print results; nothing is computed here.
"""

from ._main import main as main
