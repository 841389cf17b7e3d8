import pytest
import torch

from mag.nn import QueryEmbedding

TERMS = torch.tensor([[3, 5, -1, -1], [0, -1, -1, -1], [2, 2, 2, 1], [-1, -1, -1, -1]])


def counted(form: str = 'paper') -> QueryEmbedding:
    r"""Term :math:`t` is embedded as 2 to the power of :math:`t`, a padding as 100."""
    embedding = QueryEmbedding(7, 1, form)
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor([100.0, *(2**term for term in range(7))]).view(-1, 1))
    return embedding


def test_a_query_is_the_sum_of_its_terms() -> None:
    assert counted()(TERMS).view(-1).tolist() == [8 + 32, 1, 4 + 4 + 4 + 2, 0]


def test_released_paddings_add_up_and_the_empty_query_is_of_paddings_alone() -> None:
    out = counted('released')(TERMS).view(-1).tolist()
    assert out == [8 + 32 + 200, 400, 4 + 4 + 4 + 2, 400]


@pytest.mark.parametrize(('form', 'expected'), [('paper', 0), ('released', 100)])
def test_queries_of_no_terms_are_paddings(form: str, expected: float) -> None:
    out = counted(form)(torch.empty(2, 0, dtype=torch.long))
    assert out.tolist() == [[expected], [expected]]
    assert counted(form)(torch.empty(0, 3, dtype=torch.long)).shape == (0, 1)


def test_a_padding_gets_a_gradient_in_the_released_form_only() -> None:
    for form, trained in (('paper', False), ('released', True)):
        embedding = counted(form)
        embedding(TERMS).sum().backward()
        assert bool(embedding.weight.grad[0] != 0) is trained


def test_exported_and_compiled() -> None:
    embedding = QueryEmbedding(7, 3)
    shapes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    exported = torch.export.export(embedding, (TERMS,), dynamic_shapes=shapes).module()
    compiled = torch.compile(embedding, fullgraph=True, backend='aot_eager')
    for terms in (TERMS, TERMS[:2, :3], TERMS.repeat(5, 2)):
        torch.testing.assert_close(exported(terms), embedding(terms))
        torch.testing.assert_close(compiled(terms), embedding(terms))


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ((0, 2), ValueError, "'num_terms' must be at least 1, but got 0"),
        ((7, 2.0), TypeError, "'embedding_dim' must be an integer, but got 2.0"),
        ((7, 2, 'literal'), ValueError, "'form' must be one of 'paper', 'released', but got 'lit"),
    ],
)
def test_wrong_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QueryEmbedding(*arguments)


def test_wrong_terms() -> None:
    embedding = QueryEmbedding(7, 2)
    for terms, error, message in (
        (TERMS[0], ValueError, r"'terms' of shape \[B, Q\], but got shape \[4\]"),
        (TERMS.float(), TypeError, "'terms' of dtype int64, but got torch.float32"),
        (TERMS.tolist(), TypeError, "'terms' to be a tensor .*, but got list"),
        (TERMS - 1, IndexError, 'query terms from -2 to 4, but expected them from -1 to 6'),
        (TERMS + 2, IndexError, 'query terms from 1 to 7, but expected them from -1 to 6'),
    ):
        with pytest.raises(error, match=message):
            embedding(terms)


def test_repr() -> None:
    assert repr(QueryEmbedding(7, 2)) == "QueryEmbedding(7, 2, form='paper')"
