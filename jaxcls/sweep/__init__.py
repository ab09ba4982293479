"""Search over the keys of a config: python -m jaxcls.sweep. A trial is a run of jaxcls.main."""
