"""The demos, which are scripts, as modules."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DEMOS = str(Path(__file__).parents[2] / "demos")


@pytest.fixture(scope="module")
def demo(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The demo that a test file names in ``DEMO``."""
    sys.path.insert(0, DEMOS)
    yield importlib.import_module(request.module.DEMO)
    sys.path.remove(DEMOS)
