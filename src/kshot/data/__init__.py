"""Data sets as distributions over tasks: the catalogue, the store, image sets, samplers and loaders."""

from kshot.data.cache import CacheWarning
from kshot.data.catalog import dataset, datasets, open_source
from kshot.data.dataset import DataSet
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.data.loader import EpisodeLoader
from kshot.data.sampler import EpisodeSampler
from kshot.data.sequences import AssociativeRecall, Copy, NGrams, PrioritySort, RepeatCopy
from kshot.data.sinusoid import Sinusoid
from kshot.data.source import TaskSource
from kshot.data.transforms import RandomAffine, Transform

__all__ = [
    "AssociativeRecall",
    "CacheWarning",
    "Copy",
    "DataSet",
    "EpisodeLoader",
    "EpisodeSampler",
    "ImageSet",
    "ImageTasks",
    "NGrams",
    "PrioritySort",
    "RandomAffine",
    "RepeatCopy",
    "Sinusoid",
    "TaskSource",
    "Transform",
    "dataset",
    "datasets",
    "open_source",
]
