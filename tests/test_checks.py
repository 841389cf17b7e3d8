import pytest
import torch

from mag.checks import (
    check_booleans,
    check_choice,
    check_ids,
    check_integers,
    check_keys,
    check_numbers,
    check_sizes,
    check_tensor,
    check_values,
    described,
)

FIVE = torch.arange(5)


def test_what_is_as_expected_passes() -> None:
    check_integers(a=-7)
    check_integers(0, a=0, b=3)
    check_integers(1, below=2**31, seed=2**31 - 1)
    check_sizes(a=(64, 32), b=[1], c=())
    check_booleans(a=True, b=False)
    check_numbers('[0, 1]', a=0, b=1, c=0.5)
    check_numbers('(0, inf)', a=1e30)
    check_choice(('mean', 'sum', None), a='sum', b=None)
    check_keys(('user', 'item'), a={'item': 1, 'user': 'x'})
    check_tensor('Reader', 'x', torch.ones(3, 4), (3, 'F'), 'floats')
    check_tensor('Reader', 'x', torch.ones(3, 4), ('*', 4), torch.float32)
    check_tensor('Reader', 'x', torch.ones(4), ('*', 4), 'floats')
    check_tensor('Reader', 'x', torch.ones(0, dtype=torch.uint8), ('N',), 'integers')
    check_tensor('Reader', 'x', torch.tensor(1.0), (), 'floats')
    check_tensor('Reader', 'x', FIVE, (5,), 'int64 seconds')
    for numbers in (FIVE, FIVE.half(), FIVE > 2):
        check_tensor('Reader', 'x', numbers, (5,), 'numbers')
    check_ids('Reader', 'users', FIVE, 5)
    check_ids('Reader', 'users', FIVE - 1, 4, first=-1)
    check_ids('Reader', 'users', FIVE[:0], 0)
    check_values('Reader', 'x', FIVE, FIVE >= 0, 'at least 0')
    check_values('Reader', 'x', FIVE[:0], FIVE[:0] > 0, 'more than 0')


@pytest.mark.parametrize(
    ('check', 'error', 'sentence'),
    [
        (lambda: check_integers(a=1.0), TypeError, "'a' must be an integer, but got 1.0."),
        (lambda: check_integers(a=True), TypeError, "'a' must be an integer, but got True."),
        (lambda: check_integers(a='3'), TypeError, "'a' must be an integer, but got '3'."),
        (lambda: check_integers(1, a=2, b=0), ValueError, "'b' must be at least 1, but got 0."),
        (lambda: check_integers(0, 8, a=8), ValueError, "'a' must lie below 8, but got 8."),
        (
            lambda: check_sizes(a=3),
            TypeError,
            "'a' must be a sequence of sizes such as (64, 32), but got 3.",
        ),
        (
            lambda: check_sizes(a='64'),
            TypeError,
            "'a' must be a sequence of sizes such as (64, 32), but got '64'.",
        ),
        (lambda: check_sizes(a=(4, 0)), ValueError, "'a[1]' must be at least 1, but got 0."),
        (lambda: check_sizes(a=(4.0,)), TypeError, "'a[0]' must be an integer, but got 4.0."),
        (
            lambda: check_keys(('user', 'item'), a=[1, 2]),
            TypeError,
            "'a' must be a dictionary of 'user' and 'item', but got [1, 2].",
        ),
        (
            lambda: check_keys(('user', 'item'), a={'user': 1, 'tag': 2}),
            ValueError,
            "'a' must be a dictionary of 'user' and 'item', but got {'user': 1, 'tag': 2}.",
        ),
        (lambda: check_booleans(a='no'), TypeError, "'a' must be True or False, but got 'no'."),
        (lambda: check_booleans(a=1), TypeError, "'a' must be True or False, but got 1."),
        (
            lambda: check_numbers('[0, 1)', a=1),
            ValueError,
            "'a' must be a number in [0, 1), but got 1.",
        ),
        (
            lambda: check_numbers('[0, 1)', a=float('nan')),
            ValueError,
            "'a' must be a number in [0, 1), but got nan.",
        ),
        (
            lambda: check_numbers('(0, inf)', a=float('inf')),
            ValueError,
            "'a' must be a number in (0, inf), but got inf.",
        ),
        (
            lambda: check_numbers('[0, 1]', a=True),
            TypeError,
            "'a' must be a number in [0, 1], but got True.",
        ),
        (
            lambda: check_choice(('mean', 'sum'), a='max'),
            ValueError,
            "'a' must be one of 'mean', 'sum', but got 'max'.",
        ),
        (
            lambda: check_choice(('mean', 'sum'), a=['sum']),
            ValueError,
            "'a' must be one of 'mean', 'sum', but got ['sum'].",
        ),
        (
            lambda: check_tensor('Reader', 'x', [1], (2, 'E'), torch.long),
            TypeError,
            "Reader expects 'x' to be a tensor of shape [2, E], but got list.",
        ),
        (
            lambda: check_tensor('Reader', 'x', None, ('N',), torch.long),
            TypeError,
            "Reader expects 'x' to be a tensor of shape [N], but got None.",
        ),
        (
            lambda: check_tensor('Reader', 'x', torch.ones(3, 2), (2, 'E'), torch.long),
            ValueError,
            "Reader expects 'x' of shape [2, E], but got shape [3, 2].",
        ),
        (
            lambda: check_tensor('Reader', 'x', FIVE, (5, 1), torch.long),
            ValueError,
            "Reader expects 'x' of shape [5, 1], but got shape [5].",
        ),
        (
            lambda: check_tensor('Reader', 'x', torch.ones(2, 3), ('*', 4), 'floats'),
            ValueError,
            "Reader expects 'x' of shape [*, 4], but got shape [2, 3].",
        ),
        (
            lambda: check_tensor('Reader', 'x', torch.tensor(1.0), ('*', 4), 'floats'),
            ValueError,
            "Reader expects 'x' of shape [*, 4], but got shape [].",
        ),
        (
            lambda: check_tensor('Reader', 'x', FIVE.float(), (5,), torch.long),
            TypeError,
            "Reader expects 'x' of dtype int64, but got torch.float32.",
        ),
        (
            lambda: check_tensor('Reader', 'x', FIVE > 2, (5,), 'integers'),
            TypeError,
            "Reader expects 'x' of integers, but got torch.bool.",
        ),
        (
            lambda: check_tensor('Reader', 'x', FIVE, (5,), 'floats'),
            TypeError,
            "Reader expects 'x' of floats, but got torch.int64.",
        ),
        (
            lambda: check_tensor('Reader', 'x', FIVE.float(), (5,), 'int64 seconds'),
            TypeError,
            "Reader expects 'x' of int64 seconds, but got torch.float32.",
        ),
        (
            lambda: check_tensor('Reader', 'x', FIVE * 1j, (5,), 'numbers'),
            TypeError,
            "Reader expects 'x' of numbers, but got torch.complex64.",
        ),
        (
            lambda: check_ids('Reader', 'users', FIVE, 4),
            IndexError,
            'Reader found users from 0 to 4, but expected them from 0 to 3.',
        ),
        (
            lambda: check_ids('Reader', 'users', FIVE - 2, 9, first=-1),
            IndexError,
            'Reader found users from -2 to 2, but expected them from -1 to 8.',
        ),
        (
            lambda: check_values('Reader', 'x', FIVE, FIVE < 3, 'less than 3'),
            ValueError,
            "Reader expects 'x' of less than 3, but 2 of 5 are not, such as 3 in row 3.",
        ),
        (
            lambda: check_values('Reader', 'x', FIVE.view(1, 5), FIVE.view(1, 5) < 4, 'less'),
            ValueError,
            "Reader expects 'x' of less, but 1 of 5 is not, such as 4 in row 0, column 4.",
        ),
    ],
)
def test_what_is_not_is_restated(check, error, sentence) -> None:
    with pytest.raises(error) as raised:
        check()
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ('value', 'words'),
    [(torch.ones(2, 3), 'shape [2, 3]'), ('x', "'x'"), (3, '3'), (None, 'None'), ([1], 'list')],
)
def test_described(value, words) -> None:
    assert described(value) == words


def test_values_are_not_looked_at_in_compiled_code() -> None:
    @torch.compile(fullgraph=True, backend='eager')
    def gather(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        check_tensor('gather', 'ids', ids, ('B',), torch.long)
        check_ids('gather', 'ids', ids, table.size(0))
        check_values('gather', 'ids', ids, ids >= 0, 'at least 0')
        return table.index_select(0, ids)

    assert gather(FIVE * 2, FIVE[1:3]).tolist() == [2, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')
def test_values_on_a_gpu_are_looked_at_where_the_caller_waits() -> None:
    ids = FIVE.cuda()
    check_ids('Reader', 'users', ids, 4)
    check_values('Reader', 'x', ids, ids < 3, 'less than 3')
    with pytest.raises(IndexError, match='users from 0 to 4'):
        check_ids('Reader', 'users', ids, 4, wait=True)
    with pytest.raises(ValueError, match='2 of 5 are not, such as 3 in row 3'):
        check_values('Reader', 'x', ids, ids < 3, 'less than 3', wait=True)
