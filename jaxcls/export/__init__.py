"""Networks as other programs run them: one file with weights, preprocessing and class names."""
