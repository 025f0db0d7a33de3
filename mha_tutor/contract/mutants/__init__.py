"""A catalog of attentions with one bug each, for the contract to catch; a module for each theme."""

from mha_tutor.contract.mutants import (  # noqa: F401, I001 - the order of the catalog
    split_and_merge,
    scale,
    softmax,
    mask_use,
    mask_functions,
    heads,
    projections,
    dropout,
    manners,
)
from mha_tutor.contract.mutants.catalog import FORMS, MUTANTS, Mutant, combine, find_mutant

__all__ = ["FORMS", "MUTANTS", "Mutant", "combine", "find_mutant"]
