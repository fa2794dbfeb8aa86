"""Standard layers keep their own attributes true: ``print(model)`` must never lie."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def update(module: nn.Module) -> None:
    """Set what a standard layer says of itself from the shapes of its tensors."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):  # the old kinds keep the weight that they last computed
            hook(module, None)
        elif isinstance(hook, SpectralNorm):
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False).detach())
    for kind, refresh in REFRESH:
        if isinstance(module, kind):
            refresh(module)


def _shape(module: nn.Module, name: str = "weight") -> tuple[int, ...]:
    tensor: Any = module._parameters.get(name)
    if tensor is None:  # a parametrised weight lives elsewhere, and reading it computes it
        tensor = _computed(module, name)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else ()


def _computed(module: nn.Module, name: str) -> Any:
    """A weight that is no parameter, read as in evaluation: in training, reading may change buffers."""
    makers = module._modules.get("parametrizations") or nn.Module()
    modes = [(part, part.training) for part in makers.modules()]
    makers.eval()
    try:
        return getattr(module, name, None)
    finally:
        for part, training in modes:
            part.training = training


def _conv(module: Any) -> None:
    shape = _shape(module)
    if not shape:
        return
    outer, inner = shape[0], shape[1] * module.groups
    module.in_channels, module.out_channels = (outer, inner) if isinstance(module, _ConvTransposeNd) else (inner, outer)
    module.kernel_size = shape[2:]


def _linear(module: Any) -> None:
    if shape := _shape(module):
        module.out_features, module.in_features = shape


def _bilinear(module: Any) -> None:
    if shape := _shape(module):
        module.out_features, module.in1_features, module.in2_features = shape


def _batch_norm(module: Any) -> None:
    if shape := _shape(module) or _shape_of(module.running_mean):
        module.num_features = shape[0]


def _shape_of(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _layer_norm(module: Any) -> None:
    if shape := _shape(module):
        module.normalized_shape = shape


def _group_norm(module: Any) -> None:
    if shape := _shape(module):
        module.num_channels = shape[0]


def _embedding(module: Any) -> None:
    if shape := _shape(module):
        module.embedding_dim = shape[1]


def _prelu(module: Any) -> None:
    if shape := _shape(module):
        module.num_parameters = shape[0]


def _recurrent(module: Any) -> None:
    """Weights (gates * hidden, input) and (gates * hidden, state); the state is the projection's where there is one."""
    module.input_size = _shape(module, "weight_ih_l0")[1]
    rows, state = _shape(module, "weight_hh_l0")
    module.hidden_size = rows // GATES[module.mode]
    module.proj_size = state if module.proj_size else 0
    module._init_flat_weights()


def _cell(module: Any) -> None:
    module.input_size, module.hidden_size = _shape(module, "weight_ih")[1], _shape(module, "weight_hh")[1]


def _attention(module: Any) -> None:
    """In-projection weights (heads * head size, input); the three may be one."""
    packed = _shape(module, "in_proj_weight")
    width, module.embed_dim = (packed[0] // 3, packed[1]) if packed else _shape(module, "q_proj_weight")
    module.kdim = packed[1] if packed else _shape(module, "k_proj_weight")[1]
    module.vdim = packed[1] if packed else _shape(module, "v_proj_weight")[1]
    module.head_dim = width // module.num_heads


REFRESH: tuple[tuple[Any, Callable[[Any], None]], ...] = (
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_NormBase, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (RNNCellBase, _cell),
    (nn.MultiheadAttention, _attention),
)
