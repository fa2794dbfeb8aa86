"""What a stored graph may call: operations on tensors, and none that run code or hand out memory."""

import operator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from secateur.tracing.factories import FACTORIES

OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "matmul", "getitem", "eq", "ne", "lt",
             "le", "gt", "ge", "and_", "or_", "invert", "iadd", "isub", "imul", "itruediv", "setitem")  # fmt: skip
READ_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "T", "mT", "is_cuda", "min", "max", "eps", "tiny")
NAMESPACES: dict[str, Any] = {
    "torch.nn.functional": F,
    "torch": torch,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
}
# What runs code, hands out memory, changes what a tensor is, or loops as often as an argument says.
DENIED = {
    "__reduce_ex__", "__reduce__", "__setstate__", "apply_", "map_", "map2_", "register_hook", "backward",
    "module_load", "register_post_accumulate_grad_hook", "numpy", "storage", "untyped_storage", "storage_type",
    "data_ptr", "const_data_ptr", "set_", "resize", "resize_", "resize_as", "resize_as_", "resize_as_sparse_",
    "sparse_resize_", "sparse_resize_and_clear_", "share_memory_", "pin_memory",
    "tolist", "record_stream", "retain_grad", "is_shared", "is_pinned", "autocast", "lobpcg", "svd_lowrank",
    "pca_lowrank", "combinations", "cartesian_prod", "histogramdd", "unravel_index", "slice_inverse", "orgqr", "ormqr",
    "geqrf", "choose_qparams_optimized", "int_repr", "hash_tensor", "norm_except_dim", "dequantize", "to_sparse",
    "to_mkldnn", "smm", "hsmm", "dsmm", "spmm", "hspmm", "saddmm", "sspaddmm", "sparse_mask", "sparse_dim", "dense_dim",
    "coalesce", "indices", "values", "lu_unpack",
}  # fmt: skip
# Beginnings of what works on packed, quantized or sparse memory, or belongs to one kind of device.
DENIED_KINDS = ("fbgemm_", "quantize", "fake_quantize", "fused_moving", "q_", "miopen_", "cudnn_", "mkldnn_", "sym_",
                "batch_norm_", "crow_", "ccol_", "row_", "col_")  # fmt: skip
MAX_NODES = 200_000


@cache
def functions() -> dict[str, Any]:
    """The functions that a stored graph may call, by name."""
    allowed = torch.overrides.get_overridable_functions()
    tensor_functions = {f for namespace, found in allowed.items() if namespace is not torch.Tensor for f in found}
    table: dict[str, Any] = {}
    for prefix, namespace in NAMESPACES.items():
        for name in dir(namespace):
            function = getattr(namespace, name)
            if not _denied(name) and callable(function) and _in(function, tensor_functions):
                table[f"{prefix}.{name}"] = function
    table |= {f"operator.{name}": getattr(operator, name) for name in OPERATORS}
    for name in FACTORIES:
        table[f"torch.{name}"] = getattr(torch, name)
    return table | {"getattr": getattr, "operator.not_": operator.not_, "torch._assert": torch._assert}


def _denied(name: str) -> bool:
    return name.startswith(("_", *DENIED_KINDS)) or name in DENIED


def _in(function: Any, allowed: set[Any]) -> bool:
    try:
        return function in allowed
    except TypeError:
        return False


@cache
def methods() -> frozenset[str]:
    """The tensor methods that a stored graph may call."""
    found = torch.overrides.get_overridable_functions()[torch.Tensor]
    names = {getattr(f, "__name__", "") for f in found}
    return frozenset(n for n in names if n and not _denied(n))
