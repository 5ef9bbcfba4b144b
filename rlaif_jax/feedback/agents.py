"""An agent: a language model, and the prompts by which it plays its roles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlaif_jax.feedback.json_replies import Answer, Parse, ask
from rlaif_jax.feedback.llm import LLM, LLMRequest
from rlaif_jax.feedback.prompts import Prompts


@dataclasses.dataclass(frozen=True)
class Agent:
    """`llm` answers what `prompts` ask: debater, judge, author or reviewer, by the role of each request."""

    llm: LLM
    prompts: Prompts

    def ask(self, requests: Sequence[LLMRequest], parse: Parse) -> list[Answer]:
        """`json_replies.ask`; what cannot be read is asked again in the language of the prompts."""
        return ask(self.llm, requests, parse, language=self.prompts.language)
