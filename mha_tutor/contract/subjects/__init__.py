"""One face for everything that attends, a function or a layer of any calling convention.

A property draws inputs from its subject, calls it, and asks it for the right answer. Inside, all
is batch first and True = may attend; the subject translates.
"""

from mha_tutor.contract.subjects.base import Inputs, Subject, first_tensor
from mha_tutor.contract.subjects.functions import FunctionSubject
from mha_tutor.contract.subjects.modules import ModuleSubject

__all__ = ["FunctionSubject", "Inputs", "ModuleSubject", "Subject", "first_tensor"]
