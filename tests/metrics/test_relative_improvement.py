import pytest

from mag.metrics import relative_improvement


def test_relative_improvement() -> None:
    assert relative_improvement(0.6376, 0.6212) == pytest.approx(13.531353135313532, abs=1e-9)
    # The rest of block J of the golden numbers.
    for auc, base, percent in (
        (0.6554, 0.6487, 4.51),
        (0.6376, 0.6240, 10.97),
        (0.6373, 0.6376, -0.22),
    ):
        assert relative_improvement(auc, base) == pytest.approx(percent, abs=0.005)
    assert relative_improvement(0.6, 0.6) == 0
    assert relative_improvement(0.5, 0.75) == -100


def test_bad_input() -> None:
    for auc, base, sentence in (
        (0.6, 0.5, r"'base' must be a number in \(0.5, 1\], but got 0.5"),
        (1.2, 0.6, r"'auc' must be a number in \[0, 1\], but got 1.2"),
        (0.6, float('nan'), r"'base' must be a number in \(0.5, 1\], but got nan"),
    ):
        with pytest.raises(ValueError, match=sentence):
            relative_improvement(auc, base)
