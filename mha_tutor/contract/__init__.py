"""The contract of attention: properties, other people's layers, mutants, diagnosis.

The door is `check`, which is also `mha_tutor.check`.
"""

from mha_tutor.contract.adapters import Adapter
from mha_tutor.contract.door import check
from mha_tutor.contract.mutants import FORMS, MUTANTS, Mutant, combine, find_mutant
from mha_tutor.contract.properties import PROPERTIES, Property
from mha_tutor.contract.report import Diagnosis, Finding, Report, Verdict
from mha_tutor.contract.steps import Weights

__all__ = [
    "FORMS",
    "MUTANTS",
    "PROPERTIES",
    "Adapter",
    "Diagnosis",
    "Finding",
    "Mutant",
    "Property",
    "Report",
    "Verdict",
    "Weights",
    "check",
    "combine",
    "find_mutant",
]
