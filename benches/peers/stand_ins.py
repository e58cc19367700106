"""Placeholders for packages that the peers import but that no benchmark here uses.

These packages fetch weights, read configs, or contain other models. Without them the installation is small. It also
shows that nothing is downloaded, because any use of a placeholder raises an error.
"""

import sys
import types

UNREACHED = ("emoji", "omegaconf", "requests", "taming", "taming.models", "taming.models.vqgan", "yaml")


class StandIn(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(self: object, *args: object, **kwargs: object) -> None:
            raise RuntimeError(f"{name} is a stand-in")

        return type(name, (), {"__init__": refuse})


def install() -> None:
    for name in UNREACHED:
        sys.modules.setdefault(name, StandIn(name))
