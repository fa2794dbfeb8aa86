"""The algebra by hand, and against brute-force position tracking through random programs."""

from dataclasses import dataclass, field
from math import prod

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.axes import ONE, Algebra, Axis, Expr, Leaf, Prod, Sum, concat, leaves, product, resolve, size_of
from secateur.surgery import index


@pytest.fixture
def algebra() -> Algebra:
    return Algebra()


def test_a_split_refines_an_axis(algebra: Algebra) -> None:
    axis = algebra.fresh(12)
    assert algebra.split(axis, 3) is not None
    outer, inner = resolve(axis).factors  # type: ignore[union-attr]
    assert (outer.size, inner.size) == (3, 4)


def test_a_cut_refines_an_axis(algebra: Algebra) -> None:
    axis = algebra.fresh(10)
    assert algebra.cut(axis, 4) is not None
    assert isinstance(resolve(axis), Sum)
    assert [p.size for p in resolve(axis).parts] == [4, 6]  # type: ignore[union-attr]


def test_products_unify_across_different_boundaries(algebra: Algebra) -> None:
    a, b, c, d = (algebra.fresh(n) for n in (2, 12, 6, 4))
    assert algebra.unify(product((a, b)), product((c, d)))
    # (2 12) = (6 4): c = (a 3), b = (3 d)
    assert [leaf.size for leaf in leaves(resolve(c))] == [2, 3]
    assert [leaf.size for leaf in leaves(resolve(b))] == [3, 4]
    assert list(leaves(resolve(c)))[1] is next(iter(leaves(resolve(b))))


def test_boundaries_that_share_no_factor_do_not_unify(algebra: Algebra) -> None:
    assert not algebra.unify(
        product((algebra.fresh(3), algebra.fresh(4))), product((algebra.fresh(4), algebra.fresh(3)))
    )


def test_rotary_halves_couple_unit_j_with_j_plus_half(algebra: Algebra) -> None:
    head, table = algebra.fresh(8), algebra.fresh(4)
    first, second = algebra.cut(head, 4) or (ONE, ONE)
    assert algebra.unify(concat((second, first)), head)
    assert algebra.unify(head, concat((table, table)))
    assert resolve(head) == Sum((resolve(table), resolve(table)), 8)


def test_a_sum_is_cut_out_of_a_product(algebra: Algebra) -> None:
    a, b, heads, width = (algebra.fresh(n) for n in (6, 9, 5, 3))
    assert algebra.unify(concat((a, b)), product((heads, width)))
    assert resolve(a) == product((resolve(heads).parts[0], width))  # type: ignore[union-attr]
    assert [p.size for p in resolve(heads).parts] == [2, 3]  # type: ignore[union-attr]


def test_an_axis_is_not_bound_to_what_contains_it(algebra: Algebra) -> None:
    axis = algebra.fresh(4)
    outer, inner = algebra.fresh(2), algebra.fresh(2)
    axis.bound = product((outer, inner))
    assert algebra.unify(product((inner, outer)), axis)  # (i o) = (o i): i = o
    assert resolve(outer) is resolve(inner)


def test_size_one_factors_vanish_and_size_one_parts_stay(algebra: Algebra) -> None:
    axis = algebra.fresh(3)
    assert product((ONE, axis, algebra.fresh(1))) is axis
    assert concat((ONE, axis)).size == 4


def test_reshaping_a_tensor_without_elements_keeps_its_last_dims(algebra: Algebra) -> None:
    rows, heads, width = algebra.fresh(0), algebra.fresh(2), algebra.fresh(3)
    dims = algebra.regroup([ONE, rows, heads, width], [0, 2, 3])
    assert dims == [rows, heads, width]
    assert not algebra.frozen
    dims = algebra.regroup([rows, heads, width], [2, 0, 3])
    assert dims is not None
    assert dims[2] is width
    assert {id(expr) for expr, _ in algebra.frozen} == {id(e) for e in (rows, heads, *dims[:2])}


def test_frozenness_survives_binding(algebra: Algebra) -> None:
    a, b = algebra.fresh(6), algebra.fresh(6)
    algebra.freeze(a, "an output")
    assert algebra.unify(b, a)
    assert algebra.split(b, 2) is not None
    frozen = {id(leaf) for expr, _ in algebra.frozen for leaf in leaves(resolve(expr))}
    assert frozen == {id(leaf) for leaf in leaves(resolve(b))}


def test_size_of_follows_named_axes() -> None:
    expr = Sum((Prod((Leaf("a", 3), Leaf(None, 4)), 12), Leaf("b", 5)), 17)
    assert size_of(expr, {}) == 17
    assert size_of(expr, {"a": 2, "b": 1}) == 9


def test_index_of_products_and_sums() -> None:
    expr = Sum((Prod((Leaf("a", 2), Leaf("b", 3)), 6), Leaf("b", 3)), 9)
    kept = {"b": torch.tensor([0, 2])}
    assert index(expr, kept).tolist() == [0, 2, 3, 5, 6, 8]


# ---------------------------------------------------------------------- random programs against brute force


@dataclass
class Value:
    """A tensor of a program: the dims that the algebra tracks, and the positions that brute force tracks."""

    dims: list[Expr]
    full: Tensor
    replay: "object"  # () -> the same tensor computed from pruned inputs

    @property
    def shape(self) -> list[int]:
        return list(self.full.shape)


@dataclass
class Program:
    """Builds a random program; ``check`` prunes its inputs and runs it again at the new sizes."""

    data: st.DataObject
    algebra: Algebra = field(default_factory=Algebra)
    values: list[Value] = field(default_factory=list)
    pruned: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)

    def base(self, shape: list[int]) -> Value:
        full = torch.arange(prod(shape)).reshape(shape) + 1000 * len(self.values)
        dims = [self.algebra.dim(s) for s in shape]
        return self.add(dims, full, lambda: self.take(full, dims))

    def add(self, dims: list[Expr], full: Tensor, replay: object) -> Value:
        assert [d.size for d in dims] == list(full.shape)
        self.values.append(Value(dims, full, replay))
        return self.values[-1]

    # ------------------------------------------------------------------ finished expressions

    def finish(self, expr: Expr) -> Expr:
        match resolve(expr):
            case Axis() as axis:
                return Leaf(str(axis.order), axis.size)
            case Prod() as p:
                return product(map(self.finish, p.factors))
            case Sum() as s:
                return concat(map(self.finish, s.parts))
            case leaf:
                return leaf

    def sizes(self, dims: list[Expr]) -> list[int]:
        return [len(index(self.finish(d), self.kept)) for d in dims]

    def take(self, full: Tensor, dims: list[Expr]) -> Tensor:
        for k, dim in enumerate(dims):
            full = full.index_select(k, index(self.finish(dim), self.kept))
        return full

    def run(self, value: Value) -> Tensor:
        if id(value) not in self.pruned:
            self.pruned[id(value)] = value.replay()  # type: ignore[operator]
        return self.pruned[id(value)]

    # ------------------------------------------------------------------ steps

    def freeze(self, dims: list[Expr]) -> None:
        for dim in dims:
            self.algebra.freeze(dim, "test")

    def pick(self) -> Value:
        return self.values[self.data.draw(st.integers(0, len(self.values) - 1))]

    def reshape(self) -> None:
        x = self.pick()
        sizes = self.data.draw(st.sampled_from(factorings(x.full.numel())))
        dims = self.algebra.reshape(x.dims, sizes, lambda: "test")
        self.add(dims, x.full.reshape(sizes), lambda: self.run(x).reshape(self.sizes(dims)))

    def permute(self) -> None:
        x = self.pick()
        order = self.data.draw(st.permutations(range(len(x.shape))))
        self.add([x.dims[k] for k in order], x.full.permute(order), lambda: self.run(x).permute(order))

    def cat(self) -> None:
        x = self.pick()
        if not x.shape:
            return
        at = self.data.draw(st.integers(0, len(x.shape) - 1))
        alike = [
            v
            for v in self.values
            if len(v.shape) == len(x.shape)
            and all(a == b or k == at for k, (a, b) in enumerate(zip(x.shape, v.shape, strict=True)))
        ]
        y = self.data.draw(st.sampled_from(alike))
        if x.shape[at] + y.shape[at] > 48:
            return
        for k in range(len(x.shape)):
            if k != at and not self.algebra.unify(x.dims[k], y.dims[k]):
                self.freeze([x.dims[k], y.dims[k]])
        dims = [self.algebra.concat([x.dims[k], y.dims[k]]) if k == at else x.dims[k] for k in range(len(x.shape))]
        self.add(dims, torch.cat([x.full, y.full], at), lambda: torch.cat([self.run(x), self.run(y)], at))

    def split(self) -> None:
        x = self.pick()
        wide = [k for k, s in enumerate(x.shape) if s > 1]
        if not wide:
            return
        at = self.data.draw(st.sampled_from(wide))
        first = self.data.draw(st.integers(1, x.shape[at] - 1))
        sizes = [first, x.shape[at] - first]
        parts = self.algebra.pieces(x.dims[at], sizes)
        if parts is None:
            self.freeze([x.dims[at]])
            parts = [self.algebra.fixed(s, "test") for s in sizes]
        for k, part in enumerate(parts):
            dims = [*x.dims[:at], part, *x.dims[at + 1 :]]

            def replay(k: int = k, parts: list[Expr] = parts) -> Tensor:
                return self.run(x).split(self.sizes(parts), at)[k]

            self.add(dims, x.full.split(sizes, at)[k], replay)

    def expand(self) -> None:
        x = self.pick()
        if x.full.numel() > 100:
            return
        axis = self.algebra.fresh(self.data.draw(st.integers(2, 3)))
        dims = [axis, *x.dims]
        self.add(dims, x.full.expand(axis.size, *x.shape), lambda: self.run(x).expand(*self.sizes(dims)))

    def together(self) -> None:
        """Elementwise with a tensor of the same shape: equal dims unify."""
        x = self.pick()
        y = self.data.draw(st.sampled_from([v for v in self.values if v.shape == x.shape]))
        for a, b in zip(x.dims, y.dims, strict=True):
            if not self.algebra.unify(a, b):
                self.freeze([a, b])
        self.add(x.dims, x.full * 7919 + y.full, lambda: self.run(x) * 7919 + self.run(y))

    # ------------------------------------------------------------------ the check

    def check(self) -> None:
        frozen = {
            leaf.order for expr, _ in self.algebra.frozen for leaf in leaves(resolve(expr)) if isinstance(leaf, Axis)
        }
        seen = {
            leaf.order: leaf
            for v in self.values
            for d in v.dims
            for leaf in leaves(resolve(d))
            if isinstance(leaf, Axis)
        }
        for order, leaf in sorted(seen.items()):
            if order not in frozen:
                units = self.data.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))
                self.kept[str(order)] = torch.tensor(sorted(units))
        for value in self.values:
            assert torch.equal(self.run(value), self.take(value.full, value.dims))


def factorings(count: int, most: int = 4) -> list[list[int]]:
    """Every shape of at most ``most`` dims with that many elements."""
    if most == 1:
        return [[count]]
    return [[count]] + [
        [d, *rest] for d in range(1, count + 1) if count % d == 0 for rest in factorings(count // d, most - 1)
    ]


STEPS = ["reshape", "permute", "cat", "split", "expand", "together"]


@given(st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_pruning_commutes_with_random_programs(data: st.DataObject) -> None:
    check_random_program(data)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@given(st.data())
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_pruning_commutes_with_many_random_programs(data: st.DataObject) -> None:
    check_random_program(data)


def check_random_program(data: st.DataObject) -> None:
    """Running a program on pruned inputs gives the pruned result of running it on whole ones, at every step."""
    program = Program(data)
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))
    program.base(shape)
    if data.draw(st.booleans()):
        program.base(data.draw(st.permutations(shape)))
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
        getattr(program, step)()
    program.check()
