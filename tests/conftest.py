"""A place of the suite's own, and the long fuzzing (`uv run pytest tests/test_fuzz.py --hypothesis-profile=long`)."""

import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=10_000)


@pytest.fixture(scope="session", autouse=True)
def own_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of the tests see each other on the device, and no other job of this machine."""
    place = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", place)
        patch.setattr(tempfile, "tempdir", place)
        yield
