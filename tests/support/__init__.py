"""What the tests need and what is no test: servers, observers, members, waiting."""
