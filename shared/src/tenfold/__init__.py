"""What the ten Tenfold packages share: pictures, run folders, configuration, metrics and command-line conventions.

The public names are listed once, in `__init__.pyi`, and are imported when first used, so that a command line answers
`--help` without loading torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
