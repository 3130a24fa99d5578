"""What the server of a federation makes of its clients' replies: checked once, averaged robustly, a bad one named and left out.

Nothing here knows Flower or any other framework: a reply is what `raw_reply` takes out of a message. The public names are listed in
`__init__.pyi` and are imported when first used; numpy comes with the first array.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
