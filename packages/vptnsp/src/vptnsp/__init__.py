"""Visual prompt tuning in the null space: class-incremental learning on any timm ViT without forgetting (NeurIPS 2024)."""

import importlib.metadata

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = importlib.metadata.version("vptnsp")
