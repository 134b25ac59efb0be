"""The load: when requests are due, how they are streamed, what is recorded of each."""
