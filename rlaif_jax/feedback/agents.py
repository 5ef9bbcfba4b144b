"""An agent: a language model together with the prompts for its roles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlaif_jax.feedback.json_replies import Answer, Parse, ask
from rlaif_jax.feedback.llm import LLM, LLMRequest
from rlaif_jax.feedback.prompts import Prompts


@dataclasses.dataclass(frozen=True)
class Agent:
    """`llm` answers requests made from `prompts`. The role (debater, judge, author, reviewer) is chosen per request.

    `defence`: "strict", "filter" or "none", what is done about answers that argue with the judge (`feedback/defence.py`).
    """

    llm: LLM
    prompts: Prompts
    defence: str = "strict"

    def ask(self, requests: Sequence[LLMRequest], parse: Parse) -> list[Answer]:
        """`json_replies.ask`. The sentence that asks again is in the language of the prompts."""
        return ask(self.llm, requests, parse, language=self.prompts.language)
