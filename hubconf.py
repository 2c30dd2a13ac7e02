"""The trained networks for PyTorch Hub: torch.hub.load(REPO, "model4")."""

import importlib.util as _util
from pathlib import Path as _Path

import torch as _torch

dependencies = ["torch"]


def _entry_point(path):
    def load(pretrained=True, **sizes):
        """Images (N, 1, 28, 28), normalized by (0.1307, 0.3081), to logits (N, 10)."""
        # From its file: a module of the same name may be another project's.
        spec = _util.spec_from_file_location(f"mnist_{path.stem}", path)
        module = _util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = getattr(module, f"Model_{path.stem.removeprefix('model').lstrip('_')}")(**sizes)
        if pretrained:
            weights = path.parent / "weights" / f"{path.stem}.pt"
            model.load_state_dict(_torch.load(weights, map_location="cpu", weights_only=True))
        return model.train(not pretrained)

    return load


for _path in sorted(_Path(__file__).parent.glob("model[0-9_]*.py")):
    globals()[_path.stem] = _entry_point(_path)
