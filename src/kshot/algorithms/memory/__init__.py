"""Model-based methods: networks with a memory, that learn how to learn by reading the support."""
