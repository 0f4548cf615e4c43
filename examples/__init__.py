"""To be run from the checkout: karafka-lite run examples.quickstart:app."""
