"""Transductive methods: all queries of a task are answered together."""
