"""The abstract weights of a judge on the mesh, and the program for its verdicts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlaif_jax.config import RunConfig
from rlaif_jax.feedback.local_llm import make_choose, make_sample, padded_width, reply_bound, rows_per_call
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.verdicts import requests_for
from rlaif_jax.language import ZH, get_language
from rlaif_jax.models import transformer
from rlaif_jax.models.matrices import Int8
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.quant import quantise_layers
from rlaif_jax.plan.abstract import Abstract, Program, array, chip_bytes, full_weights, gathered_bytes, in_rows, named
from rlaif_jax.runs.llms import planned_feedback
from rlaif_jax.sampling import filters
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.sharding import Placement
from rlaif_jax.sharding.placement import abstract_like

_TEMPLATE = 32  # tokens that a chat template adds to a message


def judge_weights(cfg: RunConfig, policy: ModelConfig, place: Placement) -> Abstract:
    """The stored weights of a judge on the mesh, `named` "judge"; an empty tree if the run has none."""
    model = planned_feedback(cfg, policy) if cfg.judge is not None else None
    if model is None:
        return ()
    weights = full_weights(model, place)
    if cfg.feedback.weights == "float":
        return named("judge", weights)
    shapes, axes = jax.eval_shape(quantise_layers, weights), transformer.logical_axes(model)
    at = {n: _in_8_bits(a, weights["layers"][n].shape, place) for n, a in axes["layers"].items()}
    shardings = jax.tree.map(lambda x: x.sharding, weights)
    return named("judge", abstract_like(shapes, shardings | {"layers": at}))


def _in_8_bits(axes: tuple, shape: tuple[int, ...], place: Placement):
    whole = place.array(axes, shape)
    return Int8(whole, place.array((axes[0], axes[2]), shape[::2])) if len(shape) == 3 else whole


def verdicts(
    cfg: RunConfig, arm: str, policy: ModelConfig, weights: Abstract, held: tuple[Abstract, ...], place: Placement
) -> Program:
    """One call of the judge in an arm: a batch of requests about complete answers of the largest length.

    The fixed text of a request is counted as one token per character, an upper bound for Chinese and English.
    """
    model, settings = planned_feedback(cfg, policy), cfg.rl_of(arm)
    # "auto" detects the language of the data, which a plan does not read. Chinese is assumed then.
    language = ZH if cfg.language == "auto" else get_language(cfg.language)
    principles = read_rules(cfg.judge.principles, language)
    request = requests_for(load_prompts(cfg.feedback.family(language)), principles, [("", "")])[0]
    fixed = sum(len(message.content) + _TEMPLATE for message in request.messages)
    width = padded_width(fixed + settings.max_prompt_tokens + settings.sampling.max_tokens)
    batch_size = -(-cfg.feedback.batch_size // place.row_shards) * place.row_shards
    rows = rows_per_call(batch_size, width, place)
    read = chip_bytes(judge_weights(cfg, policy, place.without("fsdp")))
    if cfg.feedback.weights == "float":
        read = gathered_bytes(model, place)
    remedies = (("feedback.weights=int8",),) if cfg.feedback.weights == "float" else ()
    if rows > place.row_shards:
        remedies = ((f"feedback.batch_size={batch_size // 4}",), *remedies)
    text = array((rows, width), jnp.int32)
    if cfg.judge.mode in ("binary", "k_vote"):
        trips = reply_bound(request.max_tokens)
        function, rest = _spoken(model, rows, trips, place)
        arguments = (weights, *in_rows((text, text), place), *rest)
        return Program(f"{arm}: verdicts", function, arguments, held, (trips + 1) * read, trips, remedies)
    choices = _everywhere(array((2,), jnp.int32), place)
    arguments = (weights, *in_rows((text, text, text, array((rows, 1), jnp.int32)), place), choices)
    return Program(f"{arm}: verdicts", make_choose(model, place), arguments, held, read, remedies=remedies)


def _spoken(model: ModelConfig, rows: int, limit: int, place: Placement) -> tuple[Callable, tuple]:
    """The function that samples replies of up to `limit` tokens, and its arguments except weights and prompts."""
    sample = make_sample(model, place, pad_id=0)
    sampling = jax.eval_shape(lambda: filters.traced(SamplingConfig(max_tokens=limit), (0,)))
    numbers = array((rows,), jnp.uint32)
    return jax.jit(lambda *inputs: sample(*inputs, max_tokens=limit)), _everywhere((numbers, numbers, sampling), place)


def _everywhere(tree: Abstract, place: Placement) -> Abstract:
    return abstract_like(tree, jax.tree.map(lambda _: place.replicated, tree))
