"""Check or read a candidate in a process of its own, so that nothing it does harms who asks.

The parent starts `python -m mha_tutor.contract.process`, waits no longer than it was told, and
reads the answer from a file: what the candidate prints goes nowhere.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mha_tutor.contract.report import Report

__all__ = ["check_in_process", "explain_in_process", "load", "parse_kwargs"]

GRACE = 2.0  # seconds for the child to write what it has


def check_in_process(target: str, options: dict[str, Any], timeout: float) -> Report:
    """Check what `target` names, from outside.

    Args:
        target: "package.module:name", or a pair "module:split,module:merge".
        options: the keyword arguments of `check`, and `kwargs` for a class to be called with;
            all of them plain data.
        timeout: seconds after which the process is ended.

    Returns:
        The report; with a reason where the candidate could not be loaded, crashed or hung.
    """
    job = {"task": "check", "target": target, "options": options, "timeout": timeout}
    answer, reason = _in_process(job, timeout)
    if answer is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return Report.from_json(answer)
    return Report(target, options.get("form") or "?", reason=reason)


def explain_in_process(
    target: str, kwargs: dict[str, Any], inputs: Sequence[str], call: dict[str, Any], timeout: float
) -> dict[str, Any]:
    """Read the attention in what `target` names, from outside.

    Args:
        target: "package.module:name".
        kwargs: for a class to be called with.
        inputs: what it is then called with, as `parse_input` reads it.
        call: keyword arguments of that call.
        timeout: seconds after which the process is ended.

    Returns:
        "text" and "html" of the reading and its "status": 0 if attention was found and explained,
        1 if some was not explained, 2 if none was found or the call failed.
    """
    job = {"task": "explain", "target": target, "kwargs": kwargs, "inputs": inputs, "call": call}
    answer, reason = _in_process(job, timeout)
    if answer is not None:
        with contextlib.suppress(ValueError):
            return json.loads(answer)
    return {"text": f"{target}: {reason}", "html": "", "status": 2}


def _in_process(job: dict[str, Any], timeout: float) -> tuple[str | None, str]:
    """Return what the child answers to a job, or None and the reason why it does not."""
    with tempfile.TemporaryDirectory(prefix="mha-tutor-") as folder:
        answer, errors = Path(folder) / "answer.json", Path(folder) / "errors.txt"
        with errors.open("wb") as sink:
            child = subprocess.Popen(
                [sys.executable, "-m", "mha_tutor.contract.process", str(answer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=sink,
                start_new_session=True,
            )
            late = False
            try:
                child.communicate(json.dumps(job).encode(), timeout=timeout + GRACE)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                _end(child)
        if late:
            reason = f"it did not come to an end within {timeout:g} s and was stopped"
        else:
            reason = f"its process ended {_how(child.returncode)}, before there was a report"
            last = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason += f": {last[-1][:200]}" if last else ""
        return (answer.read_text(encoding="utf-8") if answer.exists() else None), reason


def _end(child: subprocess.Popen) -> None:
    """End the child and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    child.wait()


def _how(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-status).name}"
    return f"with status {status}"


def load(target: str, kwargs: dict[str, Any]) -> Any:
    """Import a candidate; call it first if it is a class.

    Args:
        target: "package.module:name", names joined by dots; or two of these with a comma between.
        kwargs: for the class, or to be bound to the function.

    Raises:
        ValueError: the target is not written like that, or there is no such thing; or kwargs
            do not fit it.
    """
    parts = tuple(_find(part) for part in target.split(","))
    if len(parts) == 2:
        return parts
    (found,) = parts
    if inspect.isclass(found):
        try:
            return found(**kwargs)
        except BaseException as error:
            said = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
            raise ValueError(
                f"{found.__name__}({said}) raises {type(error).__name__}: {error}"
            ) from None
    if kwargs:
        bound = functools.partial(found, **kwargs)
        bound.__name__ = getattr(found, "__name__", target)
        return bound
    return found


def _find(target: str) -> Any:
    module_name, _, path = target.strip().partition(":")
    if not module_name or not path:
        raise ValueError(f"the candidate must be written package.module:Name, got {target!r}")
    try:
        found = importlib.import_module(module_name)
    except BaseException as error:
        raise ValueError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from None
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{module_name} has no {path}")
        found = getattr(found, name)
    return found


def parse_kwargs(text: str) -> dict[str, Any]:
    """Read "embed_dim=12,num_heads=3": Python literals, nothing is evaluated.

    Raises:
        ValueError: it is written in another way.

    Example:
        >>> parse_kwargs("embed_dim=12, bias=False, sizes=(3, 4)")
        {'embed_dim': 12, 'bias': False, 'sizes': (3, 4)}
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"kwargs must be written name=value,name=value, got {text!r}") from None


def parse_input(text: str) -> Any:
    """Make a tensor of random numbers of a shape like "2x5x12", or of integers: "2x8<99".

    Raises:
        ValueError: it is written in another way.

    Example:
        >>> parse_input("2x5x12").shape, parse_input("2x8<99").dtype
        (torch.Size([2, 5, 12]), torch.int64)
    """
    import torch

    found = re.fullmatch(r"(\d+(?:x\d+)*)(?:<([1-9]\d*))?", text)
    if found is None:
        raise ValueError(f"an input must be written 2x5x12, or 2x8<99 for integers, got {text!r}")
    shape = [int(n) for n in found[1].split("x")]
    return torch.randint(int(found[2]), shape) if found[2] else torch.randn(shape)


def _main(arguments: Sequence[str]) -> None:
    """Run in the child: read the job, do it, leave the answer."""
    answer = Path(arguments[0])
    job = json.load(sys.stdin)
    sys.path.insert(0, os.getcwd())
    draft = answer.with_suffix(".draft")
    draft.write_text({"check": _check, "explain": _explain}[job["task"]](job), encoding="utf-8")
    draft.replace(answer)
    os._exit(0)  # threads and exit handlers of the candidate have no say


def _check(job: dict[str, Any]) -> str:
    options = job["options"]
    kwargs = options.pop("kwargs", {})
    form = options.get("form") or "?"
    try:
        candidate = load(job["target"], kwargs)
        from mha_tutor.contract.door import check  # after the candidate: torch may be slow

        report = check(candidate, timeout=job["timeout"], **options)
    except (ValueError, TypeError) as error:
        report = Report(job["target"], form, reason=str(error))
    return report.to_json()


def _explain(job: dict[str, Any]) -> str:
    try:
        layer = load(job["target"], job["kwargs"])
        import torch

        from mha_tutor.read import explain_layer

        torch.manual_seed(0)
        reading = explain_layer(layer, *map(parse_input, job["inputs"]), **job["call"])
    except (ValueError, TypeError) as error:
        return json.dumps({"text": f"{job['target']}: {error}", "html": "", "status": 2})
    explained = all(a.explained for a in reading)
    status = (0 if explained else 1) if len(reading) else 2
    return json.dumps({"text": str(reading), "html": reading.to_html(), "status": status})


if __name__ == "__main__":
    _main(sys.argv[1:])
