"""Where quantlib keeps what it fetched and built. Start from :func:`cache_folder`."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """The folder of models, texts and compiled kernels, if it exists yet: QUANTLIB_CACHE, else quantization-lessons in
    the user's cache folder.

    That is the one in XDG_CACHE_HOME, else ~/.cache on Linux.
    """
    if chosen := os.environ.get("QUANTLIB_CACHE"):
        return Path(chosen).expanduser().absolute()
    return user_cache_path("quantization-lessons", appauthor=False)
