"""`check`: understand the candidate, ask every property, shrink what fails, diagnose."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mha_tutor.contract.adapters import Adapter, adapter_for
from mha_tutor.contract.diagnosis import diagnose
from mha_tutor.contract.parts import MASK_KINDS, check_mask_function, check_merge, check_split
from mha_tutor.contract.properties import (
    PROPERTIES,
    NotApplicable,
    NotAsked,
    Property,
    asked,
)
from mha_tutor.contract.report import Finding, Report, Verdict
from mha_tutor.contract.settling import settled
from mha_tutor.contract.subjects import FunctionSubject, Inputs, ModuleSubject, Subject
from mha_tutor.contract.watch import CandidateError, Clock, OutOfTime

__all__ = ["check"]

NO_MASK = "no mask argument was found"
FORMS = ("function", "module", "split", "merge", "split and merge", *MASK_KINDS)
# What torch's own function lets pass, and so whatever is built on it.
AS_TORCH = {
    "lengths refused: cut": "A shorter value cuts the keys to its length without a word, as in "
    "torch's scaled_dot_product_attention (its fused CPU path); this package refuses it.",
    "mask with causal: both": "Both are applied without a word, as in the fused CPU path of "
    "torch's scaled_dot_product_attention, whose documentation calls it an error.",
}


def check(
    candidate: Any,
    form: str | None = None,
    *,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    batch_first: bool = True,
    causal: bool | None = None,
    mask_true: str = "attend",
    black_box: bool = False,
    adapter: Adapter | None = None,
    allow: Iterable[str] = (),
    device: torch.device | str = "cpu",
    seed: int = 0,
    timeout: float | None = 60.0,
    strict: bool = False,
) -> Report:
    """Check an attention against the contract, and say what is wrong with it.

    A module is compared with the formula if its weights are found. The names that are known, in
    small or capital letters, are

    - for the query q_proj, query_proj, query, w_q, wq, q_linear, linear_q, to_q, w_query,
      queries, q, and the same with k or key and v or value;
    - for the three in one in_proj, qkv, qkv_proj, c_attn, wqkv, w_qkv, to_qkv, query_key_value;
    - for the output out_proj, o_proj, output_proj, fc_out, w_o, wo, w_out, to_out, out_linear,
      linear_out, c_proj, proj, fc, out, output, dense, o;
    - for H num_heads, n_heads, nhead, n_head, heads, num_attention_heads, h;
    - for the width embed_dim, d_model, embed_size, hidden_size, dim, n_embd, d_in, in_dim, E;
    - for arguments of `forward` attn_mask, mask, attention_mask, src_mask, is_causal, causal.

    Parameters without a module may be called so too, with `_weight` at the end or not. Three or
    four maps under other names are tried in every order, and another whole number of the module
    as H; they are believed if the output is the formula's, or that of a known bug. A module whose
    weights are not found is judged from outside, and the report says so first.

    Args:
        candidate: a function like `scaled_dot_product_attention` (query, key, value with a head
            axis), an `nn.Module`, a function that splits or merges heads, a pair of both, or a
            function that makes a mask.
        form: what it is: "function", "module", "split", "merge", "split and merge", or the kind
            of mask it makes, "causal", "padding" or "window". If None: modules and pairs are
            recognized, and any other function is taken for "function".
        embed_dim: width of a module, where it cannot be read from it.
        num_heads: H of a module, where it cannot be read from it.
        batch_first: whether a module takes (B, L, E), or (L, B, E).
        causal: whether a module is causal by itself; found out if None.
        mask_true: what True means in the candidate's boolean masks, "attend" or "hide".
        black_box: judge a module from outside, whatever its parameters are called.
        adapter: how to call a module, where all this is not enough.
        allow: names of properties in which the candidate differs on purpose.
        device: where to run it.
        seed: for the inputs and the parameters; another one, other numbers.
        timeout: seconds after which to give up between two calls; None for never. A call that
            does not come back is stopped by the command line only.
        strict: whether a candidate that cannot be compared with the formula has failed: the
            report is falsy then, with a reason.

    Returns:
        The report: truthy if everything holds, and readable.

    Raises:
        ValueError: an option is not one of those above.
        TypeError: the candidate cannot be called.

    Example:
        >>> bool(check(torch.nn.functional.scaled_dot_product_attention))
        True
        >>> wrong = lambda q, k, v: torch.softmax(q @ k.mT, dim=-1) @ v
        >>> check(wrong).diagnoses[0].sentence
        'The scores are not divided by √head_dim.'
    """
    form = _form(candidate, form)
    if mask_true not in ("attend", "hide"):
        raise ValueError(f"mask_true must be 'attend' or 'hide', got {mask_true!r}")
    allow = _property_names(allow)
    clock = Clock(timeout)
    title = _title(candidate)
    if form not in ("function", "module"):
        return _check_parts(candidate, form, title, clock, mask_true)
    inverted = mask_true == "hide"
    device = torch.device(device)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    try:
        if form == "function":
            subject: Subject = FunctionSubject(candidate, title, device, clock, inverted)
        else:
            adapter = adapter or adapter_for(
                candidate,
                embed_dim=embed_dim,
                num_heads=num_heads,
                batch_first=batch_first,
                causal=causal,
                black_box=black_box,
                mask_true=mask_true,
            )
            subject = ModuleSubject(candidate, adapter, title, device, clock, inverted, seed)
            if causal is None and _is_causal_by_itself(subject.fresh()):
                subject.causal = True
                subject.notes.append(
                    "No token sees the future, so it is taken for causal by itself; say "
                    "causal=False if it should not be."
                )
            subject = settled(subject)
        subject.conventions = AS_TORCH | subject.conventions
        if inverted and not subject.takes_mask:
            subject.missing.append(f"mask_true={mask_true!r} has no effect: {NO_MASK}.")
        elif inverted:
            subject.conventions["polarity"] = "True means “may not attend”, as the caller says."
        subject.conventions.update(dict.fromkeys(allow, "Allowed by the caller."))
        return _check_subject(subject, seed, strict)
    except (CandidateError, ValueError) as error:
        return Report(title, form, reason=str(error), seconds=clock.seconds)
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)


def _is_causal_by_itself(subject: ModuleSubject) -> bool:
    """Tell whether a layer of one input, with no such option, hides the future from each token."""
    if not subject.self_attention or subject.takes_causal or subject.causal:
        return False
    try:
        x = subject.draw(subject.main, 0).query
        before = subject.call(Inputs(x))
        for j in range(1, x.shape[1]):
            changed = x.clone()
            changed[:, j] += 1.0
            moved = (subject.call(Inputs(changed)) - before).abs().amax((0, 2)) > subject.tol
            if moved[:j].any() or not moved[j:].all():
                return False
    except (CandidateError, RuntimeError):
        return False
    return True


def _check_subject(subject: Subject, seed: int, strict: bool) -> Report:
    findings: list[Finding] = []
    reason = ""
    try:
        for prop in PROPERTIES:
            if subject.form in prop.applies:
                findings.append(_judge(prop, subject, seed))
                if prop.name == "shape" and _hopeless(findings):
                    break
    except OutOfTime as error:
        reason = str(error)
    violated = [f for f in findings if f.verdict == Verdict.VIOLATED]
    diagnoses = () if reason else diagnose(subject, violated, seed)
    if strict and not reason:
        reason = _not_compared(findings)
    return Report(
        subject.title,
        subject.form,
        tuple(findings),
        diagnoses,
        tuple(subject.notes),
        reason,
        round(subject.clock.seconds, 3),
        tuple(subject.missing),
    )


def _not_compared(findings: list[Finding]) -> str:
    """Say that the formula could not be asked, or nothing if it could."""
    unasked = [f for f in findings if f.name == "parity" and f.verdict == Verdict.NOT_ASKED]
    return "".join(f"strict: it was not compared with the formula; {f.detail}" for f in unasked)


def _hopeless(findings: list[Finding]) -> bool:
    """Tell whether no tensor came back at all: the other properties would all say the same."""
    return all(finding.verdict == Verdict.VIOLATED for finding in findings)


def _judge(prop: Property, subject: Subject, seed: int) -> Finding:
    def finding(verdict, detail="", example="", clue=""):
        return Finding(prop.name, prop.promise, verdict, detail, example, clue)

    try:
        problem = asked(prop, subject.fresh(), subject.main, seed)
    except NotAsked as reason:
        return finding(Verdict.NOT_ASKED, str(reason))
    except NotApplicable as reason:
        return finding(Verdict.NOT_APPLICABLE, str(reason))
    said = subject.conventions.get(prop.name, "")
    if problem is None:
        # A convention that the subject translates is shown where the translation works.
        if prop.name in TRANSLATED and said:
            return finding(Verdict.CONVENTION, said)
        return finding(Verdict.HOLDS)
    said = said or subject.conventions.get(f"{prop.name}: {problem.kind}", "")
    if said:
        return finding(Verdict.CONVENTION, said)
    smallest = _smallest(prop, subject, seed) if prop.shrinks else None
    if smallest is None:
        return finding(Verdict.VIOLATED, problem.detail, clue=problem.clue)
    sizes, shown = smallest
    example = f"{sizes.text(subject.letters)}, seed {seed}"
    return finding(Verdict.VIOLATED, shown.detail, example, problem.clue)


TRANSLATED = ("polarity",)


def _smallest(prop: Property, subject: Subject, seed: int):
    """Find the smallest sizes on which it fails too."""
    subject = subject.fresh()
    for sizes in subject.ladder():
        try:
            problem = asked(prop, subject, sizes, seed)
        except (NotApplicable, OutOfTime):
            continue
        if problem is not None:
            return sizes, problem
    return None


def _check_parts(candidate, form: str, title: str, clock: Clock, mask_true: str) -> Report:
    checks: list[tuple[Callable, Callable]] = []
    if form == "split and merge":
        checks = [(check_split, candidate[0]), (check_merge, candidate[1])]
    elif form in ("split", "merge"):
        checks = [(check_split if form == "split" else check_merge, candidate)]
    findings: list[Finding] = []
    diagnoses: list = []
    reason = ""
    try:
        for judge, function in checks:
            found, named = judge(function, clock)
            findings += found
            diagnoses += [d for d in named if d not in diagnoses]
        if not checks:
            findings, diagnoses = check_mask_function(candidate, form, clock)
    except OutOfTime as error:
        reason = str(error)
    return Report(
        title,
        form,
        tuple(findings),
        tuple(diagnoses),
        reason=reason,
        seconds=round(clock.seconds, 3),
        missing=(f"mask_true={mask_true!r} has no effect on {form}.",) * (mask_true == "hide"),
    )


def _form(candidate: Any, form: str | None) -> str:
    if form is not None:
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
        return form
    if isinstance(candidate, nn.Module):
        return "module"
    if isinstance(candidate, (tuple, list)) and len(candidate) == 2:
        return "split and merge"
    if isinstance(candidate, type) or not callable(candidate):
        raise TypeError(
            "the candidate must be a function, an nn.Module or a pair (split, merge), "
            f"got {candidate!r}; a class must be called first"
        )
    return "function"


def _property_names(names: Iterable[str]) -> list[str]:
    names = [name.replace("_", " ") for name in names]
    known = {prop.name for prop in PROPERTIES}
    for name in names:
        if name not in known:
            raise ValueError(
                f"no property is called {name!r}; there are {', '.join(sorted(known))}"
            )
    return names


def _title(candidate: Any) -> str:
    if isinstance(candidate, (tuple, list)):
        return " and ".join(_title(part) for part in candidate)
    if isinstance(candidate, nn.Module):
        return type(candidate).__name__
    return getattr(candidate, "__name__", type(candidate).__name__)
