"""Writes the small files beside it with the real frameworks: python make.py torch | paddle."""

import sys
from pathlib import Path

HERE = Path(__file__).parent


def torch() -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    row = torch.arange(10.0)
    weights = {
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "half": row[:5].half() / 2,
        "bfloat16": row[:3].bfloat16() / 4,
        "view": row[3:7],
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.arange(4.0).reshape(2, 2)),
    }
    torch.save(weights, HERE / "new.pth")
    torch.save(weights, HERE / "old.pth", _use_new_zipfile_serialization=False)
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"epoch": 3, "state_dict": parallel}, HERE / "training.pt")
    torch.save({"model": weights, "model_ema": weights}, HERE / "two.pt")
    torch.save(torch.nn.Linear(1, 1), HERE / "module.pt")
    alone = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    save_file(alone, HERE / "new.safetensors")
    alone.pop("bfloat16")  # NumPy has none
    arrays = {name: tensor.numpy() for name, tensor in alone.items()}
    np.savez(HERE / "plain.npz", **arrays | {"transposed": np.asfortranarray(arrays["transposed"])})
    np.savez_compressed(HERE / "packed.npz", **arrays)


def paddle() -> None:
    import paddle

    weights = paddle.nn.Sequential(paddle.nn.Linear(2, 3), paddle.nn.BatchNorm(3)).state_dict()
    for i, tensor in enumerate(weights.values()):
        tensor.set_value(paddle.arange(tensor.size, dtype="float32").reshape(tensor.shape) + i)
    paddle.save(weights, str(HERE / "model.pdparams"))
    paddle.save(dict(weights), str(HERE / "old_protocol.pdparams"), protocol=2)


if __name__ == "__main__":
    {"torch": torch, "paddle": paddle}[sys.argv[1]]()
