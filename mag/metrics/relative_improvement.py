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
        ValueError: If a value is outside :math:`[0, 1]` or the base is no better than chance.
    """
    for name, value in (('auc', auc), ('base', base)):
        if not 0 <= value <= 1:
            raise ValueError(f'{name} must be an AUC between 0 and 1, but got {value}.')
    if base <= 0.5:
        raise ValueError(
            f'base must be better than chance, an AUC above 0.5, but got {base}: '
            f'there is nothing to improve on in proportion.'
        )
    return ((auc - 0.5) / (base - 0.5) - 1) * 100
