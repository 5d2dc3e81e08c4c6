"""Pure tensor functions and small objects: the folder to hold against the papers' formulas.

No Lightning, no tokenizer, no batch, no file in here: tensors in, tensors out.
"""

from objectives.advantages import Advantage, GroupNorm, LeaveOneOut
from objectives.aggregation import Aggregation, ConstantLength, SequenceMean, SequenceSum, TokenMean
from objectives.bounds import Bound, ClopperPearson, EmpiricalBernstein, Hoeffding, StudentT
from objectives.policy_losses import ClippedSurrogate, PolicyLoss, Reinforce
from objectives.sequence_losses import SequenceSurrogate

__all__ = [
    "Advantage",
    "Aggregation",
    "Bound",
    "ClippedSurrogate",
    "ClopperPearson",
    "ConstantLength",
    "EmpiricalBernstein",
    "GroupNorm",
    "Hoeffding",
    "LeaveOneOut",
    "PolicyLoss",
    "Reinforce",
    "SequenceMean",
    "SequenceSum",
    "SequenceSurrogate",
    "StudentT",
    "TokenMean",
]
