"""Tables for people."""

import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

NUMBER = r"-?\d+(\.\d+)?( ≈)?"
WORD = 20  # characters of a word that are kept together in a narrow table
TEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def show(
    title: str, scores: pd.DataFrame, digits: int = 3, optional: Sequence[str] = (), told: Sequence[str] = ()
) -> None:
    """Print a table on the console, numbers with `digits` decimals, text columns to the left.

    optional: columns that are left out where the terminal is too narrow for all, the first ones first.
    told: lines below it.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    texts = scores.astype(object).where(scores.notna(), "").map(partial(text, digits=digits))
    texts.columns = texts.columns.map(str)
    dropped: list[str] = []
    for least in (name for name in optional if name in texts):
        if sum(narrowest(texts[each]) + 3 for each in texts) < console.width:
            break
        dropped.append(least)
        texts = texts.drop(columns=least)
    widest = sum(max(len(str(name)), *column.str.len()) + 3 for name, column in texts.items())
    shown = Table(title=escape(title))
    for name in map(str, texts):
        column = texts[name]
        shown.add_column(
            escape(name if widest < console.width else name.replace(" ", "\n")),
            justify="right" if column.str.fullmatch(NUMBER).any() else "left",
            overflow="fold",
            no_wrap=narrowest(column) >= column.str.len().max(),
        )
    for row in texts.itertuples(index=False):
        shown.add_row(*map(escape, row))
    console.print(shown)
    if dropped:
        told = [*told, f"no room for {'; '.join(reversed(dropped))}: see the report's files, or use a wider window"]
    for each in told:
        console.print(escape(each), highlight=False)


def text(value: Any, digits: int) -> str:
    """A value of a table as text."""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def narrowest(column: pd.Series) -> int:
    """Characters that a column must have: its longest word, of which no more than WORD are kept together."""
    words = [word for cell in (str(column.name), *column) for word in cell.split()]
    return max((min(len(word), WORD) for word in words), default=1)


def markdown(scores: pd.DataFrame, numbers: bool = True) -> str:
    """A table as Markdown, numbers with three decimals, counts with none; `numbers=False` leaves text as it is."""
    shown = scores.astype(object).where(scores.notna(), None)
    return shown.to_markdown(index=False, floatfmt=".3f", missingval="", disable_numparse=not numbers)


def latex(scores: pd.DataFrame, caption: str) -> str:
    """A table as LaTeX with booktabs, numbers with three decimals; its columns may have two levels."""
    marks = {"≈": r"$\approx$", "–": "--"}
    style = (
        scores.style.hide(axis="index")
        .format(escape="latex", precision=3, na_rep="")
        .format_index(escape="latex", axis=1)
    )
    escaped = re.sub(r"[\\&%$#_{}~^]", lambda found: TEX[found[0]], caption)
    text = style.to_latex(hrules=True, multicol_align="c", position_float="centering", caption=escaped)
    for mark, command in marks.items():
        text = text.replace(mark, command)
    return f"% needs booktabs and multirow\n{text}"
