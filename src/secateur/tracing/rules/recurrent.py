"""Cells of recurrent layers that a GPU runs as one operation; elsewhere they come apart by themselves.

Shape letters: N samples, H hidden units, in gates one after the other.
"""

from secateur.tracing.rules.registry import Dims, Op, rule


@rule("aten::_thnn_fused_lstm_cell")
def lstm_cell(op: Op) -> list[Dims]:
    """Gates (N, 4H) of inputs and of hidden states, cell state (N, H): new states, and gates for the backward pass."""
    n, h = _gates(op, op.dims("cx"), 4)
    return [[n, h], [n, h], [n, op.algebra.concat([h] * 4)]]


@rule("aten::_thnn_fused_gru_cell")
def gru_cell(op: Op) -> list[Dims]:
    """Gates (N, 3H) of inputs and of hidden states, state (N, H): the new state, and what the backward pass needs."""
    n, h = _gates(op, op.dims("hx"), 3)
    return [[n, h], [n, op.algebra.concat([h] * 5)]]


def _gates(op: Op, state: Dims, count: int) -> Dims:
    n, h = state
    for name in ("input_gates", "hidden_gates", "input_bias", "hidden_bias"):
        if op[name] is not None:
            *batch, gates = op.dims(name)
            for part in op.pieces(gates, [h.size] * count):
                op.unify(part, h)
            for dim in batch:
                op.unify(dim, n)
    return [n, h]
