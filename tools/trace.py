"""What a network does with a batch of images, operation by operation, whatever its forward is."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


class Read(int):
    """In place of a tensor, the number of the step that it is the output of."""


@dataclass
class Step:
    """One operation on something that comes of the images, such as torch.ops.aten.conv2d."""

    name: str  # of the operation, the same whether it is in place or not
    operation: Any
    given: Any  # its arguments, by position and by name
    part: int  # of an operation with several outputs, the one that this is
    output: Tensor

    @property
    def reads(self) -> list[int]:
        """The numbers of the steps whose outputs it takes; 0 is the images."""
        return [leaf for leaf in tree_leaves(self.given) if isinstance(leaf, Read)]

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments and their defaults, under torch's names."""
        arguments, (args, kwargs) = self.operation._schema.arguments, self.given
        given = dict(zip((argument.name for argument in arguments), args)) | kwargs
        return {each.name: given.get(each.name, each.default_value) for each in arguments}

    @property
    def weights(self) -> list[Tensor]:
        """The matrices and filters that it combines its input with."""
        pointwise = torch.Tag.pointwise in getattr(self.operation, "tags", ())
        leaves = [] if pointwise else tree_leaves(self.given)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 1]

    @property
    def is_view(self) -> bool:
        """Whether it only arranges anew what it reads, as a transposition or a slice does."""
        alias = self.operation._schema.returns[0].alias_info
        return alias is not None and not alias.is_write

    def run(self, outputs: list[Tensor] | dict[int, Tensor]) -> Tensor:
        """Its output, where other outputs take the place of those that it read."""
        args, kwargs = tree_map_only(Read, lambda number: outputs[number], self.given)
        return tree_leaves(self.operation(*args, **kwargs))[self.part]


class Tracer(TorchDispatchMode):
    """Keeps a step for each operation that reads the images, or what comes of them."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.steps = [Step("images", None, ((), {}), 0, images)]
        self.numbers = {id(images): 0}
        self.alive: list[Any] = []  # an id would be used again

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        given = args, kwargs or {}
        read = tree_map(lambda x: Read(self.numbers[id(x)]) if id(x) in self.numbers else x, given)
        if operation._schema.is_mutable:  # what it writes into is kept as it was
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
    """The steps from images (N, 1, 28, 28), which are the first, to logits.

    In evaluation mode, unless in `training`, which moves the statistics of BatchNorm.
    """
    model.train(training)
    # In inference mode, operations come as they are called, and not taken to pieces.
    with torch.inference_mode(), Tracer(images) as tracer:
        logits = model(images)
    # Without what a network does beside its answer.
    del tracer.steps[tracer.numbers.get(id(logits), len(tracer.steps)) + 1 :]
    for step in tracer.steps:  # their weights may be asked for a gradient
        step.given = tree_map_only(Tensor, torch.clone, step.given)
    return tracer.steps
