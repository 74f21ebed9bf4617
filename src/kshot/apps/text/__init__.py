"""Texts: pretrained encoders from sentence-transformers, and fine-tuning them on a few sentences (``finetune``)."""

from kshot.apps.text.encoder import TextEncoder
from kshot.apps.text.intents import Intents, banking77, clinc150, draw_shots

__all__ = ["Intents", "TextEncoder", "banking77", "clinc150", "draw_shots"]
