from collections.abc import Mapping


def check_grown(model: str, known: Mapping[str, int], found: Mapping[str, int]) -> None:
    r"""Raises unless there is as much as before of all that a model was built for, or more.

    Args:
        model: The name of the model.
        known: What it was built for, by what it is, such as :obj:`{'users': 5}`.
        found: What there is now.

    Raises:
        ValueError: If there is less of something.
    """
    for what, number in known.items():
        if found[what] < number:
            raise ValueError(
                f'{model} was built for {number} {what}, but this data has only {found[what]}: a '
                f'log that grew keeps all that it had.'
            )
