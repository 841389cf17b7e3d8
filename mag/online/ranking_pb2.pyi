from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Id(_message.Message):
    __slots__ = ("text", "number")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: int
    def __init__(self, text: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class Ids(_message.Message):
    __slots__ = ("texts", "numbers")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    texts: Texts
    numbers: Numbers
    def __init__(self, texts: _Optional[_Union[Texts, _Mapping]] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("text", "integer", "real")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    real: float
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("user", "items", "time", "context")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    USER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    user: Id
    items: Ids
    time: int
    context: _containers.MessageMap[str, Value]
    def __init__(self, user: _Optional[_Union[Id, _Mapping]] = ..., items: _Optional[_Union[Ids, _Mapping]] = ..., time: _Optional[int] = ..., context: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("probabilities", "position", "snapshot", "degraded")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    position: int
    snapshot: str
    degraded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, probabilities: _Optional[_Iterable[float]] = ..., position: _Optional[int] = ..., snapshot: _Optional[str] = ..., degraded: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request", "num_edges")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    NUM_EDGES_FIELD_NUMBER: _ClassVar[int]
    request: RankRequest
    num_edges: int
    def __init__(self, request: _Optional[_Union[RankRequest, _Mapping]] = ..., num_edges: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("ranking", "blocks", "without", "user", "items")
    RANKING_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ranking: RankResponse
    blocks: _containers.RepeatedScalarFieldContainer[str]
    without: _containers.RepeatedScalarFieldContainer[float]
    user: MacroEdges
    items: _containers.RepeatedCompositeFieldContainer[MacroEdges]
    def __init__(self, ranking: _Optional[_Union[RankResponse, _Mapping]] = ..., blocks: _Optional[_Iterable[str]] = ..., without: _Optional[_Iterable[float]] = ..., user: _Optional[_Union[MacroEdges, _Mapping]] = ..., items: _Optional[_Iterable[_Union[MacroEdges, _Mapping]]] = ...) -> None: ...

class MacroEdges(_message.Message):
    __slots__ = ("clusters", "stock", "live")
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    STOCK_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    clusters: _containers.RepeatedScalarFieldContainer[int]
    stock: _containers.RepeatedScalarFieldContainer[int]
    live: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, clusters: _Optional[_Iterable[int]] = ..., stock: _Optional[_Iterable[int]] = ..., live: _Optional[_Iterable[int]] = ...) -> None: ...

class WhatIfRequest(_message.Message):
    __slots__ = ("request", "clicked")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CLICKED_FIELD_NUMBER: _ClassVar[int]
    request: RankRequest
    clicked: Id
    def __init__(self, request: _Optional[_Union[RankRequest, _Mapping]] = ..., clicked: _Optional[_Union[Id, _Mapping]] = ...) -> None: ...

class WhatIfResponse(_message.Message):
    __slots__ = ("before", "after")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    before: RankResponse
    after: RankResponse
    def __init__(self, before: _Optional[_Union[RankResponse, _Mapping]] = ..., after: _Optional[_Union[RankResponse, _Mapping]] = ...) -> None: ...

class RecordRequest(_message.Message):
    __slots__ = ("position", "users", "items", "times", "clicked")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    CLICKED_FIELD_NUMBER: _ClassVar[int]
    position: int
    users: Ids
    items: Ids
    times: _containers.RepeatedScalarFieldContainer[int]
    clicked: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, position: _Optional[int] = ..., users: _Optional[_Union[Ids, _Mapping]] = ..., items: _Optional[_Union[Ids, _Mapping]] = ..., times: _Optional[_Iterable[int]] = ..., clicked: _Optional[_Iterable[bool]] = ...) -> None: ...

class RecordResponse(_message.Message):
    __slots__ = ("end",)
    END_FIELD_NUMBER: _ClassVar[int]
    end: int
    def __init__(self, end: _Optional[int] = ...) -> None: ...

class SwapRequest(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    def __init__(self, snapshot: _Optional[str] = ...) -> None: ...

class SwapResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
