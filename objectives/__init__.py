"""The formulas of the papers as pure tensor functions and small objects.

The modules know no Lightning, tokenizer, batch or file: their inputs and outputs are tensors.
"""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from objectives.advantages import Advantage, GroupNorm, LeaveOneOut, NoBaseline
from objectives.aggregation import Aggregation, ConstantLength, SequenceMean, SequenceSum, TokenMean
from objectives.betting import Betting, ConfidenceSequence
from objectives.bounds import Bound, ClopperPearson, EmpiricalBernstein, Hoeffding, StudentT
from objectives.classification import Confusion
from objectives.divergences import Divergence
from objectives.embedding_losses import EmbeddingLoss, MultipleNegatives, TripletMargin
from objectives.gae import GAE
from objectives.global_norm import GlobalNorm, ReinforcePlusPlus
from objectives.ktae import KTAE
from objectives.pass_at_k import PassAtK
from objectives.policy_losses import ClippedSurrogate, PolicyLoss, Reinforce
from objectives.preference_objectives import DPO, IPO, KTO, PairLoss, PreferenceLoss, ResponseScores
from objectives.prefix_tree import PrefixTree, Probability
from objectives.reference_free import ORPO, REDI, SimPO
from objectives.running_mean import RunningMean
from objectives.sequence_losses import SequenceSurrogate
from objectives.weighted_losses import CISPO, SAPO, VESPO

__all__ = [
    "CISPO",
    "DPO",
    "GAE",
    "IPO",
    "KTAE",
    "KTO",
    "ORPO",
    "REDI",
    "SAPO",
    "VESPO",
    "Advantage",
    "Aggregation",
    "Betting",
    "Bound",
    "ClippedSurrogate",
    "ClopperPearson",
    "ConfidenceSequence",
    "Confusion",
    "ConstantLength",
    "Divergence",
    "EmbeddingLoss",
    "EmpiricalBernstein",
    "GlobalNorm",
    "GroupNorm",
    "Hoeffding",
    "LeaveOneOut",
    "MultipleNegatives",
    "NoBaseline",
    "PairLoss",
    "PassAtK",
    "PolicyLoss",
    "PreferenceLoss",
    "PrefixTree",
    "Probability",
    "Reinforce",
    "ReinforcePlusPlus",
    "ResponseScores",
    "RunningMean",
    "SequenceMean",
    "SequenceSum",
    "SequenceSurrogate",
    "SimPO",
    "StudentT",
    "TokenMean",
    "TripletMargin",
]
