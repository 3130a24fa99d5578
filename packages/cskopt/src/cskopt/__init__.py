"""Centre-sensitive kernel optimisation: incremental learning for any PyTorch CNN in a fraction of the memory.

The public names are listed once, in `__init__.pyi`, and are imported when first used.
"""

import importlib.metadata

import lazy_loader

__version__ = importlib.metadata.version("cskopt")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
