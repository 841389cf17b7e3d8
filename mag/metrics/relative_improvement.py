from mag.checks import check_numbers


def relative_improvement(auc: float, base: float) -> float:
    r"""The relative improvement of an AUC over a base's, in percent, with the AUC of chance as zero
    (RelaImpr, eq. 15 of `"Joint Learning of E-commerce Search and Recommendation with a Unified
    Graph Neural Network" <https://doi.org/10.1145/3488560.3498414>`_).

    .. math::
        \left( \frac{\mathrm{AUC} - 0.5}{\mathrm{AUC}_\mathrm{base} - 0.5} - 1 \right) \cdot 100

    Args:
        auc (float): The AUC to judge, between 0 and 1.
        base (float): The AUC to compare with, between 0 and 1.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a value is outside :math:`[0, 1]` or the base is no better than chance, 0.5.
    """
    check_numbers('[0, 1]', auc=auc)
    # Of an AUC of chance there is nothing to improve on in proportion.
    check_numbers('(0.5, 1]', base=base)
    return ((auc - 0.5) / (base - 0.5) - 1) * 100
