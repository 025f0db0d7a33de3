import dataclasses
import math
import re
import textwrap
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mha_tutor.einsum import explain_einsum

N, H, Q, K, D = 2, 3, 5, 7, 11
SCORES, OUTPUT = "nqhd,nkhd->nhqk", "nhqk,nkhd->nqhd"


def whole_numbers(*shape, seed=0):
    """Small whole numbers in float64: sums of their products are exact, in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).double()


def attention_operands(spec):
    first = (N, Q, H, D) if spec == SCORES else (N, H, Q, K)
    return whole_numbers(*first), whole_numbers(N, K, H, D, seed=1)


# --- Random specs, against torch ----------------------------------------------------------


@dataclasses.dataclass
class Case:
    """A spec as it is drawn: axes by name, "0" and "1" being those under "..."."""

    spec: str
    axes: list[list[str]]
    out: list[str]
    size: dict[str, int]
    shapes: list[tuple[int, ...]]

    @property
    def operands(self):
        return [whole_numbers(*shape, seed=i) for i, shape in enumerate(self.shapes)]

    @property
    def used(self):
        return {name for term in self.axes for name in term}

    def stretched(self, i):
        pairs = zip(self.axes[i], self.shapes[i], strict=True)
        return {name for name, size in pairs if size != self.size[name]}


UP_TO_THREE = st.integers(1, 3)
SOMETIMES = st.sampled_from([False, False, False, True])


@st.composite
def cases(draw, operands):
    """Draw which operands use each letter, then an order for each, then the rare things."""
    count = draw(operands)
    letters = "akBAb"[: draw(st.sampled_from([4, 3, 5, 2, 1, 0]))]
    hidden = "01"[: draw(st.sampled_from([0, 1, 2]))] if len(letters) < 4 else ""
    size = dict(zip(letters + hidden, draw(st.permutations([2, 3, 5, 7, 11])), strict=False))
    users = st.sets(st.integers(0, count - 1), min_size=min(count, draw(st.integers(1, 2))))
    used_by = {name: draw(users) for name in letters}
    axes, texts, shapes = [], [], []
    for i in range(count):
        term = draw(st.permutations([name for name in letters if i in used_by[name]]))
        if term and len(letters) < 5 and draw(SOMETIMES):  # a diagonal
            term = draw(st.permutations([*term, draw(st.sampled_from(term))]))
        under = hidden[draw(st.integers(0, len(hidden))) :]  # aligned at the right
        text, term = with_ellipsis(draw, term, under) if hidden else ("".join(term), term)
        ones = {draw(st.sampled_from(term))} if term and draw(SOMETIMES) else set()
        axes.append(term)
        texts.append(text)
        shapes.append(tuple(1 if name in ones else size[name] for name in term))
    pairs = [
        pair
        for term, shape in zip(axes, shapes, strict=True)
        for pair in zip(term, shape, strict=True)
    ]
    size = {name: max(n for other, n in pairs if other == name) for name, _ in pairs}
    hidden = [name for name in hidden if name in size]
    spec = ",".join(texts)
    if draw(SOMETIMES):
        out = hidden + sorted(name for name in letters if spec.count(name) == 1)
    else:
        out = draw(st.permutations([name for name in letters if draw(st.booleans())]))
        text = "".join(out)
        if "..." in spec and not draw(SOMETIMES):
            text, out = with_ellipsis(draw, out, hidden)
        spec += "->" + text
    return Case(spec, axes, out, size, shapes)


def with_ellipsis(draw, term, under):
    at = draw(st.integers(0, len(term)))
    text = "".join(term)
    return text[:at] + "..." + text[at:], [*term[:at], *under, *term[at:]]


def a_property(operands=UP_TO_THREE):
    def decorate(test):
        return settings(max_examples=80, deadline=None, derandomize=True)(
            given(case=cases(operands))(test)
        )

    return decorate


@a_property()
def test_the_loop_is_what_torch_computes(case):
    """Breaks when an index, a stretched axis, a diagonal or the implicit output goes wrong."""
    explained = explain_einsum(case.spec, *case.operands)
    expected = torch.einsum(case.spec, *case.operands)
    assert explained.output_shape == tuple(expected.shape)
    result = explained.run_loop()
    assert result.dtype == np.float64
    assert np.array_equal(result, expected.numpy())


@a_property(operands=st.just(2))
def test_the_matmul_is_what_torch_computes(case):
    """Breaks when an axis is moved, merged or split wrongly, or code is promised in vain."""
    explained = explain_einsum(case.spec, *case.operands)
    first, second = case.axes
    summed = case.used - set(case.out)
    possible = (
        len(set(first)) == len(first)
        and len(set(second)) == len(second)
        and bool(summed)
        and summed <= set(first) & set(second)
        and not summed & (case.stretched(0) | case.stretched(1))
    )
    assert (explained.matmul_code is not None) == possible
    assert bool(explained.no_matmul) != possible
    if possible:
        assert explained.matmul_code.count("@") == 1
        assert torch.equal(explained.run_matmul(), torch.einsum(case.spec, *case.operands))


@a_property()
def test_roles_sizes_and_costs_follow_from_the_letters(case):
    """Breaks when a role, a size, the FLOPs or the bytes are counted otherwise than stated."""
    explained = explain_einsum(case.spec, *case.operands)
    name_of = dict(zip(sorted(case.used & {"0", "1"}), hidden_names(explained), strict=True))
    found = {letter.name: letter for letter in explained.letters}
    assert list(found)[: len(case.out)] == [name_of.get(name, name) for name in case.out]
    assert len(found) == len(explained.letters) == len(case.used)
    for name in case.used:
        users = [i for i, term in enumerate(case.axes) if name in term]
        everywhere = len(users) == len(case.axes) and len(users) > 1
        role = "summed" if name not in case.out else "batch" if everywhere else "kept"
        letter = found[name_of.get(name, name)]
        assert (letter.role, letter.size) == (role, case.size[name])
        assert letter.used_by == (*(f"x{i}" for i in users), *["out"] * (name in case.out))
    steps = math.prod(case.size[name] for name in case.used)
    if len(case.axes) == 1:
        assert explained.flops == (steps if case.used - set(case.out) else 0)
    else:
        assert explained.flops == len(case.axes) * steps
    numbers = sum(map(math.prod, case.shapes)) + math.prod(case.size[name] for name in case.out)
    assert explained.bytes == 8 * numbers


def hidden_names(explained):
    return sorted(set(re.findall("[A-Za-z]", explained.full_spec)) - set(explained.spec))


@a_property()
def test_the_full_spec_means_the_same(case):
    """Breaks when the axes under "..." are aligned at the left, or put in another order."""
    explained = explain_einsum(case.spec, *case.operands)
    assert "..." not in explained.full_spec
    expected = torch.einsum(case.spec, *case.operands)
    assert torch.equal(torch.einsum(explained.full_spec, *case.operands), expected)


@a_property()
def test_shapes_alone_tell_the_same(case):
    """Breaks when a plain shape is read otherwise than a tensor of that shape."""
    of_shapes = explain_einsum(case.spec, *case.shapes)
    of_tensors = explain_einsum(case.spec, *(x.float() for x in case.operands))
    of_arrays = explain_einsum(case.spec, *(x.float().numpy() for x in case.operands))
    assert of_tensors == of_arrays
    assert dataclasses.replace(of_shapes, notes=of_tensors.notes) == of_tensors
    assert (
        "only the shape is known: bytes assume float32"
        in of_shapes.notes[-1 - (len(case.axes) > 2)]
    )


@a_property()
def test_the_printed_code_runs(case):
    """Breaks when what is printed is not what was checked above."""
    explained = explain_einsum(case.spec, *case.operands)
    expected = torch.einsum(case.spec, *case.operands)
    text = repr(explained)
    assert max(map(len, text.splitlines())) <= 100
    loop, matmul = text.split("As a loop:\n")[1].split("\n\nAs a matmul:\n")
    arrays = {f"x{i}": x.numpy() for i, x in enumerate(case.operands)}
    assert np.array_equal(run_printed(loop, arrays), expected.numpy())
    if not matmul.strip().startswith("none: "):
        tensors = {f"x{i}": x for i, x in enumerate(case.operands)}
        assert torch.equal(run_printed(matmul, tensors), expected)


def run_printed(code, names):
    exec(textwrap.dedent(code), names)
    return names["out"]


# --- The two specs of attention -----------------------------------------------------------


def test_attention_scores():
    explained = explain_einsum(SCORES, *attention_operands(SCORES))
    roles = {letter.name: (letter.role, letter.size) for letter in explained.letters}
    assert roles == {
        "n": ("batch", N),
        "h": ("batch", H),
        "q": ("kept", Q),
        "k": ("kept", K),
        "d": ("summed", D),
    }
    assert explained.output_shape == (N, H, Q, K)
    assert explained.flops == 2 * N * H * Q * K * D
    assert explained.bytes == 8 * (N * Q * H * D + N * K * H * D + N * H * Q * K)
    assert explained.matmul_code.splitlines() == [
        "left = x0.transpose(1, 2)         # n h q d",
        "right = x1.permute(0, 2, 3, 1)    # n h d k",
        "out = left @ right                # n h q k",
    ]


def test_attention_output():
    explained = explain_einsum(OUTPUT, *attention_operands(OUTPUT))
    roles = {letter.name: letter.role for letter in explained.letters}
    assert roles == {"n": "batch", "q": "kept", "h": "batch", "d": "kept", "k": "summed"}
    assert explained.output_shape == (N, Q, H, D)
    assert explained.matmul_code.splitlines() == [
        "left = x0                     # n h q k",
        "right = x1.transpose(1, 2)    # n h k d",
        "out = left @ right            # n h q d",
        "out = out.transpose(1, 2)     # n q h d",
    ]


@pytest.mark.parametrize("spec", [SCORES, OUTPUT])
def test_attention_three_ways(spec):
    operands = attention_operands(spec)
    explained = explain_einsum(spec, *operands)
    expected = torch.einsum(spec, *operands)
    assert torch.equal(torch.from_numpy(explained.run_loop()), expected)
    assert torch.equal(explained.run_matmul(), expected)


@pytest.mark.parametrize("spec", [SCORES, OUTPUT])
def test_flops_are_those_that_torch_counts(spec):
    operands = attention_operands(spec)
    explained = explain_einsum(spec, *operands)
    with FlopCounterMode(display=False) as counter:
        explained.run_matmul()
    assert counter.get_total_flops() == explained.flops


def test_the_print_of_attention_scores():
    assert repr(explain_einsum(SCORES, (N, Q, H, D), (N, K, H, D))) == textwrap.dedent(
        """\
        nqhd,nkhd->nhqk

        operand  axes     shape          dtype
        x0       n q h d  (2, 5, 3, 11)  float32
        x1       n k h d  (2, 7, 3, 11)  float32
        out      n h q k  (2, 3, 5, 7)   float32

        letter  role    size  used by
        n       batch   2     x0 x1 out
        h       batch   3     x0 x1 out
        q       kept    5     x0    out
        k       kept    7        x1 out
        d       summed  11    x0 x1

        cost   number  made of
        FLOPs  4,620   2 × 2·3·5·7·11: a multiply and an add at each step of the loop
        bytes  4,008   1,320 + 1,848 + 840

        Note: of x0, x1 only the shape is known: bytes assume float32, nothing can be run.

        As a loop:
            import numpy as np

            out = np.zeros((2, 3, 5, 7))
            for n in range(2):  # batch
                for h in range(3):  # batch
                    for q in range(5):  # kept
                        for k in range(7):  # kept
                            for d in range(11):  # summed
                                out[n, h, q, k] += x0[n, q, h, d] * x1[n, k, h, d]

        As a matmul:
            left = x0.transpose(1, 2)         # n h q d
            right = x1.permute(0, 2, 3, 1)    # n h d k
            out = left @ right                # n h q k"""
    )


# --- Corners ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shapes", "reason"),
    [
        ("ij->ji", [(2, 3)], "a matmul takes two operands, and here is 1"),
        ("i,i,i->", [(2,), (2,), (2,)], "a matmul takes two operands, and here is 3"),
        ("iij,j->i", [(2, 2, 3), (3,)], "x0 repeats i, and a matmul does not walk a diagonal"),
        ("ij,kj->", [(2, 3), (5, 3)], "i is summed but only in x0, so it is summed there before"),
        ("ij,ij->ij", [(2, 3), (2, 3)], "no letter is summed"),
        ("ij,jk->ik", [(2, 1), (3, 5)], "j is summed and stretched"),
    ],
)
def test_no_matmul_has_a_reason(spec, shapes, reason):
    operands = [whole_numbers(*shape) for shape in shapes]
    explained = explain_einsum(spec, *operands)
    assert explained.matmul_code is None
    assert explained.no_matmul.startswith(reason)
    assert f"none: {reason}" in repr(explained)
    assert reason in explained._repr_html_()
    with pytest.raises(ValueError, match=re.escape(f"'{spec}' is not one matmul: {reason}")):
        explained.run_matmul()
    assert np.array_equal(explained.run_loop(), torch.einsum(spec, *operands).numpy())


@pytest.mark.parametrize(
    ("spec", "shapes", "lines"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], ["x0  # i j", "x1  # j k", "left @ right  # i k"]),
        (
            "i,i->",
            [(3,), (3,)],
            [
                "x0.reshape(1, 3)  # 1 i",
                "x1.reshape(3, 1)  # i 1",
                "left @ right  # 1 1",
                "out.reshape(())  # a number",
            ],
        ),
        (  # b is 1 in x0 and 2 in x1; i and a make the rows of one matrix
            "biaj,bj->iba",
            [(1, 3, 5, 7), (2, 7)],
            [
                "x0.reshape(1, 15, 7)  # b (i a) j",
                "x1.reshape(2, 7, 1)  # b j 1",
                "left @ right  # b (i a) 1",
                "out.reshape(2, 3, 5)  # b i a",
                "out.transpose(0, 1)  # i b a",
            ],
        ),
    ],
)
def test_the_matmul_is_written_plainly(spec, shapes, lines):
    operands = [whole_numbers(*shape, seed=i) for i, shape in enumerate(shapes)]
    explained = explain_einsum(spec, *operands)
    written = [line.split(" = ")[1] for line in explained.matmul_code.splitlines()]
    assert [re.sub(" +#", "  #", line) for line in written] == lines
    assert torch.equal(explained.run_matmul(), torch.einsum(spec, *operands))


@pytest.mark.parametrize("shapes", [((2, 0), (1, 5)), ((2, 1), (0, 5)), ((2, 0), (0, 5))])
def test_an_empty_axis(shapes):
    """A sum over nothing is 0, and a 1 beside a 0 gives way too."""
    operands = [whole_numbers(*shape) for shape in shapes]
    explained = explain_einsum("ij,jk->ik", *operands)
    assert [letter.size for letter in explained.letters] == [2, 5, 0]
    assert np.array_equal(explained.run_loop(), np.zeros((2, 5)))


def test_notes_tell_what_the_spec_does_not():
    explained = explain_einsum(
        "...ij,...jk,k", whole_numbers(2, 3, 5, 7).float(), (1, 7, 11), (11,)
    )
    assert explained.full_spec == "ABij,Bjk,k->ABi"
    assert explained.notes == (
        "the axes under ... are named A, B",
        "B is 1 in x1 and is stretched to 3, as in torch",
        "of x1, x2 only the shape is known: bytes assume float32, nothing can be run",
        "FLOPs are the loop's; torch contracts two operands at a time, its count may differ",
    )
    assert "Note: the axes under ... are named A, B.\nNote: B is 1" in repr(explained)
    assert "<p>Note: the axes under ... are named A, B.</p>" in explained._repr_html_()


@pytest.mark.parametrize(
    ("spec", "shapes", "flops", "work"),
    [
        ("ij->ji", [(3, 5)], 0, "numbers are moved, not computed"),
        ("ij->j", [(3, 5)], 15, "5·3: an add at each step"),
        ("ij,jk->ik", [(3, 5), (5, 7)], 210, "2 × 3·7·5: a multiply and an add"),
        ("i,j,k->ijk", [(3,), (5,), (7,)], 315, "3 × 3·5·7: 2 multiplies and an add"),
        (",", [(), ()], 2, "2 × 1: a multiply and an add"),
        ("ij,jk->ik", [(3, 0), (0, 7)], 0, "2 × 3·7·0"),
    ],
)
def test_flops_and_where_they_come_from(spec, shapes, flops, work):
    explained = explain_einsum(spec, *shapes)
    assert explained.flops == flops
    line = next(line for line in repr(explained).splitlines() if line.startswith("FLOPs"))
    assert line.split()[1] == f"{flops}"
    assert work in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32])
@pytest.mark.parametrize("spec", ["ij->j", "ij->ji", "ij,ij->j"])
def test_bytes_follow_the_dtype(spec, dtype):
    operands = [whole_numbers(3, 5).to(dtype)] * (1 + spec.count(","))
    explained = explain_einsum(spec, *operands)
    expected = torch.einsum(spec, *operands)
    assert (explained.dtype, explained.output_dtype) == (dtype, expected.dtype)
    assert explained.bytes == sum(x.nbytes for x in operands) + expected.nbytes
    result = torch.from_numpy(explained.run_loop())
    assert result.dtype == (torch.float64 if dtype.is_floating_point else expected.dtype)
    assert torch.equal(result, expected.to(result.dtype))


def test_integers_stay_integers():
    x = torch.arange(48).reshape(2, 4, 6)
    explained = explain_einsum("ble,bme->blm", x, x)
    result = explained.run_loop()
    assert result.dtype == np.int64
    assert np.array_equal(result, (x @ x.mT).numpy())
    assert torch.equal(explained.run_matmul(), x @ x.mT)


def test_the_loop_leaves_the_operands_alone():
    x, y = (whole_numbers(3, 5, seed=seed).requires_grad_() for seed in (0, 1))
    kept = x.detach().clone()
    explained = explain_einsum("ij,ij->i", x, y)
    assert np.array_equal(explained.run_loop(), (x * y).sum(1).detach().numpy())
    assert torch.equal(x.detach(), kept)


def test_gradients_flow_through_the_matmul():
    x, y = (whole_numbers(*shape).requires_grad_() for shape in ((3, 5), (5, 7)))
    explain_einsum("ij,jk->ki", x, y).run_matmul().sum().backward()
    assert torch.equal(x.grad, y.detach().sum(1).expand(3, 5))


def test_unusual_storage():
    x = np.arange(15.0).reshape(3, 5)[::-1, ::-1].T
    x.flags.writeable = False
    z = torch.complex(whole_numbers(5, 3), whole_numbers(5, 3, seed=1)).conj()
    assert np.array_equal(explain_einsum("ij->j", x).run_loop(), x.sum(0))
    explained = explain_einsum("ij,ik->jk", z, z)
    assert explained.run_loop().dtype == np.complex128
    assert np.array_equal(explained.run_loop(), (z.mT @ z).resolve_conj().numpy())
    assert np.array_equal(explained.run_matmul().numpy(), (z.mT @ z).resolve_conj().numpy())


@pytest.mark.parametrize("spec", [" n q h d, n k h d -> n h q k ", "nqhd, nkhd ->nhqk"])
def test_spaces_do_not_matter(spec):
    operands = attention_operands(SCORES)
    spaced, plain = explain_einsum(spec, *operands), explain_einsum(SCORES, *operands)
    assert spaced == dataclasses.replace(plain, spec=spec)


def test_an_explanation_cannot_be_changed():
    explained = explain_einsum("i->", (3,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        explained.flops = 0


def test_importing_star_gives_the_public_names():
    names = {}
    exec("from mha_tutor.einsum import *", names)
    assert names.keys() - {"__builtins__"} == {"explain_einsum", "EinsumExplanation", "Letter"}


# --- In a notebook ------------------------------------------------------------------------


class Outline(HTMLParser):
    """Collect the cells, the code and the attributes; refuse tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.rows, self.code, self.captions = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        tag = self.open[-1] if self.open else None
        if tag in ("td", "th"):
            self.rows[-1].append(data.strip())
        if tag == "pre":
            self.code.append(data)
        if tag == "caption":
            self.captions.append(data)


def tables_of(explained):
    """Return what stands above the figure, which has tests of its own."""
    tables, figure, _ = explained._repr_html_().partition('<div class="mha')
    assert figure
    return f"{tables}</div>"


def test_the_notebook_shows_the_same_as_the_print():
    operands = attention_operands(SCORES)
    explained = explain_einsum(SCORES, *operands)
    outline = Outline()
    outline.feed(tables_of(explained))
    assert outline.open == []
    assert outline.captions == ["Shapes", "Letters", "Cost"]
    assert "<code>nqhd,nkhd-&gt;nhqk</code>" in explained._repr_html_()
    text = repr(explained).split("\n\n")
    printed = [line.split() for part in text[1:4] for line in part.splitlines()]
    assert [" ".join(row).split() for row in outline.rows] == printed
    assert outline.code == [explained.loop_code, explained.matmul_code]
    assert explained._repr_html_() == explain_einsum(SCORES, *operands)._repr_html_()


def test_the_notebook_tables_are_accessible_and_plain():
    outline = Outline()
    outline.feed(tables_of(explain_einsum(OUTPUT, *attention_operands(OUTPUT))))
    # a header cell for each column and row; no color, address, script or identifier anywhere
    assert set(outline.attributes) == {
        ("th", "scope", "col"),
        ("th", "scope", "row"),
        ("div", "style", "overflow-x: auto"),
        ("table", "style", "text-align: left; margin-bottom: 1em"),
        ("caption", "style", "text-align: left; margin-bottom: 1em"),
    }
    scopes = [value for _, name, value in outline.attributes if name == "scope"]
    assert scopes.count("row") == len(outline.rows) - 3
    assert scopes.count("col") == 4 + 4 + 3


# --- What is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "operands", "message"),
    [
        (7, [(2,)], "spec must be a string such as 'ij,jk->ik', got int"),
        (
            "i",
            [{1}],
            "operand 0 must be a torch tensor, a NumPy array or a tuple or list of sizes, got set",
        ),
        ("i,", [(2,), 3.0], "operand 1 must be a torch tensor, a NumPy array or a tuple or"),
        ("i", [np.array(["a"])], "operand 0 has dtype <U1, unknown to torch"),
        ("i", [np.ones(2, ">f8")], "operand 0 has dtype >f8, unknown to torch"),
        (
            "i,i",
            [torch.ones(2).long(), (2,)],
            "operands must share one dtype (a shape counts as float32), got int64, float32",
        ),
    ],
)
def test_a_wrong_type_is_refused(spec, operands, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        explain_einsum(spec, *operands)


X, Y = (2, 3), (5, 7)


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        # the spec
        ("ij,jk->ik", [X], "spec 'ij,jk->ik' has 2 operand(s), but 1 were given"),
        ("ij", [], "spec 'ij' has 1 operand(s), but 0 were given"),
        ("i1->i", [X], "'i1->i': operand 0, 'i1', is not letters and at most one '...'"),
        ("ij,j..k", [X, Y], "operand 1, 'j..k', is not letters and at most one '...'"),
        ("...i...", [X], "operand 0, '...i...', is not letters and at most one '...'"),
        ("ij->i->j", [X], "the output, 'i->j', is not letters and at most one '...'"),
        ("ij->i,j", [X], "the output, 'i,j', is not letters and at most one '...'"),
        ("ij->iz", [X], "spec 'ij->iz': letter 'z' of the output is in no operand"),
        ("ij->ii", [X], "spec 'ij->ii': letter 'i' is in the output more than once"),
        ("abcdefghijklmnopqrst...", [(1,) * 21], "has over 20 axes, and Python nests no more"),
        # the number of axes
        ("ij,j->i", [X, Y], "operand 1: 'j' names 1 axes, but shape (5, 7) has 2"),
        ("ijk", [X], "operand 0: 'ijk' names 3 axes, but shape (2, 3) has 2"),
        ("i...jk", [X], "operand 0: 'i...jk' names at least 3 axes, but shape (2, 3) has 2"),
        # their sizes
        (
            "ij,jk->ik",
            [X, Y],
            "letter 'j' is 3 in operand 0 ('ij', shape (2, 3)) "
            "but 5 in operand 1 ('jk', shape (5, 7))",
        ),
        (
            "ij,j,jk",
            [(2, 1), (3,), Y],
            "letter 'j' is 3 in operand 1 ('j', shape (3,)) but 5 in operand 2",
        ),
        (
            "...i,...i",
            [(2, 7), Y],
            "letter 'A' is 2 in operand 0 ('Ai', shape (2, 7)) "
            "but 5 in operand 1 ('Ai', shape (5, 7))",
        ),
        (
            "ii->i",
            [X],
            "letter 'i' is both 2 and 3 in operand 0 ('ii', shape (2, 3)): "
            "a repeated letter walks a diagonal, so its axes must be of one size",
        ),
        ("ii->i", [(1, 3)], "letter 'i' is both 1 and 3 in operand 0 ('ii', shape (1, 3))"),
        ("i", [(-2,)], "operand 0: a shape holds integers of 0 or more, got (-2,)"),
        ("i", [(2.0,)], "operand 0: a shape holds integers of 0 or more, got (2.0,)"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(spec, shapes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explain_einsum(spec, *shapes)


@pytest.mark.parametrize("sizes", [[2, 3], (np.int32(2), np.int64(3)), torch.Size([2, 3])])
def test_a_shape_is_any_list_of_integers(sizes):
    assert str(explain_einsum("ij->j", sizes)) == str(explain_einsum("ij->j", (2, 3)))


@pytest.mark.parametrize("sizes", [[True], [2.0], [-1]])
def test_a_shape_of_anything_else_is_refused(sizes):
    with pytest.raises(ValueError, match="operand 0: a shape holds integers of 0 or more"):
        explain_einsum("i", sizes)


def test_twenty_axes_are_not_too_many():
    explained = explain_einsum("abcdefghijklmnopqrs...", torch.full((1,) * 20, 3.0))
    assert explained.run_loop().item() == 3


@pytest.mark.parametrize("shape_only", [(3,), torch.empty(3, device="meta")])
def test_a_shape_cannot_be_run(shape_only):
    explained = explain_einsum("i,i->", torch.ones(3), shape_only)
    with pytest.raises(ValueError, match="run_loop needs numbers, but operand 1 is only a shape"):
        explained.run_loop()
    with pytest.raises(ValueError, match="run_matmul needs numbers, but operand 1 is only a shape"):
        explained.run_matmul()


def test_an_endless_loop_is_not_started():
    x = torch.ones(1, 1).expand(5000, 3001)
    with pytest.raises(ValueError, match=r"the loop has 15,005,000 steps; .* at most 10,000,000"):
        explain_einsum("ij->j", x).run_loop()
