"""Lets a folder of the package be called: ``congrad_cli.sketch`` is a folder and a function.

``from congrad_cli import sketch`` finds the function of :mod:`congrad_cli.api` at first. Once the
folder of that name is imported, the name is the folder's, and there is no way around it; so the
folder does what the function does.
"""

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that hands calls to the function of its name in :mod:`congrad_cli.api`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from congrad_cli import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **options)


def make_callable(name: str) -> None:
    """Let the module ``name``, which is being imported, be called."""
    sys.modules[name].__class__ = CallableModule
