"""comit: batch screening of chest X-rays with COMiT-Net. Research use only.

``import comit`` is light: numpy, torch, OpenCV and the engines load when a function that needs
them is called. docs/python.md explains the names in :data:`__all__`. Start reading the code at
:mod:`comit.screening`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comit.api.radiograph import Radiograph, read_image
    from comit.api.result import Result
    from comit.api.screener import Screener
    from comit.engine import load_model
    from comit.masks import decode_mask
    from comit.options import Options
    from comit.results import read as read_results
    from comit.run.report import Report
    from comit.screening import screen

__version__ = "0.1.0"
preprocess_version = (
    "1"  # what comit.image.preprocess defines; a model runs with the one it was trained with
)
__all__ = [
    "Options",
    "Radiograph",
    "Report",
    "Result",
    "Screener",
    "decode_mask",
    "load_model",
    "read_image",
    "read_results",
    "screen",
]
_MODULES = {
    "Options": "comit.options",
    "Radiograph": "comit.api.radiograph",
    "Report": "comit.run.report",
    "Result": "comit.api.result",
    "Screener": "comit.api.screener",
    "decode_mask": "comit.masks",
    "load_model": "comit.engine",
    "read_image": "comit.api.radiograph",
    "read_results": "comit.results:read",
    "screen": "comit.screening",
}


def __getattr__(name: str) -> Any:
    """Imports a public name where it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, there = _MODULES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), there or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
