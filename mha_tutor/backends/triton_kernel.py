"""Attention in Triton kernels, to be read from the top: the forward pass, then the backward.

One *program* (Triton's word for one of the many copies of a kernel that run at once) computes one
block of the output of one head. It never holds more than a block of scores, in the registers and
the shared memory of the GPU: no score is ever written to the GPU's main memory.

Letters as everywhere: L queries, S keys, D features a head. A *block* is BLOCK_L queries or
BLOCK_S keys; features are padded with zeros to BLOCK_D, a power of two. Names in capitals are
either pointers to a tensor's first number (Q, K, V, OUT …) or known when the kernel is compiled.

Scores are kept in units of log 2, because a GPU computes 2ˣ faster than eˣ.

Source:
    Dao et al., "FlashAttention" (2022), and Dao, "FlashAttention-2" (2023), for the loop order;
    Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), for the softmax.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float("inf"))


# ---------------------------------------------------------------- forward


@triton.jit
def forward_kernel(
    Q, K, V, OUT, LSE,  # (B, H, L, D), (B, H_kv, S, D) twice, (B, H, L, D), (B, H, L)
    q_strides, k_strides, v_strides, out_strides,  # of the axes B, H, L or S
    scale, H, GROUP, L, S, window,  # GROUP = H // H_kv query heads share a key head
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr, DOT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Attend from one block of queries to all keys they may see; keep each row's log-sum-exp."""
    # 1. Which block is ours? The last ones come first: where causal, they have the most to do.
    blocks = tl.cdiv(L, BLOCK_L)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_L
    head_and_batch = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_and_batch // H, head_and_batch % H
    rows = first + tl.arange(0, BLOCK_L)
    Q += batch * q_strides[0] + head * q_strides[1]
    K += batch * k_strides[0] + head // GROUP * k_strides[1]
    V += batch * v_strides[0] + head // GROUP * v_strides[1]
    OUT += batch * out_strides[0] + head * out_strides[1]

    # 2. Our queries, and for each: the weighted sum of values, the highest score and the sum of
    # exponentials so far.
    q = load_rows(Q, q_strides[2], rows, L, D, BLOCK_D, DOT, True)  # (BLOCK_L, BLOCK_D)
    mixed = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    highest = tl.full([BLOCK_L], -INFINITY, tl.float32)
    total = tl.zeros([BLOCK_L], tl.float32)

    # 3. Three stretches of keys: only where the edge of the mask runs is a mask computed.
    begin, full_begin, full_end, end = key_range(
        first, S, window, CAUSAL, WINDOWED, BLOCK_L, BLOCK_S
    )
    for stretch in tl.static_range(3):
        if stretch == 0:
            start, stop = begin, full_begin
        elif stretch == 1:
            start, stop = full_begin, full_end
        else:
            start, stop = full_end, end
        mixed, highest, total = attend_to_keys(
            mixed, highest, total, q, rows, K, V, k_strides[2], v_strides[2],
            start, stop, scale, S, window, CAUSAL, WINDOWED, stretch != 1,
            PRECISION, DOT, D, BLOCK_D, BLOCK_S,
        )  # fmt: skip

    # 4. Divide once, at the end. A query that saw no key has total 0: zeros, and -inf kept.
    total = tl.where(total == 0, 1.0, total)
    mixed = mixed / total[:, None]
    store_rows(OUT, out_strides[2], rows, L, D, BLOCK_D, mixed)
    tl.store(LSE + head_and_batch * L + rows, (highest + tl.log2(total)) / LOG2_E, mask=rows < L)


@triton.jit
def attend_to_keys(
    mixed, highest, total, q, rows, K, V, k_stride, v_stride, start, stop, scale, S, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, EDGE: tl.constexpr, PRECISION: tl.constexpr,
    DOT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Take the keys from start to stop into the running softmax, a block at a time."""
    for block in range(start, stop, BLOCK_S):
        columns = block + tl.arange(0, BLOCK_S)
        k = load_rows(K, k_stride, columns, S, D, BLOCK_D, DOT, EDGE)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_L, BLOCK_S)
        if EDGE:
            allowed = may_attend(rows[:, None], columns[None, :], S, window, CAUSAL, WINDOWED)
            scores = tl.where(allowed, scores, -INFINITY)
        higher = tl.maximum(highest, tl.max(scores, 1) * (scale * LOG2_E))
        shift = higher
        if EDGE:  # a row that has seen no key yet: -inf less -inf would be NaN
            shift = tl.where(higher == -INFINITY, 0.0, higher)
        exponentials = tl.exp2(scores * (scale * LOG2_E) - shift[:, None])
        rescale = tl.exp2(highest - shift)  # what was summed under the old highest score
        v = load_rows(V, v_stride, columns, S, D, BLOCK_D, DOT, EDGE)
        mixed = mixed * rescale[:, None]
        mixed = tl.dot(exponentials.to(v.dtype), v, mixed, input_precision=PRECISION)
        total = total * rescale + tl.sum(exponentials, 1)
        highest = higher
    return mixed, highest, total


# ---------------------------------------------------------------- who sees whom


@triton.jit
def may_attend(rows, columns, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Say which queries may attend to which keys; a window is causal too."""
    allowed = columns < S
    if CAUSAL:
        allowed = allowed & (columns <= rows)
    if WINDOWED:
        allowed = allowed & (columns > rows - window)
    return allowed


@triton.jit
def key_range(
    first, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Bound the keys that a block of queries may see.

    Some query of the block may see some key from `begin` to `end`; from `full_begin` to `full_end`
    every query may see every key. All but `end` are multiples of BLOCK_S.
    """
    last = first + BLOCK_L - 1
    begin, full_begin, full_end, end = 0, 0, S // BLOCK_S * BLOCK_S, S
    if CAUSAL:
        end = tl.minimum(S, last + 1)
        full_end = tl.minimum(full_end, (first + 1) // BLOCK_S * BLOCK_S)
    if WINDOWED:
        begin = tl.maximum(first - window + 1, 0) // BLOCK_S * BLOCK_S
        full_begin = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_S) * BLOCK_S
        full_begin = tl.minimum(full_begin, tl.cdiv(end, BLOCK_S) * BLOCK_S)
        full_end = tl.maximum(full_end, full_begin)
    return begin, full_begin, full_end, end


@triton.jit
def query_range(
    first, L, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Bound the queries that may see a block of keys: `key_range` from the other side."""
    last = first + BLOCK_S - 1
    begin, full_begin, full_end, end = 0, 0, L // BLOCK_L * BLOCK_L, L
    if WINDOWED:
        end = tl.minimum(L, last + window)
        full_end = tl.minimum(full_end, (first + window) // BLOCK_L * BLOCK_L)
    if CAUSAL:
        begin = first // BLOCK_L * BLOCK_L
        full_begin = tl.cdiv(last, BLOCK_L) * BLOCK_L
        full_begin = tl.minimum(full_begin, tl.cdiv(end, BLOCK_L) * BLOCK_L)
        full_end = tl.maximum(full_end, full_begin)
    return begin, full_begin, full_end, end


# ---------------------------------------------------------------- memory


@triton.jit
def load_rows(
    X, stride, rows, end, D: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Load rows of D features, zeros where there are none; EDGE: some rows may lie beyond end."""
    features = tl.arange(0, BLOCK_D)
    places = X + rows[:, None] * stride + features[None, :]
    if EDGE or D < BLOCK_D:
        inside = (rows < end)[:, None] & (features < D)[None, :]
        return tl.load(places, mask=inside, other=0.0).to(DOT)
    return tl.load(places).to(DOT)


@triton.jit
def store_rows(X, stride, rows, end, D: tl.constexpr, BLOCK_D: tl.constexpr, block):
    """Store rows of D features, rounded to the dtype of X."""
    features = tl.arange(0, BLOCK_D)
    inside = (rows < end)[:, None] & (features < D)[None, :]
    places = X + rows[:, None] * stride + features[None, :]
    tl.store(places, block.to(X.dtype.element_ty), mask=inside)


# ---------------------------------------------------------------- backward
#
# With P = softmax(scale · Q Kᵀ) and O = P V, and dX for the gradient of the loss with respect to X:
#
#     dV = Pᵀ dO        dP = dO Vᵀ        dQ = scale · dS K        dK = scale · dSᵀ Q
#
# and through the softmax of row i:  dS_ij = P_ij (dP_ij - Σ_k P_ik dP_ik).
#
# The sum over k runs over all keys, which no block has at hand. But
#
#     Σ_k P_ik dP_ik = Σ_k P_ik (dO_i · V_k) = dO_i · Σ_k P_ik V_k = dO_i · O_i,
#
# one number a query, `delta`, known before any score is. P itself is not stored: it is computed
# again from Q, K and the log-sum-exp of the forward pass, P_ij = exp(S_ij - lse_i).
# So any block of dS can be had on its own, by those who sum over queries (dK, dV) and by those who
# sum over keys (dQ): two kernels, in which each program owns what it writes.


@triton.jit
def delta_kernel(
    OUT, GRAD, DELTA, out_strides, grad_strides, H, L,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Compute delta = rowsum(dO ∘ O) of one block of queries."""
    blocks = tl.cdiv(L, BLOCK_L)
    head_and_batch = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_and_batch // H, head_and_batch % H
    rows = tl.program_id(0) % blocks * BLOCK_L + tl.arange(0, BLOCK_L)
    OUT += batch * out_strides[0] + head * out_strides[1]
    GRAD += batch * grad_strides[0] + head * grad_strides[1]
    out = load_rows(OUT, out_strides[2], rows, L, D, BLOCK_D, tl.float32, True)
    grad = load_rows(GRAD, grad_strides[2], rows, L, D, BLOCK_D, tl.float32, True)
    tl.store(DELTA + head_and_batch * L + rows, tl.sum(out * grad, 1), mask=rows < L)


@triton.jit
def query_gradient_kernel(
    Q, K, V, GRAD, LSE, DELTA, DQ,
    q_strides, k_strides, v_strides, grad_strides, dq_strides,
    scale, H, GROUP, L, S, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr, DOT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Compute dQ of one block of queries, summing over the keys as the forward pass does."""
    blocks = tl.cdiv(L, BLOCK_L)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_L
    head_and_batch = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = head_and_batch // H, head_and_batch % H
    rows = first + tl.arange(0, BLOCK_L)
    Q += batch * q_strides[0] + head * q_strides[1]
    K += batch * k_strides[0] + head // GROUP * k_strides[1]
    V += batch * v_strides[0] + head // GROUP * v_strides[1]
    GRAD += batch * grad_strides[0] + head * grad_strides[1]
    DQ += batch * dq_strides[0] + head * dq_strides[1]

    q = load_rows(Q, q_strides[2], rows, L, D, BLOCK_D, DOT, True)
    grad = load_rows(GRAD, grad_strides[2], rows, L, D, BLOCK_D, DOT, True)
    lse = load_lse(LSE + head_and_batch * L, rows, L)
    delta = tl.load(DELTA + head_and_batch * L + rows, mask=rows < L, other=0.0)
    dq = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)

    begin, full_begin, full_end, end = key_range(
        first, S, window, CAUSAL, WINDOWED, BLOCK_L, BLOCK_S
    )
    for stretch in tl.static_range(3):
        if stretch == 0:
            start, stop = begin, full_begin
        elif stretch == 1:
            start, stop = full_begin, full_end
        else:
            start, stop = full_end, end
        for block in range(start, stop, BLOCK_S):
            columns = block + tl.arange(0, BLOCK_S)
            k = load_rows(K, k_strides[2], columns, S, D, BLOCK_D, DOT, stretch != 1)
            v = load_rows(V, v_strides[2], columns, S, D, BLOCK_D, DOT, stretch != 1)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            weights = tl.exp2(scores * (scale * LOG2_E) - lse[:, None])  # (BLOCK_L, BLOCK_S)
            if stretch != 1:
                allowed = may_attend(rows[:, None], columns[None, :], S, window, CAUSAL, WINDOWED)
                weights = tl.where(allowed, weights, 0.0)
            dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            dscores = weights * (dweights - delta[:, None])
            dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)
    store_rows(DQ, dq_strides[2], rows, L, D, BLOCK_D, dq * scale)


@triton.jit
def key_value_gradient_kernel(
    Q, K, V, GRAD, LSE, DELTA, DK, DV,
    q_strides, k_strides, v_strides, grad_strides, dk_strides, dv_strides,
    scale, H, GROUP, L, S, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr, DOT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Compute dK and dV of one block of keys, summing over the queries of all heads of its group.

    Blocks are turned, keys as rows and queries as columns: so they enter the products as they are.
    """
    blocks = tl.cdiv(S, BLOCK_S)
    first = tl.program_id(0) % blocks * BLOCK_S
    batch = (tl.program_id(0) // blocks // (H // GROUP)).to(tl.int64)
    kv_head = tl.program_id(0) // blocks % (H // GROUP)
    rows = first + tl.arange(0, BLOCK_S)
    K += batch * k_strides[0] + kv_head * k_strides[1]
    V += batch * v_strides[0] + kv_head * v_strides[1]
    DK += batch * dk_strides[0] + kv_head * dk_strides[1]
    DV += batch * dv_strides[0] + kv_head * dv_strides[1]

    k = load_rows(K, k_strides[2], rows, S, D, BLOCK_D, DOT, True)  # (BLOCK_S, BLOCK_D)
    v = load_rows(V, v_strides[2], rows, S, D, BLOCK_D, DOT, True)
    dk = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    begin, full_begin, full_end, end = query_range(
        first, L, window, CAUSAL, WINDOWED, BLOCK_L, BLOCK_S
    )
    for member in range(GROUP):
        head = kv_head * GROUP + member
        Q_head = Q + batch * q_strides[0] + head * q_strides[1]
        GRAD_head = GRAD + batch * grad_strides[0] + head * grad_strides[1]
        at_head = (batch * H + head) * L
        for stretch in tl.static_range(3):
            if stretch == 0:
                start, stop = begin, full_begin
            elif stretch == 1:
                start, stop = full_begin, full_end
            else:
                start, stop = full_end, end
            for block in range(start, stop, BLOCK_L):
                columns = block + tl.arange(0, BLOCK_L)
                q = load_rows(Q_head, q_strides[2], columns, L, D, BLOCK_D, DOT, stretch != 1)
                lse = load_lse(LSE + at_head, columns, L)
                scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
                weights = tl.exp2(scores * (scale * LOG2_E) - lse[None, :])  # (BLOCK_S, BLOCK_L)
                if stretch != 1:
                    allowed = may_attend(
                        columns[None, :], rows[:, None], S, window, CAUSAL, WINDOWED
                    )
                    weights = tl.where(allowed, weights, 0.0)
                grad = load_rows(
                    GRAD_head, grad_strides[2], columns, L, D, BLOCK_D, DOT, stretch != 1
                )
                dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
                dweights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
                delta = tl.load(DELTA + at_head + columns, mask=columns < L, other=0.0)
                dscores = weights * (dweights - delta[None, :])
                dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    store_rows(DK, dk_strides[2], rows, S, D, BLOCK_D, dk * scale)
    store_rows(DV, dv_strides[2], rows, S, D, BLOCK_D, dv)


@triton.jit
def load_lse(LSE, rows, L):
    """Load the log-sum-exp in units of log 2; +inf, hence weights of 0, where nothing was seen."""
    lse = tl.load(LSE + rows, mask=rows < L, other=-INFINITY) * LOG2_E
    return tl.where(lse == -INFINITY, INFINITY, lse)
