"""What a mistake says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from karafka_lite.errors import ConfigurationError


def refusal(act: Callable[[], object]) -> str:
    """The text of the ConfigurationError that ``act`` raises."""
    with pytest.raises(ConfigurationError) as caught:
        act()
    return str(caught.value)
