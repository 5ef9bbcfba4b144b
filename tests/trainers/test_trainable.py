"""All weights or an adapter: what is trained, what is frozen, and that the abstract trees are those of real ones."""

import jax
import numpy as np
import optax
import pytest

from rlaif_jax.algorithms.mean import mean_of
from rlaif_jax.models import heads, ops, transformer
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.trainers.trainable import Full, Lora, abstract_params, abstract_train_state, scalar_base, train_state, trainable_of
from rlaif_jax.trainers.update import make_update_fn

LORA = LoraConfig({"layers/(q|down)": 3})
BOTH = pytest.mark.parametrize("trainable", [Full(), Lora(LORA)], ids=["full", "lora"])
SCALAR = pytest.mark.parametrize("scalar", [False, True], ids=["decoder", "scalar"])


def _params(cfg, scalar: bool):
    return (heads.init if scalar else transformer.init)(cfg, jax.random.key(0))


def test_which_one_a_config_asks_for():
    assert trainable_of(None) == Full() and trainable_of(LORA) == Lora(LORA)
    assert not Full().frozen_base and Lora(LORA).frozen_base
    assert scalar_base(None) is None and scalar_base({"embed": 1}) == {"model": {"embed": 1}}


@SCALAR
@BOTH
def test_a_fresh_start_is_the_model_itself(small_model, trainable, scalar):
    params = _params(small_model, scalar)
    trained, frozen = trainable.start(small_model, params, jax.random.key(1))
    full = trainable.full_params(frozen, trained)
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    inputs = tokens, np.ones_like(tokens), ops.positions_of(np.ones_like(tokens))
    decoders = [x["model"] if scalar else x for x in (full, params)]
    np.testing.assert_array_equal(*(transformer.forward(x, small_model, *inputs) for x in decoders))
    if scalar:
        assert trained["head"] is params["head"], "the head is trained in any case"
    assert (frozen is None) is (trainable == Full())


@SCALAR
@BOTH
def test_abstract_trees_are_those_of_a_real_state(small_model, eight_devices, trainable, scalar):
    optimizer = optax.adam(1e-3)
    params = jax.device_put(_params(small_model, scalar), abstract_shardings(small_model, eight_devices, scalar))
    state, shardings = train_state(trainable, small_model, params, optimizer, eight_devices, key=jax.random.key(1))
    planned = abstract_train_state(trainable, small_model, optimizer, eight_devices, scalar)
    assert jax.tree.structure(planned) == jax.tree.structure(state) == jax.tree.structure(shardings)
    for found, real, at in zip(*map(jax.tree.leaves, (planned, state, shardings)), strict=True):
        assert (found.shape, found.dtype) == (real.shape, real.dtype)
        assert found.sharding == at and real.sharding.is_equivalent_to(at, real.ndim)


def abstract_shardings(cfg, place, scalar):
    return jax.tree.map(lambda x: x.sharding, abstract_params(Full(), cfg, place, scalar)[0])


@BOTH
def test_an_update_moves_what_is_trained_alone(small_model, one_device, trainable):
    def loss_fn(params, batch):
        inputs = batch["tokens"], batch["segment_ids"], ops.positions_of(batch["segment_ids"])
        return mean_of(batch["scale"] * heads.scores(params, small_model, *inputs)), {}

    tokens = np.arange(1, 13, dtype=np.int32).reshape(2, 6)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "scale": np.float32(3.0)}
    optimizer, params = optax.sgd(0.1), heads.init(small_model, jax.random.key(0))
    params["head"] = {"score": params["head"]["score"] + 0.5}
    start, frozen = trainable.start(small_model, params, jax.random.key(1))
    ends = []
    for accumulation in (1, 2):  # a scalar of the batch goes to every micro-batch as it is
        state, _ = train_state(trainable, small_model, params, optimizer, one_device, key=jax.random.key(1))
        state, metrics = make_update_fn(trainable.loss(loss_fn), optimizer, accumulation)(state, batch)
        assert float(metrics["grad_norm"].value()) > 0 and float(metrics["loss"].weight) == 2
        ends.append(state.params)
        jax.tree.map(np.testing.assert_array_equal, state.frozen, frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *ends)
    assert not np.array_equal(ends[0]["head"]["score"], start["head"]["score"])
    if trainable.frozen_base:
        assert set(ends[0]["model"]["layers"]) == {"q", "down"}
