"""Agreement figures against numbers worked out by hand."""

import numpy as np
import pytest

from rlaif_jax.evaluation import agreement as ag

#          tp  tp   fn   fn   fp   tn   tn   tn   tn   fp   (a tie, 0.5, means bad)
LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
SCORES = [0.9, 0.8, 0.5, 0.2, 0.6, 0.1, 0.2, 0.3, 0.4, 0.7]


def test_confusion_and_rates_by_hand():
    found = ag.agreement(SCORES, LABELS)
    assert found.confusion == ag.Confusion(2, 2, 2, 4, 0)
    assert found.accuracy.value == pytest.approx(0.6)
    assert found.balanced_accuracy == pytest.approx((2 / 4 + 4 / 6) / 2)
    # expected agreement: (4 * 4 + 6 * 6) / 100 = 0.52
    assert found.kappa == pytest.approx((0.6 - 0.52) / 0.48)


def test_auc_by_hand_with_ties():
    # wins of .9: 6, of .8: 6, of .5: 4, of .2: 1 and a tie -> 17.5 of 24
    assert ag.auc(SCORES, LABELS) == pytest.approx(17.5 / 24)
    assert ag.auc([1, 1, 1], [1, 0, 0]) == 0.5
    assert ag.auc([1, 2], [1, 1]) is None


def test_auc_equals_the_definition_on_random_scores():
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, 200), rng.integers(0, 12, 200)
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert ag.auc(scores, labels) == pytest.approx(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


def test_against_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    said = np.array(SCORES) > 0.5
    assert ag.cohen_kappa(said, LABELS) == pytest.approx(metrics.cohen_kappa_score(LABELS, said))
    assert ag.balanced_accuracy(said, LABELS) == pytest.approx(metrics.balanced_accuracy_score(LABELS, said))
    assert ag.auc(SCORES, LABELS) == pytest.approx(metrics.roc_auc_score(LABELS, SCORES))


def test_masked_verdicts_are_left_out_and_counted():
    scores = [*SCORES, np.nan, 0.0]
    mask = [1] * 10 + [0, 0]
    found = ag.agreement(scores, [*LABELS, 1, 1], mask)
    assert found.confusion.missing == 2
    assert (found.accuracy.value, found.accuracy.n, found.accuracy.missing) == (pytest.approx(0.6), 10, 2)
    assert found.auc == pytest.approx(17.5 / 24)
    with pytest.raises(ValueError, match="mask"):
        ag.agreement(scores, [*LABELS, 1, 1])


def test_undefined_figures_are_none():
    found = ag.agreement([0.9, 0.8], [1, 1])
    assert (found.balanced_accuracy, found.kappa, found.auc) == (None, None, None)
    assert found.accuracy.value == 1
    nothing = ag.agreement([0.9], [1], [0])
    assert (nothing.accuracy.value, nothing.accuracy.missing, nothing.kappa) == (None, 1, None)


def test_wrong_labels_and_shapes_raise():
    with pytest.raises(ValueError, match="0 or 1"):
        ag.confusion([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="one shape"):
        ag.auc([0.1], [0, 1])


def test_pairwise_accuracy_counts_a_tie_as_half():
    figure = ag.pairwise_accuracy([2, 1, 1, 9], [1, 2, 1, 0], [1, 1, 1, 0])
    assert figure.value == pytest.approx(1.5 / 3)
    assert (figure.n, figure.missing) == (3, 1)


def test_length_matched_pairs():
    chosen_chars, rejected_chars = [80, 79, 125, 126, 100], [100, 100, 100, 100, 100]
    assert ag.similar_length(chosen_chars, rejected_chars).tolist() == [True, False, True, False, True]
    figure = ag.length_matched_accuracy(
        [1, 1, 0, 1, 1], [0, 0, 1, 0, 0], chosen_chars, rejected_chars, mask=[1, 1, 1, 1, 0]
    )
    assert (figure.value, figure.n, figure.missing) == (0.5, 2, 1)
