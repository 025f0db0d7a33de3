"""The properties of attention, each a sentence and a test; in the order they are checked."""

from mha_tutor.contract.properties import (  # noqa: F401, I001
    values,
    influence,
    masking,
    training,
    dropout,
    precision,
    manners,
)
from mha_tutor.contract.properties.base import (
    PROPERTIES,
    NotApplicable,
    NotAsked,
    Problem,
    Property,
    asked,
)

__all__ = ["PROPERTIES", "NotApplicable", "NotAsked", "Problem", "Property", "asked"]
