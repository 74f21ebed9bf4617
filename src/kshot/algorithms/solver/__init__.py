"""Closed-form methods: the head of a task is the solution of a convex problem."""
