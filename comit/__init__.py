"""comit: batch screening of chest X-rays with COMiT-Net. Research use only.

``import comit`` is light: numpy, torch, OpenCV and the engines load when a function that needs
them is called. Start reading at :mod:`comit.screening`.
"""

__version__ = "0.1.0"
preprocess_version = (
    "1"  # what comit.image.preprocess defines; a model runs with the one it was trained with
)
