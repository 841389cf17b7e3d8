from collections.abc import Sequence

import torch

from mag.checks import check_choice, check_sizes
from mag.nn.dice import Dice


class MLP(torch.nn.Sequential):
    r"""Linear layers with :class:`Dice` between them and nothing after the last: the prediction
    head of the click models.

    Args:
        channels (Sequence[int]): Sizes of input, hidden layers and output, such as
            :obj:`[140, 200, 80, 1]`.
        form (str, optional): :obj:`"paper"` or :obj:`"released"`, see :class:`Dice`.
            (default: :obj:`"paper"`)

    Shapes:
        - **input:** :math:`(B, C_{first})`
        - **output:** :math:`(B, C_{last})`
    """

    def __init__(self, channels: Sequence[int], form: str = 'paper') -> None:
        check_sizes(channels=channels)
        if len(channels) < 2:
            raise ValueError(f"'channels' must hold two sizes or more, but got {channels!r}.")
        # Without a hidden layer there is no Dice that looks at it.
        check_choice(('paper', 'released'), form=form)
        layers: list[torch.nn.Module] = [torch.nn.Linear(channels[0], channels[1])]
        for size, following in zip(channels[1:-1], channels[2:], strict=True):
            layers += [Dice(size, form), torch.nn.Linear(size, following)]
        super().__init__(*layers)

    def reset_parameters(self) -> None:
        for layer in self:
            layer.reset_parameters()  # type: ignore[operator]
