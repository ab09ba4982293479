"""Devices: the mesh, where the state and the batch lie on it, which rows a process feeds."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(*, data: int, fsdp: int) -> Mesh:
    """Returns the mesh of `data` x `fsdp` devices; the batch is split over both axes.

    Args:
      data: devices along the batch; -1 takes all that `fsdp` leaves. Fewer than there are is
        possible in a single process: the first ones are used.
      fsdp: devices that share one copy of large parameters and of the optimizer's state.

    Raises:
      ValueError: there are not so many devices, or a process would have none of them.
    """
    there = jax.device_count()
    if fsdp < 1:
        raise ValueError(f"config.mesh.fsdp = {fsdp}: write a number of devices above 0")
    if data < 1 and data != -1:
        raise ValueError(
            f"config.mesh.data = {data}: write a number of devices above 0, or -1 for all"
        )
    if data == -1:
        if there % fsdp:
            raise ValueError(f"config.mesh.fsdp = {fsdp} does not divide the {there} devices")
        data = there // fsdp
    if data * fsdp > there or (jax.process_count() > 1 and data * fsdp != there):
        raise ValueError(
            f"config.mesh.data = {data} x config.mesh.fsdp = {fsdp} needs {data * fsdp} devices, "
            f"{there} are there in {jax.process_count()} process(es)"
        )
    devices = None if data * fsdp == there else jax.devices()[: data * fsdp]
    return jax.make_mesh(
        (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over all devices."""
    return NamedSharding(mesh, BATCH)


def state_shardings(mesh: Mesh, state: Any, fsdp_min_size: int) -> Any:
    """Returns the sharding of every leaf of a train state, by its shape alone.

    With an `fsdp` axis, leaves of at least `fsdp_min_size` elements are cut along their longest
    dimension that it divides: a parameter, its momentum and its average are cut alike.
    """
    fsdp = mesh.shape["fsdp"]

    def of(leaf):
        cuts = [d for d, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or np.prod(leaf.shape) < fsdp_min_size or not cuts:
            return replicated(mesh)
        axis = max(cuts, key=lambda d: leaf.shape[d])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(of, state)


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Returns the row numbers of a global batch that this process feeds, ascending."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))


def put(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Returns the global batch of which every process gives its `local_rows`."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
