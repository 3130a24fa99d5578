"""Unsupervised visible-infrared person re-identification by modality-unified label transfer."""

import importlib.metadata

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = importlib.metadata.version("multreid")
