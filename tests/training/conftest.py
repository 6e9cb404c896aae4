"""What the tests of training share: no picture of the losses is drawn, because that takes longer than the training."""

import pytest

from gptladder.training import runlog


@pytest.fixture
def pictures() -> None:
    """Let the runs of a test draw their losses."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(runlog, "draw_losses", lambda *_, **__: None)
