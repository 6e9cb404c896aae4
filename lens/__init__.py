"""Looking into a model: functions that take text or tokens and return labelled numbers, which draw themselves.

>>> from gptladder.lens import logit_lens, activation_patching, look
"""

from .heads import HeadKind, attention_patterns, head_scores, ov_circuit, qk_circuit, wanted_keys
from .interventions import Metric, Site, ablation, activation_patching
from .labelled import Labelled
from .page import Look, look
from .prompt import Prompt, Text, Texts, read_prompt, read_prompts
from .residual import direct_logit_attribution, logit_lens

__all__ = [
    "HeadKind",
    "Labelled",
    "Look",
    "Metric",
    "Prompt",
    "Site",
    "Text",
    "Texts",
    "ablation",
    "activation_patching",
    "attention_patterns",
    "direct_logit_attribution",
    "head_scores",
    "logit_lens",
    "look",
    "ov_circuit",
    "qk_circuit",
    "read_prompt",
    "read_prompts",
    "wanted_keys",
]
