import math

import pytest
import torch

from bharateo.errors import ConfigError
from bharateo.models.vit import Attention, TransformerBlock, attend, blocks, sincos_positions


def attention_by_loops(query, key, value):
    """softmax(q k^T / sqrt(d)) v, one number after the other, in double precision."""
    query, key, value = (part.detach().double() for part in (query, key, value))
    mixed = torch.zeros_like(query)
    batch, heads, tokens, width = query.shape
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                scores = [
                    sum(float(query[b, h, i, d] * key[b, h, j, d]) for d in range(width))
                    / math.sqrt(width)
                    for j in range(tokens)
                ]
                exps = [math.exp(score - max(scores)) for score in scores]
                for j in range(tokens):
                    mixed[b, h, i] += exps[j] / sum(exps) * value[b, h, j]
    return mixed


@pytest.fixture
def query_key_value():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 2, 2, 5, 4, generator=generator) * 2


def test_attention_is_the_textbooks(query_key_value):
    torch.testing.assert_close(
        attend(*query_key_value), attention_by_loops(*query_key_value).float(), rtol=1e-5, atol=1e-5
    )


def test_attention_in_bf16_is_the_textbooks_within_its_rounding(query_key_value):
    rounded = query_key_value.bfloat16()
    mixed = attend(*rounded)
    assert mixed.dtype == torch.bfloat16
    expected = attention_by_loops(*rounded)
    # Eight bits of mantissa: about 2^-8 for each of scores, shares and the sum.
    torch.testing.assert_close(mixed.double(), expected, rtol=0.02, atol=0.03)


def test_heads_see_their_own_part_of_the_width():
    torch.manual_seed(0)
    attention = Attention(8, 2)
    x = torch.randn(1, 3, 8)
    query, key, value = attention.qkv(x).split(8, dim=2)
    parts = [
        attention_by_loops(*(part[:, None, :, head : head + 4] for part in (query, key, value)))
        for head in (0, 4)
    ]
    expected = attention.out(torch.cat([part[:, 0] for part in parts], 2).float())
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="width 10 is not a multiple of num_heads 4"):
        Attention(10, 4)


def test_a_block_adds_attention_and_mlp_to_its_input():
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 4)
    x = torch.randn(2, 5, 8)
    after = x + block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), after + block.mlp(block.norm2(after)))
    assert block.mlp[0].out_features == 32


def test_the_order_of_tokens_does_not_matter():
    torch.manual_seed(0)
    model = blocks(2, 8, 2, 4)
    x = torch.randn(1, 6, 8)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(model(x)[:, order], model(x[:, order]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "cols", "width"), [(1, 1, 4), (2, 3, 8), (8, 8, 64)])
def test_positions_are_sines_and_cosines_of_row_then_column(rows, cols, width):
    table = sincos_positions(rows, cols, width)
    quarter = width // 4
    for row in range(rows):
        for col in range(cols):
            expected = []
            for place in (row, col):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                expected += [math.sin(angle) for angle in angles]
                expected += [math.cos(angle) for angle in angles]
            got = table[row * cols + col]
            torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_positions_of_all_tokens_differ():
    table = sincos_positions(8, 8, 16)
    assert len({tuple(row.tolist()) for row in table}) == 64


def test_positions_need_a_width_of_four_parts():
    with pytest.raises(ConfigError, match="multiple of 4, got 6"):
        sincos_positions(2, 2, 6)
