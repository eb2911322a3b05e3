from pathlib import Path

import pytest

from scenes import font_path


@pytest.fixture(scope="session")
def font() -> Path:
    """The font that scenes are drawn with."""
    try:
        return font_path()
    except FileNotFoundError:
        pytest.skip("drawing needs the font Noto Color Emoji")
