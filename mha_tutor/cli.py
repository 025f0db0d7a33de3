"""The command line: `mha-tutor check`, `mha-tutor explain` and `mha-tutor bench`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

FORMS = ("function", "module", "split", "merge", "split and merge", "causal", "padding", "window")
EXAMPLES = """\
examples:
  mha-tutor check torch.nn:MultiheadAttention --kwargs embed_dim=12,num_heads=3
  mha-tutor check torch.nn.functional:scaled_dot_product_attention
  mha-tutor check my_package.attention:SelfAttention --kwargs d_model=12,heads=3 --causal
  mha-tutor check my_package.heads:split,my_package.heads:merge
  mha-tutor check my_package.masks:causal --form causal

  mha-tutor explain torch.nn:TransformerEncoderLayer --kwargs d_model=12,nhead=3 --input 2x5x12

exit status of check: 0 everything holds, 1 something is violated, 2 it could not be checked.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["bench"]:  # it has commands and options of its own
        from mha_tutor.benchmark import main as bench

        bench(arguments[1:])
        return 0
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return {"check": _check, "explain": _explain}[options.command](options)


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="mha-tutor",
        description="The companion of the book Multi-Head Attention from y = Ax.",
        epilog=EXAMPLES,
        formatter_class=plain,
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    commands.add_parser("bench", help="measure the layer, or every backend on the same inputs")
    check = commands.add_parser(
        "check",
        help="check an attention against the contract, and name what is wrong with it",
        description="Check an attention against the contract, in a process of its own.",
        epilog=EXAMPLES,
        formatter_class=plain,
    )
    check.add_argument(
        "candidate", help="package.module:Name; a class is called with --kwargs; a pair A,B"
    )
    check.add_argument(
        "--kwargs", default="", metavar="A=1,B=2", help="what the class is called with"
    )
    check.add_argument("--form", choices=FORMS, help="what it is, where that is not plain")
    check.add_argument("--embed-dim", type=int, metavar="E", help="width, if it cannot be read")
    check.add_argument("--num-heads", type=int, metavar="H", help="heads, if they cannot be read")
    check.add_argument("--length-first", action="store_true", help="it takes (L, B, E)")
    check.add_argument("--causal", action="store_true", help="it is causal by itself")
    check.add_argument(
        "--mask-true", choices=("attend", "hide"), default="attend", help="what True means in masks"
    )
    check.add_argument("--black-box", action="store_true", help="do not look for its weights")
    check.add_argument(
        "--strict", action="store_true", help="status 2 if it cannot be compared with the formula"
    )
    check.add_argument(
        "--allow", action="append", default=[], metavar="PROPERTY", help="differs here on purpose"
    )
    check.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    check.add_argument("--seed", type=int, default=0)
    check.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds; 60")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    explain = commands.add_parser(
        "explain",
        help="show the attention in a layer, a function or a model",
        description="Record one call, in a process of its own, and show the attention in it.",
        epilog="exit status: 0 found and explained, 1 not all explained, 2 not found, or failed",
    )
    explain.add_argument("layer", help="package.module:Name; a class is called with --kwargs")
    explain.add_argument(
        "--kwargs", default="", metavar="A=1,B=2", help="what the class is called with"
    )
    explain.add_argument(
        "--input", action="append", default=[], metavar="2x5x12",
        help="shape of an input, drawn at random; 2x8<99: integers below 99; repeat for more",
    )  # fmt: skip
    explain.add_argument(
        "--call", default="", metavar="A=1,B=2", help="keyword arguments of the call"
    )
    explain.add_argument("--save", metavar="FILE", help="write the reading as one HTML file")
    explain.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds; 60")
    return parser


def _explain(options: argparse.Namespace) -> int:
    from mha_tutor.contract.process import explain_in_process, parse_input, parse_kwargs

    try:
        kwargs, call = parse_kwargs(options.kwargs), parse_kwargs(options.call)
        for text in options.input:
            parse_input(text)
    except ValueError as error:
        print(f"mha-tutor: {error}", file=sys.stderr)
        return 2
    answer = explain_in_process(options.layer, kwargs, options.input, call, options.timeout)
    if options.save and answer["html"]:
        Path(options.save).write_text(answer["html"], encoding="utf-8")
    _print(answer["text"])
    return answer["status"]


def _print(text: object) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `… | head` has read enough; the exit status still counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check(options: argparse.Namespace) -> int:
    from mha_tutor.contract.process import check_in_process, parse_kwargs

    try:
        kwargs = parse_kwargs(options.kwargs)
    except ValueError as error:
        print(f"mha-tutor: {error}", file=sys.stderr)
        return 2
    if options.timeout <= 0:
        print(f"mha-tutor: the timeout must be positive, got {options.timeout}", file=sys.stderr)
        return 2
    report = check_in_process(
        options.candidate,
        {
            "kwargs": kwargs,
            "form": options.form,
            "embed_dim": options.embed_dim,
            "num_heads": options.num_heads,
            "batch_first": not options.length_first,
            "causal": options.causal or None,
            "mask_true": options.mask_true,
            "black_box": options.black_box,
            "allow": options.allow,
            "strict": options.strict,
            "device": options.device,
            "seed": options.seed,
        },
        options.timeout,
    )
    _print(report.to_json() if options.json else report)
    return report.exit_status
