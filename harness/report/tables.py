"""Tables for people."""

import re
import sys
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(title: str, scores: pd.DataFrame, digits: int = 3, optional: Sequence[str] = ()) -> None:
    """Print a table on the console, numbers with `digits` decimals, text columns to the left.

    optional: columns that are left out where the terminal is too narrow for them.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    if 9 * len(scores.columns) + 20 > console.width:
        scores = scores.drop(columns=list(optional), errors="ignore")
    shown = Table(title=title)
    for name, column in scores.items():
        shown.add_column(escape(str(name)), justify="left" if column.dtype.kind in "OSU" else "right", overflow="fold")
    for row in scores.astype(object).where(scores.notna(), "").itertuples(index=False):
        shown.add_row(*(f"{value:.{digits}f}" if isinstance(value, float) else escape(str(value)) for value in row))
    console.print(shown)


def markdown(scores: pd.DataFrame, numbers: bool = True) -> str:
    """A table as Markdown, numbers with three decimals, counts with none; `numbers=False` leaves text as it is."""
    return scores.astype(object).to_markdown(index=False, floatfmt=".3f", missingval="", disable_numparse=not numbers)


def latex(scores: pd.DataFrame, caption: str) -> str:
    """A table as LaTeX with booktabs, numbers with three decimals; its columns may have two levels."""
    marks = {"≈": r"$\approx$", "–": "--"}
    style = (
        scores.style.hide(axis="index")
        .format(escape="latex", precision=3, na_rep="")
        .format_index(escape="latex", axis=1)
    )
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", caption)
    text = style.to_latex(hrules=True, multicol_align="c", position_float="centering", caption=escaped)
    for mark, command in marks.items():
        text = text.replace(mark, command)
    return f"% needs booktabs and multirow\n{text}"
