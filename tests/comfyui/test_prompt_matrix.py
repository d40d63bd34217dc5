"""Every cell of the table "encoder x node x sampler": as stock with the right word, or fixed and said."""

from __future__ import annotations

import prompt_matrix as matrix
import pytest
import torch
from oracle_world import make_parts, nothing

CELLS = matrix.cells()
by_cell = pytest.mark.parametrize("cell", CELLS, ids=[f"{cell.encoder} / {cell.column}" for cell in CELLS])
# The word that equals the fixed one, once for each encoder.
AS_IT_IS = [cell for cell in CELLS if cell.column == "as it is"]


@pytest.fixture(scope="module")
def parts(base, domain):
    return make_parts(base, domain)


@pytest.fixture(scope="module")
def known():
    """What stock nodes encoded so far."""
    return {}


@by_cell
def test_a_cell_follows_the_word_or_says_that_it_does_not(cell, base, parts, embeddings, known):
    assert matrix.draw(cell, base, parts, embeddings, known).result == cell.expected


@pytest.mark.parametrize("cell", AS_IT_IS, ids=[cell.encoder for cell in AS_IT_IS])
def test_a_word_that_is_the_fixed_one_changes_nothing(cell, base, parts, embeddings, known):
    drawn = matrix.draw(cell, base, parts, embeddings, known, nothing)
    # Encoding again and following arithmetic row by row rounds; a random UNet makes it larger.
    assert float((drawn.ours - drawn.right).abs().max()) <= matrix.TOLERANCE * float(drawn.right.abs().max())
    assert torch.equal(drawn.right, drawn.fixed)


def test_the_page_is_the_table_of_these_cells():
    expected = {(cell.encoder, cell.column): cell.expected for cell in CELLS}
    assert matrix.table(expected) in matrix.DOCS.read_text(encoding="utf-8")
