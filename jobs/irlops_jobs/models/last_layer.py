"""A decoder's last layer, run only at the places whose states are read.

Everything is attended to there as well, so keys and values are made of all tokens. Queries, the projection behind them
and the feed-forward part, nine tenths of a layer's arithmetic, are made where somebody looks.
"""

# Dimension key: S rows, L tokens of a row, R places read, H hidden, K heads, D size of a head.
from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, eager_attention_forward, rotate_half
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

WholeLayer = LlamaDecoderLayer | Qwen2DecoderLayer


def as_whole_layer(layer: nn.Module) -> WholeLayer | None:
    """The layer, if its parts may be run one by one: they are known, and FSDP (which makes a class of its own of a layer)
    doesn't gather their weights for the layer's own forward pass alone."""
    return layer if type(layer) in (LlamaDecoderLayer, Qwen2DecoderLayer) else None  # pyright: ignore[reportReturnType]


def run_at(
    layer: WholeLayer,
    states_SLH: Tensor,
    place_SR: Tensor,
    *,
    cosine_sine_SLD: tuple[Tensor, Tensor],
    mask_S1LL: Tensor,
) -> Tensor:
    """What the layer makes of some of its places.

    Args:
        states_SLH: (S, L, H), what the layer below made of all of them.
        place_SR: (S, R) int64, which to run.
        cosine_sine_SLD: (S, L, D) each, from the model's rotary embedding.
        mask_S1LL: (S, 1, L, L) float32 to add to attention scores.
    Returns:
        (S, R, H), as the layer's own pass would have them there.
    """
    normed_SLH = layer.input_layernorm(states_SLH)
    at_SRH = take(states_SLH, place_SR) + _attend(
        layer.self_attn,
        normed_SLH,
        place_SR,
        cosine_sine_SLD=cosine_sine_SLD,
        mask_S1RL=mask_S1LL.gather(2, place_SR[:, None, :, None].expand(-1, -1, -1, mask_S1LL.shape[-1])),
    )
    return at_SRH + layer.mlp(layer.post_attention_layernorm(at_SRH))


def take(states_SLH: Tensor, place_SR: Tensor) -> Tensor:
    """(S, R, H), the states at these places."""
    return states_SLH.gather(1, place_SR[:, :, None].expand(-1, -1, states_SLH.shape[-1]))


def _attend(
    attention: nn.Module,
    normed_SLH: Tensor,
    place_SR: Tensor,
    *,
    cosine_sine_SLD: tuple[Tensor, Tensor],
    mask_S1RL: Tensor,
) -> Tensor:
    cosine_SLD, sine_SLD = cosine_sine_SLD
    query_SKRD = _heads(attention.q_proj(take(normed_SLH, place_SR)), attention)  # pyright: ignore[reportCallIssue]
    key_SKLD = _heads(attention.k_proj(normed_SLH), attention)  # pyright: ignore[reportCallIssue]
    value_SKLD = _heads(attention.v_proj(normed_SLH), attention)  # pyright: ignore[reportCallIssue]
    interface: Callable[..., tuple[Tensor, Tensor]] = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation,  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - as the layer itself does
        eager_attention_forward,
    )
    attended_SRKD, _ = interface(
        attention,
        _rotate(query_SKRD, take(cosine_SLD, place_SR), take(sine_SLD, place_SR)),
        _rotate(key_SKLD, cosine_SLD, sine_SLD),
        value_SKLD,
        mask_S1RL,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
    )
    return attention.o_proj(attended_SRKD.flatten(2))  # pyright: ignore[reportCallIssue]


def _heads(projected: Tensor, attention: nn.Module) -> Tensor:
    return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # pyright: ignore[reportArgumentType]


def _rotate(head: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return head * cosine[:, None] + rotate_half(head) * sine[:, None]
