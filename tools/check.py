"""Check a network against the requirements of an assignment.

    python -m tools.check model7
    python -m tools.check model3 model4 --challenge 20k

Prints a Markdown list, with a box for each requirement of the challenge. Parts are found in what
the network computes, not by the names of its layers. Exit code 1 where a requirement is not met.
"""

import argparse
import contextlib
import copy
import itertools
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from challenges import CHALLENGES, Challenge, Part
from cli import Parser, RunError, UsageError, exit_code
from networks import count_parameters, get_model
from tools.receptive_field import POOLS, layers_of, rows_of
from tools.trace import Step, first_with_weights, trace


def is_global_average(step: Step, source: Tensor) -> bool:
    """Whether it averages over all positions of a map, in any layout, up to a positive factor."""
    if len(step.reads) != 1 or source.ndim < 3 or not source.is_floating_point():
        return False
    values = torch.randn_like(source)
    axes = range(1, source.ndim)
    averages = [values.mean(dim=[other for other in axes if other != axis]) for axis in axes]
    with contextlib.suppress(RuntimeError):  # such as a view to another size
        output = step.run({step.reads[0]: values.clone()})
        return any(
            average.numel() == output.numel() < values.numel()
            and F.cosine_similarity(average.flatten(), output.flatten(), dim=0) > 1 - 1e-6
            for average in averages
        )
    return False


def is_fully_connected(step: Step, source: Tensor) -> bool:
    """Whether it has a weight for each pair of an input and an output value."""
    pairs = source[0].numel() * step.output[0].numel()
    return len(step.reads) == 1 and bool(step.weights) and step.weights[0].numel() >= pairs


def listed(words: list[str]) -> str:
    """The distinct words, separated by commas."""
    return ", ".join(dict.fromkeys(words))


def parts_of(model: nn.Module, steps: list[Step]) -> dict[Part, str]:
    """Describes the parts that the network has, of those that challenges require.

    `steps` are those of evaluation mode. UsageError where training mode fails; the network's own
    error is chained.
    """
    try:
        in_training = trace(copy.deepcopy(model), steps[0].output, training=True)
    except Exception as error:
        raise UsageError(f"in training mode it raised the {type(error).__name__} above") from error
    norms = [step for step in in_training if step.name == "batch_norm"]
    settings = [step.settings for step in in_training if "dropout" in step.name]
    rates = [f"{each['p']:g}" for each in settings if each["p"] and each.get("train")]
    heads: dict[str, list[str]] = {"global average pooling": [], "fully connected layer": []}
    for step, layer in list(zip(steps, layers_of(steps)))[first_with_weights(steps) :]:
        source = steps[step.reads[0]].output
        if is_global_average(step, source):
            heads["global average pooling"].append(f"of {' x '.join(map(str, source.shape[1:]))}")
        elif is_fully_connected(step, source):
            heads["fully connected layer"].append(str(layer.title))
    found = {
        Part.BATCH_NORM: norms and f"BatchNorm: {len(norms)}",
        Part.DROPOUT: rates and f"dropout: {len(rates)}, at rate {listed(rates)}",
        Part.GAP_OR_LINEAR: " and ".join(f"{k} ({listed(v)})" for k, v in heads.items() if v),
    }
    return {part: text for part, text in found.items() if text}


def warnings_of(steps: list[Step], logits: Tensor) -> list[str]:
    """Warns of likely mistakes: softmax before cross-entropy, dropout in evaluation mode."""
    warnings = []
    if torch.allclose(logits.logsumexp(dim=1), torch.zeros(len(logits)), atol=1e-4):
        warnings.append("log-softmax at the end: cross-entropy has its own, so leave it out")
    elif torch.allclose(logits.sum(dim=1), torch.ones(len(logits))) and logits.min() >= 0:
        warnings.append("softmax at the end: cross-entropy has its own, and learns badly from this")
    if any("dropout" in step.name and step.settings.get("train") for step in steps):
        warnings.append("dropout in evaluation too: write F.dropout(x, rate, self.training)")
    return [f"warning: {warning}" for warning in warnings]


def checklist(model: nn.Module, challenge: Challenge) -> list[str]:
    """The lines of the list; requirements begin with "[x]" or "[ ]".

    The network is left in evaluation mode.
    """
    count, images = count_parameters(model), torch.randn(2, 1, 28, 28)
    steps, rows = trace(model, images), rows_of(model)
    parts = parts_of(model, steps)
    trainable = sum(each.numel() for each in model.parameters() if each.requires_grad)
    frozen = f"; {trainable:,} are trainable, but all count" if trainable != count else ""
    limit = challenge.parameters
    required = {f"{count:,} parameters, each counted once ({limit}){frozen}": limit.allows(count)}
    required["output: 10 logits for each image"] = True  # checked by get_model
    required |= {parts.get(x, f"{x.value}: none"): x in parts for x in challenge.parts}
    pools = [
        before.reach for before, row in itertools.pairwise(rows) if row.title in POOLS.values()
    ]
    reach = f"; before the pools {listed(pools)}" if pools else ""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(images)
    docstring = sys.modules[type(model).__module__].__doc__ or ""
    missing = [word for word in ("Target", "Result", "Analysis") if word not in docstring]
    return [
        *(f"[{'x' if is_met else ' '}] {text}" for text, is_met in required.items()),
        *(parts.get(part, f"{part.value}: none") for part in Part if part not in challenge.parts),
        f"receptive field: {rows[-1].reach} at the end{reach}",
        f"{counter.get_total_flops() // 2 // len(images):,} multiply-adds for an image",
        f"docstring: {'no ' * bool(missing)}{', '.join(missing) or 'complete'}",
        *warnings_of(steps, logits),
    ]


def check(args: argparse.Namespace) -> None:
    """Prints the lists; RunError where a network does not meet a requirement."""
    misses = []
    for name in args.models:
        lines = checklist(get_model(name), CHALLENGES[args.challenge])
        print(f"## {name}, challenge {args.challenge}\n", *(f"- {x}" for x in lines), "", sep="\n")
        if missing := [line[4:] for line in lines if line.startswith("[ ]")]:
            misses.append(f"{name} ({'; '.join(missing)})")
    if misses:
        raise RunError(f"not what challenge {args.challenge} requires: {', '.join(misses)}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.check", __doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="such as model7")
    default = "default: %(default)s"
    parser.add_argument("--challenge", choices=[*CHALLENGES], default="8k", help=default)
    return exit_code(parser.prog, check, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
