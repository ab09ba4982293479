"""Devices: the mesh, where the state and the batch lie on it, which rows a process feeds."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcls import trees

AXES = ("data", "fsdp", "model")
HEAD = r"(^|/)head/"  # where the classifiers are, also those of auxiliary heads and of a peer
Rule = tuple[str, tuple[str | None, ...]]  # (pattern of names, an axis for each dimension)


class DevicesError(ValueError):
    """There are other devices than `config.mesh` needs."""


class Layout(NamedTuple):
    """Devices, and what lies where on them."""

    mesh: Mesh  # `AXES`; the batch is split over all of them
    fsdp_min_size: int
    rules: tuple[Rule, ...]
    classes: int = 0  # that the axis `model` splits, see `of_classes`

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        platform = self.mesh.devices.flat[0].platform
        return "gpu" if platform == "cuda" else platform

    @property
    def whole(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """The sharding of a batch: rows over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    def of_classes(self, classes: int) -> "Layout":
        """Returns the layout for networks of so many classes.

        Raises:
          ValueError: the axis `model` does not divide them.
        """
        model = self.mesh.shape["model"]
        if classes % model:
            raise ValueError(
                f"config.mesh.model = {model} does not divide the {classes} classes: write "
                f"--config.model.num_classes={-(-classes // model) * model}, where the last ones "
                "have no images, or another number of devices"
            )
        return self._replace(classes=classes)

    def by_class(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `f` for split classes: a function of outputs, or of batches, inside a jitted one.

        In its arguments scores [B, classes] lie by class on the axis `model` and by image on the
        others, labels [B] by image alone; the rest stays as it is. So the classifier sees the
        features of all images of its `model`, [B, D], and what is computed of its own classes'
        scores is summed up: nobody gathers them.
        """
        if self.mesh.shape["model"] == 1:
            return f

        def place(x):
            if x.ndim != 1 and x.shape[1:] != (self.classes,):
                return x
            spec = PartitionSpec(AXES[:2], *AXES[2:] * (x.ndim - 1))
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

        return lambda *arguments: f(*jax.tree.map(place, arguments))

    def by_image(self, f: Callable[..., Any], images: int) -> Callable[..., Any]:
        """Returns `f`, which applies modules to so many images, with all features split by image.

        What goes into a module and comes out of it stays where its image is, so that parameters cut
        over `fsdp` are what is exchanged. Left to itself the compiler gathers features for layers
        whose columns are cut (of a ViT-large 20 GB a step, not 2.4), and, on CPUs, for the
        gradient of grouped kernels, also whole ones: see `_convolving`.
        """
        if self.mesh.size == 1:
            return f

        def place(x):
            of_images = getattr(x, "ndim", 0) > 1 and x.shape[0] == images
            if not of_images or x.shape[1:] == (self.classes,):  # scores: see `by_class`
                return x
            return jax.lax.with_sharding_constraint(x, self.rows)

        def each(call, arguments, keys, context):
            if context.method_name == "convolve" and len(arguments[0]) == images:
                name = "/".join((*context.module.path, "kernel"))
                return self._convolving(call, self._of_leaf(name, arguments[1]).spec)(*arguments)
            if context.method_name != "__call__" or self.mesh.shape["fsdp"] == 1:
                return call(*arguments, **keys)
            return jax.tree.map(place, call(*jax.tree.map(place, arguments), **keys))

        @functools.wraps(f)
        def within(*arguments):
            with nn.intercept_methods(each):
                return f(*arguments)

        return within

    def _convolving(self, convolve: Callable[..., Any], spec: PartitionSpec) -> Callable[..., Any]:
        """Returns `convolve`, of features and kernel, where each device takes its own images.

        A kernel that is cut as `spec` is gathered, in the backward pass once more, and of its
        gradient every device gets its own part of the sum.
        """
        rows, whole = self.rows.spec, tuple(axis for axis in AXES if axis not in spec)

        def of_part(x, w):
            w = jax.lax.pcast(w, whole, to="varying")  # else summed up over these first, uncut
            for d, axis in enumerate(spec):
                if axis:
                    w = jax.lax.all_gather(w, axis, axis=d, tiled=True)
            return convolve(x, w)

        def backward(kept, gradient):
            x, w = kept
            w = jax.lax.optimization_barrier(w)  # else it would be kept as it was gathered
            return jax.vjp(of_part, x, w)[1](gradient)

        own = convolve
        if any(spec):
            own = jax.custom_vjp(of_part)
            own.defvjp(lambda x, w: (of_part(x, w), (x, w)), backward)
        return jax.shard_map(own, mesh=self.mesh, in_specs=(rows, spec), out_specs=rows)

    def of(self, tree: Any) -> Any:
        """Returns the sharding of every leaf of a state, or of a part of it, by name and shape.

        The first of the `rules` whose pattern is found in the name of a parameter, and that has as
        many axes as it, counts, also for its momentum and its average. Of others, those of the
        heads that have a column for each of the `classes` are cut there over the axis `model`, if
        it is there; and those of at least `fsdp_min_size` elements along their longest dimension
        that the axis `fsdp` divides.

        Raises:
          ValueError: a rule that a parameter cannot be cut by.
        """
        paths = trees.paths(tree)
        params = {path.partition("params/")[2] for path in paths} - {""} or {*paths}

        def of_leaf(path, leaf):  # of a momentum the name is the end of the path
            parts = path.split("/")
            ends = ("/".join(parts[i:]) for i in range(len(parts)))
            return self._of_leaf(next(filter(params.__contains__, ends), None), leaf)

        return trees.map_with_path(of_leaf, tree)

    def _of_leaf(self, name: str | None, leaf: Any) -> NamedSharding:
        for pattern, axes in self.rules if name else ():
            if trees.matches((pattern,), name) and len(axes) == len(leaf.shape):
                sizes = [self.mesh.shape[axis] if axis else 1 for axis in axes]
                if any(n % size for n, size in zip(leaf.shape, sizes)):
                    raise ValueError(
                        f"config.mesh.rules: {(pattern, axes)} does not divide {name}, "
                        f"{list(leaf.shape)}, on a mesh of {dict(self.mesh.shape)}"
                    )
                return NamedSharding(self.mesh, PartitionSpec(*axes))
        of_classes = name and trees.matches((HEAD,), name) and leaf.shape[-1:] == (self.classes,)
        if of_classes and self.mesh.shape["model"] > 1:
            axes = (None,) * (len(leaf.shape) - 1)
            return NamedSharding(self.mesh, PartitionSpec(*axes, "model"))
        fsdp = self.mesh.shape["fsdp"]
        cuts = [d for d, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or np.prod(leaf.shape) < self.fsdp_min_size or not cuts:
            return self.whole
        axis = max(cuts, key=lambda d: leaf.shape[d])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    def check(self, params: Any) -> None:
        """Refuses rules that match no parameter, or none of so many dimensions."""
        trees.check([pattern for pattern, _ in self.rules], params, "mesh.rules")
        shapes = dict(zip(trees.paths(params), (x.shape for x in jax.tree.leaves(params))))
        for pattern, axes in self.rules:
            found = {path: x for path, x in shapes.items() if trees.matches((pattern,), path)}
            if all(len(shape) != len(axes) for shape in found.values()):
                path, shape = next(iter(found.items()))
                raise ValueError(
                    f"config.mesh.rules: {(pattern, axes)} has {len(axes)} axes, but {path} is "
                    f"{list(shape)}: write one for each dimension, or None"
                )


def make(
    *,
    data: int,
    fsdp: int,
    model: int,
    fsdp_min_size: int,
    rules: Sequence[Rule],
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """Returns the layout of `config.mesh` on `data` x `fsdp` x `model` devices.

    Args:
      data: devices along the batch; -1 takes all that the others leave. Fewer than there are is
        possible in a single process: the first ones are used.
      fsdp: devices that share one copy of large parameters and of the optimizer's state.
      model: devices that share the classes: see `Layout.by_class`.
      fsdp_min_size, rules: of `Layout.of`.
      devices: to compile for, also ones that are not here (`jax.experimental.topologies`); None:
        those that are.

    Raises:
      DevicesError: there are not so many devices, or a process would have none of them.
      ValueError: numbers or rules that are none.
    """
    here = devices is None
    devices = list(jax.devices() if here else devices)
    for key, value in (("fsdp", fsdp), ("model", model)):
        if value < 1:
            raise ValueError(f"config.mesh.{key} = {value}: write a number of devices above 0")
    if data < 1 and data != -1:
        raise ValueError(
            f"config.mesh.data = {data}: write a number of devices above 0, or -1 for all"
        )
    if fsdp_min_size < 0:
        raise ValueError(
            f"config.mesh.fsdp_min_size = {fsdp_min_size}: write a number of elements, 0 for all"
        )
    there = len(devices)
    if data == -1:
        if there % (fsdp * model):
            sizes = (("fsdp", fsdp), ("model", model))
            shared = " x ".join(f"config.mesh.{key} = {n}" for key, n in sizes if n > 1)
            raise DevicesError(f"{shared} does not divide the {there} devices")
        data = there // (fsdp * model)
    needed = data * fsdp * model
    if needed > there or (here and jax.process_count() > 1 and needed != there):
        raise DevicesError(
            f"config.mesh.data = {data} x config.mesh.fsdp = {fsdp}"
            + (f" x config.mesh.model = {model}" if model > 1 else "")
            + f" needs {needed} devices, "
            f"{there} are there in {jax.process_count()} process(es)"
        )
    if not all(map(_is_rule, rules)):
        raise ValueError(
            f"config.mesh.rules = {rules}: write pairs of a pattern and an axis for each "
            f"dimension, one of {', '.join(map(repr, AXES))}, or None, such as "
            '(("head/.*kernel$", (None, "fsdp")),)'
        )
    trees.check_regexes([pattern for pattern, _ in rules], "mesh.rules")
    # on TPUs neighbours along an axis are neighbours in the slice, also where that splits its sides
    grid = mesh_utils.create_device_mesh(
        (data, fsdp, model), devices[:needed], allow_split_physical_axes=True
    )
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(mesh, fsdp_min_size, tuple(rules))


def _is_rule(rule: Any) -> bool:
    if not (isinstance(rule, (tuple, list)) and len(rule) == 2):
        return False
    axes = rule[1]
    named = [axis for axis in axes if axis is not None] if isinstance(axes, (tuple, list)) else [0]
    return all(axis in AXES for axis in named) and len({*named}) == len(named)


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Returns the row numbers of a global batch that this process feeds, ascending."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))


def put(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Returns the global batch of which every process gives its `local_rows`."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
