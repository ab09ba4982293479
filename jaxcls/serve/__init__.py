"""Networks behind HTTP."""
