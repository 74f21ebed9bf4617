"""Pictures: reading them, and pretrained encoders from timm."""

from kshot.apps.vision.encoder import DEFAULT, ImageEncoder
from kshot.apps.vision.faces import orl_faces
from kshot.apps.vision.load import MAX_PIXELS, image_key, read_image, unreadable
from kshot.apps.vision.own_encoder import ModuleEncoder
from kshot.apps.vision.preprocess import Preprocessing

__all__ = [
    "DEFAULT",
    "MAX_PIXELS",
    "ImageEncoder",
    "ModuleEncoder",
    "Preprocessing",
    "image_key",
    "orl_faces",
    "read_image",
    "unreadable",
]
