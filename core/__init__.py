"""gatescope's core: configuration, engine, load, measures. Never imports a UI."""

import sys

# httpx imports its own command line (click, rich, pygments) where these are installed: 60 % of its
# import time. Nothing here calls it, and httpx goes on without it.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None is how Python bars an import
