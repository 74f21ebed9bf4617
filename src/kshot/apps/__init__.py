"""Domains: what their data are, and how those are encoded. One folder each; they are strangers to one another."""
