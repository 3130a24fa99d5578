"""Robustness bench for face-forgery detectors: perturbations confined to facial regions (ASMA, 2024).

The public names are listed in `__init__.pyi` and imported when first used.
"""

import importlib.metadata

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = importlib.metadata.version("asmattack")
