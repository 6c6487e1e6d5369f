"""The long profile of the fuzz tests: `uv run pytest tests/test_fuzz.py --hypothesis-profile=long`."""

from hypothesis import settings

settings.register_profile("long", max_examples=10_000)
