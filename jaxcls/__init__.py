"""jaxcls: image classifiers on TPUs and GPUs with JAX and Flax."""

__version__ = "0.2.0"
