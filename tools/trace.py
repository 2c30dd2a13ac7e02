"""Traces the operations by which a network computes logits from images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


class Read(int):
    """A reference to the output of an earlier step, by its number."""


@dataclass
class Step:
    """An operation that depends on the images, such as torch.ops.aten.conv2d, and its output."""

    name: str  # "relu" for relu and relu_
    operation: Any
    given: Any  # args and kwargs, with a Read for each output of another step
    part: int  # which of the operation's outputs this is
    output: Tensor

    @property
    def reads(self) -> list[int]:
        """The numbers of the steps whose outputs it reads; 0 is the images."""
        return [leaf for leaf in tree_leaves(self.given) if isinstance(leaf, Read)]

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        arguments, (args, kwargs) = self.operation._schema.arguments, self.given
        given = dict(zip((argument.name for argument in arguments), args)) | kwargs
        return {each.name: given.get(each.name, each.default_value) for each in arguments}

    @property
    def weights(self) -> list[Tensor]:
        """The matrices and filters among its arguments; none for a pointwise operation."""
        pointwise = torch.Tag.pointwise in getattr(self.operation, "tags", ())
        leaves = [] if pointwise else tree_leaves(self.given)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 1]

    @property
    def is_view(self) -> bool:
        """Whether its output shares the memory of its input, as a transposition does."""
        alias = self.operation._schema.returns[0].alias_info
        return alias is not None and not alias.is_write

    def run(self, outputs: list[Tensor] | dict[int, Tensor]) -> Tensor:
        """Runs the operation on other outputs in place of those that it read."""
        args, kwargs = tree_map_only(Read, lambda number: outputs[number], self.given)
        return tree_leaves(self.operation(*args, **kwargs))[self.part]


class Tracer(TorchDispatchMode):
    """Records a step for each operation that depends on the images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.steps = [Step("images", None, ((), {}), 0, images)]
        self.numbers = {id(images): 0}
        self.alive: list[Any] = []  # so that no id is used again

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        given = args, kwargs or {}
        read = tree_map(lambda x: Read(self.numbers[id(x)]) if id(x) in self.numbers else x, given)
        if operation._schema.is_mutable:  # record its arguments before it changes them
            read = tree_map_only(Tensor, torch.clone, read)
        output = operation(*given[0], **given[1])
        if any(isinstance(leaf, Read) for leaf in tree_leaves(read)):
            name = operation._schema.name.removeprefix("aten::").removesuffix("_")
            for part, tensor in enumerate(tree_leaves(output)):
                if isinstance(tensor, Tensor):
                    self.numbers[id(tensor)] = len(self.steps)
                    self.steps.append(Step(name, operation, read, part, tensor.clone()))
        self.alive.append((given, output))
        return output


def trace(model: nn.Module, images: Tensor, training: bool = False) -> list[Step]:
    """The steps from images (N, 1, 28, 28), the first, to logits.

    The model is left in evaluation mode, or in training mode, which updates BatchNorm statistics.
    """
    model.train(training)
    # In inference mode, operations are recorded as called, not decomposed.
    with torch.inference_mode(), Tracer(images) as tracer:
        logits = model(images)
    # Operations after the logits do not affect them.
    del tracer.steps[tracer.numbers.get(id(logits), len(tracer.steps)) + 1 :]
    for step in tracer.steps:  # inference tensors cannot take part in a later backward pass
        step.given = tree_map_only(Tensor, torch.clone, step.given)
    return tracer.steps


def first_with_weights(steps: list[Step]) -> int:
    """The number of the first step with weights; that of all steps if none has any."""
    return next((at for at, step in enumerate(steps) if step.weights), len(steps))
