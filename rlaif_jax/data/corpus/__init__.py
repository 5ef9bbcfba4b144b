"""A bundled corpus of Chinese greetings, made by a grammar: requests, good and flawed answers, and a gold scorer.

Nothing is downloaded, and the same seed gives the same rows. The gold scorer is for evaluation and labels, not a reward.
"""

from rlaif_jax.data.corpus.build import FILES, Corpus, CorpusConfig, bad_response, generate, write
from rlaif_jax.data.corpus.corrupt import flawed_response
from rlaif_jax.data.corpus.flaws import FLAWS, Flaw, applicable_flaws
from rlaif_jax.data.corpus.gold import gold_flaws, is_compliant, is_excellent
from rlaif_jax.data.corpus.occasions import OCCASIONS
from rlaif_jax.data.corpus.recipients import RECIPIENTS
from rlaif_jax.data.corpus.requests import Request, sample_request
from rlaif_jax.data.corpus.responses import good_response

__all__ = [
    "FILES", "FLAWS", "OCCASIONS", "RECIPIENTS", "Corpus", "CorpusConfig", "Flaw", "Request", "applicable_flaws",
    "bad_response", "flawed_response", "generate", "gold_flaws", "good_response", "is_compliant", "is_excellent",
    "sample_request", "write",
]  # fmt: skip
