import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('google.protobuf', reason='protobuf is not installed: make test installs it')

ROOT = Path(__file__).parents[2]


# By the command that the contract names.
def test_messages_are_those_of_the_contract(tmp_path: Path) -> None:
    pytest.importorskip('grpc_tools', reason='grpcio-tools is not installed: make test does so')
    command = [
        sys.executable, '-m', 'grpc_tools.protoc', '-I', str(ROOT), f'--python_out={tmp_path}',
        f'--pyi_out={tmp_path}', 'mag/online/ranking.proto',
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT)
    for name in ('ranking_pb2.py', 'ranking_pb2.pyi'):
        made, there = (
            (folder / 'mag/online' / name).read_text() for folder in (tmp_path, ROOT)
        )
        if name.endswith('.py'):
            # Another release of grpcio-tools says that it is another one.
            made, there = map(without_version, (made, there))
        assert made == there, name


def without_version(text: str) -> str:
    text = re.sub(r'# Protobuf Python Version: \S+', '', text)
    return re.sub(r'ValidateProtobufRuntimeVersion\(.*?\)', '', text, flags=re.DOTALL)


# Who speaks another language reads it, and who has asked since the first release goes on asking.
def test_numbers_of_fields_stay() -> None:
    from mag.online.ranking_pb2 import DESCRIPTOR

    fields = {
        f'{message.name}.{field.name}': (field.number, field.type)
        for message in DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    text, real, number, small, flag, message, single = 9, 1, 3, 5, 8, 11, 2
    assert fields == {
        'Id.text': (1, text),
        'Id.number': (2, number),
        'Ids.texts': (1, message),
        'Ids.numbers': (2, message),
        'Texts.values': (1, text),
        'Numbers.values': (1, number),
        'Value.text': (1, text),
        'Value.integer': (2, number),
        'Value.real': (3, real),
        'RankRequest.user': (1, message),
        'RankRequest.items': (2, message),
        'RankRequest.time': (3, number),
        'RankRequest.context': (4, message),
        'RankResponse.probabilities': (1, single),
        'RankResponse.position': (2, number),
        'RankResponse.snapshot': (3, text),
        'RankResponse.degraded': (4, text),
        'ExplainRequest.request': (1, message),
        'ExplainRequest.num_edges': (2, small),
        'ExplainResponse.ranking': (1, message),
        'ExplainResponse.blocks': (2, text),
        'ExplainResponse.without': (3, single),
        'ExplainResponse.user': (4, message),
        'ExplainResponse.items': (5, message),
        'MacroEdges.clusters': (1, small),
        'MacroEdges.stock': (2, number),
        'MacroEdges.live': (3, number),
        'WhatIfRequest.request': (1, message),
        'WhatIfRequest.clicked': (2, message),
        'WhatIfResponse.before': (1, message),
        'WhatIfResponse.after': (2, message),
        'RecordRequest.position': (1, number),
        'RecordRequest.users': (2, message),
        'RecordRequest.items': (3, message),
        'RecordRequest.times': (4, number),
        'RecordRequest.clicked': (5, flag),
        'RecordResponse.end': (1, number),
        'SwapRequest.snapshot': (1, text),
    }
