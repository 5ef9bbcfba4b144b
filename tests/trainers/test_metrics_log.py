"""The metrics file."""

from rlaif_jax.trainers.metrics_log import MetricsWriter, read_metrics


def test_renamed_metrics_have_their_old_names_too(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=0)
    writer.write(1, {"frac_reward_zero_std": 0.5, "clip_ratio/low": 0.1, "approx_kl": float("nan"), "loss": 2.0})
    writer.close()
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row == {
        "step": 1, "frac_reward_zero_std": 0.5, "no_signal_groups": 0.5, "clip_ratio/low": 0.1, "clip_low": 0.1, "approx_kl": None,
        "kl_old": None, "loss": 2.0,
    }  # fmt: skip


def test_a_resumed_run_keeps_only_the_lines_up_to_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 4, "lo')  # the process was killed here
    MetricsWriter(tmp_path, resume_step=2).close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
