"""To be run from the checkout, as the first lines of each say: karafka-lite run examples.quickstart:app."""
