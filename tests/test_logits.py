import io
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mag.logits import Logits, as_logits


class Branched(torch.nn.Module):
    r"""Two branches over one embedding, which its loss reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 3)

    def forward(self, item: Tensor) -> Logits:
        x = self.embedding(item)
        branches = {'wide': x.sum(1), 'deep': x.prod(1)}
        return Logits(branches['wide'] + branches['deep'], branches=branches, views={'item': x})


def test_a_tensor_is_the_logit_of_a_click() -> None:
    logit = torch.tensor([0.5, -2.0])
    assert as_logits('MacGNN', logit) == Logits(logit)
    logits = Logits(logit, conversion=logit)
    assert as_logits('GMCM', logits) is logits


@pytest.mark.parametrize('output', [None, (torch.ones(2),), {'click': torch.ones(2)}])
def test_any_other_output_is_refused(output: object) -> None:
    name = type(output).__name__
    with pytest.raises(TypeError, match=f'^DIN must return .*Logits, but returned {name}.$'):
        as_logits('DIN', output)  # type: ignore[arg-type]


def test_branches_and_views_are_exported_and_compiled() -> None:
    model, item = Branched(), torch.tensor([3, 1, 4, 1])
    expected = model(item)
    size = torch.export.Dim('batch', min=2)
    program = torch.export.export(model, (item,), dynamic_shapes=({0: size},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    scorer = torch.export.load(file).module(check_guards=False)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    for logits in (scorer(item), compiled(item)):
        assert type(logits) is Logits
        assert logits.conversion is None
        assert list(logits.branches) == ['wide', 'deep'] and list(logits.views) == ['item']
        torch.testing.assert_close(logits.click, expected.click)
        torch.testing.assert_close(logits.branches, expected.branches)
        torch.testing.assert_close(logits.views, expected.views)


def test_whoever_unpacks_logits_imports_no_losses() -> None:
    code = (
        'import sys, mag.logits; '
        'print(*(name for name in sys.modules if name.startswith(("mag.", "lightning"))))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['mag.logits'], done.stderr
