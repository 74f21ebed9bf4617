"""Molecules as SMILES: fingerprints from RDKit."""

from kshot.apps.molecules.encoder import MoleculeEncoder

__all__ = ["MoleculeEncoder"]
