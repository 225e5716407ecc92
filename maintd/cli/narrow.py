"""How wide the columns of a table are where they do not all fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.cells import cell_len

#: What a column is not made narrower than before others are left out.
_ENOUGH = 20


def fitting(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int,
    keep: Collection[str],
    last: Collection[str] = (),
    nothing: str = "",
) -> dict[int, int]:
    """Chooses columns of a table and makes them narrow enough; what is in them is to be folded, never cut.

    Args:
        columns: The headings.
        rows: The cells.
        width: Of the terminal, in characters.
        keep: Headings of columns that are never left out. The others are as far as need be: those in which there is
            nothing, then the rest from the right.
        last: Headings of those that are left out after all others.
        nothing: A cell in which there is nothing.

    Returns:
        The width of each column that stays, by its place.
    """
    cells = {place: [heading, *(row[place] for row in rows)] for place, heading in enumerate(columns)}
    longest = {place: max(map(cell_len, texts)) for place, texts in cells.items()}
    least = {place: min(_ENOUGH, _longest_word(texts)) for place, texts in cells.items()}
    empty = {place for place, texts in cells.items() if set(texts[1:]) <= {nothing}}
    for place in sorted(cells, key=lambda place: (place not in empty, columns[place] in last, -place)):
        if not _fits(least, width) and columns[place] not in keep:
            del least[place]
    return _widened(_squeezed(least, width), longest, width)


def _longest_word(texts: Sequence[str]) -> int:
    return max(cell_len(word) for text in texts for word in (text.split() or [""]))


def _between(count: int) -> int:
    """Characters beside the cells: three between two columns, and one at either edge."""
    return 3 * count - 1


def _fits(widths: Mapping[int, int], width: int) -> bool:
    return sum(widths.values()) + _between(len(widths)) <= width


def _squeezed(widths: dict[int, int], width: int) -> dict[int, int]:
    """Takes from the widest until all fit, or every one is a single character wide."""
    while not _fits(widths, width) and max(widths.values()) > 1:
        widest = max(widths, key=widths.__getitem__)
        widths = widths | {widest: widths[widest] - 1}
    return widths


def _widened(widths: dict[int, int], longest: Mapping[int, int], width: int) -> dict[int, int]:
    """Gives what is left to the columns that want it, each time to the one that has least."""
    left = width - _between(len(widths)) - sum(widths.values())
    while left > 0 and (wanting := [place for place in widths if widths[place] < longest[place]]):
        least = min(wanting, key=widths.__getitem__)
        widths = widths | {least: widths[least] + 1}
        left -= 1
    return widths
