"""congrad: keep the preference pairs whose own gradients agree across languages.

``sketch``, ``consensus`` and ``select`` do from Python what the commands do; see
:mod:`congrad_cli.api`. Importing the package imports nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from congrad_cli.api import Selection, consensus, select, sketch

__version__ = "0.1.0"
__all__ = ["Selection", "consensus", "select", "sketch"]


def __getattr__(name: str) -> Any:
    """The functions are imported when they are asked for: the command line is faster without."""
    if name not in __all__:
        raise AttributeError(f"module 'congrad_cli' has no attribute {name!r}")
    from congrad_cli import api

    return getattr(api, name)
