"""One-step diffusion super-resolution by time-aware distillation (TAD-SR, arXiv 2408.07476), with its ResShift teacher.

The public names are listed in `__init__.pyi` and imported when first used.
"""

import importlib.metadata

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = importlib.metadata.version("tadsr")
