r"""The names of the codes of categorical attributes, those of an earlier log first."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mag.id_map import IdMap, lineage_of


class CodeNames:
    r"""Names codes, so that a name that is known keeps its code and new ones come after.

    Args:
        maps (dict): For each attribute that is known, the names of its codes.

    Attributes:
        names (dict): For each attribute, the name of each code.
        lineages (dict): The :attr:`~mag.datasets.IdMap.lineage` of these.
    """

    def __init__(self, maps: Mapping[str, IdMap]) -> None:
        self._maps = dict(maps)
        self.names: dict[str, list[str]] = {}
        self.lineages: dict[str, str] = {}

    def encode(self, attribute: str, values: list[str], codes: Tensor) -> Tensor:
        r"""The lasting codes of an attribute.

        Args:
            attribute (str): Its name.
            values (list[str]): What codes from 0 are called, each once.
            codes (torch.Tensor): Such codes, :obj:`-1` for none.

        Returns:
            The codes of the same names that last, :obj:`-1` for none; without names that are known
            they are :obj:`codes`.
        """
        known = self._maps.get(attribute)
        if known is None:
            self.names[attribute] = values
            self.lineages[attribute] = lineage_of([values], [len(values)])
            return codes
        grown = known.append(values)
        # Users and items may have attributes of one name.
        self._maps[attribute] = grown
        self.names[attribute] = grown.decode(np.arange(len(grown))).tolist()
        self.lineages[attribute] = grown.lineage
        lasting = torch.from_numpy(grown.encode(values))
        return lasting[codes].where(codes >= 0, -1) if len(values) else codes
