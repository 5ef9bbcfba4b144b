"""Our losses and advantages against the numbers of TRL, verl and OpenRLHF: tests/golden/golden_losses.json.

Each case is expressed with our options, or stands in NOT_EXPRESSED with the reason. docs/algorithms.md holds the table.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.algorithms import losses
from rlaif_jax.algorithms.advantages import AdvantageConfig, advantages, gae, token_rewards
from rlaif_jax.algorithms.kl import KlConfig, adapted_coefficient, kl_terms
from rlaif_jax.algorithms.masked import masked_mean, masked_var, whiten
from rlaif_jax.algorithms.policy import PolicyConfig, correction_weights, policy_loss
from rlaif_jax.models import ops, transformer
from rlaif_jax.models.model_config import ModelConfig

ROOT = Path(__file__).parents[2]
CASES = json.loads((ROOT / "tests/golden/golden_losses.json").read_text(encoding="utf-8"))["cases"]
TOLERANCE = 1e-5
NOT_EXPRESSED = {
    "trl.sft.dft": "DFT weighs SFT tokens by their probability; SFT here is maximum likelihood",
    "trl.grpo.adv.normalize_then_sum.group": "each reward function normalised by itself; ours are summed first",
    "trl.grpo.loss.vespo": "VESPO's gamma-shaped weights are not offered",
    "trl.grpo.loss.luspo_seq": "LUSPO's length-weighted sequences are not offered",
    "trl.grpo.loss.dapo_opsm.05": "no off-policy sequence mask; kl_early_stop and correction bound the same drift",
    "trl.grpo.loss.dapo_topent.2": "a quantile over a micro-batch would depend on its size",
    "verl.adv.opo": "OPO's length-weighted baseline is not offered",
    "verl.loss.vanilla_dualclip3.seq-mean-token-sum-norm": "not divided by the number of rows there (their defect)",
    "verl.loss.geo_mean.token-mean": "GMPO is not offered",
    "verl.kl.abs": "abs(k1) is not offered",
    "verl.kl.k3plus_status": "raises NotImplementedError there (their defect)",
}


def arr(x) -> jax.Array:
    return jnp.asarray(np.array(x, np.float32))


# One entry per policy loss: PolicyConfig and KlConfig as keywords, and a factor on the result where conventions differ.
GRPO = {"aggregation": "sequence_mean"}
GSPO = {"importance_level": "sequence", "aggregation": "sequence_mean"}
NO_KL = {"coef": 0.0}
K3 = {"coef": 0.04}
TRL = {
    "grpo": GRPO, "bnpo": {}, "dr_grpo_L8": {"aggregation": "fixed_length"}, "dapo": {}, "dapo_cliphigher_.28": {"clip_high": 0.28},
    "dapo_kl.04_k3": {}, "dapo_kl.04_biascorr": {}, "dapo_delta1.5": {"dual_clip": 1.5},
    "cispo_max5": {"loss": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    "sapo": {"loss": "sapo", "aggregation": "sequence_mean"},
    "gspo_seq_grpo_3e-4_4e-4": GSPO | {"clip_low": 3e-4, "clip_high": 4e-4},
    "gspo_seq_grpo_.2": GSPO, "dapo_is": {}, "dapo_entbonus.01": {"entropy_coefficient": 0.01}, "grpo_onpolicy_noold": GRPO,
    "grpo_accum4": GRPO,
}  # fmt: skip
VERL = {
    "vanilla_dualclip3.token-mean": {"dual_clip": 3.0},
    "vanilla_dualclip3.seq-mean-token-sum": {"dual_clip": 3.0, "aggregation": "sequence_sum"},
    "vanilla_dualclip3.seq-mean-token-mean": {"dual_clip": 3.0, "aggregation": "sequence_mean"}, "gspo.token-mean": GSPO,
    "sapo.token-mean": {"loss": "sapo", "aggregation": "sequence_mean"}, "cispo.token-mean": {"loss": "cispo"},
}  # fmt: skip
OPENRLHF = {
    "ppo": {}, "ppo_seqmean": GRPO, "ppo_dual3": {"dual_clip": 3.0}, "gspo": GSPO,
    "tis": {"rollout_correction": "token_truncate", "rollout_correction_low": 0.5, "rollout_correction_high": 5.0},
    "icepop": {"rollout_correction": "token_mask", "rollout_correction_low": 0.5, "rollout_correction_high": 5.0},
    "seqmask": {"rollout_correction": "geometric_mask", "rollout_correction_low": 0.999, "rollout_correction_high": 1.002},
}  # fmt: skip
POLICY = (
    {f"trl.grpo.loss.{k}": v for k, v in TRL.items()}
    | {f"verl.loss.{k}": v for k, v in VERL.items()}
    | {f"openrlhf.loss.{k}": v for k, v in OPENRLHF.items()}
)


def policy(name: str) -> tuple[dict, dict]:
    """(ours, theirs) of one policy loss: value and gradients."""
    given, out = CASES[name]["in"], CASES[name]["out"]
    settings = dict(POLICY[name])
    cfg = PolicyConfig(**settings)
    kl = KlConfig(**(K3 if ".04" in name else NO_KL), unbiased="biascorr" in name)
    logp, mask = arr(given["logp"]), arr(given["mask"])
    old = logp if "noold" in name else arr(given["old"])
    batch = {
        "mask": mask, "old_logprobs": old, "advantages": jnp.broadcast_to(arr(given["adv"])[:, None], mask.shape) * mask,
        "ref_logprobs": arr(given["ref"]), "kl_coefficient": kl.coef,
    }  # fmt: skip
    if cfg.rollout_correction != "none":
        batch["sampler_logprobs"] = arr(given["rollout"])

    def loss(logp, entropy):
        if "dr_grpo_L8" in name:  # the limit there is 8, the arrays have 6 columns
            wide = {k: jnp.pad(v, ((0, 0), (0, 2))) if np.ndim(v) == 2 else v for k, v in batch.items()}
            pads = (jnp.pad(x, ((0, 0), (0, 2))) for x in (logp, entropy))
            return policy_loss(*pads, cfg, kl, **wide)[0].value()
        if name.endswith("dapo_is"):  # TRL multiplies by a given weight: the same as one whose logarithm is the gap
            given_weight = {"sampler_logprobs": old - jnp.log(arr(given["is_ratio"]))}
            capped = PolicyConfig(**settings, rollout_correction="token_truncate", rollout_correction_high=1e9)
            return policy_loss(logp, entropy, capped, kl, **(batch | given_weight))[0].value()
        return policy_loss(logp, entropy, cfg, kl, **batch)[0].value() / (4 if "accum4" in name else 1)

    value, (g_logp, g_entropy) = jax.value_and_grad(loss, argnums=(0, 1))(logp, arr(given["entropies"]))
    ours, theirs = {"loss": value, "g_logp": g_logp}, {"loss": out["loss"], "g_logp": out["g_logp"]}
    if out.get("g_entropy") is not None:
        ours["g_entropy"], theirs["g_entropy"] = g_entropy, out["g_entropy"]
    return ours, theirs


def correction(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    how, bounds = name.removeprefix("trl.grpo.is_ratio.").split(".", 1)
    low, high = bounds.split("_")
    low = 0.0 if low == "None" else float(low)
    cfg = PolicyConfig(rollout_correction=how, rollout_correction_low=low, rollout_correction_high=float(high))
    ours = correction_weights(arr(given["old"]), arr(given["sampling"]), arr(given["mask"]), cfg)
    return {"ratio": ours[:, :1] if how.startswith("sequence") else ours}, {"ratio": out["ratio"]}


def trl_advantages(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    parts = np.array(given["rewards_per_func"], float)
    valid = ~np.isnan(parts).all(axis=1)
    rewards = np.nansum(parts * np.array(given["weights"]), axis=1)
    cfg = AdvantageConfig(scale=name.rsplit(".", 1)[1])
    mask = jnp.ones((len(rewards), 1))
    ours = advantages(arr(rewards), jnp.asarray(valid), jnp.zeros_like(mask), mask, given["G"], cfg)[:, 0]
    return {"advantages": ours}, {"advantages": out["advantages"]}


def rloo(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    mask = arr(given["mask"])
    penalty = given["beta"] * (arr(given["old"]) - arr(given["ref"])) * mask
    cfg = AdvantageConfig("leave_one_out", "none", "rows" if name.endswith("True") else "none")
    ours = advantages(arr(given["rewards"]), jnp.ones(len(mask), bool), penalty, mask, given["G"], cfg)
    return {"advantages": ours[:, 0]}, {"advantages": out["advantages"]}


VERL_ADVANTAGES = {
    "grpo": AdvantageConfig(epsilon=1e-6), "grpo_nostd": AdvantageConfig(scale="none"),
    "rloo": AdvantageConfig("leave_one_out", "none"), "rfpp_baseline": AdvantageConfig(scale="none", whiten="tokens"),
    "rfpp": AdvantageConfig("none", "none", "tokens", gamma=0.9),
}  # fmt: skip


def verl_advantages(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    mask, scores = arr(given["mask"]), arr(given["scores"])
    group = 2 if "uid" in given else 1
    if "uid" in given:
        assert given["uid"][0] == given["uid"][1] != given["uid"][2] == given["uid"][3]
    cfg = VERL_ADVANTAGES[name.rsplit(".", 1)[1]]
    ours = advantages(scores, jnp.ones(len(scores), bool), jnp.zeros_like(mask), mask, group, cfg)
    return {"advantages": ours}, {"advantages": out["advantages"]}


def trl_gae(name: str) -> tuple[dict, dict]:
    """TRL puts the score one place after EOS; its reward array is ours once that place counts as a token."""
    given, out = CASES[name]["in"], CASES[name]["out"]
    mask, wide = 1 - arr(out["padding_mask"]), 1 - arr(out["padding_mask_p1"])
    kl = kl_terms(arr(given["logprobs"]), arr(given["ref_logprobs"]), name.split(".")[3]) * mask
    rewards = token_rewards(arr(given["scores"]), given["kl_coef"] * kl, wide)
    if name.endswith("True"):
        rewards = whiten(rewards, wide, shift=False)
    found, returns = gae(rewards, arr(given["values"]) * wide, wide, given["gamma"], given["lam"])
    ours = {"rewards": rewards, "advantages": whiten(found, mask), "returns": returns}
    return ours, {k: out[k] for k in ours}


def trl_ppo(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    earlier = CASES[given["gae_case"]]
    mask, wide = 1 - arr(earlier["out"]["padding_mask"]), 1 - arr(earlier["out"]["padding_mask_p1"])
    tokens = jnp.array(earlier["in"]["responses"])
    batch = {"mask": mask, "old_logprobs": arr(earlier["in"]["logprobs"]), "advantages": arr(earlier["out"]["advantages"])}

    def loss(logits, values):
        logp, entropy = ops.token_logprob(logits, tokens, given["temperature"])
        policy_part = policy_loss(logp, entropy, PolicyConfig(), KlConfig(0.0), **batch)[0].value()
        old = arr(earlier["in"]["values"]) * wide
        value_part, metrics = losses.value_loss(values, old, arr(earlier["out"]["returns"]), wide, given["cliprange_value"])
        return policy_part + given["vf_coef"] * value_part.value(), (policy_part, value_part.value(), logp, metrics)

    (total, (policy_part, value_part, logp, metrics)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        arr(given["new_logits"]), arr(given["vpred"])
    )
    ours = {
        "loss": total, "pg_loss": policy_part, "vf_loss": value_part, "vf_clipfrac": metrics["value_clip_fraction"].value(),
        "g_logits": grads[0], "g_vpred": grads[1], "new_logprobs": logp * mask,
    }  # fmt: skip
    return ours, {k: out[k] for k in ours} | {"new_logprobs": np.array(out["new_logprobs"]) * np.asarray(mask)}


def token_logprobs(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    if name == "trl.entropy_from_logits":
        logits = arr(given["logits"])
        return {"entropy": ops.token_logprob(logits, jnp.zeros(logits.shape[:-1], int), 1.0)[1]}, out
    if name == "trl.selective_log_softmax":
        return {"logps": ops.token_logprob(arr(given["logits"]), jnp.array(given["index"]), 1.0)[0]}, out
    cfg = ModelConfig(vocab_size=11, width=4, tied_embeddings=False, logit_chunk=3)

    def chunked(hidden, matrix):
        targets = jnp.array(given["targets"])[None]
        return transformer.logprobs({"lm_head": matrix}, cfg, hidden[None], targets, 0.7)

    logp, entropy = chunked(arr(given["hidden"]), arr(given["lm_head"]))
    g_hidden, g_head = jax.grad(lambda *a: jnp.sum(chunked(*a)[0]), (0, 1))(arr(given["hidden"]), arr(given["lm_head"]))
    return {"logp": logp[0], "entropy": entropy[0], "g_hidden": g_hidden, "g_lm_head": g_head}, out


def chunked_nll(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    cfg = ModelConfig(vocab_size=11, width=4, tied_embeddings=False, logit_chunk=2)
    labels = np.array(given["labels"])[:, 1:]
    mask = jnp.array(labels >= 0, jnp.float32)

    def loss(hidden, matrix):
        logp, entropy = transformer.logprobs({"lm_head": matrix}, cfg, hidden[:, :-1], jnp.array(np.maximum(labels, 0)))
        return -jnp.sum(logp * mask) / jnp.sum(mask), jnp.sum(entropy * mask)

    (value, entropy), (g_hidden, g_head) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        arr(given["hidden"]), arr(given["lm_head"])
    )
    ours = {"loss": value, "entropy_sum": entropy, "n_valid": mask.sum(), "g_hidden": g_hidden, "g_lm_head": g_head}
    return ours, {k: out[k] for k in ours}


def reward_model(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    chosen, rejected = arr(given["chosen"]), arr(given["rejected"])
    margin = arr(given["margin"]) if given.get("margin") else jnp.zeros(len(chosen))
    loss, metrics = losses.bradley_terry(chosen, rejected, margin, jnp.ones(len(chosen)), given.get("center") or 0.0)
    ours, theirs = {"loss": loss.value()}, {"loss": out["loss"]}
    if "accuracy" in out:
        ours |= {"accuracy": metrics["accuracy"].value(), "margin": metrics["gap"].value(), "mean_reward": metrics["score"].value()}
        theirs |= {k: out[k] for k in ("accuracy", "margin", "mean_reward")}
    return ours, theirs


def statistics(name: str) -> tuple[dict, dict]:
    given, out = CASES[name]["in"], CASES[name]["out"]
    if name == "trl.nanstd":
        x = np.array(given["x"], float)
        mask, clean = arr(~np.isnan(x)), arr(np.nan_to_num(x))
        rows = [jnp.sqrt(masked_var(c, m)) for c, m in zip(clean, mask, strict=True)]
        return {"dim1": jnp.stack(rows), "all": jnp.sqrt(masked_var(clean, mask))}, out
    x, mask = arr(given["values"]), arr(given["mask"])
    theirs = {k: np.where(np.asarray(mask) > 0, v, 0) if k.startswith("whiten") else v for k, v in out.items()}
    return {
        "mean": masked_mean(x, mask), "var": masked_var(x, mask), "whiten": whiten(x, mask),
        "whiten_noshift": whiten(x, mask, shift=False),
    }, theirs  # fmt: skip


def small(name: str) -> tuple[dict, dict]:
    """KL estimators and controller, GAE, value loss, reward with KL."""
    given, out = CASES[name]["in"], CASES[name]["out"]
    if ".kl." in name:
        ours = kl_terms(arr(given["logp"]), arr(given["ref"]), name.rsplit(".", 1)[1])
        return {"kl": ours}, out
    if name == "verl.gae":
        mask = arr(given["mask"])
        found, returns = gae(arr(given["rewards"]), arr(given["values"]), mask, given["gamma"], given["lam"])
        return {"advantages": whiten(found, mask), "returns": returns}, {
            "advantages": np.array(out["advantages"]) * np.asarray(mask), "returns": np.array(out["returns"]) * np.asarray(mask)
        }  # fmt: skip
    if name == "verl.adaptive_kl":
        cfg = KlConfig(given["init"], place="reward", target=given["target"], horizon=given["horizon"])
        coefficient, found = jnp.float32(given["init"]), []
        for kl in given["kls"]:
            coefficient = adapted_coefficient(coefficient, jnp.float32(kl), given["n_steps"], cfg)
            found.append(coefficient)
        return {"coef": jnp.stack(found)}, out
    if name == "verl.value_loss.clip.5":
        loss, metrics = losses.value_loss(*(arr(given[k]) for k in ("vpreds", "values", "returns", "mask")), 0.5)
        return {"loss": loss.value(), "clipfrac": metrics["value_clip_fraction"].value()}, out
    ours = token_rewards(arr(given["r"]), given["kl_coef"] * arr(given["kl"]), arr(given["mask"]))
    return {"reward": ours}, {"reward": np.array(out["reward"]) * np.array(given["mask"])}


def how_to_express(name: str):
    if name in POLICY:
        return policy
    starts = {
        "trl.grpo.is_ratio": correction, "trl.grpo.adv": trl_advantages, "trl.rloo": rloo, "verl.adv": verl_advantages,
        "trl.ppo.gae": trl_gae, "trl.ppo.loss": trl_ppo, "trl.rm": reward_model, "openrlhf.rm": reward_model,
        "trl.nanstd": statistics, "trl.ppo.masked": statistics, "trl.sft.chunked": chunked_nll, "trl.": token_logprobs,
        "verl.": small, "openrlhf.": small,
    }  # fmt: skip
    return next(fn for start, fn in starts.items() if name.startswith(start))


EXPRESSED = [name for name in CASES if name not in NOT_EXPRESSED]


@pytest.mark.parametrize("name", EXPRESSED)
def test_numbers_of_other_libraries(name):
    ours, theirs = how_to_express(name)(name)
    for key, value in ours.items():
        np.testing.assert_allclose(np.asarray(value), np.array(theirs[key], float), atol=TOLERANCE, rtol=TOLERANCE, err_msg=key)


def test_the_documented_table_is_the_tested_one():
    assert set(NOT_EXPRESSED) <= set(CASES) and len(CASES) == 88 and len(EXPRESSED) >= 60
    text = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8")
    for name in CASES:
        status = "not expressed" if name in NOT_EXPRESSED else "agrees"
        assert f"| `{name}` | {status} |" in text, name
