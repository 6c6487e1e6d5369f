"""What several parity tests share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def seeded() -> Iterator[None]:
    """Random weights are the same whichever tests ran before, and leave no trace."""
    import torch  # takes seconds, which tests of the rules alone need not wait

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
