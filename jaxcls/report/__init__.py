"""What an evaluation found, written to DIR/report/: figures, predictions and a page."""
