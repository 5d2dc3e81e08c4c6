"""Data modules. The order of the prompts and the position in it are state that a checkpoint carries."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from datamodules.arithmetic import ArithmeticPrompts
from datamodules.authorship import AuthorshipPrograms
from datamodules.choice_questions import ChoiceQuestions
from datamodules.critiques import RunningSumPrompts
from datamodules.demonstrations import Demonstrations
from datamodules.file_prompts import FilePrompts, ValidationSet
from datamodules.garak import GarakPrompts
from datamodules.human_eval import HumanEvalPrompts
from datamodules.labelled_responses import LabelledResponses
from datamodules.preferences import PairSource, PreferencePairs
from datamodules.prompt_form import FewShot
from datamodules.prompts import PromptData
from datamodules.reasoning_gym import ReasoningGymPrompts
from datamodules.records_desk import RecordsPrompts
from datamodules.samplers import CurriculumSampler, GRESOSampler, OneShotSampler, PromptLoader, PromptSampler
from datamodules.saturn import SatDemonstrations, SaturnPrompts
from datamodules.scored_demonstrations import ScoredDemonstrations
from datamodules.self_verify import VerifyDemonstrations
from datamodules.stress_questions import StressQuestions
from datamodules.think_json import SchemaDemonstrations, SchemaPrompts
from datamodules.thinker import ThinkerDemonstrations
from datamodules.triplets import Triplets
from datamodules.word_programs import WordPrograms

__all__ = [
    "ArithmeticPrompts",
    "AuthorshipPrograms",
    "ChoiceQuestions",
    "CurriculumSampler",
    "Demonstrations",
    "FewShot",
    "FilePrompts",
    "GRESOSampler",
    "GarakPrompts",
    "HumanEvalPrompts",
    "LabelledResponses",
    "OneShotSampler",
    "PairSource",
    "PreferencePairs",
    "PromptData",
    "PromptLoader",
    "PromptSampler",
    "ReasoningGymPrompts",
    "RecordsPrompts",
    "RunningSumPrompts",
    "SatDemonstrations",
    "SaturnPrompts",
    "SchemaDemonstrations",
    "SchemaPrompts",
    "ScoredDemonstrations",
    "StressQuestions",
    "ThinkerDemonstrations",
    "Triplets",
    "ValidationSet",
    "VerifyDemonstrations",
    "WordPrograms",
]
