"""Shape annotations are checked while the tests run."""

import jaxtyping

jaxtyping.install_import_hook("pfrforgery", "beartype.beartype")
