"""Images on their way to the device: sources -> decode -> ops -> loader, then device, mixing."""
