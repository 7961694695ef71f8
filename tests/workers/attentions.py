"""Attention of a few samples, drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

Attention = tuple[list[list[float]], list[list[bool]], list[list[bool]]]


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Draw the attention of each token of each sample, and whether the token is persistent, and transient."""
    samples, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    values = st.lists(st.floats(0.001, 1.0), min_size=tokens, max_size=tokens)
    rows = draw(st.lists(values, min_size=samples, max_size=samples))
    row_of_kinds = st.lists(st.integers(0, 2), min_size=tokens, max_size=tokens)
    kinds = draw(st.lists(row_of_kinds, min_size=samples, max_size=samples))
    persistent, transient = ([[kind == wanted for kind in row] for row in kinds] for wanted in (0, 1))
    return rows, persistent, transient
